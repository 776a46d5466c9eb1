package program

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/internal/addrmap"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// nodes knows which nodes are believed: those that claim no more than they may. Of the
// pod CIDRs that contain an address the widest counts, of equal ones the first node's
// by name; a node of which another has a CIDR is left out.
type nodes struct {
	// known are all nodes of members, by cluster/name.
	known map[string]*standing
	// named lists who names an address as a node's outside the mesh, whether or not the
	// rest of the row is believed; cidrs lists who claims a pod CIDR, believed or not.
	// Our own nodes come first, then they are sorted by name.
	named holders
	cidrs ranges[[]string]
	// places finds the addresses in named by range.
	places spots
	// Of those believed: inside lists who has an address inside the mesh, hosts which of our
	// own has a tunnel endpoint. A peer's node names its endpoints.
	inside, hosts holders
	// found is what behind has found since nodes last changed, where several name an address:
	// everything behind it asks.
	found map[host]string
	// nameless is set if nobody asks who has an address: there are none in named, inside
	// and hosts then.
	nameless bool
}

// standing is what is known about one node. There is one for each, so what the row says is
// not said again.
type standing struct {
	row      *tables.Node // nil of a cluster that is no member
	believed *tables.Node // nil if it is not
	// why is what keeps the node out.
	why string
	// claims says that the row's pod CIDRs are among cidrs: the node may claim them.
	claims bool
}

// host is a tunnel endpoint. Clusters may use the same addresses.
type host struct {
	cluster string
	addr    netip.Addr
}

func newNodes(nameless bool) nodes {
	return nodes{nameless: nameless, known: map[string]*standing{}}
}

// cidrs are the pod CIDRs that the node claims.
func (s *standing) cidrs() []netip.Prefix {
	if !s.claims {
		return nil
	}
	return valid(s.row.PodCIDRs())
}

// followNodes takes up new rows, nil for those that are gone, and settles the
// conflicts that they begin or end.
func (v *view) followNodes(rows map[string]*tables.Node, m *moved) {
	if len(rows) > 0 {
		v.nodes.found = nil
	}
	concerned := map[string]bool{}
	for key, row := range rows {
		concerned[key] = true
		v.claim(key, row, m, concerned)
	}
	for key := range concerned {
		m.row("nodes", key)
		v.decide(key, m)
	}
}

// claim replaces what a node claims. It adds the nodes to concerned whose own claims
// may now be settled differently.
func (v *view) claim(key string, row *tables.Node, m *moved, concerned map[string]bool) {
	n := &v.nodes
	before := n.known[key]
	if before == nil {
		before = &standing{}
	}
	next := &standing{believed: before.believed}
	if row != nil && v.member(row.Cluster) != nil {
		next.row = row
		next.why, next.claims = v.entitled(row)
	}
	if !n.nameless {
		was, is := v.names(before.row), v.names(next.row)
		for _, a := range without(was, is) {
			m.addrs[a] = true
			if n.named.release(a, key, v.order); n.named.first(a) == "" {
				n.places.drop(bpf.PrefixOf(whole(a)))
			}
		}
		for _, a := range without(is, was) {
			m.addrs[a] = true
			n.places.put(bpf.PrefixOf(whole(a)))
			n.named.take(a, key, v.order)
		}
	}
	was, is := before.cidrs(), next.cidrs()
	for _, p := range without(was, is) {
		v.rivals(p, concerned)
		by, _ := n.cidrs.get(p)
		if by = slices.DeleteFunc(slices.Clone(by), func(other string) bool { return other == key }); len(by) > 0 {
			n.cidrs.put(p, by)
		} else {
			n.cidrs.drop(p)
		}
	}
	for _, p := range without(is, was) {
		by, _ := n.cidrs.get(p)
		i, _ := slices.BinarySearchFunc(by, key, v.order)
		n.cidrs.put(p, slices.Insert(slices.Clone(by), i, key))
		v.rivals(p, concerned)
	}
	n.known[key] = next
}

// rivals adds the nodes that claim a CIDR inside p.
func (v *view) rivals(p netip.Prefix, to map[string]bool) {
	for _, keys := range v.nodes.cidrs.within(p) {
		for _, key := range keys {
			to[key] = true
		}
	}
}

// order puts our own nodes first.
func (v *view) order(a, b string) int {
	return cmp.Or(first(clusterOf(b) == v.own.Name)-first(clusterOf(a) == v.own.Name), cmp.Compare(a, b))
}

// holders are the nodes that have, or claim, an address, in order. Nearly always it is one.
// The zero value is empty.
type holders struct {
	firsts addrmap.Map[bpf.Addr, string]
	all    map[bpf.Addr][]string // where there are several
}

