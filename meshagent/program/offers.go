package program

import (
	"iter"
	"net/netip"
	"slices"

	"github.com/weft-mesh/weft/meshagent/tables"
)

// offer is a slice of a service, or the row of a service that carries backends itself.
type offer struct {
	service, key string
	carried      bool
}

// offers finds what offers backends with addresses in a range. All that has some in one
// block of 256 addresses, most often one node's, is kept together: the index is small
// beside the backends, and finds a few too many.
type offers struct {
	blocks map[offer][]netip.Prefix
	at     ranges[[]offer] // what has some in a block, each once
}

func newOffers() offers { return offers{blocks: map[offer][]netip.Prefix{}} }

// blockOf is the block of an address.
func blockOf(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()-8).Masked() }

// set replaces the addresses of an offer, none if it is gone.
func (o *offers) set(of offer, addrs []netip.Addr) {
	var next []netip.Prefix
	for _, a := range addrs {
		if block := blockOf(a); block.IsValid() && !slices.Contains(next, block) {
			next = append(next, block)
		}
	}
	before := o.blocks[of]
	if slices.Equal(before, next) {
		return
	}
	for _, block := range without(before, next) {
		all, _ := o.at.get(block)
		if all = slices.DeleteFunc(all, func(other offer) bool { return other == of }); len(all) == 0 {
			o.at.drop(block)
		} else {
			o.at.put(block, all)
		}
	}
	for _, block := range without(next, before) {
		all, _ := o.at.get(block)
		o.at.put(block, append(all, of))
	}
	if len(next) == 0 {
		delete(o.blocks, of)
	} else {
		o.blocks[of] = next
	}
}

// within yields what may offer backends in a range.
func (o *offers) within(p netip.Prefix) iter.Seq[offer] {
	if block := blockOf(p.Addr()); block.Bits() < p.Bits() {
		p = block
	}
	return func(yield func(offer) bool) {
		for _, all := range o.at.within(p) {
			for _, of := range all {
				if !yield(of) {
					return
				}
			}
		}
	}
}

// inSlice and inService are the addresses that a slice offers, or a service carries.
func inSlice(s *tables.Slice) []netip.Addr {
	out := make([]netip.Addr, 0, len(s.Endpoints))
	for i := range s.Endpoints {
		out = append(out, s.Endpoints[i].Addr)
	}
	return out
}

func inService(s *tables.Service) (out []netip.Addr) {
	for i := range s.Carried {
		for j := range s.Carried[i].Endpoints {
			out = append(out, s.Carried[i].Endpoints[j].Addr)
		}
	}
	return out
}

// offered are the addresses that something offers now.
func (v *view) offered(of offer) []netip.Addr {
	if of.carried {
		if s := tables.Get(v.txn, v.tables.Services, of.key); s != nil {
			return inService(s)
		}
	} else if s := tables.Get(v.txn, v.tables.Slices, of.key); s != nil {
		return inSlice(s)
	}
	return nil
}
