package endpoints

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/identities"
	"github.com/weft-mesh/weft/apiserver/registry"
	"github.com/weft-mesh/weft/apiserver/state"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

// east is a cluster of two nodes with a controller at work, in a bubble.
type east struct {
	t        *testing.T
	store    *storetest.Store
	registry *registry.Registry
	*Controller
}

func run(t *testing.T, test func(e *east)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := storetest.New()
		e := &east{t: t, store: s, registry: registry.New(s, registry.Config{Cluster: "east", ServiceCIDR: netip.MustParsePrefix("10.101.0.0/16")})}
		for i := 1; i <= 2; i++ {
			e.register(i)
		}
		stop := e.start()
		test(e)
		stop()
	})
}

// start runs a new controller, as an API server that comes up does.
func (e *east) start() (stop func()) {
	e.t.Helper()
	return e.startOn(e.store)
}

func (e *east) startOn(s store.Store) (stop func()) {
	e.t.Helper()
	first, last := identity.Split255.Range(1)
	alloc, err := identities.NewAllocator(s, first, last)
	if err != nil {
		e.t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	own := state.New(s, log)
	e.Controller = New(Config{State: own, Store: s, Allocator: alloc, Cluster: "east", Log: log})
	ctx, cancel := context.WithCancel(e.t.Context())
	done := make(chan error, 2)
	go func() { done <- own.Run(ctx) }()
	go func() { done <- e.Run(ctx) }()
	synctest.Wait()
	return func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				e.t.Error(err)
			}
		}
	}
}

func (e *east) register(i int) {
	node := fmt.Sprintf("n%d", i)
	e.put(wire.RegistrationKey(node), wire.Registration{
		Name: node, Addresses: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("172.16.1.%d", i))},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.1.%d.0/24", i))},
	})
}

func (e *east) put(key string, v any) {
	e.t.Helper()
	e.write(store.Put(key, wire.Marshal(v)))
}

func (e *east) write(ops ...store.Op) {
	e.t.Helper()
	if err := store.Write(e.t.Context(), e.store, ops...); err != nil {
		e.t.Fatal(err)
	}
	synctest.Wait()
}

func (e *east) apply(manifest string) {
	e.t.Helper()
	if _, err := e.registry.Apply(e.t.Context(), []byte(manifest), api.ManifestOptions{}); err != nil {
		e.t.Fatal(err)
	}
	synctest.Wait()
}

func (e *east) delete(kind, namespace, name string) {
	e.t.Helper()
	if _, err := e.registry.Delete(e.t.Context(), kind, namespace, name, api.ManifestOptions{}); err != nil {
		e.t.Fatal(err)
	}
	synctest.Wait()
}

// pod declares a pod of namespace shop.
func (e *east) pod(name, node, app string) {
	e.t.Helper()
	e.apply(fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: shop, labels: {app: %s}}\nspec: {nodeName: %s, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}\n", name, app, node))
}

// claim says what a node's agent would.
func (e *east) claim(node, pod, ip string, ready bool) {
	e.t.Helper()
	e.put(wire.NodeEndpointKey(node, "shop", pod), wire.EndpointState{Namespace: "shop", Pod: pod, IP: netip.MustParseAddr(ip), Ready: ready})
}

// endpoints is what the cluster vouches for, a line each.
func (e *east) endpoints() string {
	e.t.Helper()
	kvs, _, err := e.store.List(e.t.Context(), wire.EndpointsPrefix)
	if err != nil {
		e.t.Fatal(err)
	}
	var lines []string
	for _, kv := range kvs {
		v, err := wire.Unmarshal[wire.Endpoint](kv.Value)
		if err != nil {
			e.t.Fatal(err)
		}
		app, _ := v.Labels.Get(identity.SourceK8s, "app")
		state := "ready"
		if !v.Ready {
			state = "not ready"
		}
		if identity.Split255.Cluster(v.Identity) != 1 {
			e.t.Errorf("%s has identity %d, which is not of cluster 1", kv.Key, v.Identity)
		}
		lines = append(lines, fmt.Sprintf("%s on %s (%s) at %s: %s, %s", v.Pod, v.Node, v.NodeIP, v.IP, app, state))
	}
	return strings.Join(lines, "\n")
}

