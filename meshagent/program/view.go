package program

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// view is one snapshot of the tables without the rows that are not believed: a cluster
// speaks for addresses in its own CIDRs, identities in its own range and nodes of its
// own, and for nothing else.
type view struct {
	tables *tables.Tables
	txn    statedb.ReadTxn
	own    *tables.Cluster
	split  identity.Split
	self   string // this node's name
	// members are the clusters of the mesh, including our own.
	members map[string]*tables.Cluster
	nodes   map[string]*tables.Node // by cluster/name, usable ones only
	// byHost finds a node by the address of its tunnel endpoint.
	byHost map[string]*tables.Node // "cluster/address"
	// doubts are the rows that this pass leaves out; outsiders are the clusters and
	// nodes that every pass over this view leaves out.
	doubts, outsiders []doubt

	// former are the CIDRs of removed peers, sorted; memory are those of them that no
	// record explains.
	former, memory []netip.Prefix

	// answered says whether a peer has ever answered through the tunnel; nil means
	// that all have.
	answered func(identity.ClusterID) bool

	apiServers []netip.Addr // of our own cluster

	// Indexes built on first use.
	cidrs   map[netip.Prefix]string
	hosts   map[netip.Addr]string // the nodes' own addresses, see nodeAddresses
	lengths [129]bool
}

type doubt struct{ table, row, why string }

// newView returns nil until our own cluster is known.
func newView(t *tables.Tables, txn statedb.ReadTxn, self string) *view {
	v := &view{tables: t, txn: txn, self: self, members: map[string]*tables.Cluster{}, nodes: map[string]*tables.Node{}, byHost: map[string]*tables.Node{}}
	clusters := tables.All(txn, t.Clusters)
	for _, c := range clusters {
		if c.Own != nil {
			v.own = c
		}
	}
	if v.own == nil {
		return nil
	}
	v.split, _ = identity.SplitFor(int(v.own.Own.MaxConnectedClusters))
	if v.split == 0 {
		v.split = identity.Split255
	}
	v.admit(clusters)
	v.addNodes(tables.All(txn, t.Nodes))
	return v
}

// view reuses the last pass's view while clusters and nodes are unchanged.
func (p *Program) view(txn statedb.ReadTxn) *view {
	t := p.cfg.Tables
	next := p.seen
	next.clusters, next.nodes, next.former = t.Clusters.Revision(txn), t.Nodes.Revision(txn), t.Former.Revision(txn)
	if next != p.seen || next.view == nil {
		next.view = newView(t, txn, p.cfg.Self)
		if next.view == nil {
			return nil
		}
		next.view.answered, next.view.apiServers = p.cfg.Ways.HasAnswered, p.cfg.APIServers
		p.learnFormer(next.view)
		p.seen = next
	}
	p.seen.view.txn, p.seen.view.doubts = txn, nil
	return p.seen.view
}

// admit accepts clusters that do not contradict our own or an earlier one. The API
// server has checked the same; this catches what it may have missed.
func (v *view) admit(clusters []*tables.Cluster) {
	v.members[v.own.Name] = v.own
	ids := map[identity.ClusterID]string{v.own.ID(): v.own.Name}
	for _, c := range clusters {
		if c == v.own || c.Peer == nil {
			continue
		}
		if c.ID() == 0 {
			v.outsiders = append(v.outsiders, doubt{"clusters", c.Key(), "it has no cluster ID"})
			continue
		}
		if other, taken := ids[c.ID()]; taken {
			v.outsiders = append(v.outsiders, doubt{"clusters", c.Key(), fmt.Sprintf("its ID %d already belongs to cluster %q", c.ID(), other)})
			continue
		}
		if with := v.overlapping(c); with != "" {
			v.outsiders = append(v.outsiders, doubt{"clusters", c.Key(), "its pod CIDRs overlap those of cluster " + with})
			continue
		}
		ids[c.ID()] = c.Name
		v.members[c.Name] = c
	}
}

func (v *view) overlapping(c *tables.Cluster) string {
	for _, m := range v.members {
		for _, a := range m.PodCIDRs() {
			for _, b := range c.PodCIDRs() {
				if a.Overlaps(b) {
					return m.Name
				}
			}
		}
	}
	return ""
}

