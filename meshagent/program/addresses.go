package program

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/reconcile"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/policy"
)

// owners are the addresses and prefixes that have to be written, or to be looked at
// again.
type owners struct {
	// all of them; clusters are those all of whose addresses do.
	all      bool
	clusters map[string]bool
	// addrs and prefixes are named by what is told of them if they fail: "" for
	// themselves.
	addrs    map[bpf.Addr]string
	prefixes map[bpf.PrefixKey]string
}

func newOwners() owners {
	return owners{clusters: map[string]bool{}, addrs: map[bpf.Addr]string{}, prefixes: map[bpf.PrefixKey]string{}}
}

func (o *owners) addr(a netip.Addr) {
	if key := bpf.AddrOf(a); o.addrs[key] == "" {
		o.addrs[key] = ""
	}
}

func (o *owners) prefix(p netip.Prefix) {
	if key := bpf.PrefixOf(p); o.prefixes[key] == "" {
		o.prefixes[key] = ""
	}
}

// ip notes an address or prefix in the mesh.
func (o *owners) ip(key bpf.PrefixKey) {
	if prefix := key.Netip(); prefix.IsSingleIP() {
		o.addr(prefix.Addr())
	} else {
		o.prefix(prefix)
	}
}

// tellServices notes that somebody else may have an address, for services with a hand-written
// slice that names it.
func (p *Program) tellServices(v *view, ip *tables.IP) {
	if ip.Cluster == v.own.Name && ip.Prefix.IsSingleIP() {
		p.frontends.reassigned = append(p.frontends.reassigned, ip.Prefix.Addr())
	}
}

// addresses writes which identity and node each address belongs to. Call obsolete,
// which removes the rows no longer wanted, once nothing refers to them.
func (p *Program) addresses(v *view, r *report) (changed int, obsolete func() int) {
	todo := p.owners
	p.owners = newOwners()
	p.tellFormer(v, todo.all, r)
	p.remember(v, r)

	many := 0
	if todo.all {
		many = v.tables.CountIPs()
	}
	w := newOwnerRows(many)
	if todo.all {
		if p.frontends.all { // services are derived from scratch as well
			p.ips.skip(v.txn)
		} else {
			changes, _ := p.ips.take(v.txn)
			for ip := range changes {
				p.tellServices(v, &ip)
			}
		}
		r.stage("ips")
		p.hosted = newHosted()
		p.everyOwner(v, &w)
		if p.ported != nil {
			p.learnPorts(v)
		}
	} else {
		changes, some := p.ips.take(v.txn)
		if some {
			r.part("ips")
		}
		for ip, gone := range changes {
			r.row("ips", ip.Key())
			if gone {
				p.hosted.drop(&ip)
				p.ported.drop(&ip)
			} else {
				p.hosted.put(&ip)
				p.ported.put(&ip)
			}
			p.tellServices(v, &ip)
			p.ipRow(v, &ip, gone, &w)
		}
		if p.crowded(v) {
			p.learnHosts(v)
		}
		for name := range todo.clusters {
			for ip := range v.tables.IPsOf(v.txn, name) {
				r.row("ips", ip.Key())
				p.ipRow(v, &ip, false, &w)
			}
		}
	}
	for key, name := range todo.addrs {
		if name != "" {
			r.row("ips", name)
		}
		p.addrRow(v, key, &w)
	}
	for key, name := range todo.prefixes {
		if name != "" {
			r.row("ips", name)
		}
		p.prefixRow(v, key, &w)
	}
	failAddr := func(k bpf.Addr, err error) {
		p.owners.addrs[k] = v.nameOf(k)
		r.fail("ips", p.owners.addrs[k], err)
	}
	failPrefix := func(k bpf.PrefixKey, err error) {
		p.owners.prefixes[k] = k.Netip().String()
		r.fail("ips", p.owners.prefixes[k], err)
	}
	changed = p.announce(v, &w, failAddr, failPrefix, r)
	// Prefixes first, so that an address without a row of its own is already known to
	// belong to a member.
	changed += p.prefixes.Update(w.prefixes, failPrefix) + p.addrs.Update(w.addrs, failAddr)
	return changed, func() int {
		if v.complete() { // what an earlier agent left, and nobody wants
			w.goneAddrs = append(w.goneAddrs, slices.Collect(p.addrs.AllFound())...)
			w.gonePrefixes = append(w.gonePrefixes, slices.Collect(p.prefixes.AllFound())...)
		}
		return p.addrs.Delete(w.goneAddrs, failAddr) + p.prefixes.Delete(w.gonePrefixes, failPrefix)
	}
}

