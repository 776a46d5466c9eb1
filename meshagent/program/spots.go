package program

import (
	"encoding/binary"
	"iter"
	"net/netip"
	"slices"

	"github.com/weft-mesh/weft/bpf"
)

// spots is a set of addresses and prefixes. There is one entry for each address in the
// mesh in some such sets, so single IPv4 addresses take a bit: 256 neighbours are four
// words. The zero value is empty.
type spots struct {
	// few are the first blocks of neighbours; there is one such set for each node, most
	// often with a single block. many are the others, by all but the last byte.
	few   []stretch
	many  map[uint32]*[4]uint64
	rest  map[bpf.PrefixKey]struct{}
	count int
}

type stretch struct {
	high uint32 // all but the last byte
	near [4]uint64
}

const fewBlocks = 4

// block returns the neighbours that have all but the last byte in common; nil if none is
// in the set.
func (s *spots) block(high uint32) *[4]uint64 {
	for i := range s.few {
		if s.few[i].high == high {
			return &s.few[i].near
		}
	}
	return s.many[high]
}

func (s *spots) newBlock(high uint32) *[4]uint64 {
	if len(s.few) < fewBlocks {
		s.few = append(s.few, stretch{high: high})
		return &s.few[len(s.few)-1].near
	}
	if s.many == nil {
		s.many = map[uint32]*[4]uint64{}
	}
	near := &[4]uint64{}
	s.many[high] = near
	return near
}

func (s *spots) dropBlock(high uint32) {
	s.few = slices.DeleteFunc(s.few, func(b stretch) bool { return b.high == high })
	delete(s.many, high)
}

// blocks yields all neighbours.
func (s *spots) blocks(yield func(high uint32, near *[4]uint64) bool) {
	for i := range s.few {
		if !yield(s.few[i].high, &s.few[i].near) {
			return
		}
	}
	for high, near := range s.many {
		if !yield(high, near) {
			return
		}
	}
}

// plain is a single IPv4 address as a number.
func plain(k bpf.PrefixKey) (uint32, bool) {
	prefix := k.Netip()
	if !prefix.Addr().Is4() || !prefix.IsSingleIP() {
		return 0, false
	}
	b := prefix.Addr().As4()
	return binary.BigEndian.Uint32(b[:]), true
}

// place is the place of an address among its neighbours.
func place(n uint32) (word int, bit uint64) { return int(n & 0xff >> 6), 1 << (n & 63) }

func (s *spots) put(k bpf.PrefixKey) {
	n, ok := plain(k)
	if !ok {
		if s.rest == nil {
			s.rest = map[bpf.PrefixKey]struct{}{}
		}
		if _, there := s.rest[k]; !there {
			s.rest[k] = struct{}{}
			s.count++
		}
		return
	}
	near := s.block(n >> 8)
	if near == nil {
		near = s.newBlock(n >> 8)
	}
	if word, bit := place(n); near[word]&bit == 0 {
		near[word] |= bit
		s.count++
	}
}

func (s *spots) drop(k bpf.PrefixKey) {
	n, ok := plain(k)
	if !ok {
		if _, there := s.rest[k]; there {
			delete(s.rest, k)
			s.count--
		}
		return
	}
	near := s.block(n >> 8)
	if near == nil {
		return
	}
	if word, bit := place(n); near[word]&bit != 0 {
		near[word] &^= bit
		s.count--
	}
	if *near == [4]uint64{} {
		s.dropBlock(n >> 8)
	}
}

// all yields everything.
func (s *spots) all() iter.Seq[bpf.PrefixKey] {
	return func(yield func(bpf.PrefixKey) bool) {
		for high, near := range s.blocks {
			if !neighbours(high, near, yield) {
				return
			}
		}
		for k := range s.rest {
			if !yield(k) {
				return
			}
		}
	}
}

// within yields what lies in a prefix. It looks at no neighbours outside of it, but at all
// that is not a single IPv4 address.
func (s *spots) within(p netip.Prefix) iter.Seq[bpf.PrefixKey] {
	return func(yield func(bpf.PrefixKey) bool) {
		inside := func(k bpf.PrefixKey) bool { return !holds(p, k.Netip()) || yield(k) }
		if p.Addr().Is4() {
			b := p.Masked().Addr().As4()
			first, many := binary.BigEndian.Uint32(b[:])>>8, 1<<max(0, 24-p.Bits())
			if many <= len(s.few)+len(s.many) {
				for high := first; high < first+uint32(many); high++ {
					if near := s.block(high); near != nil && !neighbours(high, near, inside) {
						return
					}
				}
			} else {
				for high, near := range s.blocks {
					if high-first < uint32(many) && !neighbours(high, near, inside) {
						return
					}
				}
			}
		}
		for k := range s.rest {
			if !inside(k) {
				return
			}
		}
	}
}

// neighbours yields the addresses of one word of words.
func neighbours(high uint32, near *[4]uint64, yield func(bpf.PrefixKey) bool) bool {
	for low := range uint32(256) {
		if word, bit := place(low); near[word]&bit == 0 {
			continue
		}
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], high<<8|low)
		if !yield(bpf.PrefixOf(whole(netip.AddrFrom4(b)))) {
			return false
		}
	}
	return true
}