func (e *east) slices() string {
	e.t.Helper()
	kvs, _, err := e.store.List(e.t.Context(), wire.ObjectKindPrefix("endpointslices"))
	if err != nil {
		e.t.Fatal(err)
	}
	var lines []string
	for _, kv := range kvs {
		var s discoveryv1.EndpointSlice
		if err := json.Unmarshal(kv.Value, &s); err != nil {
			e.t.Fatal(err)
		}
		var ends []string
		for _, end := range s.Endpoints {
			mark := ""
			if !*end.Conditions.Ready {
				mark = "!"
			}
			ends = append(ends, mark+end.Addresses[0])
		}
		lines = append(lines, fmt.Sprintf("%s %d: %s", s.Name, *s.Ports[0].Port, strings.Join(ends, " ")))
	}
	return strings.Join(lines, "\n")
}

func (e *east) refused() string { return lines(e.Status().Refusals) }

func lines(all []api.Refusal) string {
	var lines []string
	for _, r := range all {
		lines = append(lines, fmt.Sprintf("%s %s %d× %s (%s)", r.Node, r.Resource, r.Count, r.Reason, r.Example))
	}
	return strings.Join(lines, "\n")
}

func (e *east) want(what, got, want string) {
	e.t.Helper()
	if got != want {
		e.t.Errorf("%s:\n%s\nwant:\n%s", what, got, want)
	}
}

const shopService = `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
`

func TestFromManifestToSlice(t *testing.T) {
	run(t, func(e *east) {
		e.apply(shopService)
		e.pod("web-1", "n1", "web")
		e.pod("web-2", "n2", "web")
		e.want("declared only", e.endpoints(), "")

		e.claim("n1", "web-1", "10.1.1.5", true)
		e.claim("n2", "web-2", "10.1.2.5", false)
		e.want("endpoints", e.endpoints(), "web-1 on n1 (172.16.1.1) at 10.1.1.5: web, ready\nweb-2 on n2 (172.16.1.2) at 10.1.2.5: web, not ready")
		e.want("slices", e.slices(), "web-v4-8080 8080: 10.1.1.5 !10.1.2.5")

		e.claim("n2", "web-2", "10.1.2.5", true)
		e.want("ready", e.slices(), "web-v4-8080 8080: 10.1.1.5 10.1.2.5")

		before := e.store.Revision()
		e.claim("n2", "web-2", "10.1.2.5", true)
		if e.store.Revision() != before+1 {
			t.Error("a repeated claim changed something")
		}

		e.pod("web-2", "n2", "other")
		e.want("label taken away", e.slices(), "web-v4-8080 8080: 10.1.1.5")
		e.want("new identity", e.endpoints(), "web-1 on n1 (172.16.1.1) at 10.1.1.5: web, ready\nweb-2 on n2 (172.16.1.2) at 10.1.2.5: other, ready")

		e.delete("pods", "shop", "web-1")
		e.want("pod deleted", e.endpoints(), "web-2 on n2 (172.16.1.2) at 10.1.2.5: other, ready")
		e.want("its slice", e.slices(), "")

		e.pod("web-2", "n2", "web")
		e.delete("services", "shop", "web")
		e.want("service deleted", e.slices(), "")
		e.want("nothing refused", e.refused(), "")
	})
}

