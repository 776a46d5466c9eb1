package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/identity"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

type peerKind uint8

const (
	peerLabels peerKind = iota // by label
	peerCIDR                   // by address
	peerGroup                  // by groups of addresses
)

// peer describes the other side: identities by label, or addresses. Addresses are
// those outside of every member cluster; for ipBlocks also those inside.
type peer struct {
	kind     peerKind
	selector selector       // peerLabels: of identities; peerGroup: of groups; peerCIDR: an additional condition
	outside  bool           // peerLabels: selects the world, so never an unknown member
	cidr     netip.Prefix   // peerCIDR
	except   []netip.Prefix // peerCIDR: excluded from cidr
	mesh     bool           // peerCIDR: pods and nodes too
	group    string         // peerGroup: name of the group; if "", selector counts
}

// local returns the peer with the local cluster's name filled in.
func (p peer) local(cluster string) peer {
	p.selector = p.selector.local(cluster)
	return p
}

// resolved returns the peer with groups replaced by their prefixes.
func (p peer) resolved(groups []*CIDRGroup) []peer {
	if p.kind != peerGroup {
		return []peer{p}
	}
	var out []peer
	for _, g := range groups {
		if !p.means(g) {
			continue
		}
		for _, cidr := range g.CIDRs {
			out = append(out, peer{kind: peerCIDR, cidr: cidr})
		}
	}
	return out
}

// means reports whether a peer of kind peerGroup refers to this group.
func (p peer) means(g *CIDRGroup) bool {
	if p.group != "" {
		return p.group == g.Name
	}
	return p.selector.matches(g.labels)
}

// String identifies a peer after local and resolved: equal strings mean the same
// peer.
func (p peer) String() string {
	if p.kind == peerCIDR {
		return fmt.Sprint(p.cidr, p.except, p.mesh, p.selector)
	}
	return fmt.Sprint(p.outside, p.selector)
}

// matches reports whether the identity is such a peer. An unknown member matches
// nothing, because it may be anyone.
func (p peer) matches(n identity.Number, labels identity.Labels) bool {
	switch {
	case n == identity.UnknownMember:
		return false
	case p.kind == peerLabels:
		return p.selector.matches(labels)
	case len(p.selector) > 0 && !p.selector.matches(labels):
		return false
	}
	outside := labels.Has(identity.SourceReserved, identity.World.String()) || n == identity.WorldIPv4 || n == identity.WorldIPv6
	if !outside && !p.mesh {
		return false
	}
	prefix, ok := cidrOf(labels)
	if !ok {
		// Without a prefix it stands for every address that no policy names, not even
		// as an exception. Inside the mesh, all addresses are IPv4.
		family := p.cidr.Addr().Is4()
		if outside {
			family = isWorld(n, p.cidr.Addr())
		}
		return family && p.cidr.Bits() == 0 && !slices.ContainsFunc(p.except, func(e netip.Prefix) bool { return e.Bits() == 0 })
	}
	return contains(p.cidr, prefix) && !slices.ContainsFunc(p.except, func(e netip.Prefix) bool { return contains(e, prefix) })
}

// mayMatch reports whether a peer of which nothing is known could match. A denial
// that could match it applies to it.
func (p peer) mayMatch(n identity.Number) bool {
	if p.kind == peerLabels && p.selector.nobody() {
		return false
	}
	return n != identity.UnknownMember || p.kind == peerLabels && !p.outside
}

// isWorld reports whether n stands for all addresses of a family that no policy names.
func isWorld(n identity.Number, family netip.Addr) bool {
	if family.Is4() {
		return n == identity.World || n == identity.WorldIPv4
	}
	return n == identity.WorldIPv6
}

