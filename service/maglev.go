package service

import (
	"cmp"
	"container/heap"
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
)

// TableSizes are those that a Maglev table may have, Cilium's: primes, so that any step leads
// through all slots.
var TableSizes = []uint32{251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071}

// SlotsEach is how many slots a table has for each backend at least, unless that is more than
// the largest size: then a backend's share is right to about 1 %. When one of ten goes, 3 % of the
// others' slots change, and less than 2 % when it is one of more than a hundred.
const SlotsEach = 100

// MostListed bounds the backends in a table: they are numbered from 1 with 16 bits.
const MostListed = math.MaxUint16

// ParseTableSize reads the value of AnnotationTableSize; 0 if there is none.
func ParseTableSize(text string) (uint32, error) {
	if text == "" {
		return 0, nil
	}
	size, err := strconv.ParseUint(text, 10, 32)
	if err != nil || !slices.Contains(TableSizes, uint32(size)) {
		return 0, fmt.Errorf("%q is not a size of a table; write one of %v", text, TableSizes)
	}
	return uint32(size), nil
}

// TableSizeFor is the size of a table for so many backends, unless the service says one.
func TableSizeFor(backends int) uint32 {
	for _, size := range TableSizes {
		if uint64(size) >= SlotsEach*uint64(backends) {
			return size
		}
	}
	return TableSizes[len(TableSizes)-1]
}

// FitsTable reports whether each of so many backends can have a slot in a table of this size,
// or if that is 0, of the one that TableSizeFor gives.
func FitsTable(backends int, size uint32) bool {
	return backends <= MostListed && uint32(backends) <= cmp.Or(size, TableSizeFor(backends))
}

// Listed is a backend in a Maglev table. Weight is relative to the others'; it is not 0.
type Listed struct {
	Addr   netip.Addr
	Port   uint16
	Weight uint64
}

// LookupTable fills a Maglev table: it says for each slot which of the backends has it. size
// is one of TableSizes. Backends must differ and fit (FitsTable). The result depends on them
// alone, whatever their order, so all nodes of all clusters agree.
//
// Backends take turns, each as often as its weight says and once before anyone else's second
// time, and take the first slot that is free in an order of their own, which follows
// from address and port. When one goes, the others mostly keep the slots that they have.
func LookupTable(size uint32, all []Listed) []uint16 {
	slots := make([]uint16, size)
	turns := turnsOf(size, all)
	if len(turns) == 0 {
		return nil
	}
	taken := make([]bool, size)
	take := func(t *turn) {
		at := t.at
		for taken[at] {
			if at += t.step; at >= size {
				at -= size
			}
		}
		taken[at], slots[at] = true, t.backend
		if t.at = at + t.step; t.at >= size {
			t.at -= size
		}
	}
	left := int(size)
	if alike(turns) {
		for {
			for i := range turns {
				if take(&turns[i]); left == 1 {
					return slots
				}
				left--
			}
		}
	}
	heap.Init(&turns)
	for ; left > 0; left-- {
		take(&turns[0])
		turns[0].next += turns[0].every
		heap.Fix(&turns, 0)
	}
	return slots
}

// turn is a backend's next turn.
type turn struct {
	next, every uint64 // in an arbitrary unit of time
	order       uint32
	backend     uint16 // its index in what the caller gave
	at, step    uint32 // its next slot, and how far the one after that is
}

type turns []turn

func (t turns) Len() int { return len(t) }
func (t turns) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(t[i].next, t[j].next), cmp.Compare(t[i].order, t[j].order)) < 0
}
func (t turns) Swap(i, j int) { t[i], t[j] = t[j], t[i] }
func (t *turns) Push(x any)   { *t = append(*t, x.(turn)) }
func (t *turns) Pop() any     { panic("backends take turns until all slots are taken") }

// turnsOf are the first turns of all backends, in the order of their addresses.
func turnsOf(size uint32, all []Listed) turns {
	order := make([]uint16, len(all))
	most := uint64(0)
	for i := range all {
		order[i], most = uint16(i), max(most, all[i].Weight)
	}
	slices.SortFunc(order, func(a, b uint16) int {
		return cmp.Or(all[a].Addr.Compare(all[b].Addr), cmp.Compare(all[a].Port, all[b].Port))
	})
	out := make(turns, len(all))
	for i, backend := range order {
		b := &all[backend]
		h := spread(b.Addr, b.Port)
		// The heaviest has a turn every 2^20 units.
		out[i] = turn{every: most << 20 / b.Weight, order: uint32(i), backend: backend,
			at: uint32(uint64(uint32(h)) % uint64(size)), step: uint32(h>>32)%(size-1) + 1}
	}
	return out
}

func alike(all turns) bool {
	return !slices.ContainsFunc(all, func(t turn) bool { return t.every != all[0].every })
}

// spread hashes a backend. Its values are the same in every version: nodes that differ would
// send a client to different backends.
func spread(addr netip.Addr, port uint16) uint64 {
	b := addr.As16()
	h := uint64(0x9e3779b97f4a7c15)
	for _, word := range []uint64{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:]), uint64(port)} {
		h ^= word
		h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
		h = (h ^ h>>27) * 0x94d049bb133111eb
		h ^= h >> 31
	}
	return h
}

// Lists gives the backends of one tier the weights that they have in a Maglev table: by cluster,
// if there is a split. cluster, addr and weight describe the i-th.
func (s *Split) Lists(n int, describe func(i int) (cluster ClusterID, addr netip.AddrPort, weight uint16)) []Listed {
	out := make([]Listed, n)
	sums := map[ClusterID]uint64{}
	clusters := make([]ClusterID, n)
	for i := range out {
		cluster, at, weight := describe(i)
		out[i] = Listed{at.Addr(), at.Port(), uint64(weight)}
		clusters[i] = cluster
		sums[cluster] += uint64(weight)
	}
	if s == nil {
		return out
	}
	for i := range out {
		// 16 bits of each weight and 10 more, so that the heaviest still has room for turnsOf.
		out[i].Weight = max(1, uint64(s.Of(clusters[i]))<<26*out[i].Weight/sums[clusters[i]])
	}
	return out
}
