package endpoints

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/apiserver/state"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

func podName(i int) name { return name{"shop", fmt.Sprint("web-", i)} }

func guestName(i int) guest { return guest{podName(i), corev1.IPv4Protocol} }

func podAddr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 1, byte(1 + i/250), byte(2 + i%250)})
}

// An endpoint stays in its slice, and a new one takes the first place that is free.
func TestSpread(t *testing.T) {
	s := newSpread()
	kind := service.Slice{Name: "web-v4"}
	put := func(i int, prefers string) []string {
		return s.put(guestName(i), kind, service.Endpoint{Addr: podAddr(i), Ready: true}, prefers)
	}
	sizes := func() (out string) {
		for _, part := range slices.Sorted(maps.Keys(s.parts)) {
			out += fmt.Sprintf("%s:%d ", part, len(s.parts[part].guests))
		}
		return out
	}
	want := func(when, is, should string) {
		t.Helper()
		if is != should {
			t.Errorf("%s: %s, want %s", when, is, should)
		}
	}
	for i := range 250 {
		put(i, "")
	}
	want("250", sizes(), "web-v4:100 web-v4-part2:100 web-v4-part3:50 ")
	want("as before", fmt.Sprint(put(7, "")), "[]")
	want("one changes", fmt.Sprint(s.put(guestName(7), kind, service.Endpoint{Addr: podAddr(7)}, "")), "[web-v4]")
	want("one goes", fmt.Sprint(s.remove(guestName(120))), "[web-v4-part2]")
	want("goes again", fmt.Sprint(s.remove(guestName(120))), "[]")
	want("another comes", fmt.Sprint(put(300, "")), "[web-v4-part2]")
	want("and another", fmt.Sprint(put(301, "")), "[web-v4-part3]")
	want("one that was in a full slice", fmt.Sprint(put(302, "web-v4")), "[web-v4-part3]")
	want("one that was in a slice of its own", fmt.Sprint(put(303, "web-v4-part9")), "[web-v4-part9]")
	other := service.Slice{Name: "web-v4-9090"}
	want("one with another port", fmt.Sprint(s.put(guestName(7), other, service.Endpoint{Addr: podAddr(7)}, "")), "[web-v4 web-v4-9090]")
	want("its place is taken", fmt.Sprint(put(304, "")), "[web-v4]")
	for i := range 310 {
		s.remove(guestName(i))
	}
	want("empty", sizes(), "")
	want("again", fmt.Sprint(put(1, "")), "[web-v4]")
}

// claimed is what a pod's agent says of it.
func (e *east) claimed(i int, ready bool) store.Op {
	node := fmt.Sprintf("n%d", i/250+1)
	return store.Put(wire.NodeEndpointKey(node, "shop", podName(i).name), wire.Marshal(wire.EndpointState{Namespace: "shop", Pod: podName(i).name, IP: podAddr(i), Ready: ready}))
}

// declared declares pods of an app on their nodes.
func (e *east) declared(app string, pods ...int) {
	e.t.Helper()
	var text strings.Builder
	for _, i := range pods {
		fmt.Fprintf(&text, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: shop, labels: {app: %s}}\nspec: {nodeName: n%d, containers: [{name: c, ports: [{name: http, containerPort: %d}]}]}\n", podName(i).name, app, i/250+1, 8080+i%2)
	}
	e.apply(text.String())
}

// seats is where each address is, and whether it is ready.
func (e *east) seats() map[string]string {
	e.t.Helper()
	kvs, _, err := e.store.List(e.t.Context(), wire.ObjectKindPrefix("endpointslices"))
	if err != nil {
		e.t.Fatal(err)
	}
	out := map[string]string{}
	for _, kv := range kvs {
		ev, ok := state.Decode(store.Event{KV: kv})
		if !ok {
			e.t.Fatalf("%s is no slice", kv.Key)
		}
		s := ev.Object.(*discoveryv1.EndpointSlice)
		if n := len(s.Endpoints); n == 0 || n > sliceSize {
			e.t.Errorf("slice %s has %d endpoints", s.Name, n)
		}
		for _, end := range s.Endpoints {
			if was, twice := out[end.Addresses[0]]; twice {
				e.t.Errorf("%s is in %s, and %s", end.Addresses[0], was, s.Name)
			}
			out[end.Addresses[0]] = fmt.Sprintf("%s of %s, ready %v", s.Name, s.Labels[discoveryv1.LabelServiceName], *end.Conditions.Ready)
		}
	}
	return out
}

// Whatever happens to pods, services and slices, the slices contain what the pods say, and a
// controller that comes up finds nothing to do. Nobody else moves.
func TestSlicesPodByPod(t *testing.T) {
	const pods = 240
	for seed := range uint64(3) {
		run(t, func(e *east) {
			r := rand.New(rand.NewPCG(seed, 2))
			app, ready := make([]string, pods), make([]bool, pods)
			var ops []store.Op
			var all []int
			for i := range pods {
				all, app[i], ready[i] = append(all, i), "web", true
				ops = append(ops, e.claimed(i, true))
			}
			e.apply(shopService)
			e.declared("web", all...)
			e.write(ops...)
			before := e.seats()
			for round := range 40 {
				moved := map[int]bool{}
				for range 1 + r.IntN(5) {
					i := r.IntN(pods)
					moved[i] = true
					switch r.IntN(4) {
					case 0:
						app[i] = []string{"web", "db"}[r.IntN(2)]
						e.declared(app[i], i)
					case 1:
						if app[i] != "" {
							e.delete("pods", "shop", podName(i).name)
						}
						app[i] = ""
					case 2:
						ready[i] = !ready[i]
						e.write(e.claimed(i, ready[i]))
					case 3: // somebody removes or changes what is ours
						kvs, _, err := e.store.List(t.Context(), wire.ObjectKindPrefix("endpointslices"))
						if err != nil {
							t.Fatal(err)
						}
						if kv := kvs[r.IntN(len(kvs))]; r.IntN(2) == 0 {
							e.write(store.Delete(kv.Key))
						} else {
							e.write(store.Put(kv.Key, []byte(strings.Replace(string(kv.Value), `"ready":true`, `"ready":false`, 1))))
						}
					}
				}
				after := e.seats()
				for i := range pods {
					addr := podAddr(i).String()
					want := ""
					if app[i] == "web" {
						want = fmt.Sprintf("-%d", 8080+i%2)
					}
					got := after[addr]
					if (got == "") != (want == "") || want != "" && (!strings.HasPrefix(got, "web-v4"+want) || !strings.HasSuffix(got, fmt.Sprintf("ready %v", ready[i]))) {
						t.Fatalf("seed %d, round %d: pod %d, app %q, ready %v: %q", seed, round, i, app[i], ready[i], got)
					}
					if was := before[addr]; !moved[i] && got != was {
						t.Fatalf("seed %d, round %d: pod %d, which nothing happened to, was in %q and is in %q", seed, round, i, was, got)
					}
				}
				before = after
			}
			revision := e.store.Revision()
			stop := e.start() // a second API server
			stop()
			if now := e.store.Revision(); now != revision {
				t.Errorf("seed %d: a new controller wrote %d times", seed, now-revision)
			}
		})
	}
}

// One changed pod costs what its slice holds, be the service one of 10 slices or of 50.
func TestOneMorePodDoesNotGrow(t *testing.T) {
	count := func(pods int) float64 {
		one := onePod(t, pods)
		return testing.AllocsPerRun(20, one)
	}
	if few, many := count(1000), count(5000); many > 1.2*few+50 {
		t.Errorf("%.0f allocations with 1,000 pods, %.0f with 5,000", few, many)
	}
}

// onePod returns a change of one pod of a service, from its event to the slice, in the model
// of a cluster in which all has been written.
func onePod(t testing.TB, pods int) func() {
	t.Helper()
	c, m := New(Config{Cluster: "east"}), newModel()
	read := func(key string, value any) state.Event {
		ev, ok := state.Decode(store.Event{KV: store.KV{Key: key, Value: wire.Marshal(value), Modified: 1}})
		if !ok || ev.Wrong != nil {
			t.Fatalf("%s is not read: %v", key, ev.Wrong)
		}
		return ev
	}
	svc := name{"shop", "web"}
	m.apply(read(wire.ObjectKey("services", "shop", "web"), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.101.0.1", Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Port: 80}}},
	}))
	end := func(i int, ready bool) state.Event {
		return read(wire.EndpointKey("shop", podName(i).name), wire.Endpoint{Namespace: "shop", Pod: podName(i).name, Node: "n1", IP: podAddr(i), Ready: ready})
	}
	for i := range pods {
		m.apply(read(wire.ObjectKey("pods", "shop", podName(i).name), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}}, Spec: corev1.PodSpec{NodeName: "n1"}}))
		m.apply(end(i, true))
	}
	settle := func() (written int) {
		for _, svc := range m.serviceWork.take() {
			for _, op := range c.service(m, svc).ops {
				written++
				ev, _ := state.Decode(store.Event{KV: store.KV{Key: op.Key, Value: op.Value, Modified: 1}, Deleted: op.Delete})
				m.apply(ev)
			}
		}
		return written
	}
	if n := settle(); n != (pods+sliceSize-1)/sliceSize || len(m.spreads[svc].seats) != pods {
		t.Fatalf("%d slices with %d pods", n, len(m.spreads[svc].seats))
	}
	settle()
	changes := []state.Event{end(77, false), end(77, true)}
	i := 0
	return func() {
		m.apply(changes[i%2])
		if n := settle(); n != 1 {
			t.Fatalf("%d slices were written", n)
		}
		if n := settle(); n != 0 { // its event came back
			t.Fatalf("%d slices were written again", n)
		}
		i++
	}
}

// BenchmarkOneMorePod measures the work for one changed pod of a service.
func BenchmarkOneMorePod(b *testing.B) {
	for _, pods := range []int{100, 1000, 10_000} {
		b.Run(fmt.Sprint("pods=", pods), func(b *testing.B) {
			one := onePod(b, pods)
			b.ReportAllocs()
			for b.Loop() {
				one()
			}
		})
	}
}
