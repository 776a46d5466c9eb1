package model

import (
	"net/netip"

	"github.com/weft-mesh/weft/bpf"
)

// Identities that nobody allocates.
const (
	host          = 1
	world         = 2
	unknownMember = 127
)

// place is where an address is.
type place struct {
	identity      uint32
	node, cluster uint16
	via           bpf.Via
	member        bool
	flags         bpf.IPFlags
}

func (n *Node) own(a netip.Addr) bool { return a == n.Internal[0] || a == n.Internal[1] }

// ingress is the address that stands for clients outside: the one before the internal one.
func (n *Node) ingress(family int) (netip.Addr, bool) {
	a := n.Internal[family]
	return a.Prev(), a.IsValid()
}

func (n *Node) isIngress(a netip.Addr) bool {
	mine, ok := n.ingress(family(a))
	return ok && a == mine
}

// longest is the row of the longest prefix that has an address.
func (n *Node) longest(a netip.Addr) (best Owner, found bool) {
	bits := -1
	for p, o := range n.Prefixes {
		if p.Contains(a) && p.Bits() > bits {
			best, bits, found = o, p.Bits(), true
		}
	}
	return best, found
}

// who has an address that is not a pod's of this node?
func (n *Node) who(a netip.Addr) place {
	if n.own(a) {
		return place{identity: host, via: bpf.ViaStack}
	}
	o, ok := n.Hosts[a]
	if !ok {
		o, ok = n.longest(a)
	}
	if !ok {
		return place{identity: world, via: bpf.ViaStack}
	}
	at := place{identity: o.Identity, node: o.Node, cluster: o.Cluster, via: bpf.ViaStack, flags: o.Flags}
	at.member = o.Cluster != 0 || o.Flags&bpf.IPMember != 0
	if at.node != 0 || at.member {
		at.via = bpf.ViaTunnel
	}
	if at.member && at.identity == 0 {
		at.identity = unknownMember
		if o.Bits != 0 {
			bits := o.Bits - 128 + a.BitLen()
			if p, _ := a.Prefix(bits); p.Addr() == a { // the node's ingress address: its clients
				at.identity = n.restOfWorld(family(a))
			}
		}
	}
	return at
}

// restOfWorld is the identity of addresses that no policy names.
func (n *Node) restOfWorld(family int) uint32 {
	all := netip.PrefixFrom([]netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}[family], 0)
	if o := n.Prefixes[all]; o.Identity != 0 {
		return o.Identity
	}
	return world
}

// locate says where packets to an address go, or why they go nowhere.
func (n *Node) locate(a netip.Addr) (place, bpf.Reason) {
	if pod := n.Pods[a]; pod != nil {
		return place{identity: pod.Identity, via: bpf.ViaPod}, 0
	}
	at := n.who(a)
	switch {
	case at.flags&bpf.IPService != 0: // only services have addresses there, and this is none
		return at, bpf.ReasonNoBackend
	case at.flags&bpf.IPNode != 0:
		return at, bpf.ReasonNodeAddress
	case at.via != bpf.ViaTunnel:
		return at, 0
	case at.flags&bpf.IPFormer != 0:
		return at, bpf.ReasonFormerMember
	case at.flags&bpf.IPLocal != 0:
		return at, bpf.ReasonNoEndpoint
	case at.node == 0:
		return at, bpf.ReasonNoTunnel
	}
	return at, 0
}

// locateBackend is locate for a backend, which may be a process of another node.
func (n *Node) locateBackend(a netip.Addr) (place, bpf.Reason) {
	at, why := n.locate(a)
	if why == bpf.ReasonNodeAddress && at.node != 0 {
		return at, 0
	}
	return at, why
}

// locateOffered is locate for where a connection goes, which may be a process of another node
// that is behind a service.
func (n *Node) locateOffered(to netip.AddrPort, proto uint8) (place, bpf.Reason) {
	at, why := n.locate(to.Addr())
	if why == bpf.ReasonNodeAddress && at.node != 0 && n.offers(to, proto) {
		return at, 0
	}
	return at, why
}

// offers tells whether a process at an address of a node is behind a service.
func (n *Node) offers(at netip.AddrPort, proto uint8) bool {
	return n.Offered[Front{At: at, Proto: proto}]
}

// machine tells whether an address is this node's own, outside of the mesh.
func (n *Node) machine(a netip.Addr) bool {
	at := n.who(a)
	return !n.own(a) && at.identity == host && !at.member && at.flags == 0
}

// neighbour tells whether an address is in the pod CIDR of another node of this cluster.
func (n *Node) neighbour(a netip.Addr) bool {
	at := n.who(a)
	return at.member && at.node != 0 && at.cluster == n.Cluster && at.flags&bpf.IPFormer == 0
}

// inTheClear says why a source may not arrive outside of tunnels.
func inTheClear(from place) bpf.Reason {
	switch {
	case from.flags&bpf.IPFormer != 0:
		return bpf.ReasonFormerMember
	case from.member, from.flags&(bpf.IPNode|bpf.IPService) != 0:
		return bpf.ReasonPlaintext
	case from.identity == host:
		return bpf.ReasonSpoofedSource
	}
	return 0
}

// path is the worse of what is known of a node and of its cluster, if that is another one.
func (n *Node) path(node, cluster uint16) bpf.Path {
	p := n.Peers[node].Path
	if p != bpf.PathDead && cluster != 0 && cluster != n.Cluster {
		if c := n.Clusters[cluster]; c != bpf.PathAlive {
			return c
		}
	}
	return p
}

// lane is the device that leads to a node; 0: none.
func (n *Node) lane(node uint16) int {
	p := n.Peers[node]
	if !p.Keyed {
		return 0
	}
	return n.Lanes[p.Lane]
}

// flagsOf are those of the CIDR that an address is in: the guard does not depend on which
// addresses are known.
func (n *Node) flagsOf(a netip.Addr) bpf.IPFlags {
	o, _ := n.longest(a)
	return o.Flags
}
