package tables

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/wire"
)

// Node is a node of any cluster. A node of ours has what the operator registered and
// what its agent reports; a peer's has Place and Export.
type Node struct {
	Cluster, Name string
	Registration  *wire.Registration
	State         *wire.NodeState
	// Withdrawn says that State is gone from the store; it keeps the node's last
	// report for as long as the node is registered.
	Withdrawn bool
	Place     *Place
	Export    *wire.ExportNode
}

// Place is what agents use of a peer's node: where it is and which addresses it gives out.
// The rest of its entry, labels and annotations among it, takes ten times the memory.
type Place struct {
	internals, addresses []netip.Addr
	podCIDRs             []netip.Prefix
}

// PlaceOf returns the place of a node; nil for nil.
func PlaceOf(n *wire.Node) *Place {
	if n == nil {
		return nil
	}
	p := &Place{podCIDRs: slices.Clone(n.PodCIDRs())}
	for _, typ := range []string{wire.NodeInternalIP, wire.NodeExternalIP, wire.NodeCiliumInternalIP} {
		for _, a := range n.IPAddresses {
			switch in := p.internals; {
			case a.Type != typ:
			case typ != wire.NodeCiliumInternalIP:
				if a.IP.IsValid() {
					p.addresses = append(p.addresses, a.IP)
				}
			case len(in) == 0 || len(in) == 1 && in[0].BitLen() != a.IP.BitLen():
				p.internals = append(p.internals, a.IP)
			}
		}
	}
	return p
}

// Doubt says what is wrong with the node's own report, or "" if nothing is.
func (n *Node) Doubt() string {
	if n.State == nil {
		return ""
	}
	if n.Registration == nil {
		return wire.NotRegistered
	}
	for _, a := range n.State.Addresses {
		if !slices.Contains(n.Registration.Addresses, a) {
			return fmt.Sprintf("it claims address %v, which it was not registered with", a)
		}
	}
	for _, p := range n.State.PodCIDRs {
		if !slices.Contains(n.Registration.PodCIDRs, p) {
			return fmt.Sprintf("it claims pod CIDR %v, which it was not registered with", p)
		}
	}
	return ""
}

// Key is "cluster/name".
func (n *Node) Key() string { return n.Cluster + "/" + n.Name }

// Empty says whether no part is left.
func (n *Node) Empty() bool {
	return n.Registration == nil && n.State == nil && n.Place == nil && n.Export == nil
}

// Internal is the node's first address inside the mesh.
func (n *Node) Internal() netip.Addr {
	switch {
	case n.State != nil:
		return n.State.Internal
	case n.Place != nil && len(n.Place.internals) > 0:
		return n.Place.internals[0]
	}
	return netip.Addr{}
}

// Internals are the node's addresses inside the mesh: one, or one of each family. Like the
// lists below, this one may be the row's own: do not change it.
func (n *Node) Internals() []netip.Addr {
	switch {
	case n.State != nil:
		return n.State.Internals()
	case n.Place != nil:
		return n.Place.internals
	}
	return nil
}

// Addresses are the node's own addresses, its tunnel endpoint first.
func (n *Node) Addresses() []netip.Addr {
	switch {
	case n.State != nil:
		return n.State.Addresses
	case n.Place != nil:
		return n.Place.addresses
	}
	return nil
}

// PodCIDRs are the prefixes from which the node assigns pod addresses.
func (n *Node) PodCIDRs() []netip.Prefix {
	switch {
	case n.State != nil:
		return n.State.PodCIDRs
	case n.Place != nil:
		return n.Place.podCIDRs
	}
	return nil
}

// Lanes are the keys and ports that the node has published for its two tunnels.
func (n *Node) Lanes() (lanes [2]wire.Lane, epoch uint64) {
	switch {
	case n.State != nil:
		return n.State.Lanes, n.State.Epoch
	case n.Export != nil:
		return n.Export.Lanes, n.Export.Epoch
	}
	return lanes, 0
}

var nodes = table[*Node]{
	name: "nodes", imported: true, written: true,
	columns: []string{"Cluster", "Node", "Internal", "Addresses", "PodCIDRs", "Epoch", "Keys"},
	cells: func(n *Node) []string {
		lanes, epoch := n.Lanes()
		var keys []string
		for _, l := range lanes {
			keys = append(keys, short(l.PublicKey))
		}
		return []string{n.Cluster, n.Name, addrs(n.Internals()), addrs(n.Addresses()), prefixes(n.PodCIDRs()), fmt.Sprint(epoch), strings.Join(keys, ",")}
	},
}
