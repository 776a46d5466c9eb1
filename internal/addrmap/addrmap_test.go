package addrmap

import (
	"maps"
	"math/rand/v2"
	"runtime"
	"testing"
)

func TestAgreesWithASimpleMap(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		var m Map[[16]byte, int]
		simple := map[[16]byte]int{}
		for range 500 {
			k := [16]byte{14: byte(r.IntN(3)), 15: byte(r.IntN(60) * 5)}
			if r.IntN(5) > 1 {
				simple[k] = r.IntN(3)
				m.Put(k, simple[k])
			} else {
				m.Delete(k)
				delete(simple, k)
			}
			got, ok := m.Get(k)
			if want, there := simple[k]; ok != there || got != want {
				t.Fatalf("seed %d: %v is %v, want %v", seed, k, got, want)
			}
		}
		if got := maps.Collect(m.All()); m.Len() != len(simple) || !maps.Equal(got, simple) {
			t.Fatalf("seed %d: %d values %v, want %v", seed, m.Len(), got, simple)
		}
		for range m.All() {
			break
		}
		for k := range simple {
			m.Delete(k)
		}
		if m.Len() != 0 || len(m.blocks) != 0 {
			t.Fatalf("seed %d: %d values are left in %d blocks", seed, m.Len(), len(m.blocks))
		}
	}
}

// Its size is what it is for.
func TestIsSmall(t *testing.T) {
	const blocks, each = 1000, 100
	inUse := func() int64 {
		var now runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&now)
		return int64(now.HeapAlloc)
	}
	before := inUse()
	var m Map[[16]byte, [12]byte]
	for i := range blocks * each {
		m.Put([16]byte{12: byte(i / each >> 8), 14: byte(i / each), 15: byte(i % each)}, [12]byte{})
	}
	took := float64(inUse()-before) / (blocks * each)
	runtime.KeepAlive(&m)
	if took > 20 {
		t.Errorf("%.0f bytes for each, want at most 20", took)
	}
}