// tellFormer says which CIDRs stay blocked that no record explains.
func (p *Program) tellFormer(v *view, all bool, r *report) {
	if !p.formerMoved && !all {
		return
	}
	p.formerMoved = false
	r.stage("former")
	for _, cidr := range v.former.memory {
		v.doubts = append(v.doubts, doubt{"former", cidr.String(), fmt.Sprintf("%v belonged to a cluster that is no longer a peer; it stays blocked so that open connections do not continue in the clear: add the peer again, or unblock it with `weft peer forget %v`", cidr, cidr)})
	}
}

func orText(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// ownerRows are rows that say who has which address, and those that nobody has.
type ownerRows struct {
	addrs        map[bpf.Addr]bpf.IPInfo
	prefixes     map[bpf.PrefixKey]bpf.IPInfo
	goneAddrs    []bpf.Addr
	gonePrefixes []bpf.PrefixKey
}

// newOwnerRows has room for so many addresses.
func newOwnerRows(addrs int) ownerRows {
	return ownerRows{addrs: make(map[bpf.Addr]bpf.IPInfo, addrs), prefixes: map[bpf.PrefixKey]bpf.IPInfo{}}
}

// announce has policies, and the sets of this node's pods, follow the variants that rows are
// about to have for the first time. If they do not, the rows are held back.
func (p *Program) announce(v *view, w *ownerRows, failAddr reconcile.Failed[bpf.Addr], failPrefix reconcile.Failed[bpf.PrefixKey], r *report) (changed int) {
	if len(p.variants.news) == 0 || p.policies.current == nil {
		return 0
	}
	news := maps.Clone(p.variants.news)
	err := p.acquaint()
	if err == nil {
		if revised, ok := p.renumber(v); !ok || revised && p.unplaced(v) {
			p.did.policy = stage{}
		}
		if p.renumbered {
			changed = p.pods(v, r)
		}
		if p.renumbered {
			err = errors.New("pods of this node are not under the rules for its named ports yet")
		}
	}
	if err == nil {
		return changed
	}
	maps.Copy(p.variants.news, news)
	for k, info := range w.addrs {
		if news[identity.Number(info.Identity)] {
			delete(w.addrs, k)
			failAddr(k, err)
		}
	}
	for k, info := range w.prefixes {
		if news[identity.Number(info.Identity)] {
			delete(w.prefixes, k)
			failPrefix(k, err)
		}
	}
	return changed
}

// everyOwner adds the rows of all addresses and prefixes, and of all that the kernel
// has rows for. It learns what is behind each node.
func (p *Program) everyOwner(v *view, w *ownerRows) {
	for ip := range v.tables.EachIP(v.txn) {
		p.hosted.put(&ip)
		p.ipRow(v, &ip, false, w)
	}
	prefixes := []netip.Prefix{everyIPv4}
	prefixes = slices.AppendSeq(prefixes, maps.Keys(p.cidrs))
	prefixes = append(prefixes, v.former.list...)
	for _, s := range v.clusters.admitted {
		prefixes = append(prefixes, s.pods...)
		prefixes = append(prefixes, s.services...)
	}
	addrs := slices.Collect(v.nodes.named.addrs)
	for _, s := range v.nodes.known {
		if s.believed != nil {
			prefixes = append(prefixes, s.cidrs()...)
			addrs = append(addrs, s.believed.Internals()...)
		}
	}
	for _, prefix := range prefixes {
		p.prefixRow(v, bpf.PrefixOf(prefix), w)
	}
	for _, addr := range addrs {
		p.addrRow(v, bpf.AddrOf(addr), w)
	}
	for key := range p.addrs.Rows() {
		if _, wanted := w.addrs[key]; !wanted && !p.addrs.Found(key) {
			p.addrRow(v, key, w)
		}
	}
	for key := range p.prefixes.Rows() {
		if _, wanted := w.prefixes[key]; !wanted && !p.prefixes.Found(key) {
			p.prefixRow(v, key, w)
		}
	}
}

// ipRow adds the row of an address or prefix that has changed in table ips.
func (p *Program) ipRow(v *view, ip *tables.IP, deleted bool, w *ownerRows) {
	info, ok := bpf.IPInfo{}, false
	if !deleted {
		info, ok = v.infoOf(ip, p.cfg.Rows.Index, p.variants.of)
	}
	switch {
	case !ip.Prefix.IsSingleIP():
		if key := bpf.PrefixOf(ip.Prefix); ok {
			w.prefixes[key] = info
		} else {
			p.prefixRow(v, key, w)
		}
	case ok && v.nodes.inside.first(ip.Prefix.Addr()) == "":
		w.addrs[bpf.AddrOf(ip.Prefix.Addr())] = info
	default:
		p.addrRow(v, bpf.AddrOf(ip.Prefix.Addr()), w)
	}
}

func (w *ownerRows) addr(key bpf.Addr, info bpf.IPInfo, ok bool) {
	if ok {
		w.addrs[key] = info
	} else {
		w.goneAddrs = append(w.goneAddrs, key)
	}
}

func (w *ownerRows) prefix(key bpf.PrefixKey, info bpf.IPInfo, ok bool) {
	if ok {
		w.prefixes[key] = info
	} else {
		w.gonePrefixes = append(w.gonePrefixes, key)
	}
}

// addrRow adds the row of an address: a node's inside the mesh, a node's outside it, or
// a pod's.
func (p *Program) addrRow(v *view, key bpf.Addr, w *ownerRows) {
	addr := key.Netip()
	if at := v.nodes.inside.first(addr); at != "" {
		w.addr(key, p.nodeInfo(v, v.node(at), addr), true)
		return
	}
	info, ok := p.outsideInfo(v, addr)
	if ip := ipOf(v, whole(addr)); !ok && ip != nil {
		info, ok = v.infoOf(ip, p.cfg.Rows.Index, p.variants.of)
	}
	w.addr(key, info, ok)
}

// nameOf names an address by the row behind it: in table ips, or the node's.
func (v *view) nameOf(key bpf.Addr) string {
	addr := key.Netip()
	if at := v.nodes.inside.first(addr); at != "" {
		return at
	}
	if ip := ipOf(v, whole(addr)); ip != nil {
		return ip.Key()
	}
	return key.String()
}

// ipOf returns the row of table ips by the cluster to which a prefix belongs; nil if
// there is none.
func ipOf(v *view, prefix netip.Prefix) *tables.IP {
	c := v.ownerOf(prefix)
	if c == nil {
		return nil
	}
	return v.tables.IPAt(v.txn, c.Name, prefix)
}

// nodeInfo is the row of a node's address inside the mesh.
func (p *Program) nodeInfo(v *view, n *tables.Node, addr netip.Addr) bpf.IPInfo {
	who := identity.RemoteNode
	if v.isSelf(n) {
		who = identity.Host
	}
	info := p.cidrInfo(v, n)
	info.Identity = uint32(p.variants.of(endpointAt{whole(addr), who, nil}))
	return info
}

// cidrInfo is the row of a node's pod CIDR.
func (p *Program) cidrInfo(v *view, n *tables.Node) bpf.IPInfo {
	info := bpf.IPInfo{Cluster: uint16(v.member(n.Cluster).ID()), Flags: bpf.IPMember}
	if v.isSelf(n) {
		info.Flags |= bpf.IPLocal
	} else {
		info.Node = p.cfg.Rows.Index(n.Key())
	}
	return info
}

// outsideInfo is the row of a node's address outside the mesh, or false if it gets
// none. It has one as soon as anybody names it, whether or not the rest of the node's
// row is believed: its tunnels end there, so a pod's packet to one would leave in the
// clear. No handshake is needed first. A peer that names an address that is not its
// node's only keeps our pods from reaching it; it gains nothing. The tunnel to a believed node of
// our own cluster leads to its addresses too: to processes there that are behind services.
func (p *Program) outsideInfo(v *view, addr netip.Addr) (bpf.IPInfo, bool) {
	self := v.selfKey()
	if key, _ := v.outside(addr, ""); key == "" {
		return bpf.IPInfo{}, false
	}
	if v.node(self) != nil && v.nodes.named.has(addr, self, v.order) {
		return bpf.IPInfo{Identity: uint32(identity.Host)}, true
	}
	key, who := v.outside(addr, self)
	info := bpf.IPInfo{Identity: uint32(p.variants.of(endpointAt{whole(addr), who, nil})), Flags: bpf.IPNode}
	if at := v.carrier(addr); at != "" && at == key {
		info.Node = p.cfg.Rows.Index(at)
	}
	return info, key != ""
}

// everyIPv4 always has a row. The kernel stores IPv4 as ::ffff:0:0/96, so without it
// an IPv6 prefix in a policy (::/1, say) would be the longest match for all of IPv4.
var everyIPv4 = netip.MustParsePrefix("0.0.0.0/0")

// prefixRow adds the row of a prefix: one in table ips, or what widerOwner says.
func (p *Program) prefixRow(v *view, key bpf.PrefixKey, w *ownerRows) {
	prefix := key.Netip()
	if ip := ipOf(v, prefix); ip != nil && !prefix.IsSingleIP() {
		if info, ok := v.infoOf(ip, p.cfg.Rows.Index, p.variants.of); ok {
			w.prefix(key, info, true)
			return
		}
	}
	info, ok := p.widerOwner(v, prefix)
	w.prefix(key, info, ok)
}

// widerOwner is the row of a prefix that table ips does not give to anybody, or false.
// Of a prefix that is several things, the first counts: a node's pod CIDR, so that
// packets are encrypted for the right node before the identity is known; a member's,
// so that an address in it is a member's before anything else is known about it; a
// former member's, so that nothing at all goes there; a cluster's service CIDR, so that
// packets to an unused service address go nowhere; a prefix outside the mesh that
// policies name; the world.
func (p *Program) widerOwner(v *view, prefix netip.Prefix) (bpf.IPInfo, bool) {
	keys, _ := v.nodes.cidrs.get(prefix)
	for _, key := range keys {
		if n := v.node(key); n != nil {
			info := p.cidrInfo(v, n)
			info.Bits = uint8(bpf.PrefixOf(prefix).Bits)
			return info, true
		}
	}
	if name, ok := v.clusters.owners.get(prefix); ok {
		return bpf.IPInfo{Cluster: uint16(v.member(name).ID()), Flags: bpf.IPMember}, true
	}
	if _, ok := v.former.cidrs.get(prefix); ok {
		return bpf.IPInfo{Flags: bpf.IPMember | bpf.IPFormer}, true
	}
	if _, ok := v.clusters.services.get(prefix); ok && (slices.Contains(valid(v.own.ServiceCIDRs()), prefix) || !v.holdsPods(prefix)) {
		return bpf.IPInfo{Identity: uint32(identity.World), Flags: bpf.IPService}, true
	}
	if n, ok := p.cidrs[prefix]; ok && !v.inMesh(prefix) {
		return bpf.IPInfo{Identity: uint32(n)}, true // members are matched only by their labels
	}
	return bpf.IPInfo{Identity: uint32(identity.World)}, prefix == everyIPv4
}

// infoOf returns the kernel row for an address or prefix in the mesh, or false (and
// possibly a doubt) if it gets none. Two believed rows of table ips never describe the
// same prefix: only its owner may, and members' CIDRs do not overlap.
func (v *view) infoOf(ip *tables.IP, index func(string) uint16, number func(endpointAt) identity.Number) (bpf.IPInfo, bool) {
	c := v.member(ip.Cluster)
	if c == nil {
		return bpf.IPInfo{}, false
	}
	if why := v.doubtful(c, ip); why != "" {
		v.doubts = append(v.doubts, doubt{"ips", ip.Key(), why})
		return bpf.IPInfo{}, false
	}
	info := bpf.IPInfo{Identity: uint32(number(endpointAt{ip.Prefix, ip.Identity, ip.NamedPorts})), Cluster: uint16(c.ID()), Flags: bpf.IPMember}
	if key, n := v.behind(ip.Cluster, ip.Host); n != nil {
		if v.isSelf(n) {
			info.Flags |= bpf.IPLocal
		} else {
			info.Node = index(key)
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

// numbering assigns node-local numbers to the prefixes that policies name, and keeps
// them stable: flows remember the number they were judged by.
type numbering struct {
	byPrefix map[netip.Prefix]identity.Number
	last     uint32
}

// newNumbering takes over the numbers already in the kernel.
func newNumbering(prefixes iter.Seq2[bpf.PrefixKey, bpf.IPInfo], others iter.Seq[identity.Number]) *numbering {
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
// names any longer keeps its number and labels while its kernel row has it, because
// addresses are judged by it until then.
func (n *numbering) number(wanted map[netip.Prefix]identity.Labels, carries func(netip.Prefix, identity.Number) bool) (byPrefix map[netip.Prefix]identity.Number, labels map[identity.Number]identity.Labels) {
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
		if carries(prefix, number) {
			labels[number] = policy.CIDRLabels(prefix)
		} else {
			delete(n.byPrefix, prefix)
		}
	}
	return byPrefix, labels
}
