package peering

import (
	"net/netip"
	"slices"

	"github.com/weft-mesh/weft/wire"
)

// owners tells to which connected peers an address belongs. A look costs one lookup for
// each length of their pod CIDRs, however many peers there are: mirrors look for every
// address that they copy.
type owners struct {
	names   map[netip.Prefix][]string
	lengths map[length]int // how many CIDRs have it
}

// length is that of a prefix, in one of the two families.
type length struct {
	ipv4 bool
	bits int
}

func newOwners() owners {
	return owners{names: map[netip.Prefix][]string{}, lengths: map[length]int{}}
}

func lengthOf(p netip.Prefix) length { return length{p.Addr().Is4(), p.Bits()} }

// add takes a peer in.
func (o owners) add(peer wire.Peer) {
	if !peer.Connected {
		return
	}
	for _, p := range peer.PodCIDRs {
		p = p.Masked()
		o.names[p] = append(o.names[p], peer.Name)
		o.lengths[lengthOf(p)]++
	}
}

// remove undoes add.
func (o owners) remove(peer wire.Peer) {
	if !peer.Connected {
		return
	}
	for _, p := range peer.PodCIDRs {
		p = p.Masked()
		i := slices.Index(o.names[p], peer.Name)
		if i < 0 {
			continue
		}
		if o.names[p] = slices.Delete(o.names[p], i, i+1); len(o.names[p]) == 0 {
			delete(o.names, p)
		}
		if o.lengths[lengthOf(p)]--; o.lengths[lengthOf(p)] == 0 {
			delete(o.lengths, lengthOf(p))
		}
	}
}

// of returns a peer other than one whose pods may have an address; "" if there is none.
func (o owners) of(a netip.Addr, except string) string {
	for l := range o.lengths {
		if l.ipv4 != a.Is4() {
			continue
		}
		p, err := a.Prefix(l.bits)
		if err != nil {
			continue
		}
		for _, name := range o.names[p] {
			if name != except {
				return name
			}
		}
	}
	return ""
}
