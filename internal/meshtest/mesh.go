// Package meshtest raises whole clusters in one process, without root: real API servers and
// real agents, on twins of etcd, of the kernel's maps, of tunnels and of the network. In a
// testing/synctest bubble the clock is a twin too, and exact.
//
// No packet passes here: what the kernel does with the maps is package bpf's to test, and
// the lab's.
package meshtest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/apiserver/mirror"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/tunnel/probe/probetest"
	"github.com/weft-mesh/weft/tunnel/tunneltest"
)

// Mesh is a number of clusters and what is between them.
type Mesh struct {
	t *testing.T
	// Probes carries the probes between all nodes.
	Probes probetest.Fabric
	wire   tunneltest.Wire

	mu       sync.Mutex          // guards what follows
	clusters map[string]*Cluster // by the endpoint of their store
	cut      map[string]bool     // endpoints that nobody but the own cluster reaches
}

// New returns a mesh of clusters that do not know each other yet, with IDs from 1. Their
// API servers run.
func New(t *testing.T, names ...string) (*Mesh, []*Cluster) {
	t.Helper()
	m := &Mesh{t: t, clusters: map[string]*Cluster{}, cut: map[string]bool{}}
	var all []*Cluster
	for i, name := range names {
		c := newCluster(m, name, i+1)
		m.mu.Lock()
		m.clusters[c.endpoint()] = c
		m.mu.Unlock()
		c.Start()
		all = append(all, c)
	}
	return m, all
}

// Pass lets time pass, and everything that happens in it happen.
func (m *Mesh) Pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// Join makes two clusters peers of each other, as their operators do.
func (m *Mesh) Join(a, b *Cluster) {
	m.t.Helper()
	a.Add(b.Invite(a))
	b.Add(a.Invite(b))
}

// SetCut cuts a cluster off from all others: their API servers do not reach its store, nor
// probes its nodes; or it ends that.
func (m *Mesh) SetCut(c *Cluster, cut bool) {
	m.mu.Lock()
	m.cut[c.endpoint()] = cut
	m.mu.Unlock()
	m.Probes.SetCut(c.podCIDR(), cut)
}

// peers reaches the stores of the others for one cluster.
type peers struct {
	mesh *Mesh
	own  *Cluster
}

var errCut = fmt.Errorf("the network is cut: %w", store.ErrUnavailable)

func (p peers) find(endpoints []string) (*Cluster, error) {
	p.mesh.mu.Lock()
	defer p.mesh.mu.Unlock()
	for _, e := range endpoints {
		if c := p.mesh.clusters[e]; c != nil && !p.mesh.cut[e] && !p.mesh.cut[p.own.endpoint()] {
			return c, nil
		}
	}
	return nil, errCut
}

// user returns whose certificate a connection is made with, if the cluster's authority has
// signed it.
func (c *Cluster) user(conf *tls.Config) (string, error) {
	if len(conf.Certificates) == 0 || conf.Certificates[0].Leaf == nil {
		return "", errors.New("no certificate")
	}
	leaf := conf.Certificates[0].Leaf
	if err := c.trusts(leaf); err != nil {
		return "", err
	}
	return leaf.Subject.CommonName, nil
}

// Probe implements peering.Dialer.
func (p peers) Probe(_ context.Context, endpoints []string, conf *tls.Config) error {
	c, err := p.find(endpoints)
	if err != nil {
		return err
	}
	_, err = c.user(conf)
	return err
}

// Open implements peering.Dialer.
func (p peers) Open(endpoints []string, conf *tls.Config) (mirror.Source, error) {
	c, err := p.find(endpoints)
	if err != nil {
		return nil, err
	}
	user, err := c.user(conf)
	if err != nil {
		return nil, err
	}
	return session{Store: c.Store.As(user), peers: p, endpoints: endpoints}, nil
}

// session is a connection to a peer's store, which breaks when the network is cut.
type session struct {
	store.Store
	peers     peers
	endpoints []string
}

// Close implements mirror.Source.
func (session) Close() error { return nil }

// Get implements store.Store.
func (s session) Get(ctx context.Context, key string) (store.KV, error) {
	if _, err := s.peers.find(s.endpoints); err != nil {
		return store.KV{}, err
	}
	return s.Store.Get(ctx, key)
}

// List implements store.Store.
func (s session) List(ctx context.Context, prefix string) ([]store.KV, store.Point, error) {
	if _, err := s.peers.find(s.endpoints); err != nil {
		return nil, store.Point{}, err
	}
	return s.Store.List(ctx, prefix)
}

// Watch implements store.Store.
func (s session) Watch(ctx context.Context, prefix string, after store.Point, each func(store.Batch) error) error {
	if _, err := s.peers.find(s.endpoints); err != nil {
		return err
	}
	return s.Store.Watch(ctx, prefix, after, func(b store.Batch) error {
		if _, err := s.peers.find(s.endpoints); err != nil {
			return err
		}
		return each(b)
	})
}

// addr is an address of the underlay: one network per cluster.
func addr(cluster, host int) netip.Addr {
	return netip.AddrFrom4([4]byte{172, 16, byte(cluster), byte(host)})
}
