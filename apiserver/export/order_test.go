package export

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// written returns the revision of the last write to everything that readers wait for the
// canaries of, that of the first canary, and how many canaries there are.
func (b *bench) written() (last, first int64, canaries int) {
	b.t.Helper()
	for _, prefix := range []string{wire.CiliumStatePrefix, wire.ClusterConfigPrefix, wire.ExportPrefix} {
		kvs, _, err := b.st.List(b.t.Context(), prefix)
		if err != nil {
			b.t.Fatal(err)
		}
		for _, kv := range kvs {
			last = max(last, kv.Modified)
		}
	}
	kvs, _, err := b.st.List(b.t.Context(), wire.CiliumSyncedPrefix)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, kv := range kvs {
		if first == 0 || kv.Modified < first {
			first = kv.Modified
		}
	}
	return last, first, len(kvs)
}

func (b *bench) raisedLast(when string, entries int) {
	b.t.Helper()
	if got := len(b.st.Dump(wire.CiliumStatePrefix)); got != entries {
		b.t.Errorf("%s: %d of %d entries", when, got, entries)
	}
	if last, first, n := b.written(); n != len(wire.Resources) || first <= last {
		b.t.Errorf("%s: %d canaries from revision %d, but the last entry has %d", when, n, first, last)
	}
}

// Whatever a reader finds beside the canaries is everything: they are raised after the
// last of many transactions, and so they are again on a store that lost all of it, or
// went back in time, or lost a canary.
func TestCanariesAreRaisedLast(t *testing.T) {
	const pods = 300
	fill := func(b *bench) {
		for i := range pods {
			name := fmt.Sprint("web-", i)
			b.put(wire.EndpointKey("shop", name), wire.Endpoint{Namespace: "shop", Pod: name, Identity: 65537, IP: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})})
		}
	}
	run(t, fill, func(b *bench) {
		b.raisedLast("at the start", pods)

		key := wire.IPs.StateSyncedKey("east")
		b.write(store.Delete(key))
		time.Sleep(time.Minute)
		synctest.Wait()
		b.raisedLast("after one was deleted", pods)

		// Restored from before the first export, while many changes wait.
		b.stop()
		_ = store.Write(t.Context(), b.st, store.DeletePrefix(wire.CiliumStatePrefix), store.DeletePrefix(wire.CiliumSyncedPrefix), store.DeletePrefix(wire.ExportPrefix))
		early := b.st.Copy()
		b.start()
		b.raisedLast("after a restart on a store without the export", pods)
		b.st.PutBack(early)
		time.Sleep(time.Minute)
		synctest.Wait()
		b.raisedLast("after the store went back in time", pods)

		// The store breaks off in the middle of it.
		b.stop()
		_ = store.Write(t.Context(), b.st, store.DeletePrefix(wire.CiliumStatePrefix), store.DeletePrefix(wire.CiliumSyncedPrefix))
		commits := 0
		b.st.Fail(func(call, _ string) error {
			if call == "commit" {
				if commits++; commits > 2 && commits < 9 {
					return store.ErrUnavailable
				}
			}
			return nil
		})
		b.start()
		if got := len(b.st.Dump(wire.CiliumSyncedPrefix)); got != 0 {
			t.Errorf("%d canaries while the store fails", got)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		b.raisedLast("after failed writes", pods)
	})
}

// A service of 10,000 backends is exported in full: in slices of 100, and in the older
// format, which needs one value for all of them. Where that does not fit, as many as fit
// are there, and the status says so.
func TestTenThousandBackends(t *testing.T) {
	const backends, sliceSize = 10_000, 100
	for _, c := range []struct {
		name  string
		ports []string
		zone  string
		all   bool
	}{
		{"one port and a zone", []string{"http"}, "eu-central-1a", true},
		{"four ports and a zone", []string{"http", "https", "metrics", "admin"}, "eu-central-1a", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			run(t, func(b *bench) {
				b.put(wire.ObjectKey("services", "shop", "web"), webService(global))
				for part := range backends / sliceSize {
					s := webSlice()
					s.Name, s.Endpoints, s.Ports = fmt.Sprint("web-", part), nil, nil
					for i, port := range c.ports {
						s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &port, Port: new(int32(8080 + i))})
					}
					for i := part * sliceSize; i < (part+1)*sliceSize; i++ {
						s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}).String()}, Zone: &c.zone})
					}
					b.put(wire.ObjectKey("endpointslices", "shop", s.Name), s)
				}
			}, func(b *bench) {
				in := 0
				kvs, _, err := b.st.List(t.Context(), wire.EndpointSlices.StatePrefix("east"))
				if err != nil {
					t.Fatal(err)
				}
				for _, kv := range kvs {
					s, err := wire.ParseClusterEndpointSlice(kv.Value)
					if err != nil {
						t.Fatal(err)
					}
					in += len(s.Endpoints)
				}
				if len(kvs) != backends/sliceSize || in != backends {
					t.Errorf("%d slices with %d backends", len(kvs), in)
				}
				older := b.value(wire.ServiceStateKey("east", "shop", "web"))
				var s wire.ClusterService
				if err := json.Unmarshal([]byte(older), &s); err != nil {
					t.Fatal(err)
				}
				problem := b.exp.Status().Problems[wire.ObjectKey("services", "shop", "web")]
				if c.all != (len(s.Backends) == backends) || c.all != (problem == "") {
					t.Errorf("%d backends in the older format, problem %q", len(s.Backends), problem)
				}
				if want := fmt.Sprintf("room for only %d of its 10000 backends", len(s.Backends)); !c.all && !strings.Contains(problem, want) {
					t.Errorf("%q does not say %q", problem, want)
				}
				if most := 1536<<10 - 1000; len(older) > most || !c.all && len(older) < most/2 {
					t.Errorf("%d bytes in the older format", len(older))
				}
				t.Logf("%d bytes for %d backends", len(older), len(s.Backends))
			})
		})
	}
}
