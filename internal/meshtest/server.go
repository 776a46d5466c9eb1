package meshtest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing/synctest"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/store/storetest"
)

// Server is an API server of a cluster: its disk outlives the process.
type Server struct {
	Name string
	// Link leads to the cluster's store.
	Link *storetest.Link

	cluster *Cluster
	addr    netip.Addr
	dir     string
	stop    func()

	mu    sync.Mutex   // guards what follows
	api   http.Handler // nil: it does not run
	peers map[*Cluster]*storetest.Link
}

// AddServer adds one more API server to the cluster, and starts it.
func (c *Cluster) AddServer() *Server {
	c.mesh.t.Helper()
	s := &Server{
		Name: fmt.Sprintf("%s-server-%d", c.Name, len(c.Servers)+1), Link: storetest.NewLink(c.Store),
		cluster: c, addr: addr(c.id, 250-len(c.Servers)), dir: c.mesh.t.TempDir(), peers: map[*Cluster]*storetest.Link{},
	}
	c.mu.Lock()
	c.Servers = append(c.Servers, s)
	c.mu.Unlock()
	s.Start()
	return s
}

// Addr is the address at which the server is known.
func (s *Server) Addr() netip.Addr { return s.addr }

// Running reports whether the server runs.
func (s *Server) Running() bool { return s.handler() != nil }

func (s *Server) handler() http.Handler {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.api
}

func (s *Server) setHandler(h http.Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.api = h
}

// Start starts the server, again after Stop or Kill.
func (s *Server) Start() {
	c, t := s.cluster, s.cluster.mesh.t
	t.Helper()
	if s.Running() {
		return
	}
	conf := apiserver.Defaults()
	conf.Cluster, conf.ID, conf.PodCIDRs = c.Name, uint32(c.id), []netip.Prefix{c.podCIDR()}
	conf.ServiceCIDR = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(100 + c.id), 0, 0}), 16)
	if c.dualStack {
		conf.PodCIDRs = append(conf.PodCIDRs, netip.PrefixFrom(six(c.id, 0), 48))
		conf.IPv6ServiceCIDR = netip.PrefixFrom(six(100+c.id, 0), 112)
	}
	conf.Advertise, conf.DataDir, conf.AdminConfig = s.addr, s.dir, filepath.Join(s.dir, "admin.conf")
	conf.GossipPort, conf.WANGossipPort, conf.Log = 0, 0, slog.New(slog.DiscardHandler)
	edges := apiserver.Edges{Store: s.Link.Root(), Endpoints: []string{c.endpoint()}, Peers: peers{s}, Servers: siblings{c}}

	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan http.Handler, 1), make(chan error, 1)
	go func() { done <- apiserver.RunOn(ctx, conf, edges, func(h http.Handler) { ready <- h }) }()
	select {
	case h := <-ready:
		s.setHandler(h)
	case err := <-done:
		cancel()
		t.Fatalf("API server %s: %v", s.Name, err)
	}
	s.stop = sync.OnceFunc(func() {
		cancel()
		s.setHandler(nil)
		if err := <-done; err != nil {
			t.Errorf("API server %s: %v", s.Name, err)
		}
	})
	t.Cleanup(s.stop)
	own, err := authority.Open(filepath.Join(s.dir, "pki"), c.Name)
	if err != nil {
		t.Fatal(err)
	}
	c.setRoots(own.Pool())
	synctest.Wait() // one of them leads
}

// Stop stops the server, which says so in the store.
func (s *Server) Stop() { s.stop() }

// Kill ends the server before it can say anything.
func (s *Server) Kill() {
	s.Link.Set(storetest.Cut)
	s.stop()
	s.Link.Set(storetest.Works)
}

// LoseDisk empties the data folder of a server that does not run.
func (s *Server) LoseDisk() { emptied(s.cluster.mesh.t, s.dir) }

// emptied empties a folder.
func emptied(t interface{ Fatal(...any) }, dir string) {
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
}

// to returns the way to another cluster's store.
func (s *Server) to(c *Cluster) *storetest.Link {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.peers[c] == nil {
		s.peers[c] = storetest.NewLink(c.Store)
	}
	return s.peers[c]
}

// Call calls the API as an operator, and returns its refusal.
func (s *Server) Call(method, path string, body []byte, into any) error {
	h := s.handler()
	if h == nil {
		return fmt.Errorf("API server %s does not run", s.Name)
	}
	w := serve(h, httptest.NewRequest(method, path, bytes.NewReader(body)), authority.Admin)
	if w.Code >= 400 {
		refusal := &api.Error{}
		if err := json.Unmarshal(w.Body.Bytes(), refusal); err != nil {
			return fmt.Errorf("%s %s: %d %s", method, path, w.Code, w.Body)
		}
		return refusal
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(w.Body.Bytes(), into)
}

func serve(h http.Handler, r *http.Request, user string) *httptest.ResponseRecorder {
	r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{Subject: pkix.Name{CommonName: user}}}}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// siblings carries requests between the API servers of a cluster.
type siblings struct{ cluster *Cluster }

// RoundTrip implements http.RoundTripper.
func (o siblings) RoundTrip(r *http.Request) (*http.Response, error) {
	o.cluster.mu.Lock()
	all := slices.Clone(o.cluster.Servers)
	o.cluster.mu.Unlock()
	for _, s := range all {
		h := s.handler()
		if s.addr.String() != r.URL.Hostname() || h == nil {
			continue
		}
		if err := s.Link.Awake(r.Context()); err != nil {
			return nil, err
		}
		body := r.Body
		if body == nil {
			body = http.NoBody
		}
		to := httptest.NewRequestWithContext(r.Context(), r.Method, r.URL.RequestURI(), body)
		to.Header = r.Header.Clone()
		answer := serve(h, to, authority.Root).Result()
		if err := r.Context().Err(); err != nil {
			return nil, err // who has given up hears no answer
		}
		return answer, nil
	}
	return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
}
