package program

import (
	"net/netip"
	"slices"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// Mesh is what others than the maps need of a snapshot: the same view, with the
// same rows left out.
type Mesh struct {
	Own   *tables.Cluster
	Split identity.Split
	// Members are all clusters of the mesh, by name.
	Members map[string]*tables.Cluster
	// Remote are all nodes but our own, by "cluster/node".
	Remote map[string]*tables.Node
	// CIDRs are the pod CIDRs of all members, sorted.
	CIDRs []netip.Prefix
	// Complete is set once every member's state was read in full: only then does
	// something that is not here not exist.
	Complete bool
}

// NewMesh reads a snapshot; nil as long as the own cluster is not known.
func NewMesh(t *tables.Tables, txn statedb.ReadTxn, self string) *Mesh {
	v := newView(t, txn, self)
	if v == nil {
		return nil
	}
	m := &Mesh{Own: v.own, Split: v.split, Members: v.members, Remote: map[string]*tables.Node{}, Complete: v.complete()}
	for key, n := range v.nodes {
		if !v.isSelf(n) {
			m.Remote[key] = n
		}
	}
	for _, c := range v.members {
		m.CIDRs = append(m.CIDRs, c.PodCIDRs()...)
	}
	slices.SortFunc(m.CIDRs, netip.Prefix.Compare)
	return m
}