func contains(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// cidrKey writes a prefix as a label key. As in Cilium, IPv6 has "-" instead of ":",
// which would end the source.
func cidrKey(prefix netip.Prefix) string {
	return strings.ReplaceAll(prefix.Masked().String(), ":", "-")
}

// cidrOf returns the most specific prefix among the labels of a CIDR identity.
func cidrOf(labels identity.Labels) (prefix netip.Prefix, ok bool) {
	for _, l := range labels {
		if l.Source != identity.SourceCIDR {
			continue
		}
		p, err := netip.ParsePrefix(strings.ReplaceAll(l.Key, "-", ":"))
		if err == nil && (!ok || p.Bits() > prefix.Bits()) {
			prefix, ok = p, true
		}
	}
	return prefix, ok
}

// reservedPeer selects one reserved identity.
func reservedPeer(n identity.Number) peer {
	return peer{
		selector: selector{{source: identity.SourceReserved, key: n.String(), op: metav1.LabelSelectorOpExists}},
		outside:  n == identity.World || n == identity.WorldIPv4 || n == identity.WorldIPv6,
	}
}

// clusterPeers are what entity cluster includes besides workloads.
var clusterPeers = []peer{
	reservedPeer(identity.Host), reservedPeer(identity.RemoteNode), reservedPeer(identity.Init), reservedPeer(identity.Ingress),
	reservedPeer(identity.Health), reservedPeer(identity.Unmanaged), reservedPeer(identity.KubeAPIServer),
}

// familyPeer matches every address of a family outside of the mesh.
func familyPeer(all string) []peer {
	return []peer{{kind: peerCIDR, cidr: netip.MustParsePrefix(all)}}
}

// entities are the peers behind each entity. "all" is missing because it matches everyone.
var entities = map[string][]peer{
	"none":       {},
	"world":      {reservedPeer(identity.World), reservedPeer(identity.WorldIPv4), reservedPeer(identity.WorldIPv6)},
	"world-ipv4": familyPeer("0.0.0.0/0"),
	"world-ipv6": familyPeer("::/0"),
	"cluster": append(slices.Clone(clusterPeers), peer{selector: selector{
		{source: identity.SourceK8s, key: identity.KeyCluster, op: metav1.LabelSelectorOpIn, cluster: true}}}),
	"cluster-mesh": append(slices.Clone(clusterPeers), peer{selector: selector{
		{source: identity.SourceK8s, key: identity.KeyCluster, op: metav1.LabelSelectorOpExists}}}),
	"host":           {reservedPeer(identity.Host)},
	"init":           {reservedPeer(identity.Init)},
	"ingress":        {reservedPeer(identity.Ingress)},
	"unmanaged":      {reservedPeer(identity.Unmanaged)},
	"remote-node":    {reservedPeer(identity.RemoteNode)},
	"health":         {reservedPeer(identity.Health)},
	"kube-apiserver": {reservedPeer(identity.KubeAPIServer)},
}

const entityAll = "all"

// parsePeers reads the peers of one item. any means every peer: there is no peer
// field, or the entity all is named. As in Cilium, an empty list in any peer field
// selects nobody, whatever else the item has.
func parsePeers(at path, it item, namespace string, errs *problems) (peers []peer, any bool) {
	fields, nobody := 0, false
	for _, f := range []struct{ given, empty bool }{
		{it.endpoints != nil, len(it.endpoints) == 0},
		{it.cidr != nil, len(it.cidr) == 0},
		{it.cidrSet != nil, len(it.cidrSet) == 0},
		{it.entities != nil, len(it.entities) == 0},
	} {
		if f.given {
			fields++
			nobody = nobody || f.empty
		}
	}
	for _, r := range it.refused {
		if r.value == nil {
			continue
		}
		fields++
		if r.selects && emptyList(r.value) {
			nobody = true
			continue
		}
		errs.add(at.field(r.field), "%s", r.reason)
	}
	onlyOne(at, it, errs)
	if fields == 0 {
		// An item without peers and ports is written to turn on default deny; it
		// selects nobody.
		return nil, len(it.ports) > 0 || len(it.icmps) > 0
	}
	for i, sel := range it.endpoints {
		where := at.field(it.prefix + "Endpoints").index(i)
		s := parseSelector(where, sel, parseKey, errs)
		if word := s.reservedWord(); word != "" && s.wantsLabel() {
			errs.addNew(where, "selects nobody: whoever is reserved:%s has no labels of its own; write one list item for each", word)
		}
		s = scopePeer(s, namespace)
		s.refuseContradiction(where, "nobody", false, errs)
		peers = append(peers, peer{selector: s})
	}
	for i, text := range it.cidr {
		if prefix, ok := parseCIDR(at.field(it.prefix+"CIDR").index(i), text, errs); ok {
			peers = append(peers, peer{kind: peerCIDR, cidr: prefix})
		}
	}
	for i, c := range it.cidrSet {
		if p, ok := parseCIDRRule(at.field(it.prefix+"CIDRSet").index(i), c, errs); ok {
			peers = append(peers, p)
		}
	}
	for i, name := range it.entities {
		if name == entityAll {
			any = true
			continue
		}
		known, ok := entities[name]
		if !ok {
			errs.add(at.field(it.prefix+"Entities").index(i), "%q is not an entity; write one of all, %s",
				name, present(maps.Keys(entities)))
		}
		refuseAbsent(at.field(it.prefix+"Entities").index(i), name, errs)
		peers = append(peers, known...)
	}
	if nobody {
		return nil, false
	}
	if any {
		peers = nil
	}
	return peers, any
}

// onlyOne refuses two kinds of peers in one item, which Cilium's schema accepts and
// its parser then drops.
func onlyOne(at path, it item, errs *problems) {
	var used []string
	for _, f := range []struct {
		name string
		n    int
	}{{"Endpoints", len(it.endpoints)}, {"CIDR", len(it.cidr)}, {"CIDRSet", len(it.cidrSet)}, {"Entities", len(it.entities)}} {
		if f.n > 0 {
			used = append(used, it.prefix+f.name)
		}
	}
	if len(used) > 1 {
		errs.add(at, "combines %s; write one list item for each", strings.Join(used, " and "))
	}
}

// parseCIDRRule reads one prefix with its exceptions, or one reference to groups.
func parseCIDRRule(at path, c *cidrRule, errs *problems) (peer, bool) {
	given := 0
	for _, there := range []bool{c.CIDR != "", c.CIDRGroupRef != "", c.CIDRGroupSelector != nil} {
		if there {
			given++
		}
	}
	switch {
	case given > 1:
		errs.add(at, "names more than one of cidr, cidrGroupRef and cidrGroupSelector; write one list item for each")
		return peer{}, false
	case given == 0:
		errs.add(at.field("cidr"), "is missing; write a prefix such as 10.0.0.0/8, or a cidrGroupRef")
		return peer{}, false
	case c.CIDR == "" && len(c.Except) > 0:
		errs.add(at.field("except"), "is not supported beside a group; leave the addresses out of the group")
		return peer{}, false
	case c.CIDRGroupRef != "":
		if why := validation.IsDNS1123Subdomain(c.CIDRGroupRef); len(why) != 0 {
			errs.add(at.field("cidrGroupRef"), "%q is not the name of a group: %s", c.CIDRGroupRef, why[0])
		}
		return peer{kind: peerGroup, group: c.CIDRGroupRef}, true
	case c.CIDRGroupSelector != nil:
		where := at.field("cidrGroupSelector")
		s := parseSelector(where, c.CIDRGroupSelector, groupKey, errs)
		s.refuseContradiction(where, "no group", false, errs)
		return peer{kind: peerGroup, selector: s}, true
	}
	prefix, ok := parseCIDR(at.field("cidr"), c.CIDR, errs)
	out := peer{kind: peerCIDR, cidr: prefix}
	for i, text := range c.Except {
		where := at.field("except").index(i)
		except, good := parseCIDR(where, text, errs)
		switch {
		case !good || !ok:
			continue
		case except.Addr().Is4() != prefix.Addr().Is4():
			errs.add(where, "%s is of another address family than cidr %s; move it to an entry of its own family", except, prefix)
		case !contains(prefix, except):
			errs.add(where, "%s is not inside cidr %s; remove it, it excludes nothing", except, prefix)
		}
		out.except = append(out.except, except)
	}
	return out, ok
}

// parseCIDR reads a prefix. IPv4-mapped IPv6 is read as IPv4.
func parseCIDR(at path, text string, errs *problems) (netip.Prefix, bool) {
	if addr, err := netip.ParseAddr(text); err == nil && addr.Zone() == "" {
		addr = addr.Unmap()
		prefix := netip.PrefixFrom(addr, addr.BitLen())
		errs.addNew(at, "%q is an address; a prefix is needed, write %s", text, prefix)
		return prefix, true
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		errs.add(at, "%q is not a prefix; write one such as 10.0.0.0/8, 10.1.2.3/32 or fd00::/8", text)
		return netip.Prefix{}, false
	}
	if mapped := 128 - 32; prefix.Addr().Is4In6() && prefix.Bits() >= mapped {
		prefix = netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()-mapped)
	}
	return prefix.Masked(), true
}
