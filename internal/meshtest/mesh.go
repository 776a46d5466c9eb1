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
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/apiserver/mirror"
	"github.com/weft-mesh/weft/apiserver/peering"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/tunnel/probe/probetest"
	"github.com/weft-mesh/weft/tunnel/tunneltest"
)

// Mesh is a number of clusters and what is between them.
type Mesh struct {
	t *testing.T
	// Probes carries the probes between all nodes.
	Probes probetest.Fabric
	wire   tunneltest.Wire

	clusters []*Cluster
}

// New returns a mesh of clusters that do not know each other yet, with IDs from 1. Their
// API servers run.
func New(t *testing.T, names ...string) (*Mesh, []*Cluster) {
	t.Helper()
	return raise(t, false, names)
}

// NewDualStack is New for clusters whose services and pods may have IPv6 as well.
func NewDualStack(t *testing.T, names ...string) (*Mesh, []*Cluster) {
	t.Helper()
	return raise(t, true, names)
}

func raise(t *testing.T, dualStack bool, names []string) (*Mesh, []*Cluster) {
	t.Helper()
	m := &Mesh{t: t}
	for i, name := range names {
		c := newCluster(m, name, i+1)
		c.dualStack = dualStack
		m.clusters = append(m.clusters, c)
	}
	for _, c := range m.clusters {
		c.AddServer()
	}
	return m, m.clusters
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
	fault := storetest.Works
	if cut {
		fault = storetest.Cut
	}
	for _, other := range m.clusters {
		if other != c {
			m.SetControl(c, other, fault)
			m.SetControl(other, c, fault)
		}
	}
	m.Probes.SetCut(c.podCIDR(), cut)
}

// SetControl makes the ways of a cluster's API servers to a peer's store faulty, or ends
// that.
func (m *Mesh) SetControl(from, to *Cluster, f storetest.Fault) {
	for _, s := range from.Servers {
		s.to(to).Set(f)
	}
}

// SetData makes everything that a cluster's nodes send to another's be lost, or ends that.
func (m *Mesh) SetData(from, to *Cluster, lost bool) {
	m.Probes.SetOneWay(from.podCIDR(), to.podCIDR(), lost)
}

// peers reaches the stores of the others for one API server.
type peers struct{ server *Server }

// way finds the store at one of the endpoints.
func (p peers) way(endpoints []string, conf *tls.Config) (*storetest.Conn, error) {
	for _, c := range p.server.cluster.mesh.clusters {
		if !slices.Contains(endpoints, c.endpoint()) {
			continue
		}
		user, err := c.user(conf)
		if err != nil {
			return nil, err
		}
		return p.server.to(c).As(user), nil
	}
	return nil, peering.ErrUnreachable
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
func (p peers) Probe(ctx context.Context, endpoints []string, conf *tls.Config) error {
	way, err := p.way(endpoints, conf)
	if err != nil {
		return err
	}
	if way.Ping(ctx) != nil {
		return peering.ErrUnreachable
	}
	return nil
}

// Open implements peering.Dialer.
func (p peers) Open(endpoints []string, conf *tls.Config) (mirror.Source, error) {
	way, err := p.way(endpoints, conf)
	if err != nil {
		return nil, err
	}
	return way, nil
}

// addr is an address of the underlay: one network per cluster.
func addr(cluster, host int) netip.Addr {
	return netip.AddrFrom4([4]byte{172, 16, byte(cluster), byte(host)})
}

// six is the network of a node's pods, of a cluster's with node 0.
func six(cluster, node int) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfd, 5: byte(cluster), 7: byte(node)})
}
