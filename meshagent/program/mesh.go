package program

import (
	"net/netip"
	"slices"
	"sync"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/meshagent/paths"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// Meshes tells package paths what is believed of nodes and clusters: the same view that
// the maps are written by, with the same rows left out. It is safe for concurrent use.
type Meshes struct {
	tables *tables.Tables

	// mu guards what follows, and the news of all followers.
	mu        sync.Mutex
	beliefs   *beliefs
	mesh      *paths.Mesh // nil until our own cluster is known
	seen      [3]statedb.Revision
	followers []*Follower
}

// NewMeshes follows the tables of the node of this name. Close what it returns.
func NewMeshes(t *tables.Tables, self string) (*Meshes, error) {
	b, err := newBeliefs(t, self)
	if err != nil {
		return nil, err
	}
	b.view.nodes.nameless = true
	return &Meshes{tables: t, beliefs: b}, nil
}

// Close lets the tables release the rows deleted from them. No follower may be asked
// again.
func (m *Meshes) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.beliefs.close()
}

// Follower implements paths.Follower. Each has one reader.
type Follower struct {
	meshes *Meshes
	news   paths.Changes
}

// Follower returns a new follower, to which everything is news.
func (m *Meshes) Follower() *Follower {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := &Follower{m, paths.Changes{All: true, Nodes: map[string]bool{}, Clusters: map[string]bool{}}}
	m.followers = append(m.followers, f)
	return f
}

// Follow implements paths.Follower. If somebody has asked for a later snapshot before, it
// speaks of that.
func (f *Follower) Follow(txn statedb.ReadTxn) (*paths.Mesh, paths.Changes) {
	f.meshes.mu.Lock()
	defer f.meshes.mu.Unlock()
	f.meshes.lookLocked(txn)
	news := f.news
	f.news = paths.Changes{Nodes: map[string]bool{}, Clusters: map[string]bool{}}
	return f.meshes.mesh, news
}

func (m *Meshes) lookLocked(txn statedb.ReadTxn) {
	now := [3]statedb.Revision{m.tables.Clusters.Revision(txn), m.tables.Nodes.Revision(txn), m.tables.Former.Revision(txn)}
	if now[0] <= m.seen[0] && now[1] <= m.seen[1] && now[2] <= m.seen[2] {
		return
	}
	m.seen = now
	v, changed := m.beliefs.look(txn)
	if v == nil || changed == nil || m.mesh == nil {
		m.mesh = nil
		if v != nil {
			m.mesh = wholeMesh(v)
		}
		for _, f := range m.followers {
			f.news.All = true
		}
		return
	}
	m.mesh = meshAfter(m.mesh, v, changed)
	for _, f := range m.followers {
		for row := range changed.rows {
			if row.table == "nodes" {
				f.news.Nodes[row.row] = true
			} else {
				f.news.Clusters[row.row] = true
			}
		}
	}
}

// wholeMesh is what a view that was read from scratch believes.
func wholeMesh(v *view) *paths.Mesh {
	all := newMoved()
	all.all = true
	for key := range v.nodes.known {
		all.row("nodes", key)
	}
	for name := range v.clusters.admitted {
		all.row("clusters", name)
	}
	return meshAfter(&paths.Mesh{}, v, all)
}

// meshAfter is the mesh after a change of the view. What has not changed is shared.
func meshAfter(m *paths.Mesh, v *view, changed *moved) *paths.Mesh {
	next := *m
	next.Own, next.Former, next.Complete = v.own, v.former.list, v.complete()
	if changed.all || len(changed.clusters) > 0 {
		next.CIDRs = nil
		for _, s := range v.clusters.admitted {
			next.CIDRs = append(next.CIDRs, s.pods...)
		}
		slices.SortFunc(next.CIDRs, netip.Prefix.Compare)
	}
	remote, members := next.Remote.Txn(), next.Members.Txn()
	for row := range changed.rows {
		switch row.table {
		case "nodes":
			if n := v.node(row.row); n != nil && !v.isSelf(n) {
				remote.Set(row.row, n)
			} else {
				remote.Delete(row.row)
			}
		case "clusters":
			if c := v.member(row.row); c != nil {
				members.Set(row.row, c)
			} else {
				members.Delete(row.row)
			}
		}
	}
	next.Remote, next.Members = remote.Commit(), members.Commit()
	return &next
}
