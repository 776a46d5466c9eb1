package program

import (
	"net/netip"
	"slices"
	"sync"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// Mesh is what code other than the map writers needs from a snapshot: the same view,
// with the same rows left out.
type Mesh struct {
	Own   *tables.Cluster
	Split identity.Split
	// Members are all clusters of the mesh, by name.
	Members map[string]*tables.Cluster
	// Remote are all nodes except this one, by "cluster/node".
	Remote map[string]*tables.Node
	// CIDRs are the pod CIDRs of all members, sorted.
	CIDRs []netip.Prefix
	// Former are the pod CIDRs of peers that were removed, sorted.
	Former []netip.Prefix
	// Complete is set once every member's state has been read in full. Until then, an
	// entry missing here may still exist.
	Complete bool
}

// NewMesh reads a snapshot. It returns nil until our own cluster is known.
func NewMesh(t *tables.Tables, txn statedb.ReadTxn, self string) *Mesh {
	v := newView(t, self)
	if !v.load(txn) {
		return nil
	}
	m := &Mesh{Own: v.own, Split: v.split, Members: map[string]*tables.Cluster{}, Remote: map[string]*tables.Node{}, Former: v.former.list, Complete: v.complete()}
	for key, s := range v.nodes.known {
		if n := s.believed; n != nil && !v.isSelf(n) {
			m.Remote[key] = n
		}
	}
	for name, s := range v.clusters.admitted {
		m.Members[name] = s.row
		m.CIDRs = append(m.CIDRs, s.pods...)
	}
	slices.SortFunc(m.CIDRs, netip.Prefix.Compare)
	return m
}

// Meshes caches the last Mesh while it is current. It is safe for concurrent use; do
// not modify what it returns.
type Meshes struct {
	Tables *tables.Tables
	Self   string

	// mu guards what follows.
	mu       sync.Mutex
	mesh     *Mesh
	clusters statedb.Revision
	nodes    statedb.Revision
	former   statedb.Revision
}

// Of returns the Mesh of a snapshot.
func (m *Meshes) Of(txn statedb.ReadTxn) *Mesh {
	clusters, nodes, former := m.Tables.Clusters.Revision(txn), m.Tables.Nodes.Revision(txn), m.Tables.Former.Revision(txn)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mesh == nil || clusters != m.clusters || nodes != m.nodes || former != m.former {
		m.mesh, m.clusters, m.nodes, m.former = NewMesh(m.Tables, txn, m.Self), clusters, nodes, former
	}
	return m.mesh
}
