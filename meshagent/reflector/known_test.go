package reflector

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"

	"github.com/weft-mesh/weft/store"
)

func believeAll(string, int64) bool { return false }

// Whatever is listed and changes, a list is taken apart as by a simple map from keys to
// values, and applying what it says gives the list.
func TestSweepAgreesWithASimpleMap(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		key := func() string {
			return []string{"a/", "a/b/", "a/b/c/", "", "/"}[r.IntN(5)] + []string{"", "1", "10.1.1.1", "10.1.1.2", "10.1.1.01", "::ffff:10.1.1.1", "10.1.1.1/32", "fd00::1", "fd00:0::1"}[r.IntN(9)]
		}
		k, simple, rows := newKnown(), map[string]store.KV{}, map[string]string{}
		for range 30 {
			kv := store.KV{Key: key(), Value: []byte{byte(r.IntN(2))}, Modified: int64(r.IntN(2))}
			switch r.IntN(3) {
			case 0:
				k.put(kv.Key, versionOf(kv))
				simple[kv.Key], rows[kv.Key] = kv, string(kv.Value)
			case 1:
				k.drop(kv.Key)
				delete(simple, kv.Key)
				delete(rows, kv.Key)
			default:
				list := map[string]store.KV{}
				for range r.IntN(8) {
					kv := store.KV{Key: key(), Value: []byte{byte(r.IntN(2))}, Modified: int64(r.IntN(2))}
					list[kv.Key] = kv
				}
				var all []store.Event
				want := map[string]bool{} // the keys of events: are they deletions?
				for name, kv := range list {
					all = append(all, store.Event{KV: kv})
					if old, ok := simple[name]; !ok || old.Modified != kv.Modified || string(old.Value) != string(kv.Value) {
						want[name] = false
					}
				}
				for name := range simple {
					if _, ok := list[name]; !ok {
						want[name] = true
					}
				}
				got, deletions := map[string]bool{}, false
				for _, e := range k.sweep(all, believeAll) {
					if deletions && !e.Deleted {
						t.Fatalf("seed %d: a deletion before %s", seed, e.Key)
					}
					deletions = e.Deleted
					if got[e.Key] = e.Deleted; e.Deleted {
						delete(rows, e.Key)
					} else {
						rows[e.Key] = string(e.Value)
					}
				}
				if !maps.Equal(got, want) {
					t.Fatalf("seed %d: events %v, want %v", seed, got, want)
				}
				simple = list
			}
			if k.count != len(simple) || len(rows) != len(simple) {
				t.Fatalf("seed %d: %d keys are known, %d rows, want %d", seed, k.count, len(rows), len(simple))
			}
			for name, kv := range simple {
				if !k.is(name, versionOf(kv)) || rows[name] != string(kv.Value) {
					t.Fatalf("seed %d: %s is not known, row %q", seed, name, rows[name])
				}
			}
		}
	}
}

// An address takes a few bytes in what is known; the keys themselves are not kept.
func TestKnownAddressesAreSmall(t *testing.T) {
	const addresses = 50_000
	k := newKnown()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range addresses {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		k.put("cilium/cache/ip/v1/west/"+a.String(), versionOf(store.KV{Modified: int64(i)}))
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if each := float64(after.HeapAlloc-before.HeapAlloc) / addresses; each > 32 {
		t.Errorf("%.0f bytes for each address, want at most 32", each)
	}
	runtime.KeepAlive(k)
}
