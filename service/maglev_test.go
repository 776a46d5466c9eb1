package service

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"
)

func listed(n int, weight func(i int) uint64) []Listed {
	out := make([]Listed, n)
	for i := range out {
		out[i] = Listed{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 8080, weight(i)}
	}
	return out
}

func evenly(int) uint64 { return 1 }

// The naive way to the same table: whoever has had the fewest turns for its weight takes the
// next free slot of its own order.
func naiveTable(size uint32, all []Listed) []uint16 {
	most, order := uint64(0), make([]int, len(all))
	for i := range all {
		order[i], most = i, max(most, all[i].Weight)
	}
	slices.SortFunc(order, func(a, b int) int {
		if c := all[a].Addr.Compare(all[b].Addr); c != 0 {
			return c
		}
		return int(all[a].Port) - int(all[b].Port)
	})
	slots := make([]int, size)
	for i := range slots {
		slots[i] = -1
	}
	had := make([]uint64, len(all))
	for range size {
		next := order[0]
		for _, i := range order {
			if had[i]*(most<<20/all[i].Weight) < had[next]*(most<<20/all[next].Weight) {
				next = i
			}
		}
		h := spread(all[next].Addr, all[next].Port)
		for k := uint64(0); ; k++ {
			at := (h&math.MaxUint32 + k*(h>>32%uint64(size-1)+1)) % uint64(size)
			if slots[at] < 0 {
				slots[at] = next
				break
			}
		}
		had[next]++
	}
	out := make([]uint16, size)
	for i, b := range slots {
		out[i] = uint16(b)
	}
	return out
}

func TestLookupTableIsTheNaiveOne(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 5))
	for range 60 {
		all := listed(1+r.IntN(40), func(int) uint64 { return 1 + uint64(r.IntN(4))*uint64(r.IntN(1000)) })
		r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		if got, want := LookupTable(251, all), naiveTable(251, all); !reflect.DeepEqual(got, want) {
			t.Fatalf("%v:\n%v, want\n%v", all, got, want)
		}
	}
	if LookupTable(251, nil) != nil {
		t.Error("a table without backends")
	}
}

// Slots are shared by weight, and everybody has one.
func TestLookupTableIsProportional(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 5))
	for _, size := range TableSizes[:7] {
		for _, n := range []int{1, 2, 3, 10, int(size / SlotsEach), int(size)} {
			if n == 0 {
				continue
			}
			for _, weight := range []func(int) uint64{
				evenly, func(i int) uint64 { return 1 + uint64(i%7) }, func(i int) uint64 { return max(1, uint64(i%2)*math.MaxUint16) }, func(int) uint64 { return 1 + r.Uint64N(1<<42-1) },
			} {
				all := listed(n, weight)
				got, sum := make([]int, n), 0.0
				for _, b := range LookupTable(size, all) {
					got[b]++
				}
				for i := range all {
					sum += float64(all[i].Weight)
				}
				for i := range all {
					// One slot comes before anything else, so what is left is shared.
					exact := float64(all[i].Weight) / sum * float64(size)
					if got[i] < 1 || float64(got[i]) > exact+2 || n <= int(size/SlotsEach) && float64(got[i]) < exact*(1-float64(n)/float64(size))-2 {
						t.Fatalf("size %d, %d backends: one of weight %d of %g has %d slots, want %g", size, n, all[i].Weight, sum, got[i], exact)
					}
				}
			}
		}
	}
}