// first returns the first node with an address, "" if there is none.
func (h *holders) first(a netip.Addr) string {
	key, _ := h.firsts.Get(bpf.AddrOf(a))
	return key
}

// each yields all nodes with an address.
func (h *holders) each(a netip.Addr) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, key := range h.all[bpf.AddrOf(a)] {
			if !yield(key) {
				return
			}
		}
		if first := h.first(a); first != "" && len(h.all[bpf.AddrOf(a)]) == 0 {
			yield(first)
		}
	}
}

// addrs yields the addresses that somebody has.
func (h *holders) addrs(yield func(netip.Addr) bool) {
	for a := range h.firsts.All() {
		if !yield(a.Netip()) {
			return
		}
	}
}

// has says whether a node has an address.
func (h *holders) has(a netip.Addr, key string, order func(a, b string) int) bool {
	first := h.first(a)
	if first == key || first == "" {
		return first != ""
	}
	_, there := slices.BinarySearchFunc(h.all[bpf.AddrOf(a)], key, order)
	return there
}

// take and release change a list in place: a peer may have all of its nodes name one address.
func (h *holders) take(a netip.Addr, key string, order func(a, b string) int) {
	at, first := bpf.AddrOf(a), h.first(a)
	all := h.all[at]
	switch {
	case first == "":
		h.firsts.Put(at, key)
		return
	case first == key:
		return
	case all == nil:
		all = []string{first}
	}
	i, there := slices.BinarySearchFunc(all, key, order)
	if there {
		return
	}
	if h.all == nil {
		h.all = map[bpf.Addr][]string{}
	}
	h.all[at] = slices.Insert(all, i, key)
	if i == 0 {
		h.firsts.Put(at, key)
	}
}

func (h *holders) release(a netip.Addr, key string, order func(a, b string) int) {
	at := bpf.AddrOf(a)
	all := h.all[at]
	if all == nil {
		if h.first(a) == key {
			h.firsts.Delete(at)
		}
		return
	}
	i, there := slices.BinarySearchFunc(all, key, order)
	if !there {
		return
	}
	all = slices.Delete(all, i, i+1)
	if i == 0 {
		h.firsts.Put(at, all[0])
	}
	if h.all[at] = all; len(all) == 1 {
		delete(h.all, at)
	}
}

// ofCluster yields the nodes of a peer that have an address.
func (h *holders) ofCluster(a netip.Addr, cluster string, order func(a, b string) int) iter.Seq[string] {
	return func(yield func(string) bool) {
		all := h.all[bpf.AddrOf(a)]
		if len(all) == 0 {
			if first := h.first(a); first != "" && clusterOf(first) == cluster {
				yield(first)
			}
			return
		}
		i, _ := slices.BinarySearchFunc(all, cluster+"/", order)
		for ; i < len(all) && clusterOf(all[i]) == cluster; i++ {
			if !yield(all[i]) {
				return
			}
		}
	}
}

