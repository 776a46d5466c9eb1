package program

import (
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/policy"
)

// addresses writes which identity and node each address belongs to. Call obsolete,
// which removes the rows no longer wanted, once nothing refers to them.
func (p *Program) addresses(v *view, rev signature, r *report) (changed int, obsolete func() int) {
	t, txn := v.tables, v.txn
	s := stage{rev, signature{ips: t.IPs.Revision(txn)}}
	s.ground.policies, s.ground.epoch = t.Policies.Revision(txn), p.epoch
	var remove func() int
	switch {
	case p.did.addresses == s:
		return 0, func() int { return 0 }
	case p.did.addresses.ground == s.ground && p.variants.none():
		changed, remove = p.addressRows(v, r)
	default:
		changed, remove = p.allAddresses(v, rev.prune, r)
	}
	return changed, func() int {
		n := remove()
		p.did.addresses = keep(s, r.clean("ips", "former"))
		return n
	}
}

// allAddresses derives all address rows from scratch.
func (p *Program) allAddresses(v *view, prune bool, r *report) (changed int, obsolete func() int) {
	r.stage("ips", "former")
	for _, cidr := range v.memory {
		v.doubts = append(v.doubts, doubt{"former", cidr.String(), fmt.Sprintf("%v belonged to a cluster that is no longer a peer; it stays blocked so that open connections do not continue in the clear: add the peer again, or unblock it with `weft peer forget %v`", cidr, cidr)})
	}
	p.remember(v, r)
	p.ips.skip(v.txn)
	a := deriveAddresses(v, p.cfg.Ways.Index, p.cidrs, p.variants.of)
	p.ground = a.ground
	failIP := func(k bpf.Addr, err error) { r.fail("ips", orText(a.from[k], k.String()), err) }
	failPrefix := func(k bpf.PrefixKey, err error) { r.fail("ips", k.Netip().String(), err) }
	// Prefixes first, so that an address without a row of its own is already known to
	// belong to a member.
	changed = p.prefixes.update(a.prefixes, failPrefix) + p.addrs.update(a.ips, failIP)
	return changed, func() int {
		n := p.addrs.remove(a.ips, prune, failIP)
		gone := p.prefixes.remove(a.prefixes, prune, failPrefix)
		if gone > 0 {
			p.did.policy = stage{} // numbers that only these prefixes used go too
		}
		p.vacant = true
		return n + gone
	}
}

// addressRows applies the changed rows of table ips on top of the ground that the last
// allAddresses computed.
func (p *Program) addressRows(v *view, r *report) (changed int, obsolete func() int) {
	addrs, prefixes := map[bpf.Addr]bpf.IPInfo{}, map[bpf.PrefixKey]bpf.IPInfo{}
	var goneAddrs []bpf.Addr
	var gonePrefixes []bpf.PrefixKey
	from := map[bpf.Addr]string{}
	for _, c := range p.ips.take(v.txn) {
		ip := c.Object
		r.row("ips", ip.Key())
		info, ok := bpf.IPInfo{}, false
		if !c.Deleted {
			info, ok = v.infoOf(ip, p.cfg.Ways.Index, p.variants.of)
		}
		if m := v.members[ip.Cluster]; m == nil || !m.Owns(ip.Prefix) {
			continue // the kernel row, if any, belongs to someone else
		}
		if ip.Prefix.IsSingleIP() {
			key := bpf.AddrOf(ip.Prefix.Addr())
			from[key] = ip.Key()
			switch {
			case p.ground.nodes[key]:
			case ok:
				addrs[key] = info
			default:
				goneAddrs = append(goneAddrs, key)
			}
			continue
		}
		key := bpf.PrefixOf(ip.Prefix)
		if !ok {
			info, ok = p.ground.prefixes[key]
		}
		if ok {
			prefixes[key] = info
		} else {
			gonePrefixes = append(gonePrefixes, key)
		}
	}
	failIP := func(k bpf.Addr, err error) { r.fail("ips", orText(from[k], k.String()), err) }
	failPrefix := func(k bpf.PrefixKey, err error) { r.fail("ips", k.Netip().String(), err) }
	changed = p.prefixes.update(prefixes, failPrefix) + p.addrs.update(addrs, failIP)
	return changed, func() int {
		return p.addrs.dropAll(goneAddrs, failIP) + p.prefixes.dropAll(gonePrefixes, failPrefix)
	}
}

