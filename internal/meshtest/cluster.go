package meshtest

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

// Cluster is API servers on one store, and nodes.
type Cluster struct {
	Name string
	// Store outlives the API servers, and may be made to fail, go back in time or forget.
	// Its leases end by the clock.
	Store *storetest.Etcd
	// Servers are its API servers, the first of which New has started.
	Servers []*Server
	// Nodes are those that were added, by name.
	Nodes map[string]*Node

	mesh      *Mesh
	id        int
	dualStack bool

	mu    sync.Mutex     // guards what follows, and Servers against requests between them
	roots *x509.CertPool // of its authority
	// signed are the certificates that roots have signed, because to verify one costs more
	// than anything else that a connection does here.
	signed map[string]bool
}

func newCluster(m *Mesh, name string, id int) *Cluster {
	c := &Cluster{Name: name, Store: storetest.NewEtcd(), Nodes: map[string]*Node{}, mesh: m, id: id}
	c.Store.TimeLeases()
	return c
}

func (c *Cluster) endpoint() string { return fmt.Sprintf("https://%v:2379", addr(c.id, 250)) }

func (c *Cluster) podCIDR() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(c.id), 0, 0}), 16)
}

// Start starts the cluster's API servers, again after Stop.
func (c *Cluster) Start() {
	c.mesh.t.Helper()
	for _, s := range c.Servers {
		s.Start()
	}
}

// Stop stops the API servers. Their store stays.
func (c *Cluster) Stop() {
	for _, s := range c.Servers {
		s.Stop()
	}
}

// Restore puts back a copy of the store as `weft restore` does: no API server runs
// meanwhile, and the copy has no canaries; and then compacts it, if so wanted.
func (c *Cluster) Restore(copied storetest.Copy, compact bool) {
	c.Restarting(func() {
		c.Store.PutBack(copied, wire.CiliumSyncedPrefix)
		if compact {
			c.Store.Store.Compact()
		}
	})
}

// Restarting does something while the API servers that run are killed and not started yet.
func (c *Cluster) Restarting(do func()) {
	var killed []*Server
	for _, s := range c.Servers {
		if s.Running() {
			s.Kill()
			killed = append(killed, s)
		}
	}
	do()
	for _, s := range killed {
		s.Start()
	}
}

// Depose ends the lease of the API server that leads, as if it had been silent for too long.
func (c *Cluster) Depose() {
	ctx := c.mesh.t.Context()
	kv, err := c.Store.Get(ctx, wire.LeaderKey)
	if err != nil {
		return
	}
	if held, err := wire.Unmarshal[wire.Leader](kv.Value); err == nil {
		if kv, err := c.Store.Get(ctx, wire.ServerAliveKey(held.Server.ID)); err == nil {
			c.Store.Expire(kv.Lease)
		}
	}
}

func (c *Cluster) setRoots(pool *x509.CertPool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.roots, c.signed = pool, map[string]bool{}
}

// trusts returns an error unless the cluster's authority has signed a certificate.
func (c *Cluster) trusts(leaf *x509.Certificate) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if c.signed[string(leaf.Raw)] && now.After(leaf.NotBefore) && now.Before(leaf.NotAfter) {
		return nil
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: c.roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err == nil {
		c.signed[string(leaf.Raw)] = true
	}
	return err
}

// Call calls the API of the first server that runs, as an operator, and returns its refusal.
func (c *Cluster) Call(method, path string, body []byte, into any) error {
	for _, s := range c.Servers {
		if s.Running() {
			return s.Call(method, path, body, into)
		}
	}
	return fmt.Errorf("no API server of %s runs", c.Name)
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

// userOf returns the user whose certificate this is.
func (c *Cluster) userOf(cert, key string) (string, error) {
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		return "", err
	}
	return c.user(&tls.Config{Certificates: []tls.Certificate{pair}})
}