// addNodes accepts nodes that claim no more than they may.
func (v *view) addNodes(nodes []*tables.Node) {
	var claims []claim
	for _, n := range nodes {
		c := v.members[n.Cluster]
		if c == nil || !n.Internal().IsValid() || len(n.PodCIDRs()) == 0 {
			continue
		}
		if why := overclaim(c, n); why != "" {
			v.outsiders = append(v.outsiders, doubt{"nodes", n.Key(), why})
			continue
		}
		v.nodes[n.Key()] = n
		for _, cidr := range n.PodCIDRs() {
			claims = append(claims, claim{cidr.Masked(), n.Key()})
		}
	}
	v.settle(claims)
	for _, n := range v.nodes {
		for _, a := range n.Addresses() {
			v.byHost[n.Cluster+"/"+a.String()] = n
		}
	}
}

// overclaim says what a node claims beyond its rights, or "" if nothing.
func overclaim(c *tables.Cluster, n *tables.Node) string {
	if why := n.Doubt(); why != "" {
		return why
	}
	for _, cidr := range n.PodCIDRs() {
		if !c.Owns(cidr) {
			return fmt.Sprintf("its pod CIDR %v is outside the pod CIDRs of cluster %s", cidr, c.Name)
		}
	}
	if !c.Owns(whole(n.Internal())) {
		return fmt.Sprintf("its internal address %v is outside the pod CIDRs of cluster %s", n.Internal(), c.Name)
	}
	return ""
}

type claim struct {
	cidr netip.Prefix
	node string
}

// settle leaves out nodes whose CIDR equals or lies within another's; of two equal
// CIDRs the first node by name keeps it. Sorted by address, widest first, a CIDR that
// contains another comes before it.
func (v *view) settle(claims []claim) {
	slices.SortFunc(claims, func(a, b claim) int {
		return cmp.Or(a.cidr.Addr().Compare(b.cidr.Addr()), cmp.Compare(a.cidr.Bits(), b.cidr.Bits()), cmp.Compare(a.node, b.node))
	})
	var open []claim
	for _, c := range claims {
		for len(open) > 0 && !open[len(open)-1].cidr.Overlaps(c.cidr) {
			open = open[:len(open)-1]
		}
		if len(open) > 0 && open[len(open)-1].node != c.node {
			other := open[len(open)-1]
			delete(v.nodes, c.node)
			v.outsiders = append(v.outsiders, doubt{"nodes", c.node, fmt.Sprintf("its pod CIDR %v overlaps %v of node %s", c.cidr, other.cidr, other.node)})
			continue
		}
		open = append(open, c)
	}
}

// isSelf says whether n is the node we run on.
func (v *view) isSelf(n *tables.Node) bool { return n.Cluster == v.own.Name && n.Name == v.self }

// isAPIServer says whether an API server of our own cluster has one of the node's
// addresses.
func (v *view) isAPIServer(n *tables.Node) bool {
	return n != nil && slices.ContainsFunc(n.Addresses(), func(a netip.Addr) bool { return slices.Contains(v.apiServers, a) })
}

// remote lists all nodes except this one, as members that need an index.
func (v *view) remote() []Member {
	var out []Member
	for key, n := range v.nodes {
		if !v.isSelf(n) {
			out = append(out, Member{Key: key, Cluster: v.members[n.Cluster].ID(), CIDRs: n.PodCIDRs()})
		}
	}
	return out
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
	c := v.members[row.Cluster]
	if c == nil {
		return false
	}
	if !v.believes(c, row.Number) {
		v.doubts = append(v.doubts, doubt{"identities", row.Key(), fmt.Sprintf("the number is outside the range of cluster %s", c.Name)})
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

// complete says whether every member's state has been read in full.
func (v *view) complete() bool {
	for _, c := range v.members {
		if !c.Complete() {
			return false
		}
	}
	return true
}

func whole(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// clusterOf returns the cluster's name in "cluster/rest".
func clusterOf(key string) string {
	name, _, _ := strings.Cut(key, "/")
	return name
}