func orText(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// addresses holds the rows that say who has which address.
type addresses struct {
	ips      map[bpf.Addr]bpf.IPInfo
	prefixes map[bpf.PrefixKey]bpf.IPInfo
	// from names the table row behind each kernel row.
	from map[bpf.Addr]string
	// ground is what remains without table ips.
	ground ground
	// number returns an endpoint's number in the kernel.
	number func(endpointAt) identity.Number
}

// ground is what is known about addresses without table ips: it depends only on
// clusters, nodes and policies.
type ground struct {
	// nodes holds the addresses of nodes inside the mesh. No pod has one of them.
	nodes    map[bpf.Addr]bool
	prefixes map[bpf.PrefixKey]bpf.IPInfo
}

// everyIPv4 always has a row. The kernel stores IPv4 as ::ffff:0:0/96, so without it
// an IPv6 prefix in a policy (::/1, say) would be the longest match for all of IPv4.
var everyIPv4 = netip.MustParsePrefix("0.0.0.0/0")

// deriveAddresses says who has which address.
//
// Prefixes, widest first: the world; prefixes outside the mesh that policies name; the
// clusters' service CIDRs, so that packets to an unused service address go nowhere;
// CIDRs of former members, so that nothing at all goes there; members' pod CIDRs, so
// that an address in one is a member's before anything else is known about it; nodes'
// pod CIDRs, so that packets are encrypted for the right node before the identity is
// known. Single addresses: nodes, then pods.
func deriveAddresses(v *view, index func(string) uint16, cidrs map[netip.Prefix]identity.Number, number func(endpointAt) identity.Number) addresses {
	a := addresses{ips: map[bpf.Addr]bpf.IPInfo{}, prefixes: map[bpf.PrefixKey]bpf.IPInfo{}, from: map[bpf.Addr]string{}, number: number}
	a.prefixes[bpf.PrefixOf(everyIPv4)] = bpf.IPInfo{Identity: uint32(identity.World)}
	for cidr, n := range cidrs {
		if v.inMesh(cidr) {
			continue // members are matched only by their labels
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
	// If two nodes claim an address, one of our cluster's wins.
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
	a.ground = ground{nodes: map[bpf.Addr]bool{}, prefixes: maps.Clone(a.prefixes)}
	for addr := range a.from {
		a.ground.nodes[addr] = true
	}
	for ip := range v.tables.IPs.All(v.txn) {
		a.pod(v, ip, index)
	}
	return a
}

// outside adds a node's addresses outside the mesh as soon as anybody names them,
// whether or not the rest of the row is believed: its tunnels end there, so a pod's
// packet to one would leave in the clear. No handshake is needed first. A peer that
// names an address that is not its node's only keeps our pods from reaching it; it
// gains nothing.
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

// outsideOf returns a node's addresses outside the mesh's CIDRs and the identity of
// each. Our own cluster's nodes have those an operator registered, whether or not they
// ever started. A peer cannot claim the addresses of our API servers.
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
	info, ok := v.infoOf(ip, index, a.number)
	switch {
	case !ok:
	case !ip.Prefix.IsSingleIP():
		a.prefixes[bpf.PrefixOf(ip.Prefix)] = info
	case !a.ground.nodes[bpf.AddrOf(ip.Prefix.Addr())]:
		a.ips[bpf.AddrOf(ip.Prefix.Addr())] = info
		a.from[bpf.AddrOf(ip.Prefix.Addr())] = ip.Key()
	}
}

// infoOf returns the kernel row for an address or prefix in the mesh, or false (and
// possibly a doubt) if it gets none. Two believed rows of table ips never describe the
// same prefix: only its owner may, and members' CIDRs do not overlap.
func (v *view) infoOf(ip *tables.IP, index func(string) uint16, number func(endpointAt) identity.Number) (bpf.IPInfo, bool) {
	c := v.members[ip.Cluster]
	if c == nil {
		return bpf.IPInfo{}, false
	}
	if why := v.doubtful(c, ip); why != "" {
		v.doubts = append(v.doubts, doubt{"ips", ip.Key(), why})
		return bpf.IPInfo{}, false
	}
	info := bpf.IPInfo{Identity: uint32(number(endpointAt{ip.Prefix, ip.Identity, ip.NamedPorts})), Cluster: uint16(c.ID()), Flags: bpf.IPMember}
	if n := v.byHost[ip.Cluster+"/"+ip.Host.String()]; n != nil {
		if v.isSelf(n) {
			info.Flags |= bpf.IPLocal
		} else {
			info.Node = index(n.Key())
		}
	}
	return info, true
}

// doubtful says why an address is not believed, or "" if it is.
func (v *view) doubtful(c *tables.Cluster, ip *tables.IP) string {
	switch {
	case !c.Owns(ip.Prefix):
		return fmt.Sprintf("it is outside the pod CIDRs of cluster %s", c.Name)
	case ip.Identity == identity.Unknown:
		return "it has no identity yet"
	case !v.believes(c, ip.Identity):
		return fmt.Sprintf("identity %v is outside the range of cluster %s", ip.Identity, c.Name)
	}
	return ""
}

// holdsPods says whether a prefix overlaps a member's pod CIDRs. A peer's service CIDR
// that does could be the longer match for some pods.
func (v *view) holdsPods(p netip.Prefix) bool {
	for _, c := range v.members {
		if slices.ContainsFunc(c.PodCIDRs(), p.Overlaps) {
			return true
		}
	}
	return false
}

// inMesh says whether a prefix lies inside a member's pod or service CIDRs or a former
// member's pod CIDRs. Policies cannot select these by address.
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

// numbering assigns node-local numbers to the prefixes that policies name, and keeps
// them stable: flows remember the number they were judged by.
type numbering struct {
	byPrefix map[netip.Prefix]identity.Number
	last     uint32
}

// newNumbering takes over the numbers already in the kernel.
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

// fresh returns an unused number.
func (n *numbering) fresh() identity.Number {
	n.last++
	return identity.LocalNumber(n.last)
}

// number returns the number of every prefix in the policies. A prefix that no policy
// names any longer keeps its number and labels while it has a kernel row, because
// addresses are judged by it until then.
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
