package apiserver

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/flow"
	"github.com/weft-mesh/weft/wire"
)

// How long the API server waits for an agent, and before it asks again.
const (
	agentPatience = 3 * time.Second
	agentRetry    = time.Second
)

// agents talks to the agents' APIs as the API server.
type agents struct {
	conf *tls.Config
	port int // api.AgentPort, except in tests

	mu      sync.Mutex // guards clients
	clients map[agentAt]*api.Client
}

// agentAt is a node and the host:port of its agent.
type agentAt struct{ node, host string }

func (a *agents) client(node wire.Registration) (*api.Client, error) {
	if len(node.Addresses) == 0 {
		return nil, fmt.Errorf("node %s is registered without an address", node.Name)
	}
	host := net.JoinHostPort(node.Addresses[0].String(), strconv.Itoa(a.port))
	a.mu.Lock()
	defer a.mu.Unlock()
	at := agentAt{node.Name, host}
	c := a.clients[at]
	if c == nil {
		c = api.NewClientTLS("agent of node "+node.Name, []*url.URL{{Scheme: "https", Host: host}}, agentOf(node.Name, a.conf))
		a.clients[at] = c
	}
	return c, nil
}

// agentOf accepts a node's agent alone, by the name that its certificate was issued to. Whether
// that says the address does not matter: an agent on an API server's machine has none that
// does.
func agentOf(node string, conf *tls.Config) *tls.Config {
	if conf == nil {
		return nil
	}
	conf = conf.Clone()
	conf.InsecureSkipVerify = true // what follows verifies instead
	conf.VerifyConnection = func(s tls.ConnectionState) error {
		between := x509.NewCertPool()
		for _, c := range s.PeerCertificates[1:] {
			between.AddCert(c)
		}
		leaf := s.PeerCertificates[0]
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: conf.RootCAs, Intermediates: between}); err != nil {
			return &tls.CertificateVerificationError{UnverifiedCertificates: s.PeerCertificates, Err: err}
		}
		if leaf.Subject.CommonName != node {
			return fmt.Errorf("it shows the certificate of %q, not that of node %s", leaf.Subject.CommonName, node)
		}
		return nil
	}
	return conf
}

// keep drops the clients of nodes that were removed or moved to another address.
func (a *agents) keep(register map[string]wire.Registration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for at, c := range a.clients {
		r := register[at.node]
		if len(r.Addresses) == 0 || net.JoinHostPort(r.Addresses[0].String(), strconv.Itoa(a.port)) != at.host {
			c.Close()
			delete(a.clients, at)
		}
	}
}

func (a *agents) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.clients {
		c.Close()
	}
}

// proxy forwards a request to the agent of the node in the path.
func (s *server) proxy(path func(*http.Request) string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		text, err := s.askAgent(r.Context(), r.PathValue("name"), path(r), r.URL.Query())
		if err != nil {
			s.fail(w, r, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(text) // a caller that went away needs no error
	}
}

func (s *server) askAgent(ctx context.Context, node, path string, query url.Values) ([]byte, error) {
	register, err := s.registrar.Register(ctx)
	if err != nil {
		return nil, err
	}
	// Nodes may also be named as they are shown: cluster/node.
	reg, ok := register[strings.TrimPrefix(node, s.cluster.Name+"/")]
	if !ok {
		return nil, api.NotFound("`weft node list` shows them", "cluster %s has no node %q", s.cluster.Name, node)
	}
	c, err := s.agents.client(reg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, agentPatience)
	defer cancel()
	text, err := c.GetRaw(ctx, path, query)
	if err == nil {
		return text, nil
	}
	var refusal *api.Error
	if errors.As(err, &refusal) {
		return nil, refusal
	}
	if within := errors.Unwrap(err); within != nil {
		err = within // without "reach cluster", which it is not
	}
	return nil, api.Refuse(http.StatusBadGateway, "check that `weft agent` runs there; its traffic continues", "the agent of node %s does not answer: %v", node, err)
}

// observe merges the flows of all nodes. Without follow, it returns the flows that agents
// keep, in order of time, and a header names the nodes whose agents did not answer. With
// follow, flows are sent as they happen, also those of nodes that come back.
func (s *server) observe(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	request, err := flow.ParseRequest(query)
	if err != nil {
		s.fail(w, r, api.Invalid("", "%v", err))
		return
	}
	register, err := s.registrar.Register(r.Context())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	control := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
	if !request.Follow {
		kept, missing := s.keptFlows(r.Context(), register, request)
		if len(missing) > 0 {
			w.Header().Set(api.SilentNodes, strings.Join(missing, ","))
		}
		for _, line := range kept {
			if _, err := w.Write(line.text); err != nil {
				return
			}
		}
		return
	}
	w.WriteHeader(http.StatusOK)
	if control.Flush() != nil {
		return
	}
	var mu sync.Mutex // held over a write
	group, ctx := errgroup.WithContext(r.Context())
	for _, reg := range register {
		group.Go(func() error {
			return s.followFlows(ctx, reg, request, func(line []byte) error {
				mu.Lock()
				defer mu.Unlock()
				if _, err := w.Write(append(slices.Clip(line), '\n')); err != nil {
					return err
				}
				return control.Flush()
			})
		})
	}
	_ = group.Wait() // the reader went away, or the server stops
}

// timed is a line with the time of its flow.
type timed struct {
	at   time.Time
	text []byte
}

// keptFlows asks every agent for the flows it keeps, and returns the newest of them.
func (s *server) keptFlows(ctx context.Context, register map[string]wire.Registration, request flow.Request) (kept []timed, missing []string) {
	ctx, cancel := context.WithTimeout(ctx, agentPatience)
	defer cancel()
	var mu sync.Mutex
	var group errgroup.Group
	for _, name := range slices.Sorted(maps.Keys(register)) {
		group.Go(func() error {
			var lines []timed
			c, err := s.agents.client(register[name])
			if err == nil {
				_, err = c.Observe(ctx, request.Values(), func(line []byte) error {
					var f struct {
						Time time.Time `json:"time"`
					}
					if err := json.Unmarshal(line, &f); err != nil {
						return err
					}
					lines = append(lines, timed{f.Time, append(slices.Clone(line), '\n')})
					return nil
				})
			}
			mu.Lock()
			defer mu.Unlock()
			kept = append(kept, lines...)
			if err != nil {
				missing = append(missing, name)
			}
			return nil
		})
	}
	_ = group.Wait()
	slices.SortStableFunc(kept, func(a, b timed) int { return a.at.Compare(b.at) })
	slices.SortFunc(missing, cmp.Compare)
	if request.Last > 0 && len(kept) > request.Last {
		kept = kept[len(kept)-request.Last:]
	}
	return kept, missing
}

// followFlows passes on an agent's flows until ctx ends or each fails. An agent that goes
// away is asked again, then only for new flows.
func (s *server) followFlows(ctx context.Context, reg wire.Registration, request flow.Request, each func([]byte) error) error {
	c, err := s.agents.client(reg)
	if err != nil {
		return nil // a node without an address has no flows
	}
	var ended error
	for ctx.Err() == nil && ended == nil {
		_, _ = c.Observe(ctx, request.Values(), func(line []byte) error {
			request.Last = 0
			ended = each(line)
			return ended
		})
		select {
		case <-ctx.Done():
		case <-time.After(agentRetry):
		}
	}
	return ended
}
