package export

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

func TestTooLargeIsShownAndKeepsNothingBack(t *testing.T) {
	run(t, nil, func(b *bench) {
		key := wire.ServiceStateKey("east", "shop", "web")
		b.st.Fail(func(call, k string) error {
			if call == "commit" && k == key {
				return store.ErrTooLarge
			}
			return nil
		})
		b.put(wire.ObjectKey("services", "shop", "web"), webService(global))
		if p := b.exp.Status().Problems[key]; !strings.Contains(p, "more than the store accepts") {
			t.Errorf("problem %q", p)
		}
		b.put(wire.EndpointKey("shop", "a"), endpoint("shop", "a", "10.1.1.2", 65537))
		b.st.Fail(nil)
		b.put(wire.ObjectKey("services", "shop", "web"), webService(global))
		b.expect("cilium/state/ip/v1/default/10.1.1.2", key)
		if p := b.exp.Status().Problems; len(p) != 0 {
			t.Errorf("problems %v", p)
		}
	})
}

// A service that was exported and has grown too large is named for as long as that is
// so: its earlier value is still there, and says nothing of the new one.
func TestWhatGrewTooLargeIsShownUntilItIsGone(t *testing.T) {
	for name, end := range map[string]func(b *bench){
		"deleted":   func(b *bench) { b.write(store.Delete(wire.ObjectKey("services", "shop", "web"))) },
		"as it was": func(b *bench) { b.put(wire.ObjectKey("services", "shop", "web"), webService(global)) },
		"private":   func(b *bench) { b.put(wire.ObjectKey("services", "shop", "web"), webService(nil)) },
		"restarted": func(b *bench) {
			b.write(store.Delete(wire.ObjectKey("services", "shop", "web")))
			b.st.Compact()
		},
	} {
		for _, exported := range []bool{true, false} {
			run(t, nil, func(b *bench) {
				key := wire.ServiceStateKey("east", "shop", "web")
				if exported {
					b.put(wire.ObjectKey("services", "shop", "web"), webService(global))
				}
				large := webService(global)
				large.Labels = map[string]string{"a": "large"}
				b.st.Fail(func(call, k string) error {
					if call == "commit" && k == key {
						return store.ErrTooLarge
					}
					return nil
				})
				b.put(wire.ObjectKey("services", "shop", "web"), large)
				b.put(wire.EndpointKey("shop", "a"), endpoint("shop", "a", "10.1.1.2", 65537))
				if p := b.exp.Status().Problems[key]; !strings.Contains(p, "more than the store accepts") {
					t.Errorf("%s, exported before: %v: problem %q", name, exported, p)
				}
				b.st.Fail(nil)
				end(b)
				if p := b.exp.Status().Problems; len(p) != 0 {
					t.Errorf("%s, exported before: %v: problems %v", name, exported, p)
				}
			})
		}
	}
}

// Reporting one change costs no walk over everything that is exported.
func TestReportCostsWhatChanged(t *testing.T) {
	const known = 200_000
	e := New(Config{Log: slog.New(slog.DiscardHandler)})
	have := content{map[string][]byte{}, map[string]int{}}
	for n := range known {
		have.put(wire.IdentityStateKey(identity.Number(n)), nil)
	}
	best := func(f func()) time.Duration {
		least := time.Hour
		for range 10 {
			began := time.Now()
			f()
			least = min(least, time.Since(began))
		}
		return least
	}
	one := map[string]bool{wire.IdentityStateKey(1): true}
	report := best(func() { e.report(have, one, one, nil, nil) })
	seen := 0
	walk := best(func() {
		seen = 0
		for key := range have.values {
			seen += len(key)
		}
	})
	if report > walk/10 || seen == 0 {
		t.Errorf("one change took %v, a walk over everything takes %v", report, walk)
	}
}

// The counts are kept step by step and are those of what is there.
func TestEntriesAreCounted(t *testing.T) {
	run(t, nil, func(b *bench) {
		counted := func(want map[string]int) {
			t.Helper()
			if diff := cmp.Diff(want, b.exp.Status().Entries); diff != "" {
				t.Errorf("entries (-want +got):\n%s", diff)
			}
		}
		counted(map[string]int{"weft": 2}) // its cluster config and weft/export/cluster
		for i := range 3 {
			b.put(wire.EndpointKey("shop", fmt.Sprint(i)), endpoint("shop", fmt.Sprint(i), fmt.Sprintf("10.1.1.%d", i+2), 65537))
		}
		b.put(wire.EndpointKey("shop", "1"), endpoint("shop", "1", "10.1.1.9", 65537))
		counted(map[string]int{"weft": 2, "ip": 3})
		b.st.Compact()
		counted(map[string]int{"weft": 2, "ip": 3})
		for i := range 3 {
			b.write(store.Delete(wire.EndpointKey("shop", fmt.Sprint(i))))
		}
		counted(map[string]int{"weft": 2})
	})
}
