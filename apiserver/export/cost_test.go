package export

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/apiserver/state"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

const perSlice = 100

// part is slice i of a service, with so many backends.
func slicePart(i, backends int) *discoveryv1.EndpointSlice {
	s := webSlice()
	s.Name = fmt.Sprint("web-", i)
	for j := range backends {
		a := netip.AddrFrom4([4]byte{10, 1, byte(i), byte(j + 1)})
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a.String()}, Zone: new("eu-central-1a")})
	}
	return s
}

func sliceKey(i int) string { return wire.ObjectKey("endpointslices", "shop", fmt.Sprint("web-", i)) }

// large writes a service of so many slices.
func large(parts int) func(*bench) {
	return func(b *bench) {
		b.put(wire.ObjectKey("services", "shop", "web"), webService(global))
		for i := range parts {
			b.put(sliceKey(i), slicePart(i, perSlice))
		}
	}
}

func (b *bench) older() (s wire.ClusterService) {
	b.t.Helper()
	if err := json.Unmarshal([]byte(b.value(wire.ServiceStateKey("east", "shop", "web"))), &s); err != nil {
		b.t.Fatal(err)
	}
	return s
}

// A changed backend of a large service is written at once in its slice. In the older
// format it is written at once, too, but then not again before a pause for its size.
func TestALargeServiceRests(t *testing.T) {
	const parts = 10
	run(t, large(parts), func(b *bench) {
		slice := func() int {
			s, err := wire.ParseClusterEndpointSlice([]byte(b.value(wire.SliceStateKey("east", "shop", "web-7"))))
			if err != nil {
				t.Fatal(err)
			}
			return len(s.Endpoints)
		}
		change := func(backends int) { b.put(sliceKey(7), slicePart(7, backends)) }
		want := func(when string, inSlice, inOlder int) {
			t.Helper()
			if got, older := slice(), len(b.older().Backends); got != inSlice || older != inOlder {
				t.Errorf("%s: %d backends in the slice and %d in the older format, want %d and %d", when, got, older, inSlice, inOlder)
			}
		}
		const rest = (parts - 1) * perSlice
		change(99)
		want("the first change", 99, rest+99)
		for n := range 10 {
			change(80 + n)
		}
		want("ten more at once", 89, rest+99)
		size := len(b.value(wire.ServiceStateKey("east", "shop", "web")))
		if size < leastPaced {
			t.Fatalf("the older format has %d bytes", size)
		}
		pause := time.Duration(size) * time.Microsecond
		before := b.st.Revision()
		time.Sleep(pause - time.Millisecond)
		synctest.Wait()
		want("just before the end of the pause", 89, rest+99)
		time.Sleep(time.Millisecond)
		synctest.Wait()
		want("at the end of the pause", 89, rest+89)
		time.Sleep(2 * pause)
		synctest.Wait()
		if writes := b.st.Revision() - before; writes != 1 {
			t.Errorf("%d writes in the older format, want 1", writes)
		}
		change(70)
		want("after a rest", 70, rest+70)

		// What is said of the service itself does not wait.
		change(60)
		changed := webService(global)
		changed.Labels = map[string]string{"a": "b"}
		b.put(wire.ObjectKey("services", "shop", "web"), changed)
		want("with the service's own change", 60, rest+60)
		change(50)
		b.put(wire.ObjectKey("services", "shop", "web"), webService(nil))
		b.expect()
		time.Sleep(2 * pause)
		synctest.Wait()
		b.expect()
	})
}

// A restart writes nothing again, in whatever order the slices came.
func TestARestartFindsTheOlderFormat(t *testing.T) {
	run(t, large(10), func(b *bench) {
		for _, i := range []int{7, 3, 5} {
			b.write(store.Delete(sliceKey(i)))
			b.put(sliceKey(i), slicePart(i, 90))
		}
		time.Sleep(time.Second)
		b.stop()
		before := b.st.Revision()
		b.start()
		if writes := b.st.Revision() - before; writes != 2 { // canaries and heartbeat
			t.Errorf("%d revisions", writes)
		}
	})
}

// Whatever happens to a service and its slices, the export is what it would be from
// scratch.
func TestSliceBySliceIsAsFromScratch(t *testing.T) {
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 1))
		v, now := newViews(east), map[string]any{}
		for range 100 {
			key, object := randomObject(r)
			now[key] = object
			if object == nil {
				delete(now, key)
			}
			v.refresh(v.apply([]state.Event{event(t, key, object)}))
			if r.IntN(5) > 0 {
				continue
			}
			scratch := newViews(east)
			for key, object := range now {
				scratch.apply([]state.Event{event(t, key, object)})
			}
			want, got := scratch.all(), map[string][]byte{}
			for key := range v.wanted {
				got[key], _ = v.value(key)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("seed %d (-scratch +got):\n%s", seed, diff)
			}
			if diff := cmp.Diff(scratch.problems, v.problems); diff != "" {
				t.Fatalf("seed %d: problems (-scratch +got):\n%s", seed, diff)
			}
			older := got[wire.ServiceStateKey("east", "shop", "web")]
			if older == nil {
				continue
			}
			var read wire.ClusterService
			if err := json.Unmarshal(older, &read); err != nil {
				t.Fatalf("seed %d: %v in %s", seed, err, older)
			}
			if diff := cmp.Diff(naiveBackends(now), read.Backends, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Fatalf("seed %d: backends (-naive +got):\n%s", seed, diff)
			}
		}
	}
}

