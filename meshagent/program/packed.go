package program

import (
	"cmp"
	"iter"
	"slices"

	"github.com/weft-mesh/weft/bpf"
)

// packed keeps the rows of addresses: with its map's overhead, a row would take four times
// the memory. Neighbours that have all but the last byte in common share a block. The zero
// value is empty.
type packed struct {
	blocks map[packedHigh][]packedRow // in order of the last byte
	count  int
}

type packedHigh [15]byte

type packedRow struct {
	info bpf.IPInfo
	low  byte
}

func (p *packed) find(k bpf.Addr) (high packedHigh, block []packedRow, i int, there bool) {
	high = packedHigh(k[:15])
	block = p.blocks[high]
	i, there = slices.BinarySearchFunc(block, k[15], func(r packedRow, low byte) int { return cmp.Compare(r.low, low) })
	return high, block, i, there
}

// Get implements reconcile.Memory.
func (p *packed) Get(k bpf.Addr) (info bpf.IPInfo, ok bool) {
	_, block, i, there := p.find(k)
	if !there {
		return info, false
	}
	return block[i].info, true
}

// Put implements reconcile.Memory.
func (p *packed) Put(k bpf.Addr, info bpf.IPInfo) {
	high, block, i, there := p.find(k)
	if there {
		block[i].info = info
		return
	}
	if p.blocks == nil {
		p.blocks = map[packedHigh][]packedRow{}
	}
	if len(block) == cap(block) { // it grows by less than append would
		block = append(make([]packedRow, 0, len(block)+4+len(block)/8), block...)
	}
	p.blocks[high] = slices.Insert(block, i, packedRow{info, k[15]})
	p.count++
}

// Delete implements reconcile.Memory.
func (p *packed) Delete(k bpf.Addr) {
	high, block, i, there := p.find(k)
	if !there {
		return
	}
	if p.count--; len(block) == 1 {
		delete(p.blocks, high)
	} else {
		p.blocks[high] = slices.Delete(block, i, i+1)
	}
}

// Len implements reconcile.Memory.
func (p *packed) Len() int { return p.count }

// All implements reconcile.Memory.
func (p *packed) All() iter.Seq2[bpf.Addr, bpf.IPInfo] {
	return func(yield func(bpf.Addr, bpf.IPInfo) bool) {
		for high, block := range p.blocks {
			for _, row := range block {
				var k bpf.Addr
				copy(k[:], high[:])
				k[15] = row.low
				if !yield(k, row.info) {
					return
				}
			}
		}
	}
}
