package program

import (
	"iter"
	"net/netip"
	"slices"

	"github.com/weft-mesh/weft/meshagent/tables"
)

// offer is a slice of a service, or the row of a service that carries backends itself, by
// its key.
type offer struct {
	service, key string
	carried      bool
	blocks       []netip.Prefix // with some of its addresses
}

// offers finds what offers backends with addresses in a range. All that has some in one
// block of 256 addresses, most often one node's, is kept together: the index is small
// beside the backends, and finds a few too many.
type offers struct {
	slices, services map[string]*offer
	at               ranges[[]*offer] // what has some in a block, each once
}

func newOffers() offers { return offers{slices: map[string]*offer{}, services: map[string]*offer{}} }

// blockOf is the block of an address.
func blockOf(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()-8).Masked() }

// slice takes up what a slice offers for a service. It returns the one that it was part of
// before, "" if there was none.
func (o *offers) slice(service, key string, addrs []netip.Addr) (before string) {
	of := o.slices[key]
	if of != nil {
		before = of.service
	}
	if before != service {
		o.dropSlice(key)
		of = &offer{service: service, key: key}
		o.slices[key] = of
	}
	o.set(of, addrs)
	return before
}

// dropSlice returns the service that the slice was part of, "" if there was none.
func (o *offers) dropSlice(key string) (before string) {
	if of := o.slices[key]; of != nil {
		before = of.service
		o.set(of, nil)
		delete(o.slices, key)
	}
	return before
}

// carry takes up what the row of a service offers itself.
func (o *offers) carry(service, key string, addrs []netip.Addr) {
	of := o.services[key]
	if of == nil {
		of = &offer{service: service, key: key, carried: true}
	}
	if o.set(of, addrs); len(addrs) > 0 {
		o.services[key] = of
	} else {
		delete(o.services, key)
	}
}

// set replaces the addresses of an offer.
func (o *offers) set(of *offer, addrs []netip.Addr) {
	next := make([]netip.Prefix, 0, min(len(addrs), 1))
	for _, a := range addrs {
		if block := blockOf(a); block.IsValid() && !slices.Contains(next, block) {
			next = append(next, block)
		}
	}
	for _, block := range without(of.blocks, next) {
		all, _ := o.at.get(block)
		if all = slices.DeleteFunc(all, func(other *offer) bool { return other == of }); len(all) == 0 {
			o.at.drop(block)
		} else {
			o.at.put(block, all)
		}
	}
	for _, block := range without(next, of.blocks) {
		all, _ := o.at.get(block)
		o.at.put(block, append(all, of))
	}
	of.blocks = next
}

// within yields what may offer backends in a range.
func (o *offers) within(p netip.Prefix) iter.Seq[*offer] {
	if block := blockOf(p.Addr()); block.Bits() < p.Bits() {
		p = block
	}
	return func(yield func(*offer) bool) {
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
		out = append(out, s.Carried[i].Addrs...)
		for j := range s.Carried[i].Others {
			out = append(out, s.Carried[i].Others[j].Addr)
		}
	}
	return out
}

// offered are the addresses that something offers now.
func (v *view) offered(of *offer) []netip.Addr {
	if of.carried {
		if s := tables.Get(v.txn, v.tables.Services, of.key); s != nil {
			return inService(s)
		}
	} else if s := tables.Get(v.txn, v.tables.Slices, of.key); s != nil {
		return inSlice(s)
	}
	return nil
}
