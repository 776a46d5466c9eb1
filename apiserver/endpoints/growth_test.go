package endpoints

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/identities"
	"github.com/weft-mesh/weft/apiserver/state"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// held counts what the controller remembers of refused claims.
func (e *east) held() (claims, counts int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, byNode := range e.Controller.refusals.claims {
		claims += len(byNode)
	}
	return claims, len(e.Controller.refusals.counts)
}

// An agent makes up names, one after the other: what is remembered of them is no more
// than what it claims now, whatever it claimed before.
func TestInventedNamesAreForgotten(t *testing.T) {
	run(t, func(e *east) {
		for i := range 200 {
			e.claim("n2", fmt.Sprintf("ghost-%d", i), "10.1.2.7", true)
			if i >= 3 {
				e.write(store.Delete(wire.NodeEndpointKey("n2", "shop", fmt.Sprintf("ghost-%d", i-3))))
			}
		}
		e.want("refused", e.refused(), "n2 endpoint 200× pod is not declared on the node (shop/ghost-199 at 10.1.2.7)")
		if claims, counts := e.held(); claims != 3 || counts != 1 {
			t.Errorf("%d claims and %d counts are remembered", claims, counts)
		}
		// A complete list counts none of them again, and drops what went meanwhile.
		e.store.Compact()
		synctest.Wait()
		e.want("listed again", e.refused(), "n2 endpoint 200× pod is not declared on the node (shop/ghost-199 at 10.1.2.7)")

		e.write(store.DeletePrefix(wire.NodePrefix("n2")), store.Delete(wire.RegistrationKey("n2")))
		if claims, counts := e.held(); claims != 0 || counts != 0 {
			t.Errorf("of a node that was removed, %d claims and %d counts are remembered", claims, counts)
		}
		e.register(2)
		e.claim("n2", "ghost", "10.1.2.7", true)
		e.want("a new node of that name", e.refused(), "n2 endpoint 1× pod is not declared on the node (shop/ghost at 10.1.2.7)")
	})
}

// What an agent says is cut where it is quoted, and is logged once a minute.
func TestRefusalsAreShortAndRare(t *testing.T) {
	run(t, func(e *east) {
		log := new(strings.Builder)
		e.Controller.refusals.log = textLog(log)
		e.pod("web-1", "n1", "web")
		for range 100 {
			e.put(wire.NodeEndpointKey("n1", "shop", "web-1"), wire.EndpointState{Namespace: "shop", Pod: "web-1", UID: strings.Repeat("ä", 100_000), IP: netip.MustParseAddr("10.1.1.5")})
		}
		r := e.Status().Refusals
		if len(r) != 1 || r[0].Count != 100 || len(r[0].Example) > exampleBytes || !strings.HasPrefix(r[0].Example, "shop/web-1 claimed with UID ä") {
			t.Errorf("refused %.1000v", r)
		}
		if n := strings.Count(log.String(), "refused a node's claim"); n != 1 {
			t.Errorf("logged %d times", n)
		}
		time.Sleep(logPause)
		e.claim("n1", "web-1", "8.8.8.8", true)
		e.put(wire.NodeEndpointKey("n1", "shop", "web-1"), wire.EndpointState{Namespace: "shop", Pod: "web-1", UID: "x", IP: netip.MustParseAddr("10.1.1.5")})
		if n := strings.Count(log.String(), "refused a node's claim"); n != 3 {
			t.Errorf("logged %d times after a minute, of two kinds", n)
		}
	})
}

// The model of a cluster through which much has come and gone is that of a new one.
func TestTheModelForgetsWhatIsGone(t *testing.T) {
	m := newModel()
	feed := func(deleted bool, key string, value any) {
		ev, ok := state.Decode(store.Event{KV: store.KV{Key: key, Value: wire.Marshal(value)}, Deleted: deleted})
		if !ok || ev.Wrong != nil {
			t.Errorf("%s is not read: %v", key, ev.Wrong)
		}
		m.apply(ev)
	}
	for _, deleted := range []bool{false, true} {
		for i := range 10 {
			n := fmt.Sprint(i)
			feed(deleted, wire.ObjectKey("namespaces", "", n), map[string]any{"metadata": map[string]any{"labels": map[string]string{"a": "b"}}})
			feed(deleted, wire.RegistrationKey(n), wire.Registration{Name: n})
			feed(deleted, wire.NodeKey(n), wire.NodeState{Name: n})
			feed(deleted, wire.NodeSyncedKey(n), "x")
			feed(deleted, wire.NodeEndpointKey(n, n, n), wire.EndpointState{})
			feed(deleted, wire.EndpointKey(n, n), wire.Endpoint{Node: n, IP: netip.MustParseAddr("10.1.1." + n)})
			feed(deleted, wire.ObjectKey("pods", n, n), map[string]any{"spec": map[string]any{"nodeName": n}})
			slice := discoveryv1.EndpointSlice{}
			slice.Labels = map[string]string{discoveryv1.LabelServiceName: n, discoveryv1.LabelManagedBy: wire.ManagedBy}
			feed(deleted, wire.ObjectKey("endpointslices", n, n), slice)
			feed(deleted, wire.ObjectKey("endpointslices", n, "manual"), discoveryv1.EndpointSlice{})
		}
	}
	for _, svc := range m.serviceWork.take() {
		m.place(svc)
	}
	for what, n := range map[string]int{
		"namespaces": len(m.namespaces), "pods": len(m.pods), "nodes": len(m.nodes), "endpoints": len(m.endpoints), "slices": len(m.slices), "manual": len(m.manual),
		"byIP": len(m.byIP), "sliceOf": len(m.sliceOf), "claimants": len(m.claimants), "inNamespace": len(m.inNamespace), "endpointsOn": len(m.endpointsOn), "podsOn": len(m.podsOn),
		"spreads": len(m.spreads), "members": len(m.members), "todo": len(m.todo),
	} {
		if n != 0 {
			t.Errorf("%s still holds %d", what, n)
		}
	}
}

