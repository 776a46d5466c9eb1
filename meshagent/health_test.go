package meshagent

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/weft-mesh/weft/meshagent/program"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// What load balancers are told, byte by byte as by kube-proxy.
func TestHealthCheckAnswers(t *testing.T) {
	h := newHealthChecks(nil, tables.New(), slog.New(slog.DiscardHandler))
	h.set([]program.Health{
		{Namespace: "shop", Name: "web", Port: 30090, Local: 2, Written: true}, {Namespace: "shop", Name: "none", Port: 30091, Written: true},
		{Namespace: "shop", Name: "new", Port: 30092, Local: 1}, {Namespace: "shop", Name: "later", Port: 30092, Local: 9, Written: true},
	})
	for port, want := range map[uint16]struct {
		code         int
		weight, body string
	}{
		30090: {200, "2", "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}"},
		30091: {503, "0", "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"none\"\n\t},\n\t\"localEndpoints\": 0,\n\t\"serviceProxyHealthy\": true\n}"},
		30092: {503, "1", "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"new\"\n\t},\n\t\"localEndpoints\": 1,\n\t\"serviceProxyHealthy\": false\n}"},
		30093: {404, "", "no such service\n"},
	} {
		w := httptest.NewRecorder()
		h.answer(w, port)
		if w.Code != want.code || w.Header().Get("X-Load-Balancing-Endpoint-Weight") != want.weight || w.Body.String() != want.body {
			t.Errorf("port %d: %d, weight %q, %q", port, w.Code, w.Header().Get("X-Load-Balancing-Endpoint-Weight"), w.Body)
		}
		if kind := w.Header().Get("Content-Type"); want.code != 404 && (kind != "application/json" || w.Header().Get("X-Content-Type-Options") != "nosniff") {
			t.Errorf("port %d: %v", port, w.Header())
		}
	}
}

// toldListener says when it is closed.
type toldListener struct {
	net.Listener
	once   sync.Once
	closed chan struct{}
}

func (l *toldListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// A server begins and ends with its service.
func TestHealthChecksListen(t *testing.T) {
	opened := make(chan *toldListener, 1)
	h := newHealthChecks(func(uint16) (net.Listener, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		told := &toldListener{Listener: l, closed: make(chan struct{})}
		opened <- told
		return told, nil
	}, tables.New(), slog.New(slog.DiscardHandler))
	if err := h.tables.DB.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = h.tables.DB.Stop() }()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()

	h.set([]program.Health{{Name: "web", Port: 30090, Local: 1, Written: true}})
	first := <-opened
	ask := func(l *toldListener) (int, string) {
		t.Helper()
		r, err := http.Get("http://" + l.Addr().String() + "/healthz")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		_, _ = io.Copy(io.Discard, r.Body)
		return r.StatusCode, r.Header.Get("X-Load-Balancing-Endpoint-Weight")
	}
	if code, weight := ask(first); code != 200 || weight != "1" {
		t.Errorf("%d, weight %s", code, weight)
	}
	h.set([]program.Health{{Name: "web", Port: 30090, Written: true}}) // the same server tells it
	if code, weight := ask(first); code != 503 || weight != "0" {
		t.Errorf("%d, weight %s", code, weight)
	}
	h.set([]program.Health{{Name: "web", Port: 30091, Local: 1, Written: true}})
	<-first.closed
	second := <-opened
	if code, _ := ask(second); code != 200 {
		t.Error(code)
	}
	cancel()
	<-second.closed
	if err := <-done; err != nil {
		t.Error(err)
	}
}
