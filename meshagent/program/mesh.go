package program

import (
	"maps"
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

// Meshes keeps a Mesh up to date. It is safe for concurrent use; do not modify what it
// returns.
type Meshes struct {
	tables *tables.Tables

	// mu guards what follows.
	mu      sync.Mutex
	beliefs *beliefs
	mesh    *Mesh // nil until our own cluster is known
	seen    [3]statedb.Revision
}

// NewMeshes follows the tables of the node of this name. Close what it returns.
func NewMeshes(t *tables.Tables, self string) (*Meshes, error) {
	b, err := newBeliefs(t, self)
	if err != nil {
		return nil, err
	}
	return &Meshes{tables: t, beliefs: b}, nil
}

// Close lets the tables release the rows deleted from them. Of must not be called again.
func (m *Meshes) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.beliefs.close()
}

// Of returns the Mesh of a snapshot, or of a later one that was asked for before; nil
// if our own cluster is not known.
func (m *Meshes) Of(txn statedb.ReadTxn) *Mesh {
	now := [3]statedb.Revision{m.tables.Clusters.Revision(txn), m.tables.Nodes.Revision(txn), m.tables.Former.Revision(txn)}
	m.mu.Lock()
	defer m.mu.Unlock()
	if now[0] <= m.seen[0] && now[1] <= m.seen[1] && now[2] <= m.seen[2] {
		return m.mesh
	}
	m.seen = now
	v, changed := m.beliefs.look(txn)
	switch {
	case v == nil:
		m.mesh = nil
	case changed == nil || m.mesh == nil:
		m.mesh = newMesh(v)
	default:
		m.mesh = m.mesh.after(v, changed)
	}
	return m.mesh
}

func newMesh(v *view) *Mesh {
	m := &Mesh{Members: map[string]*tables.Cluster{}, Remote: map[string]*tables.Node{}}
	all := newMoved()
	for key := range v.nodes.known {
		all.row("nodes", key)
	}
	for name := range v.clusters.admitted {
		all.row("clusters", name)
	}
	return m.after(v, all)
}

// after returns the mesh after a change of the view. What has not changed is shared.
func (m *Mesh) after(v *view, changed *moved) *Mesh {
	next := *m
	next.Own, next.Split, next.Former, next.Complete = v.own, v.split, v.former.list, v.complete()
	nodes, clusters := false, false
	for row := range changed.rows {
		nodes, clusters = nodes || row.table == "nodes", clusters || row.table == "clusters"
	}
	if nodes {
		next.Remote = maps.Clone(m.Remote)
	}
	if clusters {
		next.Members, next.CIDRs = maps.Clone(m.Members), nil
		for _, s := range v.clusters.admitted {
			next.CIDRs = append(next.CIDRs, s.pods...)
		}
		slices.SortFunc(next.CIDRs, netip.Prefix.Compare)
	}
	for row := range changed.rows {
		switch row.table {
		case "nodes":
			if n := v.node(row.row); n != nil && !v.isSelf(n) {
				next.Remote[row.row] = n
			} else {
				delete(next.Remote, row.row)
			}
		case "clusters":
			if c := v.member(row.row); c != nil {
				next.Members[row.row] = c
			} else {
				delete(next.Members, row.row)
			}
		}
	}
	return &next
}
