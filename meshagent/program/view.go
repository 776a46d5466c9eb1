package program

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/wire"
)

// view is what is believed of the tables: a cluster speaks for addresses in its own
// CIDRs, identities in its own range and nodes of its own, and for nothing else. It
// follows the tables; a change costs what it concerns.
type view struct {
	tables *tables.Tables
	txn    statedb.ReadTxn
	self   string // this node's name
	// addresses are those of this node at which it offers node ports.
	addresses []netip.Addr
	// internal is the client that processes of this node are for services.
	internal bpf.Addr

	own      *tables.Cluster // nil until it is known
	split    identity.Split
	clusters clusters
	nodes    nodes
	former   former

	// doubts are the rows judged in this pass that are not believed.
	doubts []doubt

	// answered says whether a peer has ever answered through the tunnel; nil means
	// that all have.
	answered func(identity.ClusterID) bool

	// ports are those of Weft's own processes on machines of the mesh: what an agent always
	// has, and what API servers say.
	fixed, ports []uint16

	// apiServers are what policies mean by kube-apiserver: the Kubernetes API servers of our own
	// cluster, or where it has none, its own. machines are both, whose addresses are nobody
	// else's. servers returns the cluster's own when it names these.
	apiServers, machines []netip.Addr
	servers              func(*wire.Access) []netip.Addr
}

type doubt struct{ table, row, why string }

func newView(t *tables.Tables, self string) *view {
	return &view{
		tables: t, self: self, clusters: newClusters(), nodes: newNodes(false),
		servers: func(*wire.Access) []netip.Addr { return nil },
	}
}

// load reads everything from a snapshot. It returns false if our own cluster is not
// known.
func (v *view) load(txn statedb.ReadTxn) bool {
	v.txn, v.doubts = txn, nil
	v.own, v.clusters, v.nodes, v.former = nil, newClusters(), newNodes(v.nodes.nameless), former{kernel: v.former.kernel}
	rows := map[string]*tables.Cluster{}
	for c := range v.tables.Clusters.All(txn) {
		if rows[c.Name] = c; c.Own != nil {
			v.own = c
		}
	}
	if v.own == nil {
		return false
	}
	v.apiServers, v.machines = v.named(v.own.Access)
	v.ports = slices.Concat(v.fixed, portsOf(v.own.Access))
	v.split, _ = identity.SplitFor(int(v.own.Own.MaxConnectedClusters))
	if v.split == 0 {
		v.split = identity.Split255
	}
	v.take(change{all: true, clusters: rows, nodes: v.allNodes(), former: true})
	return true
}

// named are the API servers that policies mean, and all of them.
func (v *view) named(a *wire.Access) (apiServers, machines []netip.Addr) {
	own := v.servers(a)
	if a == nil || len(a.Kubernetes) == 0 {
		return own, own
	}
	machines = slices.Clone(a.Kubernetes)
	for _, addr := range own {
		if !slices.Contains(machines, addr) {
			machines = append(machines, addr)
		}
	}
	return a.Kubernetes, machines
}

func (v *view) allNodes() map[string]*tables.Node {
	rows := make(map[string]*tables.Node, v.tables.Nodes.NumObjects(v.txn))
	for n := range v.tables.Nodes.All(v.txn) {
		rows[n.Key()] = n
	}
	return rows
}

// change is what is new in the tables: rows by key, nil for those that are gone.
type change struct {
	clusters map[string]*tables.Cluster
	nodes    map[string]*tables.Node
	former   bool
	all      bool // nothing was known before
}

// follow takes up what has changed up to a snapshot. It returns nil if that turns
// everything upside down: then load.
func (v *view) follow(txn statedb.ReadTxn, c change) *moved {
	v.txn, v.doubts = txn, nil
	if row, ok := c.clusters[v.own.Name]; ok {
		if row == nil || row.Own == nil || row.Own.MaxConnectedClusters != v.own.Own.MaxConnectedClusters || !scopeOf(row).same(scopeOf(v.own)) {
			return nil
		}
		v.own = row
		apiServers, machines := v.named(v.own.Access)
		if !slices.Equal(apiServers, v.apiServers) || !slices.Equal(machines, v.machines) || !slices.Equal(slices.Concat(v.fixed, portsOf(v.own.Access)), v.ports) {
			return nil
		}
	}
	for _, row := range c.clusters {
		if row != nil && row.Own != nil && row != v.own {
			return nil
		}
	}
	return v.take(c)
}

