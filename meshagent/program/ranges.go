package program

import (
	"encoding/binary"
	"iter"
	"math/bits"
	"net/netip"
)

// ranges maps prefixes to values, and finds those around and those inside a prefix in
// a time that does not depend on how many others there are: one binary trie per
// family, without nodes that neither hold a value nor fork. Prefixes of IPv4 and IPv6
// never contain each other. The zero value is empty.
type ranges[V any] struct{ v4, v6 *branch[V] }

type branch[V any] struct {
	value V
	below [2]*branch[V]
	// addr, bits and four are a masked prefix: there are two branches for each node in
	// several of these, and a netip.Prefix is twice as large.
	addr [16]byte
	bits uint8
	four bool // of IPv4
	held bool // value is set
}

func newBranch[V any](p netip.Prefix) *branch[V] {
	return &branch[V]{addr: p.Addr().As16(), bits: uint8(p.Bits()), four: p.Addr().Is4()}
}

// at is where a branch is.
func (b *branch[V]) at() netip.Prefix {
	a := netip.AddrFrom16(b.addr)
	if b.four {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, int(b.bits))
}

func (r *ranges[V]) root(p netip.Prefix) **branch[V] {
	if p.Addr().Is4() {
		return &r.v4
	}
	return &r.v6
}

func (r *ranges[V]) empty() bool { return r.v4 == nil && r.v6 == nil }

// put sets the value of a prefix.
func (r *ranges[V]) put(p netip.Prefix, value V) {
	p = p.Masked()
	link := r.root(p)
	leaf := newBranch[V](p)
	leaf.held, leaf.value = true, value
	for {
		b := *link
		if b == nil {
			*link = leaf
			return
		}
		at := b.at()
		switch n := shared(at, p); {
		case n == at.Bits() && n == p.Bits():
			b.held, b.value = true, value
			return
		case n == at.Bits():
			link = &b.below[bitAt(p, n)]
			continue
		case n == p.Bits():
			leaf.below[bitAt(at, n)] = b
			*link = leaf
			return
		default:
			fork := newBranch[V](netip.PrefixFrom(p.Addr(), n).Masked())
			fork.below[bitAt(at, n)], fork.below[bitAt(p, n)] = b, leaf
			*link = fork
			return
		}
	}
}

// drop removes a prefix, if it is there.
func (r *ranges[V]) drop(p netip.Prefix) {
	root := r.root(p)
	*root = (*root).without(p.Masked())
}

func (b *branch[V]) without(p netip.Prefix) *branch[V] {
	if b == nil || !holds(b.at(), p) {
		return b
	}
	if int(b.bits) == p.Bits() {
		var none V
		b.held, b.value = false, none
	} else {
		below := &b.below[bitAt(p, int(b.bits))]
		*below = (*below).without(p)
	}
	switch {
	case b.held:
	case b.below[0] == nil:
		return b.below[1]
	case b.below[1] == nil:
		return b.below[0]
	}
	return b
}

// get returns the value of exactly this prefix.
func (r *ranges[V]) get(p netip.Prefix) (value V, ok bool) {
	for at, value := range r.around(p) {
		if at.Bits() == p.Bits() {
			return value, true
		}
	}
	return value, false
}

// around yields the prefixes that contain p, the widest first, p itself last.
func (r *ranges[V]) around(p netip.Prefix) iter.Seq2[netip.Prefix, V] {
	return func(yield func(netip.Prefix, V) bool) {
		for b := *r.root(p); b != nil; b = b.below[bitAt(p, int(b.bits))] {
			at := b.at()
			if !holds(at, p) || b.held && !yield(at, b.value) || at.Bits() == p.Bits() {
				return
			}
		}
	}
}

// holdsAny says whether a prefix, or one around it, has a value.
func (r *ranges[V]) holdsAny(p netip.Prefix) bool {
	for range r.around(p) {
		return true
	}
	return false
}

// within yields the prefixes inside p and p itself, each before those inside it. Do
// not change r meanwhile.
func (r *ranges[V]) within(p netip.Prefix) iter.Seq2[netip.Prefix, V] {
	return func(yield func(netip.Prefix, V) bool) {
		b := *r.root(p)
		for b != nil && int(b.bits) < p.Bits() && holds(b.at(), p) {
			b = b.below[bitAt(p, int(b.bits))]
		}
		if b != nil && holds(p, b.at()) {
			b.walk(yield)
		}
	}
}

func (b *branch[V]) walk(yield func(netip.Prefix, V) bool) bool {
	return b == nil || (!b.held || yield(b.at(), b.value)) && b.below[0].walk(yield) && b.below[1].walk(yield)
}

// holds says whether inner lies in outer or equals it.
func holds(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// bitAt is the bit of a prefix's address after the first n.
func bitAt(p netip.Prefix, n int) int {
	if p.Addr().Is4() {
		a := p.Addr().As4()
		return int(a[n/8] >> (7 - n%8) & 1)
	}
	a := p.Addr().As16()
	return int(a[n/8] >> (7 - n%8) & 1)
}

// shared is the number of leading bits that two prefixes of one family have in common.
func shared(a, b netip.Prefix) int {
	n := min(a.Bits(), b.Bits())
	if a.Addr().Is4() {
		x, y := a.Addr().As4(), b.Addr().As4()
		return min(n, bits.LeadingZeros32(binary.BigEndian.Uint32(x[:])^binary.BigEndian.Uint32(y[:])))
	}
	x, y := a.Addr().As16(), b.Addr().As16()
	if d := binary.BigEndian.Uint64(x[:8]) ^ binary.BigEndian.Uint64(y[:8]); d != 0 {
		return min(n, bits.LeadingZeros64(d))
	}
	return min(n, 64+bits.LeadingZeros64(binary.BigEndian.Uint64(x[8:])^binary.BigEndian.Uint64(y[8:])))
}