// As Kubernetes' own controller has it: the zone is the node's, also when it
// changes, and a hostname counts below the service that the pod names as its
// subdomain.
func TestSlicesNameZoneAndHostname(t *testing.T) {
	run(t, func(e *east) {
		e.apply(`
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: shop}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web}}
spec: {nodeName: n1, hostname: zero, subdomain: web, containers: [{name: c}]}
`)
		e.claim("n1", "web-0", "10.1.1.2", true)
		for _, zone := range []string{"", "z1", "z2"} {
			reg := wire.Registration{Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("172.16.1.1")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24")}}
			if zone != "" {
				reg.Labels = map[string]string{"topology.kubernetes.io/zone": zone}
			}
			e.put(wire.RegistrationKey("n1"), reg)
			for svc, hostname := range map[string]string{"web": "zero", "other": ""} {
				kv, err := e.store.Get(t.Context(), wire.ObjectKey("endpointslices", "shop", svc+"-v4"))
				if err != nil {
					t.Fatal(err)
				}
				s, err := wire.Unmarshal[discoveryv1.EndpointSlice](kv.Value)
				if err != nil || len(s.Endpoints) != 1 {
					t.Fatalf("%s: %v, %s", svc, err, kv.Value)
				}
				got := service.SliceFromKubernetes(&s).Endpoints[0]
				if got.Zone != zone || got.Hostname != hostname {
					t.Errorf("%s in zone %q: zone %q, hostname %q", svc, zone, got.Zone, got.Hostname)
				}
			}
		}
	})
}

// A sidecar runs as long as its pod, so its ports have names like any other's; an
// init container that ends has none.
func TestNamedPortOfASidecar(t *testing.T) {
	run(t, func(e *east) {
		e.apply(`
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: a, port: 80, targetPort: inside}, {name: b, port: 81, targetPort: http}, {name: c, port: 82, targetPort: early}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web}}
spec:
  nodeName: n1
  initContainers:
  - {name: early, ports: [{name: early, containerPort: 7000}]}
  - {name: proxy, restartPolicy: Always, ports: [{name: inside, containerPort: 15006}, {name: http, containerPort: 15001}]}
  containers:
  - {name: c, ports: [{name: http, containerPort: 8080}]}
`)
		e.claim("n1", "web-0", "10.1.1.2", true)
		kvs, _, err := e.store.List(t.Context(), wire.ObjectKey("endpointslices", "shop", ""))
		if err != nil || len(kvs) != 1 {
			t.Fatal(err, kvs)
		}
		s, err := wire.Unmarshal[discoveryv1.EndpointSlice](kvs[0].Value)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]int32{}
		for _, p := range s.Ports {
			got[*p.Name] = *p.Port
		}
		if fmt.Sprint(got) != "map[a:15006 b:8080]" {
			t.Errorf("ports %v", got)
		}
	})
}

func TestSameLabelsSameIdentity(t *testing.T) {
	run(t, func(e *east) {
		for i, node := range []string{"n1", "n2"} {
			e.pod(fmt.Sprintf("web-%d", i), node, "web")
			e.claim(node, fmt.Sprintf("web-%d", i), fmt.Sprintf("10.1.%d.5", i+1), true)
		}
		if ids := e.store.Dump(wire.IdentityIDPrefix); len(ids) != 1 {
			t.Errorf("identities: %v", ids)
		}
		if owners := e.store.Dump(wire.IdentityTextPrefix); len(owners) != 3 {
			t.Errorf("owners: %v", owners)
		}
		e.delete("pods", "shop", "web-0")
		if owners := e.store.Dump(wire.IdentityTextPrefix); len(owners) != 2 {
			t.Errorf("owners: %v", owners)
		}
	})
}

