package meshagent

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"

	"github.com/weft-mesh/weft/meshagent/program"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// healthChecks tell load balancers, in kube-proxy's words, whether this node has backends of
// services with externalTrafficPolicy Local: one server for each such service.
type healthChecks struct {
	listen func(port uint16) (net.Listener, error) // nil: nobody is told
	tables *tables.Tables
	log    *slog.Logger
	news   chan struct{}

	mu   sync.Mutex // guards what follows
	want map[uint16]program.Health
}

func newHealthChecks(listen func(uint16) (net.Listener, error), t *tables.Tables, log *slog.Logger) *healthChecks {
	return &healthChecks{listen: listen, tables: t, log: log, news: make(chan struct{}, 1)}
}

// set takes what is told, of each port the first.
func (h *healthChecks) set(all []program.Health) {
	next := make(map[uint16]program.Health, len(all))
	for _, c := range all {
		if _, taken := next[c.Port]; !taken {
			next[c.Port] = c
		}
	}
	h.mu.Lock()
	h.want = next
	h.mu.Unlock()
	select {
	case h.news <- struct{}{}:
	default:
	}
}

func (h *healthChecks) of(port uint16) (program.Health, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c, ok := h.want[port]
	return c, ok
}

// Run listens where it has something to tell, until ctx ends.
func (h *healthChecks) Run(ctx context.Context) error {
	if h.listen == nil {
		return nil
	}
	running := map[uint16]func(){}
	defer func() {
		for _, stop := range running {
			stop()
		}
	}()
	for {
		for port, stop := range running {
			if _, ok := h.of(port); !ok {
				stop()
				delete(running, port)
			}
		}
		h.mu.Lock()
		for port := range h.want {
			if running[port] == nil {
				running[port] = h.serve(ctx, port)
			}
		}
		h.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-h.news:
		}
	}
}

// serve starts a server, and returns what ends it.
func (h *healthChecks) serve(ctx context.Context, port uint16) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	at := fmt.Sprintf(":%d", port)
	s := server{
		trouble: partTrouble(h.tables, "listen "+at, "load balancers are told nothing at "+at, h.log),
		listen:  func() (net.Listener, error) { return h.listen(port) },
		http:    http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { h.answer(w, port) }),
		log:     h.log,
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Run(ctx)
	}()
	return func() {
		cancel()
		<-done
		s.trouble.tell(nil)
	}
}

// answer says what kube-proxy says.
func (h *healthChecks) answer(w http.ResponseWriter, port uint16) {
	c, ok := h.of(port)
	if !ok {
		http.Error(w, "no such service", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(c.Local))
	if c.Local == 0 || !c.Written {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, _ = fmt.Fprintf(w, "{\n\t\"service\": {\n\t\t\"namespace\": %q,\n\t\t\"name\": %q\n\t},\n\t\"localEndpoints\": %d,\n\t\"serviceProxyHealthy\": %v\n}", c.Namespace, c.Name, c.Local, c.Written)
}