func randomObject(r *rand.Rand) (key string, object any) {
	switch r.IntN(10) {
	case 0:
		return wire.ObjectKey("services", "shop", "web"), []any{nil, webService(nil), webService(global), webService(global)}[r.IntN(4)]
	case 1:
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Annotations: map[string]string{service.AnnotationNamespaceGlobal: fmt.Sprint(r.IntN(4) > 0)}}}
		return wire.ObjectKey("namespaces", "", "shop"), ns
	}
	i := r.IntN(5)
	if r.IntN(5) == 0 {
		return sliceKey(i), nil
	}
	s := webSlice()
	s.Name = fmt.Sprint("web-", i)
	s.Ports[0].Port = new(int32(8080 + i%2))
	if r.IntN(8) == 0 {
		s.Labels = map[string]string{wire.ServiceNameLabel: "other"}
	}
	if r.IntN(8) == 0 {
		s.Annotations = map[string]string{service.AnnotationWeight: "0"}
	}
	for range r.IntN(4) {
		a := netip.AddrFrom4([4]byte{10, byte(1 + r.IntN(10)/9), byte(i), byte(r.IntN(5))})
		if r.IntN(10) == 0 { // in several slices
			a = netip.AddrFrom4([4]byte{10, 1, 99, byte(r.IntN(2))})
		}
		e := discoveryv1.Endpoint{Addresses: []string{a.String()}, Conditions: discoveryv1.EndpointConditions{Ready: new(r.IntN(4) > 0)}}
		if r.IntN(2) == 0 {
			e.Zone, e.Hostname = new("z1"), new("web-0")
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return sliceKey(i), s
}

func event(t *testing.T, key string, object any) state.Event {
	t.Helper()
	e := store.Event{KV: store.KV{Key: key}, Deleted: object == nil}
	if object != nil {
		e.Value = wire.Marshal(object)
	}
	out, ok := state.Decode(e)
	if !ok || out.Wrong != nil {
		t.Fatalf("%s is not read: %v", key, out.Wrong)
	}
	return out
}

// naiveBackends are those of the service web, by a look at everything.
func naiveBackends(now map[string]any) map[netip.Addr]map[string]wire.L4Addr {
	out := map[netip.Addr]map[string]wire.L4Addr{}
	for i := range 5 {
		s, ok := now[sliceKey(i)].(*discoveryv1.EndpointSlice)
		if !ok || s.Labels[wire.ServiceNameLabel] != "web" || s.Annotations[service.AnnotationWeight] == "0" {
			continue
		}
		for _, e := range s.Endpoints {
			a := netip.MustParseAddr(e.Addresses[0])
			if *e.Conditions.Ready && slices.ContainsFunc(east.PodCIDRs, func(p netip.Prefix) bool { return p.Contains(a) }) {
				out[a] = map[string]wire.L4Addr{"http": {Protocol: "TCP", Port: uint16(*s.Ports[0].Port)}}
			}
		}
	}
	return out
}

// One more backend costs what its slice holds, be it one of 10 slices or of 50.
func TestOneMoreBackendDoesNotGrow(t *testing.T) {
	count := func(parts int) float64 {
		v, change := viewsOf(t, parts)
		return testing.AllocsPerRun(10, change(v))
	}
	if few, many := count(10), count(50); many > 1.2*few+50 {
		t.Errorf("%.0f allocations with 1,000 backends, %.0f with 5,000", few, many)
	}
}

// viewsOf returns the views of a large service, and changes that include the older format.
func viewsOf(t testing.TB, parts int) (*views, func(*views) func()) {
	t.Helper()
	v := newViews(east)
	read := func(key string, object any) state.Event {
		e, _ := state.Decode(store.Event{KV: store.KV{Key: key, Value: wire.Marshal(object)}})
		return e
	}
	v.apply([]state.Event{read(wire.ObjectKey("services", "shop", "web"), webService(global))})
	for i := range parts {
		v.apply([]state.Event{read(sliceKey(i), slicePart(i, perSlice))})
	}
	v.all()
	changes := []state.Event{read(sliceKey(7), slicePart(7, perSlice-1)), read(sliceKey(7), slicePart(7, perSlice))}
	return v, func(v *views) func() {
		i := 0
		return func() {
			i++
			v.refresh(v.apply(changes[i%2 : i%2+1]))
		}
	}
}

// BenchmarkOneMoreBackend measures the work of the export for one changed backend that is
// written in both formats at once, without what the store takes.
func BenchmarkOneMoreBackend(b *testing.B) {
	for _, parts := range []int{1, 10, 100} {
		b.Run(fmt.Sprint("backends=", parts*perSlice), func(b *testing.B) {
			v, change := viewsOf(b, parts)
			one := change(v)
			b.ReportAllocs()
			for b.Loop() {
				one()
			}
		})
	}
}