func TestNodeLiesOnlyAboutItself(t *testing.T) {
	run(t, func(e *east) {
		e.pod("web-1", "n1", "web")
		e.pod("web-2", "n1", "web")
		e.claim("n1", "web-1", "10.1.1.5", true)
		honest := e.endpoints()

		e.claim("n2", "web-1", "10.1.2.9", true) // a pod that was not declared there
		e.claim("n1", "web-2", "10.1.2.5", true) // an address of another node
		e.want("endpoints", e.endpoints(), honest)
		e.claim("n1", "web-2", "10.1.1.5", true) // an address of another pod
		e.claim("n1", "web-2", "10.1.1.1", true) // the node's own
		e.claim("n1", "web-1", "8.8.8.8", true)  // anything, for a pod that is known
		e.claim("n2", "ghost", "10.1.2.7", true) // a pod that is not declared at all
		e.put(wire.NodeKey("n2"), wire.NodeState{Name: "n2", Addresses: []netip.Addr{netip.MustParseAddr("172.16.1.1")}})
		e.want("endpoints", e.endpoints(), honest)
		e.want("refused", e.refused(), strings.Join([]string{
			"n1 endpoint 1× address belongs to another pod of the node (shop/web-2 at 10.1.1.5)",
			"n1 endpoint 2× address is outside the node's pod CIDRs (shop/web-1 at 8.8.8.8)",
			"n1 endpoint 1× address is the node's own (shop/web-2 at 10.1.1.1)",
			"n2 endpoint 2× pod is not declared on the node (shop/ghost at 10.1.2.7)",
			"n2 node 1× contradicts its registration (n2 claims address 172.16.1.1, which it was not registered with)",
		}, "\n"))

		// What stands is what is claimed now; it goes with the claim.
		e.want("standing", lines(e.Status().Standing), strings.Join([]string{
			"n1 endpoint 1× address is outside the node's pod CIDRs (shop/web-1 at 8.8.8.8)",
			"n1 endpoint 1× address is the node's own (shop/web-2 at 10.1.1.1)",
			"n2 endpoint 2× pod is not declared on the node (shop/ghost at 10.1.2.7)",
			"n2 node 1× contradicts its registration (n2 claims address 172.16.1.1, which it was not registered with)",
		}, "\n"))
		e.write(store.Delete(wire.NodeEndpointKey("n2", "shop", "ghost")), store.Delete(wire.NodeKey("n2")))
		e.claim("n1", "web-1", "10.1.1.5", true)
		e.claim("n1", "web-2", "10.1.1.6", true)
		e.want("standing", lines(e.Status().Standing), "n2 endpoint 1× pod is not declared on the node (shop/web-1 at 10.1.2.9)")
		e.write(store.Delete(wire.NodeEndpointKey("n2", "shop", "web-1")))
		e.want("standing at last", lines(e.Status().Standing), "")
	})
}

func TestSilenceRemovesNothing(t *testing.T) {
	run(t, func(e *east) {
		e.pod("web-1", "n1", "web")
		e.claim("n1", "web-1", "10.1.1.5", true)
		e.put(wire.NodeSyncedKey("n1"), "start 1")
		there := e.endpoints()

		e.write(store.DeletePrefix(wire.NodePrefix("n1"))) // what the end of a lease does
		e.want("lease over", e.endpoints(), there)

		e.put(wire.NodeKey("n1"), wire.NodeState{Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("172.16.1.1")}})
		e.want("agent is back, list not complete", e.endpoints(), there)
		e.put(wire.NodeSyncedKey("n1"), "start 2")
		e.want("complete list lacks it", e.endpoints(), "")

		e.claim("n1", "web-1", "10.1.1.6", true)
		e.write(store.Delete(wire.NodeEndpointKey("n1", "shop", "web-1")))
		e.want("taken back by its agent", e.endpoints(), "")

		e.claim("n1", "web-1", "10.1.1.6", true)
		e.write(store.Delete(wire.RegistrationKey("n1")))
		e.want("node removed", e.endpoints(), "")
		e.want("nothing refused", e.refused(), "")
	})
}

