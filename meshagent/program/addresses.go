package program

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/policy"
)

// addresses are the rows that say who has which address.
type addresses struct {
	ips      map[bpf.Addr]bpf.IPInfo
	prefixes map[bpf.PrefixKey]bpf.IPInfo
	// from names the row of a table that a kernel row stems from.
	from map[bpf.Addr]string
	// number is the number of an endpoint in the kernel.
	number func(endpointAt) identity.Number
}

// everyIPv4 has a row of its own. The kernel keeps IPv4 as ::ffff:0:0/96, where an
// IPv6 prefix that a policy names, ::/1 for one, would be the longest for all of it.
var everyIPv4 = netip.MustParsePrefix("0.0.0.0/0")

// deriveAddresses says who has which address.
//
// Prefixes, from wide to narrow: the world; what policies name outside of the mesh;
// the clusters' service CIDRs, so that a packet to none of them goes nowhere; those
// of former members, so that nothing goes there at all; the members' pod CIDRs, so
// that whatever is in them is a member's before anything else is known; the nodes'
// pod CIDRs, so that an address is encrypted for its node before its identity is
// known. Single addresses: nodes, then pods.
func deriveAddresses(v *view, index func(string) uint16, cidrs map[netip.Prefix]identity.Number, number func(endpointAt) identity.Number) addresses {
	a := addresses{ips: map[bpf.Addr]bpf.IPInfo{}, prefixes: map[bpf.PrefixKey]bpf.IPInfo{}, from: map[bpf.Addr]string{}, number: number}
	a.prefixes[bpf.PrefixOf(everyIPv4)] = bpf.IPInfo{Identity: uint32(identity.World)}
	for cidr, n := range cidrs {
		if v.inMesh(cidr) {
			continue // a member is known by its labels alone
		}
		a.prefixes[bpf.PrefixOf(cidr)] = bpf.IPInfo{Identity: uint32(n)}
	}
	for _, c := range v.members {
		if cidr := c.ServiceCIDR(); cidr.IsValid() && (c == v.own || !v.holdsPods(cidr)) {
			a.prefixes[bpf.PrefixOf(cidr)] = bpf.IPInfo{Identity: uint32(identity.World), Flags: bpf.IPService}
		}
	}
	for _, cidr := range v.former {
		a.prefixes[bpf.PrefixOf(cidr)] = bpf.IPInfo{Flags: bpf.IPMember | bpf.IPFormer}
	}
	for _, c := range v.members {
		for _, cidr := range c.PodCIDRs() {
			a.prefixes[bpf.PrefixOf(cidr)] = bpf.IPInfo{Cluster: uint16(c.ID()), Flags: bpf.IPMember}
		}
	}
	// Of two that claim an address, our own node has it, and before all others this one.
	for _, own := range []bool{false, true} {
		for row := range v.tables.Nodes.All(v.txn) {
			if own == (row.Cluster == v.own.Name) {
				a.outside(v, row)
			}
		}
	}
	for key, n := range v.nodes {
		a.node(v, n, index(key))
	}
	for ip := range v.tables.IPs.All(v.txn) {
		a.pod(v, ip, index)
	}
	return a
}

// outside adds the addresses that a node has outside of the mesh, from the moment
// anybody names them and whether or not the rest of the row is believed: they are
// where its tunnels end, so a pod's packet to one would leave in the clear. No
// handshake has to come first. A peer that names an address which is not its node's
// keeps our pods from it, and gains nothing.
func (a *addresses) outside(v *view, n *tables.Node) {
	if v.isSelf(n) {
		return
	}
	for addr, who := range v.outsideOf(n) {
		a.ips[bpf.AddrOf(addr)] = bpf.IPInfo{Identity: uint32(a.number(endpointAt{whole(addr), who, nil})), Flags: bpf.IPNode}
	}
}

func (a *addresses) node(v *view, n *tables.Node, index uint16) {
	c := v.members[n.Cluster]
	info := bpf.IPInfo{Node: index, Cluster: uint16(c.ID()), Flags: bpf.IPMember}
	who := identity.RemoteNode
	if v.isSelf(n) {
		info.Flags |= bpf.IPLocal
		who = identity.Host
		for addr := range v.outsideOf(n) {
			a.ips[bpf.AddrOf(addr)] = bpf.IPInfo{Identity: uint32(who)}
		}
	}
	for _, cidr := range n.PodCIDRs() {
		a.prefixes[bpf.PrefixOf(cidr)] = info
	}
	info.Identity = uint32(a.number(endpointAt{whole(n.Internal()), who, nil}))
	a.ips[bpf.AddrOf(n.Internal())] = info
	a.from[bpf.AddrOf(n.Internal())] = n.Key()
}