func (v *view) take(c change) *moved {
	m := newMoved()
	m.all = c.all
	v.clusters.follow(v.own.Name, c.clusters, m)
	if !c.all {
		for name := range m.clusters {
			for n := range tables.OfCluster(v.txn, v.tables.Nodes, name) {
				if c.nodes == nil {
					c.nodes = map[string]*tables.Node{}
				}
				c.nodes[n.Key()] = n
			}
		}
	}
	v.followNodes(c.nodes, m)
	if c.former || len(m.ranges) > 0 {
		v.followFormer(c.all, m)
	}
	for r := range m.ranges {
		for a := range v.nodes.places.within(r) {
			m.addrs[a.Netip().Addr()] = true
		}
	}
	return m
}

// member returns a cluster of the mesh, or nil.
func (v *view) member(name string) *tables.Cluster {
	if s := v.clusters.admitted[name]; s != nil {
		return s.row
	}
	return nil
}

// ownerOf returns the cluster in whose pod CIDRs a prefix lies, or nil.
func (v *view) ownerOf(p netip.Prefix) *tables.Cluster {
	for _, name := range v.clusters.owners.around(p) {
		return v.member(name)
	}
	return nil
}

// complete says whether every member's state has been read in full.
func (v *view) complete() bool { return v.clusters.partial == 0 }

// why says why a row of the tables clusters or nodes is not believed, or "".
func (v *view) why(row rowName) string {
	switch row.table {
	case "clusters":
		return v.clusters.why[row.row]
	case "nodes":
		if s := v.nodes.known[row.row]; s != nil {
			return s.why
		}
	}
	return ""
}

// isSelf says whether n is the node we run on.
func (v *view) isSelf(n *tables.Node) bool { return n.Cluster == v.own.Name && n.Name == v.self }

// selfKey is the key of the node we run on.
func (v *view) selfKey() string { return v.own.Name + "/" + v.self }

// isAPIServer says whether an API server of our own cluster has one of the node's
// addresses.
func (v *view) isAPIServer(n *tables.Node) bool {
	return n != nil && slices.ContainsFunc(n.Addresses(), func(a netip.Addr) bool { return slices.Contains(v.apiServers, a) })
}

// holdsPods says whether a prefix overlaps a member's pod CIDRs. A peer's service CIDR
// that does could be the longer match for some pods.
func (v *view) holdsPods(p netip.Prefix) bool {
	for range v.clusters.owners.within(p) {
		return true
	}
	return v.clusters.owners.holdsAny(p)
}

// inMesh says whether a prefix lies inside a member's pod or service CIDRs or a former
// member's pod CIDRs. Policies cannot select these by address.
func (v *view) inMesh(p netip.Prefix) bool {
	return v.clusters.owners.holdsAny(p) || v.clusters.services.holdsAny(p) || v.former.cidrs.holdsAny(p)
}

// believes says whether a cluster may speak for this identity, which must be in its
// own range.
func (v *view) believes(c *tables.Cluster, n identity.Number) bool {
	first, last := v.split.Range(c.ID())
	return n >= first && n <= last
}

// vouchedFor says whether an identity is one that its cluster may speak for, and notes
// a doubt if the cluster exceeded its rights.
func (v *view) vouchedFor(row *tables.Identity) bool {
	c := v.member(row.Cluster)
	if c == nil {
		return false
	}
	if !v.believes(c, row.Number) {
		v.doubts = append(v.doubts, doubt{"identities", row.Key(), "the number is outside the range of cluster " + c.Name})
		return false
	}
	if c != v.own {
		if err := row.Labels.Foreign(c.Name); err != nil {
			v.doubts = append(v.doubts, doubt{"identities", row.Key(), err.Error()})
			return false
		}
	}
	return true
}

// nobodys says whether a number is a cluster's to speak for and none does.
func (v *view) nobodys(n identity.Number) bool {
	id := v.split.Cluster(n)
	if id == 0 {
		return false
	}
	name := v.clusters.withID(id)
	row := tables.Get(v.txn, v.tables.Identities, (&tables.Identity{Cluster: name, Number: n}).Key())
	return row == nil || name == "" || !v.vouchedFor(row)
}

func whole(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// clusterOf returns the cluster's name in "cluster/rest".
func clusterOf(key string) string {
	name, _, _ := strings.Cut(key, "/")
	return name
}
