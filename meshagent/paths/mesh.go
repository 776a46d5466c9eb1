package paths

import (
	"net/netip"

	"github.com/cilium/statedb"
	"github.com/cilium/statedb/part"

	"github.com/weft-mesh/weft/meshagent/tables"
)

// Mesh is what is believed of nodes and clusters at one moment. It never changes.
type Mesh struct {
	Own *tables.Cluster
	// Members are all clusters of the mesh, by name.
	Members part.Map[string, *tables.Cluster]
	// Remote are all nodes except this one, by "cluster/node".
	Remote part.Map[string, *tables.Node]
	// CIDRs are the pod CIDRs of all members, Former those of removed peers, sorted.
	// They are replaced, never modified.
	CIDRs, Former []netip.Prefix
	// Complete is set once every member's state has been read in full. Until then, an
	// entry missing here may still exist.
	Complete bool
}

// Node returns a remote node, or nil.
func (m *Mesh) Node(key string) *tables.Node {
	n, _ := m.Remote.Get(key)
	return n
}

// Member returns a cluster of the mesh, or nil.
func (m *Mesh) Member(name string) *tables.Cluster {
	c, _ := m.Members.Get(name)
	return c
}

// Changes are the keys of the nodes and clusters that may differ from those in the last
// Mesh; All says that any may.
type Changes struct {
	All             bool
	Nodes, Clusters map[string]bool
}

// Follower tells one reader what is believed and what has changed since the last call.
// The Mesh is nil if our own cluster is not known.
type Follower interface {
	Follow(txn statedb.ReadTxn) (*Mesh, Changes)
}