// outsideOf are a node's addresses outside of the mesh's CIDRs, and who is there. An
// own node has those that an operator registered, whether or not it ever started.
// Where our API servers are, a peer has no say.
func (v *view) outsideOf(n *tables.Node) map[netip.Addr]identity.Number {
	own := n.Cluster == v.own.Name
	addrs := n.Addresses()
	switch {
	case v.members[n.Cluster] == nil || own && n.Registration == nil:
		return nil
	case own:
		addrs = n.Registration.Addresses
	}
	out := map[netip.Addr]identity.Number{}
	for _, addr := range addrs {
		server := slices.Contains(v.apiServers, addr)
		switch {
		case v.inMesh(whole(addr)) || server && !own:
		case server:
			out[addr] = identity.KubeAPIServer
		default:
			out[addr] = identity.RemoteNode
		}
	}
	return out
}

func (a *addresses) pod(v *view, ip *tables.IP, index func(string) uint16) {
	c := v.members[ip.Cluster]
	if c == nil {
		return
	}
	if why := v.doubtful(c, ip); why != "" {
		v.doubts = append(v.doubts, doubt{"ips", ip.Key(), why})
		return
	}
	info := bpf.IPInfo{Identity: uint32(a.number(endpointAt{ip.Prefix, ip.Identity, ip.NamedPorts})), Cluster: uint16(c.ID()), Flags: bpf.IPMember}
	if n := v.byHost[ip.Cluster+"/"+ip.Host.String()]; n != nil {
		if v.isSelf(n) {
			info.Flags |= bpf.IPLocal
		} else {
			info.Node = index(n.Key())
		}
	}
	if !ip.Prefix.IsSingleIP() {
		a.prefixes[bpf.PrefixOf(ip.Prefix)] = info
		return
	}
	key := bpf.AddrOf(ip.Prefix.Addr())
	if _, taken := a.from[key]; taken {
		return // a node's own address
	}
	a.ips[key] = info
	a.from[key] = ip.Key()
}

// doubtful says why an address is not believed; "" if it is.
func (v *view) doubtful(c *tables.Cluster, ip *tables.IP) string {
	switch {
	case !c.Owns(ip.Prefix):
		return fmt.Sprintf("cluster %s does not own it", c.Name)
	case ip.Identity == identity.Unknown:
		return "no identity yet"
	case !v.believes(c, ip.Identity):
		return fmt.Sprintf("identity %v is not one of cluster %s", ip.Identity, c.Name)
	}
	return ""
}

// holdsPods says whether a prefix overlaps a member's pod CIDRs. A peer's service
// CIDR that does would be the longer prefix for some pods.
func (v *view) holdsPods(p netip.Prefix) bool {
	for _, c := range v.members {
		if slices.ContainsFunc(c.PodCIDRs(), p.Overlaps) {
			return true
		}
	}
	return false
}

// inMesh says whether a prefix lies inside a member's pod CIDRs, present or former,
// or a member's service CIDR. Policies cannot mean it by its addresses.
func (v *view) inMesh(p netip.Prefix) bool {
	if within(p, v.former) {
		return true
	}
	for _, c := range v.members {
		if s := c.ServiceCIDR(); c.Owns(p) || s.IsValid() && within(p, []netip.Prefix{s}) {
			return true
		}
	}
	return false
}

// numbering gives the prefixes that policies name numbers of this node's own,
// and keeps them: flows remember the number they were judged by.
type numbering struct {
	byPrefix map[netip.Prefix]identity.Number
	last     uint32
}

// newNumbering takes over the numbers that stand in the kernel.
func newNumbering(prefixes map[bpf.PrefixKey]bpf.IPInfo, others iter.Seq[identity.Number]) *numbering {
	n := &numbering{byPrefix: map[netip.Prefix]identity.Number{}}
	for k, info := range prefixes {
		if number := identity.Number(info.Identity); number.Scope() == identity.ScopeLocal {
			if info.Flags&bpf.IPMember == 0 {
				n.byPrefix[k.Netip()] = number
			}
			n.last = max(n.last, uint32(number)&0xffffff)
		}
	}
	for number := range others {
		if number.Scope() == identity.ScopeLocal {
			n.last = max(n.last, uint32(number)&0xffffff)
		}
	}
	return n
}

// fresh is a number that nothing has.
func (n *numbering) fresh() identity.Number {
	n.last++
	return identity.LocalNumber(n.last)
}

// number gives every prefix of the policies its number. One that no policy names
// any more keeps number and labels as long as it stands in the kernel: addresses
// are judged by it until then.
func (n *numbering) number(wanted map[netip.Prefix]identity.Labels, stands func(netip.Prefix) bool) (byPrefix map[netip.Prefix]identity.Number, labels map[identity.Number]identity.Labels) {
	byPrefix, labels = map[netip.Prefix]identity.Number{}, map[identity.Number]identity.Labels{}
	for prefix, ls := range wanted {
		number, ok := n.byPrefix[prefix]
		if !ok {
			number = n.fresh()
			n.byPrefix[prefix] = number
		}
		byPrefix[prefix], labels[number] = number, ls
	}
	for prefix, number := range n.byPrefix {
		if _, ok := wanted[prefix]; ok {
			continue
		}
		if stands(prefix) {
			labels[number] = policy.CIDRLabels(prefix)
		} else {
			delete(n.byPrefix, prefix)
		}
	}
	return byPrefix, labels
}
