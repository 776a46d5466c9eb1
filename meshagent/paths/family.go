package paths

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/tunnel"
)

// inCommon chooses the address inside the mesh at which one node speaks to another: of an IP
// family that both have. If they have both, it is IPv4, unless both name IPv6 first: each
// chooses the same. The zero Addr means that they have none in common.
func inCommon(ours, theirs []netip.Addr) (at netip.Addr) {
	for _, a := range theirs {
		if !slices.ContainsFunc(ours, func(own netip.Addr) bool { return own.BitLen() == a.BitLen() }) {
			continue
		}
		if !at.IsValid() || at.Is6() && a.Is4() && ours[0].Is4() {
			at = a
		}
	}
	return at
}

// endpointOf is the address at which the tunnel to a node ends: its first, if that is of the
// family of our first. The zero Addr means that there is none. A second address is not used:
// WireGuard in user space sends some packets to wrong addresses once it speaks both families.
func endpointOf(ours, theirs []netip.Addr) netip.Addr {
	if len(theirs) == 0 || theirs[0].BitLen() != ours[0].BitLen() {
		return netip.Addr{}
	}
	return theirs[0]
}

// apart reports whether there can be no tunnel between nodes with these addresses. Where a
// node names none, it may still call.
func apart(ours, theirs []netip.Addr) bool {
	return len(theirs) > 0 && !endpointOf(ours, theirs).IsValid()
}

// whyApart says why there can be no tunnel to a node.
func (t *Tunnels) whyApart(n *tables.Node) string {
	own, theirs := t.cfg.Addresses[0], n.Addresses()[0]
	return fmt.Sprintf("no tunnel is possible: its first address %v is %s, and this node's %v is %s; register both clusters' nodes with first addresses of one IP family",
		theirs, familyOf(theirs), own, familyOf(own))
}

func familyOf(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// peerOf is a node as a WireGuard peer.
func (t *Tunnels) peerOf(n *tables.Node) tunnel.Peer {
	published, _ := n.Lanes()
	p := tunnel.Peer{Cluster: n.Cluster, Node: n.Name}
	at := endpointOf(t.cfg.Addresses, n.Addresses())
	for i, lane := range published {
		key, err := tunnel.ParseKey(lane.PublicKey)
		if err != nil {
			continue // shown in the node's row
		}
		p.Keys[i] = key
		if at.IsValid() && lane.Port != 0 {
			p.Endpoint[i] = netip.AddrPortFrom(at, lane.Port)
		}
	}
	p.Allowed = append(p.Allowed, n.PodCIDRs()...)
	for _, in := range n.Internals() {
		if !slices.ContainsFunc(p.Allowed, func(cidr netip.Prefix) bool { return cidr.Contains(in) }) {
			p.Allowed = append(p.Allowed, netip.PrefixFrom(in, in.BitLen()))
		}
	}
	for _, a := range t.processesAt(n) {
		p.Allowed = append(p.Allowed, netip.PrefixFrom(a, a.BitLen()))
	}
	return p
}

// processesAt are the addresses outside the mesh at which pods reach processes of a node through
// its tunnel: those of a node of our own cluster. They get no route: what WireGuard itself and the
// node's own processes send there goes outside of tunnels.
func (t *Tunnels) processesAt(n *tables.Node) (out []netip.Addr) {
	if t.mesh == nil || t.mesh.Own == nil || n.Cluster != t.mesh.Own.Name {
		return nil
	}
	for _, a := range n.Addresses() {
		a = a.Unmap()
		inside := slices.ContainsFunc(slices.Concat(t.mesh.CIDRs, t.mesh.Former), func(cidr netip.Prefix) bool { return cidr.Contains(a) })
		if a.IsValid() && !inside && !slices.Contains(t.cfg.Addresses, a) && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}
