package program

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/weft-mesh/weft/bpf"
)

// Packed rows are those that a simple map has.
func TestPackedAgreesWithASimpleMap(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		p, simple := packed{}, map[bpf.Addr]bpf.IPInfo{}
		for range 500 {
			a := netip.AddrFrom4([4]byte{10, 2, byte(r.IntN(3)), byte(r.IntN(60) * 5)})
			if r.IntN(5) == 0 {
				a = netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(r.IntN(4))})
			}
			k, info := bpf.AddrOf(a), bpf.IPInfo{Identity: r.Uint32N(3), Bits: uint8(r.IntN(2))}
			if r.IntN(5) > 1 {
				p.Put(k, info)
				simple[k] = info
			} else {
				p.Delete(k)
				delete(simple, k)
			}
			got, ok := p.Get(k)
			if want, there := simple[k]; ok != there || got != want {
				t.Fatalf("seed %d: %v is %v, want %v", seed, a, got, want)
			}
		}
		if got := maps.Collect(p.All()); p.Len() != len(simple) || !maps.Equal(got, simple) {
			t.Fatalf("seed %d: %d rows %v, want %v", seed, p.Len(), got, simple)
		}
		for k := range simple {
			p.Delete(k)
		}
		if p.Len() != 0 || len(p.blocks) != 0 {
			t.Fatalf("seed %d: %d rows are left in %d blocks", seed, p.Len(), len(p.blocks))
		}
	}
}
