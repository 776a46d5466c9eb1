package meshtest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"sync"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/store/storetest"
)

// Cluster is an API server on its store, and nodes.
type Cluster struct {
	Name string
	// Store outlives the API server, and may be made to fail, go back in time or forget.
	Store *storetest.Etcd
	// Nodes are those that were added, by name.
	Nodes map[string]*Node

	mesh *Mesh
	id   int
	dir  string
	api  http.Handler
	stop func()
}

func newCluster(m *Mesh, name string, id int) *Cluster {
	return &Cluster{Name: name, Store: storetest.NewEtcd(), Nodes: map[string]*Node{}, mesh: m, id: id, dir: m.t.TempDir()}
}

func (c *Cluster) endpoint() string { return fmt.Sprintf("https://%v:2379", addr(c.id, 250)) }

func (c *Cluster) podCIDR() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(c.id), 0, 0}), 16)
}

// Start starts the cluster's API server, again after Stop.
func (c *Cluster) Start() {
	t := c.mesh.t
	t.Helper()
	conf := apiserver.Defaults()
	conf.Cluster, conf.ID, conf.PodCIDRs = c.Name, uint32(c.id), []netip.Prefix{c.podCIDR()}
	conf.ServiceCIDR = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(100 + c.id), 0, 0}), 16)
	conf.Advertise, conf.DataDir, conf.AdminConfig = addr(c.id, 250), c.dir, filepath.Join(c.dir, "admin.conf")
	conf.GossipPort, conf.WANGossipPort, conf.Log = 0, 0, slog.New(slog.DiscardHandler)

	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan http.Handler, 1), make(chan error, 1)
	go func() {
		done <- apiserver.RunOn(ctx, conf, apiserver.Edges{Store: c.Store, Endpoints: []string{c.endpoint()}, Peers: peers{c.mesh, c}}, func(h http.Handler) { ready <- h })
	}()
	select {
	case c.api = <-ready:
	case err := <-done:
		cancel()
		t.Fatalf("API server of %s: %v", c.Name, err)
	}
	c.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("API server of %s: %v", c.Name, err)
		}
	})
	t.Cleanup(c.stop)
	synctest.Wait() // it leads
}

// Stop stops the API server. Its store stays.
func (c *Cluster) Stop() { c.stop() }

// trusts returns an error unless the cluster's authority has signed a certificate.
func (c *Cluster) trusts(leaf *x509.Certificate) error {
	own, err := authority.Open(filepath.Join(c.dir, "pki"), c.Name)
	if err != nil {
		return err
	}
	_, err = leaf.Verify(x509.VerifyOptions{Roots: own.Pool(), CurrentTime: time.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err
}

// Call calls the API as an operator, and returns its refusal.
func (c *Cluster) Call(method, path string, body []byte, into any) error {
	r := httptest.NewRequest(method, path, bytes.NewReader(body))
	r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{Subject: pkix.Name{CommonName: authority.Admin}}}}
	w := httptest.NewRecorder()
	c.api.ServeHTTP(w, r)
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

// must is Call where a refusal ends the test.
func (c *Cluster) must(method, path string, body, into any) {
	c.mesh.t.Helper()
	text, raw := body.([]byte)
	if !raw && body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			c.mesh.t.Fatal(err)
		}
	}
	if err := c.Call(method, path, text, into); err != nil {
		c.mesh.t.Fatalf("%s: %s %s: %v", c.Name, method, path, err)
	}
}

// Apply applies a manifest.
func (c *Cluster) Apply(manifest string) {
	c.mesh.t.Helper()
	c.must(http.MethodPost, "/v1/apply", []byte(manifest), nil)
}

// Delete deletes an object.
func (c *Cluster) Delete(plural, namespace, name string) {
	c.mesh.t.Helper()
	c.must(http.MethodDelete, "/v1/objects/"+plural+"/"+namespace+"/"+name, nil, nil)
}

// Status is what `weft status` shows of the cluster.
func (c *Cluster) Status() (s api.Status) {
	c.mesh.t.Helper()
	c.must(http.MethodGet, "/v1/status", nil, &s)
	return s
}

// Invite invites another cluster.
func (c *Cluster) Invite(other *Cluster) (in api.Invite) {
	c.mesh.t.Helper()
	c.must(http.MethodPost, "/v1/peers/invite", api.InviteRequest{Peer: other.Name}, &in)
	return in
}

// Add adds the cluster of an invite as a peer.
func (c *Cluster) Add(in api.Invite) {
	c.mesh.t.Helper()
	c.must(http.MethodPost, "/v1/peers", in, nil)
}

// Remove removes a peer.
func (c *Cluster) Remove(peer *Cluster) {
	c.mesh.t.Helper()
	c.must(http.MethodDelete, "/v1/peers/"+peer.Name, nil, nil)
}

// connect returns the store as the owner of a certificate may use it.
func (c *Cluster) connect(cert, key string) (*storetest.Client, error) {
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		return nil, err
	}
	if block, _ := pem.Decode([]byte(cert)); block == nil {
		return nil, errors.New("not a certificate")
	}
	user, err := c.user(&tls.Config{Certificates: []tls.Certificate{pair}})
	if err != nil {
		return nil, err
	}
	return c.Store.As(user), nil
}