func TestPodComesBackUnderItsName(t *testing.T) {
	run(t, func(e *east) {
		e.pod("web-1", "n1", "web")
		e.claim("n1", "web-1", "10.1.1.5", true)
		kv, err := e.store.Get(t.Context(), wire.EndpointKey("shop", "web-1"))
		if err != nil {
			t.Fatal(err)
		}
		old, _ := wire.Unmarshal[wire.Endpoint](kv.Value)
		e.put(wire.NodeEndpointKey("n1", "shop", "web-1"), wire.EndpointState{Namespace: "shop", Pod: "web-1", UID: old.UID, IP: old.IP, Ready: true})

		e.delete("pods", "shop", "web-1")
		e.pod("web-1", "n1", "web")
		e.want("the claim is about its predecessor", e.endpoints(), "")

		// Another pod gets the address before the claim is taken back.
		e.pod("web-2", "n1", "web")
		e.claim("n1", "web-2", "10.1.1.5", true)
		e.want("address passed on", e.endpoints(), "web-2 on n1 (172.16.1.1) at 10.1.1.5: web, ready")
		e.want("nothing refused", e.refused(), "")
	})
}

func TestRestartAndCompactionChangeNothing(t *testing.T) {
	run(t, func(e *east) {
		e.apply(shopService)
		e.pod("web-1", "n1", "web")
		e.claim("n1", "web-1", "10.1.1.5", true)
		before, revision := e.store.Dump(""), e.store.Revision()
		e.store.Compact()
		synctest.Wait()
		stop := e.start() // a second API server
		if e.store.Revision() != revision {
			t.Error("written without need")
		}
		stop()
		if !slices.Equal(before, e.store.Dump("")) {
			t.Error("something changed")
		}
	})
}

func TestPodsThatLeftWhileNobodyLooked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.New()
		e := &east{t: t, store: s, registry: registry.New(s, registry.Config{Cluster: "east", ServiceCIDR: netip.MustParsePrefix("10.101.0.0/16")})}
		e.register(1)
		stop := e.start()
		e.apply(shopService)
		e.pod("web-1", "n1", "web")
		e.claim("n1", "web-1", "10.1.1.5", true)
		stop()
		e.delete("pods", "shop", "web-1")
		defer e.start()()
		if left := append(s.Dump(wire.EndpointsPrefix), s.Dump(wire.ObjectKindPrefix("endpointslices"))...); len(left) > 0 {
			t.Error(left)
		}
		for _, line := range s.Dump(wire.IdentityTextPrefix) {
			if strings.Contains(line, "shop/web-1") {
				t.Error("identity still referenced:", line)
			}
		}
	})
}

// TestWatchedAndListedAgree plays random histories: what was derived step by
// step is what a controller derives that finds it all at its start.
func TestWatchedAndListedAgree(t *testing.T) {
	for seed := range uint64(20) {
		run(t, func(e *east) {
			random := rand.New(rand.NewPCG(seed, 1))
			any := func(of ...string) string { return of[random.IntN(len(of))] }
			exists := map[string]string{} // pod → node
			for range 150 {
				pod := any("a", "b", "c", "d", "e")
				node := any("n1", "n2")
				switch random.IntN(8) {
				case 0, 1:
					if exists[pod] == "" {
						exists[pod] = node
						e.pod(pod, node, any("web", "db"))
					}
				case 2:
					if exists[pod] != "" {
						e.delete("pods", "shop", pod)
						delete(exists, pod)
					}
				case 3, 4:
					e.claim(node, pod, fmt.Sprintf("10.1.%s.%d", strings.TrimPrefix(node, "n"), 1+random.IntN(6)), random.IntN(2) == 0)
				case 5:
					e.write(store.Delete(wire.NodeEndpointKey(node, "shop", pod)))
				case 6:
					e.put(wire.NodeSyncedKey(node), "start")
				case 7:
					if random.IntN(2) == 0 {
						e.apply(shopService)
					} else if _, err := e.registry.DeleteManifest(t.Context(), []byte(shopService), api.ManifestOptions{}); err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
				}
			}
			before := e.store.Dump("")
			stop := e.start()
			after := e.store.Dump("")
			stop()
			if !slices.Equal(before, after) {
				t.Errorf("seed %d: a fresh start derives something else:\n%s\n\n%s", seed, strings.Join(before, "\n"), strings.Join(after, "\n"))
			}
		})
	}
}
