package program

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
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
	named map[netip.Addr][]string
	cidrs ranges[[]string]
	// places finds the addresses in named by range.
	places spots
	// Of those believed: inside lists who has an address inside the mesh, hosts who has
	// a tunnel endpoint.
	inside map[netip.Addr][]string
	hosts  map[host][]string
	// nameless is set if nobody asks who has an address: there are none in named, inside
	// and hosts then.
	nameless bool
}

// standing is what is known about one node.
type standing struct {
	// why is what keeps the node out on its own account, over the CIDR that another has
	// that is no longer than its own.
	why, over string
	named     []netip.Addr
	cidrs     []netip.Prefix // claimed, none of a node that has nothing to claim
	row       *tables.Node
	believed  *tables.Node // nil if it is not
}

// host is a tunnel endpoint. Clusters may use the same addresses.
type host struct {
	cluster string
	addr    netip.Addr
}

func newNodes(nameless bool) nodes {
	return nodes{nameless: nameless, known: map[string]*standing{}, named: map[netip.Addr][]string{}, inside: map[netip.Addr][]string{}, hosts: map[host][]string{}}
}

// followNodes takes up new rows, nil for those that are gone, and settles the
// conflicts that they begin or end.
func (v *view) followNodes(rows map[string]*tables.Node, m *moved) {
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
	next := &standing{row: row, believed: before.believed}
	if row != nil && v.member(row.Cluster) != nil {
		next.why, next.cidrs = v.entitled(row)
		if !n.nameless {
			next.named = v.names(row)
		}
	}
	for _, a := range before.named {
		if !slices.Contains(next.named, a) {
			m.addrs[a] = true
			if release(n.named, a, key); len(n.named[a]) == 0 {
				n.places.drop(bpf.PrefixOf(whole(a)))
			}
		}
	}
	for _, a := range next.named {
		if !slices.Contains(before.named, a) {
			m.addrs[a] = true
			n.places.put(bpf.PrefixOf(whole(a)))
			take(n.named, a, key, v.order)
		}
	}
	for _, p := range before.cidrs {
		if !slices.Contains(next.cidrs, p) {
			v.rivals(p, concerned)
			by, _ := n.cidrs.get(p)
			if by = slices.DeleteFunc(slices.Clone(by), func(other string) bool { return other == key }); len(by) > 0 {
				n.cidrs.put(p, by)
			} else {
				n.cidrs.drop(p)
			}
		}
	}
	for _, p := range next.cidrs {
		if !slices.Contains(before.cidrs, p) {
			by, _ := n.cidrs.get(p)
			i, _ := slices.BinarySearchFunc(by, key, v.order)
			n.cidrs.put(p, slices.Insert(slices.Clone(by), i, key))
			v.rivals(p, concerned)
		}
	}
	if row == nil || v.member(row.Cluster) == nil {
		next.row = nil
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

// take and release add and remove one who has, or claims, a thing.
func take[K comparable](of map[K][]string, k K, key string, order func(a, b string) int) {
	if i, there := slices.BinarySearchFunc(of[k], key, order); !there {
		of[k] = slices.Insert(of[k], i, key)
	}
}

func release[K comparable](of map[K][]string, k K, key string) {
	if of[k] = slices.DeleteFunc(of[k], func(other string) bool { return other == key }); len(of[k]) == 0 {
		delete(of, k)
	}
}

// names are the addresses that a node of a member names as its own outside the mesh.
// Our own cluster's nodes have those an operator registered, whether or not they ever
// started.
func (v *view) names(n *tables.Node) (out []netip.Addr) {
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

// entitled returns the pod CIDRs that a node of a member may claim, none if it has
// nothing to claim yet, or else says what it claims beyond its rights.
func (v *view) entitled(n *tables.Node) (why string, cidrs []netip.Prefix) {
	if !n.Internal().IsValid() || len(n.PodCIDRs()) == 0 {
		return "", nil
	}
	if why := overclaim(v.member(n.Cluster), n); why != "" {
		return why, nil
	}
	return "", valid(n.PodCIDRs())
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
	if len(s.cidrs) == 0 {
		next = nil
	}
	s.over = ""
	for _, p := range s.cidrs {
		if by, of := v.claimant(p); by != key {
			next, s.over = nil, fmt.Sprintf("its pod CIDR %v overlaps %v of node %s", p, of, by)
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
			release(n.inside, a, key)
		}
		for _, a := range before.Addresses() {
			release(n.hosts, host{before.Cluster, a}, key)
		}
	}
	if next != nil && !n.nameless {
		for _, a := range next.Internals() {
			take(n.inside, a, key, v.order)
		}
		for _, a := range next.Addresses() {
			take(n.hosts, host{next.Cluster, a}, key, v.order)
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
	if keys := v.nodes.hosts[host{cluster, addr}]; len(keys) > 0 {
		return keys[0], v.node(keys[0])
	}
	return "", nil
}

// outside returns the first node, except one, that has an address outside the mesh, and
// the identity of such an address; "" if there is none. A peer cannot claim the
// addresses of our API servers.
func (v *view) outside(a netip.Addr, except string) (key string, who identity.Number) {
	for _, key := range v.nodes.named[a] {
		switch {
		case key == except:
		case v.inMesh(whole(a)):
			return "", 0
		case !slices.Contains(v.apiServers, a):
			return key, identity.RemoteNode
		case clusterOf(key) == v.own.Name:
			return key, identity.KubeAPIServer
		default:
			return "", 0 // our own nodes come first
		}
	}
	return "", 0
}

// nodeAt returns the node that has an address, inside or outside the mesh; "" if none
// has.
func (v *view) nodeAt(a netip.Addr) string {
	if keys := v.nodes.inside[a]; len(keys) > 0 {
		return keys[0]
	}
	key, _ := v.outside(a, "")
	return key
}
