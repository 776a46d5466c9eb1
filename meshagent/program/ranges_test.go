package program

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// The trie finds what trying every prefix finds, whatever was put and dropped before.
func TestRangesAreAsTryingAll(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 3))
		random := func() netip.Prefix { // few bits differ, so that many are nested
			if r.IntN(2) == 0 {
				return netip.PrefixFrom(netip.AddrFrom4([4]byte{0: byte(r.IntN(2)) << 7, 1: byte(r.IntN(2)), 3: byte(r.IntN(4))}), r.IntN(33)).Masked()
			}
			return netip.PrefixFrom(netip.AddrFrom16([16]byte{0: byte(r.IntN(2)) << 7, 8: byte(r.IntN(2)), 15: byte(r.IntN(4))}), r.IntN(129)).Masked()
		}
		var fast ranges[int]
		naive := map[netip.Prefix]int{}
		for step := range 300 {
			if p := random(); r.IntN(3) > 0 {
				fast.put(p, step)
				naive[p] = step
			} else {
				fast.drop(p)
				delete(naive, p)
			}
			p := random()
			var around, within []netip.Prefix
			for q := range naive {
				if holds(q, p) {
					around = append(around, q)
				}
				if holds(p, q) {
					within = append(within, q)
				}
			}
			slices.SortFunc(around, wideFirst)
			var got []netip.Prefix
			for q, value := range fast.around(p) {
				if got = append(got, q); value != naive[q] {
					t.Fatalf("seed %d step %d: %v has %d, want %d", seed, step, q, value, naive[q])
				}
			}
			if !slices.Equal(got, around) || fast.holdsAny(p) != (len(around) > 0) {
				t.Fatalf("seed %d step %d: around %v: %v, want %v", seed, step, p, got, around)
			}
			inside := map[netip.Prefix]bool{}
			for q, value := range fast.within(p) {
				for outer := range inside {
					if holds(q, outer) {
						t.Fatalf("seed %d step %d: %v comes after %v", seed, step, q, outer)
					}
				}
				if inside[q] = true; value != naive[q] {
					t.Fatalf("seed %d step %d: %v has %d, want %d", seed, step, q, value, naive[q])
				}
			}
			if len(inside) != len(within) || slices.ContainsFunc(within, func(q netip.Prefix) bool { return !inside[q] }) {
				t.Fatalf("seed %d step %d: within %v: %v, want %v", seed, step, p, slices.Collect(maps.Keys(inside)), within)
			}
			value, ok := fast.get(p)
			if want, there := naive[p]; ok != there || value != want {
				t.Fatalf("seed %d step %d: %v is %d (%v), want %d (%v)", seed, step, p, value, ok, want, there)
			}
		}
		for p := range naive {
			fast.drop(p)
		}
		if fast != (ranges[int]{}) {
			t.Fatalf("seed %d: something is left", seed)
		}
	}
}