// names are the addresses that a node of a member names as its own outside the mesh.
// Our own cluster's nodes have those an operator registered, whether or not they ever
// started.
func (v *view) names(n *tables.Node) (out []netip.Addr) {
	if n == nil {
		return nil
	}
	addrs := n.Addresses()
	if n.Cluster == v.own.Name {
		if n.Registration == nil {
			return nil
		}
		addrs = n.Registration.Addresses
	}
	if len(addrs) == 1 && addrs[0].IsValid() && addrs[0] == addrs[0].Unmap() {
		return addrs[:1:1]
	}
	for _, a := range addrs {
		if a = a.Unmap(); a.IsValid() && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// entitled says whether a node of a member has pod CIDRs that it may claim, or else what it
// claims beyond its rights; "" if it has nothing to claim yet.
func (v *view) entitled(n *tables.Node) (why string, claims bool) {
	if !n.Internal().IsValid() || len(n.PodCIDRs()) == 0 {
		return "", false
	}
	why = overclaim(v.member(n.Cluster), n)
	return why, why == ""
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
	for _, a := range n.Internals() {
		if !c.Owns(whole(a)) {
			return fmt.Sprintf("its internal address %v is outside the pod CIDRs of cluster %s", a, c.Name)
		}
	}
	return ""
}

// decide settles whether a node is believed, and notes in m if others depend on what
// that changes.
func (v *view) decide(key string, m *moved) {
	n := &v.nodes
	s := n.known[key]
	before, next := s.believed, s.row
	cidrs := s.cidrs()
	if len(cidrs) == 0 {
		next = nil
	} else {
		s.why = ""
	}
	for _, p := range cidrs {
		if by, of := v.claimant(p); by != key {
			next, s.why = nil, fmt.Sprintf("its pod CIDR %v overlaps %v of node %s", p, of, by)
			break
		}
	}
	s.believed = next
	if s.row == nil {
		delete(n.known, key)
	}
	if before == nil && next == nil || before != nil && next != nil && samePlace(before, next) && !m.clusters[next.Cluster] {
		return
	}
	if before != nil && !n.nameless {
		for _, a := range before.Internals() {
			n.inside.release(a, key, v.order)
		}
		for _, a := range v.ownHosts(before) {
			n.hosts.release(a, key, v.order)
		}
	}
	if next != nil && !n.nameless {
		for _, a := range next.Internals() {
			n.inside.take(a, key, v.order)
		}
		for _, a := range v.ownHosts(next) {
			n.hosts.take(a, key, v.order)
		}
	}
	m.nodes = append(m.nodes, movedNode{key, before, next})
}

// samePlace says whether two rows of a node put it in the same place.
func samePlace(a, b *tables.Node) bool {
	return slices.Equal(a.Internals(), b.Internals()) && slices.Equal(a.PodCIDRs(), b.PodCIDRs()) && slices.Equal(a.Addresses(), b.Addresses())
}

// claimant is the node to which the addresses in p belong, and by which of its CIDRs.
func (v *view) claimant(p netip.Prefix) (key string, of netip.Prefix) {
	for of, keys := range v.nodes.cidrs.around(p) {
		return keys[0], of
	}
	return "", of
}

// node returns a believed node, or nil.
func (v *view) node(key string) *tables.Node {
	if s := v.nodes.known[key]; s != nil {
		return s.believed
	}
	return nil
}

// nodeOf returns the index of the node whose pod CIDR contains addr; 0 for this node
// and for addresses outside the mesh.
func (v *view) nodeOf(addr netip.Addr, index func(string) uint16) uint16 {
	if key, _ := v.claimant(whole(addr)); v.node(key) != nil {
		return index(key)
	}
	return 0
}

// behind returns the node with a tunnel endpoint, and its key; nil if there is none.
func (v *view) behind(cluster string, addr netip.Addr) (key string, n *tables.Node) {
	hosts := &v.nodes.named
	if cluster == v.own.Name {
		hosts = &v.nodes.hosts
	}
	asked := host{cluster, addr}
	several := len(hosts.all[bpf.AddrOf(addr)]) > 0
	if several {
		if key, known := v.nodes.found[asked]; known {
			return key, v.node(key)
		}
	}
	for of := range hosts.ofCluster(addr, cluster, v.order) {
		if n = v.node(of); n != nil && slices.Contains(n.Addresses(), addr) {
			key = of
			break
		}
		n = nil
	}
	if several {
		enter(&v.nodes.found, asked, key)
	}
	return key, n
}

// ownHosts are the tunnel endpoints of a node of ours.
func (v *view) ownHosts(n *tables.Node) []netip.Addr {
	if n.Cluster != v.own.Name {
		return nil
	}
	return n.Addresses()
}

// process says whether an address is that of a believed node of our own cluster outside of the
// mesh: what listens there may be a backend, and other nodes' pods reach it through the node's tunnel.
func (v *view) process(a netip.Addr) bool { return v.carrier(a) != "" }

// carrier is the node of our own cluster whose tunnel leads to an address of its own outside of
// the mesh, or this node; "" if there is none. It has to be the one that the address's row is of.
func (v *view) carrier(a netip.Addr) string {
	key := v.nodes.hosts.first(a)
	if key == "" || v.nodes.named.first(a) != key || v.inMesh(whole(a)) {
		return ""
	}
	return key
}

// outside returns the first node, except one, that has an address outside the mesh, and
// the identity of such an address; "" if there is none. A peer cannot claim the
// addresses of our API servers.
func (v *view) outside(a netip.Addr, except string) (key string, who identity.Number) {
	for key := range v.nodes.named.each(a) {
		switch {
		case key == except:
		case v.inMesh(whole(a)):
			return "", 0
		case !slices.Contains(v.machines, a):
			return key, identity.RemoteNode
		case clusterOf(key) != v.own.Name:
			return "", 0 // our own nodes come first
		case slices.Contains(v.apiServers, a):
			return key, identity.KubeAPIServer
		default:
			return key, identity.RemoteNode
		}
	}
	return "", 0
}

// nodeAt returns the node that has an address, inside or outside the mesh; "" if none
// has.
func (v *view) nodeAt(a netip.Addr) string {
	if key := v.nodes.inside.first(a); key != "" {
		return key
	}
	key, _ := v.outside(a, "")
	return key
}