// The same backends in any order make the same table, and one that was computed years ago.
func TestLookupTableIsTheSameEverywhere(t *testing.T) {
	all := append(listed(9, func(i int) uint64 { return 1 + uint64(i%3) }), Listed{netip.MustParseAddr("fd00::1"), 80, 5}, Listed{netip.MustParseAddr("10.1.0.0"), 81, 1})
	of := func(all []Listed) (out []Listed) {
		for _, b := range LookupTable(251, all) {
			out = append(out, all[b])
		}
		return out
	}
	want := of(all)
	for seed := range uint64(20) {
		rand.New(rand.NewPCG(seed, 0)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		if !slices.Equal(of(all), want) {
			t.Fatal("the order matters")
		}
	}
	var text string
	for _, b := range want[:12] {
		text += netip.AddrPortFrom(b.Addr, b.Port).String() + " "
	}
	if text != frozen {
		t.Errorf("nodes of another version have %s, this one has %s", frozen, text)
	}
}

const frozen = "10.1.0.6:8080 10.1.0.2:8080 [fd00::1]:80 10.1.0.4:8080 [fd00::1]:80 10.1.0.4:8080 10.1.0.8:8080 10.1.0.4:8080 10.1.0.7:8080 10.1.0.4:8080 10.1.0.5:8080 10.1.0.4:8080 "

// When one of many backends goes, its slots are shared among the others, and few of theirs
// change; when it comes back, the table is the one from before.
func TestLookupTableChangesLittle(t *testing.T) {
	for _, c := range []struct {
		n      int
		weight func(int) uint64
		most   float64
	}{{2, evenly, 0}, {10, evenly, 0.04}, {40, evenly, 0.03}, {163, evenly, 0.02}, {600, evenly, 0.01}, {160, func(i int) uint64 { return 50 + uint64(i%4)*50 }, 0.025}} {
		size := TableSizeFor(c.n)
		all := listed(c.n, c.weight)
		before := LookupTable(size, all)
		most := 0.0
		for gone := range min(c.n, 10) {
			after := LookupTable(size, slices.Delete(slices.Clone(all), gone, gone+1))
			moved, kept := 0, 0
			for i := range before {
				b := int(before[i])
				if b == gone {
					continue
				}
				if kept++; b > gone {
					b--
				}
				if int(after[i]) != b {
					moved++
				}
			}
			most = max(most, float64(moved)/float64(kept))
		}
		t.Logf("%d backends, %d slots: %.2f %% of the others' slots change", c.n, size, most*100)
		if most > c.most {
			t.Errorf("%d backends, %d slots: %.2f %% of the others' slots change", c.n, size, most*100)
		}
	}
}

func TestTableSizes(t *testing.T) {
	for n, want := range map[int]uint32{0: 251, 1: 251, 2: 251, 3: 509, 4: 509, 163: 16381, 164: 32749, 1310: 131071, 5000: 131071} {
		if got := TableSizeFor(n); got != want {
			t.Errorf("%d backends: %d slots, want %d", n, got, want)
		}
	}
	for _, c := range []struct {
		n    int
		size uint32
		want bool
	}{{251, 251, true}, {252, 251, false}, {65535, 0, true}, {65536, 0, false}, {65536, 131071, false}, {0, 0, true}} {
		if got := FitsTable(c.n, c.size); got != c.want {
			t.Errorf("%d backends in %d slots: %v", c.n, c.size, got)
		}
	}
	for text, want := range map[string]uint32{"": 0, "251": 251, "131071": 131071, "252": 0, "-1": 0, "many": 0, "4294967547": 0} {
		size, err := ParseTableSize(text)
		if size != want || (err == nil) != (want != 0 || text == "") {
			t.Errorf("%q: %d, %v", text, size, err)
		}
	}
	for _, size := range TableSizes {
		for d := uint32(2); d*d <= size; d++ {
			if size%d == 0 {
				t.Errorf("%d is not a prime", size)
			}
		}
	}
}

func TestListsByCluster(t *testing.T) {
	weights := []uint16{100, 300, 100, 65535}
	clusters := []ClusterID{1, 1, 2, 3}
	describe := func(i int) (ClusterID, netip.AddrPort, uint16) {
		return clusters[i], netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80), weights[i]
	}
	var got []float64
	for _, l := range (&Split{By: map[ClusterID]uint16{1: 4, 2: 2}, Rest: 1}).Lists(4, describe) {
		got = append(got, float64(l.Weight)/(1<<26))
	}
	if text := fmt.Sprint(got); text != "[1 3 2 1]" {
		t.Error(text)
	}
	if l := (*Split)(nil).Lists(4, describe); l[3].Weight != 65535 || l[1].Weight != 300 {
		t.Error(l)
	}
}

func BenchmarkLookupTable(b *testing.B) {
	for _, n := range []int{4, 160, 1310} {
		for name, weight := range map[string]func(int) uint64{"even": evenly, "weighted": func(i int) uint64 { return 1 + uint64(i%5) }} {
			size, all := TableSizeFor(n), listed(n, weight)
			b.Run(fmt.Sprintf("%d/%d/%s", n, size, name), func(b *testing.B) {
				for b.Loop() {
					LookupTable(size, all)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(size), "ns/slot")
			})
		}
	}
}