// An endpoint that the store does not take gives back the address that it was to get.
func TestAnAddressOfWhatIsNotWrittenIsFree(t *testing.T) {
	run(t, func(e *east) {
		e.store.Fail(func(call, key string) error {
			if call == "commit" && strings.HasSuffix(key, "=web;") || strings.HasPrefix(key, wire.IdentityIDPrefix) || key == wire.EndpointKey("shop", "web-1") {
				return store.ErrTooLarge
			}
			return nil
		})
		e.pod("web-1", "n1", "web")
		e.claim("n1", "web-1", "10.1.1.5", true)
		if len(e.Status().Concerns) != 1 {
			t.Fatalf("the store takes it: %v", e.endpoints())
		}
		e.delete("pods", "shop", "web-1")
		e.write(store.Delete(wire.NodeEndpointKey("n1", "shop", "web-1")))
		e.store.Fail(nil)
		e.pod("web-2", "n1", "web")
		e.claim("n1", "web-2", "10.1.1.5", true)
		e.want("the address is the next pod's", e.endpoints(), "web-2 on n1 (172.16.1.1) at 10.1.1.5: web, ready")
		e.want("nothing refused", e.refused(), "")
	})
}

// A slice that was applied by hand under the name of one of ours stays; the service is
// named in the status, and its other slices go on changing.
func TestASliceAppliedByHandIsLeftAlone(t *testing.T) {
	run(t, func(e *east) {
		manual := "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-v4-8080, namespace: shop, labels: {kubernetes.io/service-name: other}}\naddressType: IPv4\nendpoints: [{addresses: [10.1.9.9], conditions: {ready: true}}]\nports: [{port: 9}]\n"
		e.apply(manual)
		e.apply(shopService)
		e.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: odd, namespace: shop, labels: {app: web}}\nspec: {nodeName: n2, containers: [{name: c, ports: [{name: http, containerPort: 9090}]}]}\n")
		e.pod("web-1", "n1", "web")
		e.claim("n1", "web-1", "10.1.1.5", true)
		e.want("by hand", e.slices(), "web-v4-8080 9: 10.1.9.9")
		c := e.Status().Concerns
		if len(c) != 1 || c[0].String() != "service shop/web: endpointslice shop/web-v4-8080 was applied by hand under the name that weft's own needs, so its endpoint slices are not up to date; apply it under another name, or delete it" {
			t.Errorf("concerns %v", c)
		}
		e.claim("n2", "odd", "10.1.2.5", true)
		e.want("the other", e.slices(), "web-v4-8080 9: 10.1.9.9\nweb-v4-9090 9090: 10.1.2.5")

		e.delete("endpointslices", "shop", "web-v4-8080")
		e.want("ours", e.slices(), "web-v4-8080 8080: 10.1.1.5\nweb-v4-9090 9090: 10.1.2.5")
		if c := e.Status().Concerns; len(c) != 0 {
			t.Errorf("concerns %v", c)
		}
		// The other way round it is refused.
		if _, err := e.registry.Apply(t.Context(), []byte(manual), api.ManifestOptions{}); err == nil || !strings.Contains(err.Error(), "derived from service web") {
			t.Errorf("ours is replaced by hand: %v", err)
		}
		e.delete("services", "shop", "web")
		e.apply(manual)
		e.apply(shopService)
		if len(e.Status().Concerns) != 1 {
			t.Errorf("concerns %v", e.Status().Concerns)
		}
		e.delete("services", "shop", "web")
		if c := e.Status().Concerns; len(c) != 0 {
			t.Errorf("concerns of a service that is gone: %v", c)
		}
	})
}

// Identities that are used up and then are not: the status names the pods meanwhile.
func TestExhaustedIdentitiesLeaveAddressesFree(t *testing.T) {
	run(t, func(e *east) {
		alloc, err := identities.NewAllocator(e.store, 65536, 65536)
		if err != nil {
			t.Fatal(err)
		}
		e.conf.Allocator = alloc
		e.pod("a", "n1", "a")
		e.claim("n1", "a", "10.1.1.5", true)
		e.pod("b", "n1", "b")
		e.claim("n1", "b", "10.1.1.6", true)
		if c := e.Status().Concerns; len(c) != 1 || c[0].Reason != "IdentitiesExhausted" {
			t.Errorf("concerns %v", c)
		}
		e.delete("pods", "shop", "b")
		e.write(store.Delete(wire.NodeEndpointKey("n1", "shop", "b")))
		e.pod("c", "n1", "a")
		e.claim("n1", "c", "10.1.1.6", true)
		e.want("the next pod has the address", e.endpoints(), "a on n1 (172.16.1.1) at 10.1.1.5: a, ready\nc on n1 (172.16.1.1) at 10.1.1.6: a, ready")
	})
}

func textLog(w *strings.Builder) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }
