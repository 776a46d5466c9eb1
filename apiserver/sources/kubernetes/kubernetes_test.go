package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/nodes"
	"github.com/weft-mesh/weft/apiserver/problems"
	"github.com/weft-mesh/weft/apiserver/registry"
	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

func TestMain(m *testing.M) {
	// One of them remembers when it was last called, by the clock of another bubble.
	utilruntime.ErrorHandlers = nil
	goleak.VerifyTestMain(m)
}

// users is a store without users.
type users struct{}

func (users) SetUser(context.Context, store.User) error       { return nil }
func (users) RemoveUser(context.Context, string) error        { return nil }
func (users) EnableAuth(context.Context) error                { return nil }
func (users) Users(context.Context) (out []string, err error) { return nil, nil }

// world is a cluster's registry that follows a Kubernetes cluster.
type world struct {
	*testing.T
	kube   *twin
	store  *storetest.Store
	hands  *registry.Registry // of operators
	nodes  *nodes.Registrar
	source *Source
	stop   func()
}

// follow runs f while a source follows Kubernetes in virtual time.
func follow(t *testing.T, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, newTwin())
		w.kube.put(manifest.Namespaces, namespace("kube-system"))
		w.kube.put(manifest.Namespaces, namespace("default"))
		w.start("")
		w.settle()
		defer func() { w.stop() }()
		f(w)
	})
}

func newWorld(t *testing.T, k *twin) *world {
	w := &world{T: t, kube: k, store: storetest.New()}
	w.hands = registry.New(w.store, registry.Config{Cluster: "east", ServiceCIDR: netip.MustParsePrefix("10.101.0.0/16"), Kubernetes: true})
	w.nodes = nodes.New(nodes.Config{
		Cluster: wire.Cluster{Name: "east", ID: 1, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, ServiceCIDR: netip.MustParsePrefix("10.101.0.0/16")},
		Store:   w.store, Users: users{},
	})
	return w
}

// start begins a term.
func (w *world) start(uid string) {
	w.source = New(Config{IPAM: nodes.Kubernetes,
		Access: func() (*rest.Config, error) { return w.kube.config() }, UID: uid, Registry: w.hands.Owned(api.OwnerKubernetes),
		Nodes: w.nodes, Store: w.store, Name: "s1", Log: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(w.Context())
	ended := make(chan error, 1)
	source := w.source
	go func() { ended <- source.Run(ctx) }()
	w.stop = func() {
		w.Helper()
		cancel()
		began := time.Now()
		if err := <-ended; err != nil {
			w.Error(err)
		}
		if d := time.Since(began); d > time.Second {
			w.Errorf("it took %v to stop", d)
		}
	}
}

// after lets time pass.
func (w *world) after(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// settle lets the source take in what has changed.
func (w *world) settle() { w.after(500 * time.Millisecond) }

// held are the objects in the store, as "plural/namespace/name".
func (w *world) held() map[string]string {
	w.Helper()
	kvs, _, err := w.store.List(context.WithoutCancel(w.Context()), wire.ObjectsPrefix)
	if err != nil {
		w.Fatal(err)
	}
	all := map[string]string{}
	for _, kv := range kvs {
		all[strings.TrimPrefix(kv.Key, wire.ObjectsPrefix)] = string(kv.Value)
	}
	return all
}

// has checks which objects there are, except for the two namespaces of the beginning.
func (w *world) has(when string, want ...string) {
	w.Helper()
	var got []string
	for key := range w.held() {
		if key != "namespaces/_/kube-system" && key != "namespaces/_/default" {
			got = append(got, key)
		}
	}
	want = slices.Sorted(slices.Values(want))
	if slices.Sort(got); !slices.Equal(got, want) {
		w.Errorf("%s: there are\n%s\nwant\n%s", when, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// says checks the lines of the status.
func (w *world) says(when string, want ...string) {
	w.Helper()
	rows, looked := w.source.Problems()
	if !looked {
		w.Fatalf("%s: it has not looked yet", when)
	}
	var lines []string
	for _, c := range problems.Rows(rows).Sources() {
		lines = append(lines, c.String())
	}
	if len(lines) != len(want) {
		w.Errorf("%s: it says %q, want %q", when, lines, want)
		return
	}
	for i := range want {
		if !strings.Contains(lines[i], want[i]) {
			w.Errorf("%s: it says %q, want %q", when, lines[i], want[i])
		}
	}
}

func parse(text string) (o object) {
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		panic(err)
	}
	return o
}

func namespace(name string) object {
	return object{"apiVersion": "v1", "kind": "Namespace", "metadata": object{"name": name}, "status": object{"phase": "Active"}}
}

func node(name string, n int) object {
	return parse(fmt.Sprintf(`{"apiVersion":"v1","kind":"Node","metadata":{"name":%q,"labels":{"topology.kubernetes.io/zone":"z1","kubernetes.io/os":"linux"}},
		"spec":{"podCIDR":"10.1.%d.0/24","podCIDRs":["10.1.%d.0/24"],"taints":[{"key":"x","effect":"NoSchedule"}]},
		"status":{"addresses":[{"type":"Hostname","address":%q},{"type":"InternalIP","address":"172.16.1.%d"}],"images":[{"names":["x"]}]}}`, name, n, n, name, n))
}

func pod(name, on string, labels ...string) object {
	l := object{"app": name}
	for _, pair := range labels {
		k, v, _ := strings.Cut(pair, "=")
		l[k] = v
	}
	o := parse(fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":%q,"namespace":"default","annotations":{"kubectl.kubernetes.io/last-applied":"{}"},"finalizers":["x/y"]},
		"spec":{"nodeName":%q,"serviceAccountName":"default","containers":[{"name":"main","image":"nginx","env":[{"name":"SECRET","value":"hush"}],"command":["x","--token","hush"],"ports":[{"name":"http","containerPort":80,"protocol":"TCP"}]}],
		"volumes":[{"name":"v","emptyDir":{}}]},"status":{"phase":"Running","podIP":"10.1.1.9"}}`, name, on))
	metaOf(o)["labels"] = l
	return o
}

func svc(name, ip string) object {
	return parse(fmt.Sprintf(`{"apiVersion":"v1","kind":"Service","metadata":{"name":%q,"namespace":"default"},
		"spec":{"type":"NodePort","selector":{"app":%q},"clusterIP":%q,"clusterIPs":[%q],"ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack","ports":[{"port":80,"protocol":"TCP","targetPort":"http","nodePort":30080}]}}`, name, name, ip, ip))
}

func slice(name, of, ip string) object {
	return parse(fmt.Sprintf(`{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":%q,"namespace":"default","labels":{"kubernetes.io/service-name":%q,"endpointslice.kubernetes.io/managed-by":"endpointslice-controller.k8s.io"}},
		"addressType":"IPv4","endpoints":[{"addresses":[%q],"conditions":{"ready":true},"nodeName":"n1","targetRef":{"kind":"Pod","name":"x"}}],"ports":[{"name":"","port":8080,"protocol":"TCP"}]}`, name, of, ip))
}

func netpol(name string, spec string) object {
	return parse(fmt.Sprintf(`{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":%q,"namespace":"default"},"spec":%s}`, name, spec))
}

func cnp(name string, spec string) object {
	return parse(fmt.Sprintf(`{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{"name":%q,"namespace":"default"},"spec":%s,"status":{"conditions":[]}}`, name, spec))
}

const closed = `{"podSelector":{"matchLabels":{"app":"web"}},"policyTypes":["Ingress"]}`

// populate gives Kubernetes one of each.
func (w *world) populate() {
	w.kube.put("nodes", node("n1", 1))
	w.kube.put(manifest.Pods, pod("web", "n1"))
	w.kube.put(manifest.Services, svc("web", "10.101.0.7"))
	w.kube.put(manifest.EndpointSlices, slice("web-x7", "web", "10.1.1.9"))
	w.kube.put(manifest.NetworkPolicies, netpol("closed", closed))
	w.settle()
}

var populated = []string{"pods/default/web", "services/default/web", "endpointslices/default/web-x7", "networkpolicies/default/closed"}

func TestObjectsFollowKubernetes(t *testing.T) {
	for how, streams := range map[string]bool{"streamed": true, "listed": false} {
		t.Run(how, func(t *testing.T) {
			follow(t, func(w *world) {
				w.kube.set(func() { w.kube.streams = streams })
				w.kube.cut(true)
				w.after(5 * time.Second)
				w.populate()
				w.has("at first", populated...)
				w.says("at first")
				held := w.held()
				if p := held["pods/default/web"]; strings.Contains(p, "hush") || strings.Contains(p, "nginx") || strings.Contains(p, "volumes") || !strings.Contains(p, `"uid":"uid-`) || !strings.Contains(p, `"containerPort":80`) {
					t.Errorf("the pod is %s", p)
				}
				if s := held["services/default/web"]; !strings.Contains(s, `"clusterIP":"10.101.0.7"`) || !strings.Contains(s, `"nodePort":30080`) {
					t.Errorf("the service is %s", s)
				}
				if owner := api.OwnerOf([]byte(held["networkpolicies/default/closed"])); owner != api.OwnerKubernetes {
					t.Errorf("the policy is %s's", owner)
				}
				if got := append(w.store.Dump(wire.ServiceIPsPrefix), w.store.Dump(wire.NodePortsPrefix)...); len(got) > 0 {
					t.Errorf("allocated here: %v", got)
				}
				register, err := w.nodes.Register(t.Context())
				if reg := register["n1"]; err != nil || reg.Source != api.OwnerKubernetes || reg.Zone() != "z1" || len(reg.Labels) != 1 || reg.Addresses[0].String() != "172.16.1.1" || reg.PodCIDRs[0].String() != "10.1.1.0/24" {
					t.Errorf("registered as %+v, %v", reg, err)
				}

				// What changes nothing that is used writes nothing.
				before := w.store.Revision()
				busy := pod("web", "n1")
				busy["status"] = object{"phase": "Running", "podIP": "10.1.1.10", "conditions": []any{}}
				w.kube.put(manifest.Pods, busy)
				w.settle()
				if at := w.store.Revision(); at != before {
					t.Errorf("a status was written: %d to %d", before, at)
				}

				// Labels take effect; another pod of the same name is another one.
				w.kube.put(manifest.Pods, pod("web", "n1", "tier=front"))
				w.settle()
				was := w.held()["pods/default/web"]
				if !strings.Contains(was, `"tier":"front"`) {
					t.Errorf("without its label: %s", was)
				}
				w.kube.remove(manifest.Pods, nameOf(pod("web", "")))
				w.kube.put(manifest.Pods, pod("web", "n1"))
				w.settle()
				if is := w.held()["pods/default/web"]; is == was || strings.Contains(is, "tier") {
					t.Errorf("still %s", is)
				}

				// Pods without an address of their own are left out.
				host := pod("host", "n1")
				host["spec"].(object)["hostNetwork"] = true
				w.kube.put(manifest.Pods, host)
				w.kube.put(manifest.Pods, pod("pending", ""))
				w.kube.put(manifest.Pods, pod("job", "n1"))
				w.settle()
				w.has("with others", append([]string{"pods/default/job"}, populated...)...)
				done := pod("job", "n1")
				done["status"] = object{"phase": "Succeeded"}
				w.kube.put(manifest.Pods, done)
				w.kube.put(manifest.Pods, pod("pending", "n1"))
				w.settle()
				w.has("a job has come to its end", append([]string{"pods/default/pending"}, populated...)...)

				// A service that is created again has another address.
				w.kube.remove(manifest.Services, nameOf(svc("web", "")))
				w.kube.put(manifest.Services, svc("web", "10.101.0.8"))
				w.kube.remove(manifest.NetworkPolicies, nameOf(netpol("closed", closed)))
				w.kube.remove(manifest.Pods, nameOf(pod("pending", "")))
				w.settle()
				if s := w.held()["services/default/web"]; !strings.Contains(s, `"clusterIP":"10.101.0.8"`) {
					t.Errorf("the service is %s", s)
				}
				w.has("deleted", populated[:3]...)

				// A node that is gone takes along its registration.
				w.kube.remove(manifest.Pods, nameOf(pod("web", "")))
				w.kube.remove("nodes", name{"", "n1"})
				w.settle()
				if register, _ := w.nodes.Register(t.Context()); len(register) > 0 {
					t.Errorf("registered: %v", register)
				}
				w.says("at the end")
			})
		})
	}
}

func TestOthersMayNotWriteWhatKubernetesHas(t *testing.T) {
	follow(t, func(w *world) {
		w.populate()
		for what, text := range map[string]string{
			"is Kubernetes' to have in this cluster: apply it there, with `kubectl apply`": `{"apiVersion":"v1","kind":"Service","metadata":{"name":"other"},"spec":{"ports":[{"port":80}]}}`,
			"comes from Kubernetes: change it there, with `kubectl apply`":                 `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"closed"},"spec":{"podSelector":{}}}`,
		} {
			for _, force := range []bool{false, true} {
				_, err := w.hands.Apply(w.Context(), []byte(text), api.ManifestOptions{TakeOver: force})
				if err == nil || !strings.Contains(fmt.Sprint(err.(*api.Error).Problems), what) {
					t.Errorf("%s, force %v: %v", text, force, err)
				}
			}
		}
		if _, err := w.hands.Delete(w.Context(), "service", "default", "web", api.ManifestOptions{TakeOver: true}); err == nil {
			t.Error("deleted")
		}
		// Policies of one's own may be applied; Kubernetes does not overwrite them.
		own := `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"mine"},"spec":{"podSelector":{}}}`
		if _, err := w.hands.Apply(w.Context(), []byte(own), api.ManifestOptions{}); err != nil {
			t.Error(err)
		}
		w.kube.put(manifest.NetworkPolicies, netpol("mine", closed))
		w.settle()
		w.says("of the same name", "NetworkPolicy default/mine of Kubernetes is not applied: it was applied here with `weft apply`: `weft delete` it")
		w.kube.remove(manifest.NetworkPolicies, name{"default", "mine"})
		w.settle()
		w.has("at the end", append([]string{"networkpolicies/default/mine"}, populated...)...)
		w.says("at the end")
	})
}

// While Kubernetes is away, everything stays.
func TestOutage(t *testing.T) {
	for name, leave := range map[string]func(*twin){"refused": (*twin).leave, "silent": (*twin).hang} {
		t.Run(name, func(t *testing.T) {
			follow(t, func(w *world) {
				w.populate()
				leave(w.kube)
				before := w.store.Revision()
				w.after(10 * time.Minute)
				w.has("away", populated...)
				if at := w.store.Revision(); at != before {
					t.Errorf("something was written: %d to %d", before, at)
				}
				w.says("away", "Kubernetes API server https://kube.test not reachable for {age}: ")
				rows, _ := w.source.Problems()
				if c := problems.Rows(rows).Sources()[0]; time.Since(c.Since) < 9*time.Minute {
					t.Errorf("since %v", c.Since)
				}
				if strings.Contains(name, "silent") {
					w.stop() // also when nothing answers
					w.start("")
					w.after(time.Minute)
					w.has("another term", populated...)
				}
				w.kube.remove(manifest.Pods, nameOf(pod("web", "")))
				w.kube.put(manifest.Services, svc("new", "10.101.0.9"))
				w.kube.comeBack()
				w.after(15 * time.Second)
				w.has("back", append([]string{"services/default/new"}, populated[1:]...)...)
				w.says("back")
			})
		})
	}
}

// A watch that expired lists again. What is gone meanwhile is gone; a list that has too little
// deletes nothing.
func TestListsThatLack(t *testing.T) {
	follow(t, func(w *world) {
		w.kube.put("nodes", node("n1", 1))
		var all []string
		for i := range 30 {
			w.kube.put(manifest.Pods, pod(fmt.Sprintf("p%02d", i), "n1"))
			all = append(all, fmt.Sprintf("pods/default/p%02d", i))
		}
		w.settle()
		w.has("at first", all...)

		for name, lie := range map[string]func(items []object) []object{
			"an empty list":         func([]object) []object { return nil },
			"a truncated list":      func(items []object) []object { return items[:min(len(items), 7)] },
			"a list that lacks one": func(items []object) []object { return items[:len(items)-1] },
		} {
			w.kube.set(func() {
				w.kube.lists = func(plural string, items []object, version uint64, consistent bool) ([]object, uint64) {
					if plural == manifest.Pods && !consistent {
						items = lie(items)
					}
					return items, version
				}
			})
			w.kube.cut(true)
			for range 40 {
				w.after(time.Second)
				w.has(name, all...)
			}
			w.kube.set(func() { w.kube.lists = nil })
			w.says(name)
		}

		// All lists lack them, for as long as nobody would believe a mistake.
		w.kube.set(func() {
			w.kube.lists = func(plural string, items []object, version uint64, _ bool) ([]object, uint64) {
				if plural == manifest.Pods {
					items = nil
				}
				return items, version
			}
		})
		w.kube.cut(true)
		w.after(15 * time.Second)
		w.has("doubted", all...)
		w.says("doubted", "Kubernetes no longer lists 30 of 30 pods: they are kept until 2 more lists lack them too")
		w.kube.set(func() { w.kube.lists = nil })
		w.after(time.Minute)
		w.has("no longer", all...)
		w.says("no longer")

		// They were deleted while no watch saw it: one is gone soon, many a little later.
		w.kube.leave()
		w.kube.remove(manifest.Pods, name{"default", "p00"})
		w.kube.cut(true)
		w.kube.comeBack()
		w.after(10 * time.Second)
		w.has("one is gone", all[1:]...)
		w.kube.leave()
		for i := range 30 {
			w.kube.remove(manifest.Pods, name{"default", fmt.Sprintf("p%02d", i)})
		}
		w.kube.cut(true)
		w.kube.comeBack()
		w.after(15 * time.Second)
		w.has("many are in doubt", all[1:]...)
		w.after(40 * time.Second)
		w.has("many are gone")
		w.says("many are gone")
	})
}

// A server that is behind takes nothing back; a store that was restored does, in the end.
func TestOldLists(t *testing.T) {
	follow(t, func(w *world) {
		w.populate()
		var old []object
		var at uint64
		w.kube.set(func() {
			for _, o := range w.kube.objects[manifest.Pods] {
				old = append(old, clone(o))
			}
			at = w.kube.version
		})
		w.kube.put(manifest.Pods, pod("web", "n1", "tier=front"))
		w.kube.put(manifest.Pods, pod("new", "n1"))
		w.settle()
		now := append([]string{"pods/default/new"}, populated...)
		w.has("at first", now...)
		labelled := func() bool { return strings.Contains(w.held()["pods/default/web"], `"tier":"front"`) }
		behind := func(always bool) func(string, []object, uint64, bool) ([]object, uint64) {
			return func(plural string, items []object, version uint64, consistent bool) ([]object, uint64) {
				if plural == manifest.Pods && (always || !consistent) {
					return old, at
				}
				return items, version
			}
		}
		w.kube.set(func() { w.kube.lists = behind(false) })
		w.kube.cut(true)
		for range 40 {
			w.after(time.Second)
			w.has("a server is behind", now...)
			if !labelled() {
				t.Fatal("a label was taken back")
			}
		}
		w.kube.set(func() {
			w.kube.lists = behind(true)
			w.kube.objects[manifest.Pods] = map[name]object{{"default", "web"}: old[0]}
		})
		w.kube.cut(true)
		w.after(10 * time.Second)
		w.has("all are behind", now...)
		w.after(time.Minute)
		w.has("it went back", populated...)
		if labelled() {
			t.Error("it kept the label of a store that is gone")
		}
		w.kube.set(func() { w.kube.lists = nil })
		w.kube.cut(true)
		w.kube.put(manifest.Pods, pod("web", "n1", "tier=back"))
		w.after(10 * time.Second)
		if !strings.Contains(w.held()["pods/default/web"], `"tier":"back"`) {
			t.Error("it no longer follows")
		}
	})
}

// Another cluster is not the one that was followed.
func TestAnotherCluster(t *testing.T) {
	follow(t, func(w *world) {
		w.populate()
		w.stop()
		first := w.kube
		w.kube = newTwin()
		w.kube.put(manifest.Namespaces, namespace("default"))
		w.start("")
		w.after(2 * time.Minute)
		w.has("without a system namespace", populated...)
		w.says("without a system namespace", "Kubernetes at https://kube.test lists no namespace kube-system")
		w.kube.set(func() { w.kube.version += 100 })
		w.kube.put(manifest.Namespaces, namespace("kube-system"))
		w.after(2 * time.Minute)
		w.has("another", populated...)
		w.says("another", "is another cluster than before: its namespace kube-system has the UID uid-112, and had uid-11; what came from the other one is kept")
		w.stop()
		w.start("uid-112")
		w.after(2 * time.Minute)
		w.has("adopted")
		w.says("adopted")
		w.stop()
		w.kube = first
		w.start("")
		w.after(2 * time.Minute)
		w.has("the first again")
		w.says("the first again", "is another cluster than before")
	})
}

// What was deleted between two terms is deleted by the next.
func TestANewTerm(t *testing.T) {
	follow(t, func(w *world) {
		w.populate()
		w.stop()
		w.kube.remove(manifest.Pods, nameOf(pod("web", "")))
		w.kube.put(manifest.Services, svc("new", "10.101.0.9"))
		before := w.store.Revision()
		w.start("")
		w.after(time.Second)
		w.has("not yet sure", append([]string{"services/default/new"}, populated...)...)
		w.after(5 * time.Second)
		w.has("sure", append([]string{"services/default/new"}, populated[1:]...)...)
		if n := w.store.Revision() - before; n > 3 {
			t.Errorf("%d writes", n)
		}
	})
}

func TestCustomResourcesComeAndGo(t *testing.T) {
	const spec = `{"endpointSelector":{"matchLabels":{"app":"web"}},"ingress":[{"fromEndpoints":[{"matchLabels":{"app":"client"}}]}]}`
	follow(t, func(w *world) {
		w.populate()
		w.kube.install(manifest.Policies)
		w.kube.put(manifest.Policies, cnp("web", spec))
		w.settle()
		w.after(10 * time.Second)
		with := append([]string{"ciliumnetworkpolicies/default/web"}, populated...)
		w.has("installed", with...)
		w.says("installed")
		// A list of definitions that lacks it does not take the policies away.
		w.kube.set(func() {
			w.kube.lists = func(plural string, items []object, version uint64, consistent bool) ([]object, uint64) {
				if plural == definitions && !consistent {
					items = nil
				}
				return items, version
			}
		})
		w.kube.cut(true)
		w.after(time.Minute)
		w.has("not listed once", with...)
		w.stop()
		w.start("")
		w.after(time.Minute)
		w.has("not listed at the start of a term", with...)
		w.kube.set(func() { w.kube.lists = nil })
		w.kube.remove(manifest.Policies, name{"default", "web"})
		w.kube.uninstall(manifest.Policies)
		w.after(10 * time.Second)
		w.has("removed", populated...)
		w.says("removed")
		w.kube.install(manifest.Policies)
		w.kube.put(manifest.Policies, cnp("web", spec))
		w.after(10 * time.Second)
		w.has("installed again", with...)
		w.says("installed again")
	})
}

// What cannot be applied is told where people look: in the status, and at the object.
func TestWhatIsRefusedIsTold(t *testing.T) {
	follow(t, func(w *world) {
		w.populate()
		bad := svc("bad", "10.99.0.1")
		w.kube.put(manifest.Services, bad)
		odd := pod("odd", "n1")
		odd["spec"].(object)["containers"].([]any)[0].(object)["ports"].([]any)[0].(object)["hostPort"] = 30001
		w.kube.put(manifest.Pods, odd)
		w.after(5 * time.Second)
		w.has("refused", append([]string{"pods/default/odd"}, populated...)...)
		w.says("refused",
			"Pod default/odd of Kubernetes is applied in part: hostPort 30001 of container main is not served: ports 30000-32767 are for services",
			"Service default/bad of Kubernetes is not applied: it spec.clusterIPs[0] 10.99.0.1 is outside of the service CIDR 10.101.0.0/16")
		told := func() (out []string) {
			w.kube.set(func() {
				for _, e := range w.kube.events {
					of := e["involvedObject"].(object)
					out = append(out, fmt.Sprint(of["kind"], " ", of["name"], " ", e["reason"], " ", e["type"]))
				}
			})
			slices.Sort(out)
			return out
		}
		want := []string{"Pod odd AppliedInPart Warning", "Service bad NotApplied Warning"}
		if got := told(); !slices.Equal(got, want) {
			t.Errorf("events %q", got)
		}
		// It is not told again with each change that leaves it so.
		for i := range 20 {
			bad["metadata"].(object)["labels"] = object{"n": fmt.Sprint(i)}
			w.kube.put(manifest.Services, bad)
			w.settle()
		}
		if got := told(); len(got) != 2 {
			t.Errorf("events %q", got)
		}
		w.kube.remove(manifest.Services, name{"default", "bad"})
		w.kube.remove(manifest.Pods, name{"default", "odd"})
		w.settle()
		w.says("mended")

		// Pods wait for their node, and nodes for their pod CIDR.
		w.kube.put(manifest.Pods, pod("away", "n2"))
		late := node("n2", 2)
		late["spec"] = object{}
		w.kube.put("nodes", late)
		w.settle()
		w.has("no node", populated...)
		w.says("no node", "node n2 of Kubernetes is not registered: node n2 has no pod CIDR from Kubernetes")
		w.kube.put("nodes", node("n2", 2))
		w.settle()
		w.has("with its node", append([]string{"pods/default/away"}, populated...)...)
		w.says("with its node")
		w.kube.put(manifest.EndpointSlices, slice("at-node", "web", "172.16.1.2"))
		w.settle()
		w.says("a slice that leads to a node", "1 endpoint slice of Kubernetes at addresses of nodes (for example default/at-node)")
		w.kube.remove(manifest.EndpointSlices, name{"default", "at-node"})
		w.kube.set(func() { w.kube.forbidden[manifest.Pods] = true })
		w.kube.cut(true)
		w.after(20 * time.Second)
		w.says("forbidden", "pods of Kubernetes cannot be read: pods is forbidden")
		w.has("forbidden", append([]string{"pods/default/away"}, populated...)...)
	})
}
