// Package addrmap maps addresses to small values, several times smaller than Go's maps.
//
// Addresses that have all but the last byte in common share a block. What the values mean is
// up to the callers.
package addrmap

import (
	"cmp"
	"iter"
	"slices"
)

// Map has one value for each address. The zero value is empty. It is not safe for
// concurrent use.
type Map[K ~[16]byte, V any] struct {
	blocks map[[15]byte][]entry[V] // in order of the last byte
	count  int
}

type entry[V any] struct {
	value V
	low   byte
}

func (m *Map[K, V]) find(k K) (high [15]byte, block []entry[V], i int, there bool) {
	high = [15]byte(k[:15])
	block = m.blocks[high]
	i, there = slices.BinarySearchFunc(block, k[15], func(e entry[V], low byte) int { return cmp.Compare(e.low, low) })
	return high, block, i, there
}

// Get returns the value of an address.
func (m *Map[K, V]) Get(k K) (value V, ok bool) {
	_, block, i, there := m.find(k)
	if !there {
		return value, false
	}
	return block[i].value, true
}

// Put sets the value of an address.
func (m *Map[K, V]) Put(k K, value V) {
	high, block, i, there := m.find(k)
	if there {
		block[i].value = value
		return
	}
	if m.blocks == nil {
		m.blocks = map[[15]byte][]entry[V]{}
	}
	if len(block) == cap(block) { // it grows by less than append would, and may stay alone
		room := 1
		if len(block) > 0 {
			room = len(block) + 4 + len(block)/8
		}
		block = append(make([]entry[V], 0, room), block...)
	}
	m.blocks[high] = slices.Insert(block, i, entry[V]{value, k[15]})
	m.count++
}

// Delete removes an address.
func (m *Map[K, V]) Delete(k K) {
	high, block, i, there := m.find(k)
	if !there {
		return
	}
	if m.count--; len(block) == 1 {
		delete(m.blocks, high)
	} else {
		m.blocks[high] = slices.Delete(block, i, i+1)
	}
}

// Len counts the addresses.
func (m *Map[K, V]) Len() int { return m.count }

// All yields all addresses. Do not change m meanwhile.
func (m *Map[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for high, block := range m.blocks {
			for _, e := range block {
				var k K
				copy(k[:], high[:])
				k[15] = e.low
				if !yield(k, e.value) {
					return
				}
			}
		}
	}
}
