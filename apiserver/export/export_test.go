package export

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

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/apiserver/state"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var east = wire.Cluster{
	Name: "east", ID: 1, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")},
	ServiceCIDR: netip.MustParsePrefix("10.101.0.0/16"), MaxConnectedClusters: 255, Generation: "g1",
}

// bench is a store with an exporter running on it.
type bench struct {
	t       *testing.T
	cluster wire.Cluster
	st      *storetest.Store
	exp     *Exporter
	stop    func()
}

// run calls each inside a bubble, with the exporter running.
func run(t *testing.T, before func(*bench), each func(*bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, cluster: east, st: storetest.New()}
		if before != nil {
			before(b)
		}
		b.start()
		each(b)
		b.stop()
	})
}

func (b *bench) start() {
	ctx, cancel := context.WithCancel(b.t.Context())
	done, log := make(chan error), slog.New(slog.DiscardHandler)
	own := state.New(b.st, log)
	b.exp = New(Config{State: own, Store: b.st, Cluster: b.cluster, Log: log})
	go func() { done <- own.Run(ctx) }()
	go func() { done <- b.exp.Run(ctx) }()
	b.stop = func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				b.t.Errorf("Run: %v", err)
			}
		}
	}
	synctest.Wait()
}

func (b *bench) put(key string, v any) {
	b.t.Helper()
	value, ok := v.([]byte)
	if !ok {
		var err error
		if value, err = json.Marshal(v); err != nil {
			b.t.Fatal(err)
		}
	}
	b.write(store.Put(key, value))
}

func (b *bench) write(ops ...store.Op) {
	b.t.Helper()
	if err := store.Write(b.t.Context(), b.st, ops...); err != nil {
		b.t.Fatal(err)
	}
	synctest.Wait()
}

// keys are the exported keys except those that always exist.
func (b *bench) keys() []string {
	var out []string
	for _, prefix := range []string{wire.CiliumStatePrefix, wire.ExportPrefix} {
		for _, line := range b.st.Dump(prefix) {
			key, _, _ := strings.Cut(line, "=")
			if key != wire.ExportClusterKey {
				out = append(out, key)
			}
		}
	}
	return out
}

func (b *bench) expect(want ...string) {
	b.t.Helper()
	slices.Sort(want)
	got := b.keys()
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		b.t.Errorf("exported keys (-want +got):\n%s", diff)
	}
}

func (b *bench) value(key string) string {
	kv, err := b.st.Get(b.t.Context(), key)
	if err != nil {
		return err.Error()
	}
	return string(kv.Value)
}

func node(n int) (wire.Registration, wire.NodeState) {
	addr := netip.AddrFrom4([4]byte{172, 16, 1, byte(n)})
	cidr := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(n), 0}), 24)
	name := fmt.Sprintf("n%d", n)
	r := wire.Registration{Name: name, Addresses: []netip.Addr{addr}, PodCIDRs: []netip.Prefix{cidr}}
	return r, wire.NodeState{Name: name, Addresses: r.Addresses, PodCIDRs: r.PodCIDRs, Internal: r.Internals()[0], Epoch: 1,
		Lanes: [2]wire.Lane{{}, {PublicKey: "VRksOB6ZNds4oXWIGfSVpvc0gBhcOWFmzvTDcyvULlI=", Port: 51872}}}
}

func endpoint(ns, pod, ip string, n identity.Number) wire.Endpoint {
	return wire.Endpoint{Namespace: ns, Pod: pod, Node: "n1", NodeIP: netip.MustParseAddr("172.16.1.1"), IP: netip.MustParseAddr(ip), Identity: n, Ready: true}
}

func webService(annotations map[string]string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", Annotations: annotations},
		Spec: corev1.ServiceSpec{ClusterIP: "10.101.0.1", Selector: map[string]string{"app": "web"},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	}
}

func webSlice(addresses ...string) *discoveryv1.EndpointSlice {
	name, port, yes, no := "http", int32(8080), true, false
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "shop", Name: "web-v4", Labels: map[string]string{wire.ServiceNameLabel: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}
	for _, a := range addresses {
		ready := &yes
		if strings.HasSuffix(a, "!") {
			a, ready = strings.TrimSuffix(a, "!"), &no
		}
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}, Conditions: discoveryv1.EndpointConditions{Ready: ready}})
	}
	return s
}

var global = map[string]string{service.AnnotationGlobal: "true"}

func TestNodes(t *testing.T) {
	run(t, nil, func(b *bench) {
		r, n := node(1)
		b.put(wire.NodeKey("n1"), n)
		b.expect() // not registered
		b.put(wire.RegistrationKey("n1"), r)
		exported := []string{"cilium/state/nodes/v1/east/n1", "weft/export/nodes/n1"}
		b.expect(exported...)
		got, err := wire.ParseNode(wire.CacheRef{Cluster: "east", Node: "n1"}, 1, []byte(b.value(exported[0])))
		if err != nil {
			t.Fatal(err)
		}
		if got.WireguardPubKey != n.Lanes[1].PublicKey || got.Address(wire.NodeCiliumInternalIP) != n.Internal {
			t.Errorf("node %+v", got)
		}

		lie := n
		lie.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.1.2.0/24")}
		b.put(wire.NodeKey("n1"), lie)
		b.expect(exported...)
		if p := b.exp.Status().Problems[wire.NodeKey("n1")]; !strings.Contains(p, "10.1.2.0/24") {
			t.Errorf("problem %q", p)
		}
		b.put(wire.NodeKey("n1"), n)
		if p := b.exp.Status().Problems; len(p) != 0 {
			t.Errorf("problems %v", p)
		}

		// The lease runs out, and we restart: silence withdraws nothing.
		b.write(store.DeletePrefix(wire.NodePrefix("n1")))
		b.expect(exported...)
		b.stop()
		b.start()
		b.expect(exported...)

		b.write(store.Delete(wire.RegistrationKey("n1")))
		b.expect()
	})
}

// A node whose state cannot be read is exported as it was, also by an API server
// that never read it, and that is not kept quiet, whatever else happens to it.
func TestUnreadableNodeStaysAProblem(t *testing.T) {
	run(t, nil, func(b *bench) {
		r, n := node(1)
		key, exported := wire.NodeKey("n1"), []string{"cilium/state/nodes/v1/east/n1", "weft/export/nodes/n1"}
		b.put(wire.RegistrationKey("n1"), r)
		b.put(key, n)
		asBefore := []string{b.value(exported[0]), b.value(exported[1])}
		b.put(key, []byte(`{"epoch": "x"}`))
		for _, when := range []string{"at once", "after a restart"} {
			b.put(wire.RegistrationKey("n1"), r)
			b.expect(exported...)
			if diff := cmp.Diff(asBefore, []string{b.value(exported[0]), b.value(exported[1])}); diff != "" {
				t.Errorf("%s: exported (-before +after):\n%s", when, diff)
			}
			if p := b.exp.Status().Problems; len(p) != 1 || p[key] == "" {
				t.Errorf("%s: problems %v", when, p)
			}
			b.stop()
			b.start()
		}
		b.put(key, n)
		if p := b.exp.Status().Problems; len(p) != 0 {
			t.Errorf("problems of a node that is readable again: %v", p)
		}
	})
}

func TestEndpointsAndIdentities(t *testing.T) {
	run(t, nil, func(b *bench) {
		b.put(wire.IdentityIDKey(65537), []byte("k8s:app=web;k8s:io.cilium.k8s.policy.cluster=east;k8s:io.kubernetes.pod.namespace=shop;"))
		b.put(wire.EndpointKey("shop", "web-0"), endpoint("shop", "web-0", "10.1.1.2", 65537))
		b.put(wire.EndpointKey("shop", "new"), endpoint("shop", "new", "10.1.1.3", 0))         // no identity yet
		b.put(wire.EndpointKey("shop", "odd"), endpoint("shop", "odd", "10.1.1.4", 131073))    // another cluster's
		b.put(wire.IdentityIDKey(131073), []byte("k8s:io.cilium.k8s.policy.cluster=east;"))    // likewise
		b.put(wire.IdentityIDKey(65538), []byte("no labels"))                                  // unreadable
		b.put(wire.NodeEndpointKey("n1", "shop", "web-0"), wire.EndpointState{Pod: "ignored"}) // not vouched for
		b.expect("cilium/state/identities/v1/id/65537", "cilium/state/ip/v1/default/10.1.1.2")
		if got, want := b.value("cilium/state/ip/v1/default/10.1.1.2"), `{"IP":"10.1.1.2","Mask":null,"HostIP":"172.16.1.1","ID":65537,"Key":255,"Metadata":"","K8sNamespace":"shop","K8sPodName":"web-0"}`; got != want {
			t.Errorf("pair %s", got)
		}
		if p := b.exp.Status().Problems[wire.IdentityIDKey(65538)]; p == "" {
			t.Error("an unreadable identity left no problem")
		}
		if got := b.exp.Status().Entries["ip"]; got != 1 {
			t.Errorf("%d addresses counted", got)
		}

		for _, no := range []string{"false", "False", "FALSE"} {
			b.put(wire.ObjectKey("namespaces", "", "shop"), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Annotations: map[string]string{service.AnnotationNamespaceGlobal: no}}})
			b.expect()
			b.put(wire.ObjectKey("namespaces", "", "shop"), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
			b.expect("cilium/state/identities/v1/id/65537", "cilium/state/ip/v1/default/10.1.1.2")
		}
	})
}

// An address that moves from one pod to another is never missing.
func TestAddressChangesHands(t *testing.T) {
	run(t, nil, func(b *bench) {
		b.put(wire.EndpointKey("shop", "a"), endpoint("shop", "a", "10.1.1.2", 65537))
		b.put(wire.EndpointKey("shop", "b"), endpoint("shop", "b", "10.1.1.2", 65538))
		key := "cilium/state/ip/v1/default/10.1.1.2"
		if !strings.Contains(b.value(key), "65537") {
			t.Errorf("the first pod lost its address: %s", b.value(key))
		}
		before := b.st.Revision()
		b.write(store.Delete(wire.EndpointKey("shop", "a")))
		if !strings.Contains(b.value(key), "65538") {
			t.Errorf("the second pod did not get the address: %s", b.value(key))
		}
		if writes := b.st.Revision() - before; writes != 2 { // the test's and one put
			t.Errorf("%d revisions", writes)
		}
	})
}

func TestServices(t *testing.T) {
	run(t, nil, func(b *bench) {
		svc, slice := wire.ServiceStateKey("east", "shop", "web"), wire.SliceStateKey("east", "shop", "web-v4")
		b.put(wire.ObjectKey("endpointslices", "shop", "web-v4"), webSlice("10.1.1.2", "10.1.1.3!"))
		b.put(wire.ObjectKey("services", "shop", "web"), webService(nil))
		b.expect()
		b.put(wire.ObjectKey("services", "shop", "web"), webService(global))
		b.expect(svc, slice)
		s, err := wire.ParseClusterService(wire.CacheRef{Cluster: "east", Namespace: "shop", Name: "web"}, 1, []byte(b.value(svc)))
		if err != nil || len(s.Backends) != 1 || !s.Shared || !s.IncludeExternal {
			t.Errorf("service %+v, %v", s, err)
		}
		es, err := wire.ParseSlice(wire.CacheRef{Cluster: "east", Namespace: "shop", Name: "web-v4"}, 1, []byte(b.value(slice)))
		if err != nil || len(es.Endpoints) != 2 || *es.Endpoints[1].Conditions.Ready {
			t.Errorf("slice %+v, %v", es, err)
		}

		before := b.st.Revision()
		b.put(wire.ObjectKey("services", "shop", "web"), webService(global))
		if writes := b.st.Revision() - before; writes != 1 {
			t.Errorf("an unchanged service was written: %d revisions", writes)
		}

		b.put(wire.ObjectKey("services", "shop", "web"), webService(map[string]string{service.AnnotationGlobal: "true", service.AnnotationShared: "false"}))
		b.expect()
		b.put(wire.ObjectKey("services", "shop", "web"), webService(global))
		b.write(store.Delete(wire.ObjectKey("endpointslices", "shop", "web-v4")))
		b.expect(svc)
		b.write(store.Delete(wire.ObjectKey("services", "shop", "web")))
		b.expect()
	})
}

// Backends in maintenance: the newer format says so, the older one leaves them out.
func TestWeightZero(t *testing.T) {
	run(t, nil, func(b *bench) {
		resting := webSlice("10.1.1.2")
		resting.Annotations = map[string]string{service.AnnotationWeight: "0"}
		b.put(wire.ObjectKey("services", "shop", "web"), webService(global))
		b.put(wire.ObjectKey("endpointslices", "shop", "web-v4"), resting)
		svc, err := wire.ParseClusterService(wire.CacheRef{Cluster: "east", Namespace: "shop", Name: "web"}, 1, []byte(b.value(wire.ServiceStateKey("east", "shop", "web"))))
		if err != nil || len(svc.Backends) != 0 {
			t.Errorf("service %+v, %v", svc, err)
		}
		s, err := wire.ParseSlice(wire.CacheRef{Cluster: "east", Namespace: "shop", Name: "web-v4"}, 1, []byte(b.value(wire.SliceStateKey("east", "shop", "web-v4"))))
		if err != nil || len(s.Endpoints) != 1 || s.Annotations[service.AnnotationWeight] != "0" {
			t.Errorf("slice %+v, %v", s, err)
		}
	})
}

// A service that cannot be parsed is withdrawn, and stays a problem whatever else
// changes about it.
func TestUnreadableServiceStaysAProblem(t *testing.T) {
	run(t, nil, func(b *bench) {
		key := wire.ObjectKey("services", "shop", "web")
		b.put(wire.ObjectKey("endpointslices", "shop", "web-v4"), webSlice("10.1.1.2"))
		b.put(key, webService(global))
		b.put(key, []byte(`{"spec": 5}`))
		b.put(wire.ObjectKey("endpointslices", "shop", "web-v4"), webSlice("10.1.1.3"))
		b.expect()
		if p := b.exp.Status().Problems; len(p) != 1 || p[key] == "" {
			t.Errorf("problems %v", p)
		}
		b.write(store.Delete(key))
		if p := b.exp.Status().Problems; len(p) != 0 {
			t.Errorf("problems of a service that is gone: %v", p)
		}
	})
}

// Peers refuse a backend outside the pod CIDRs. It is reported here and left out; the
// others are exported as before.
func TestForeignEndpointsAreLeftOut(t *testing.T) {
	run(t, nil, func(b *bench) {
		svc, slice := wire.ServiceStateKey("east", "shop", "web"), wire.SliceStateKey("east", "shop", "web-v4")
		object, endpoints := wire.ObjectKey("services", "shop", "web"), wire.ObjectKey("endpointslices", "shop", "web-v4")
		b.put(object, webService(global))
		b.put(endpoints, webSlice("10.1.1.2", "10.1.1.3"))
		asBefore := []string{b.value(svc), b.value(slice)}

		mixed := webSlice("10.1.1.2", "192.0.2.7", "10.1.1.3")
		mixed.Endpoints[2].Addresses = []string{"192.0.2.8", "10.1.1.3"}
		b.put(endpoints, mixed)
		b.expect(svc, slice)
		if diff := cmp.Diff(asBefore, []string{b.value(svc), b.value(slice)}); diff != "" {
			t.Errorf("one foreign address changed what is exported:\n%s", diff)
		}
		want := "peers would refuse endpoints outside the cluster's pod CIDRs [10.1.0.0/16]; left out: 192.0.2.7 of slice web-v4, 192.0.2.8 of slice web-v4"
		if got := b.exp.Status().Problems[object]; got != want {
			t.Errorf("problem %q", got)
		}

		b.put(endpoints, webSlice("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5"))
		if got := b.exp.Status().Problems[object]; !strings.HasSuffix(got, "192.0.2.3 of slice web-v4 and 2 more") {
			t.Errorf("problem %q", got)
		}
		s, err := wire.ParseSlice(wire.CacheRef{Cluster: "east", Namespace: "shop", Name: "web-v4"}, 1, []byte(b.value(slice)))
		if err != nil || len(s.Endpoints) != 0 {
			t.Errorf("slice %+v, %v", s, err)
		}

		b.put(wire.ObjectKey("namespaces", "", "shop"), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Annotations: map[string]string{service.AnnotationNamespaceGlobal: "false"}}})
		if p := b.exp.Status().Problems; len(p) != 0 {
			t.Errorf("problems of what is not exported: %v", p)
		}
		b.put(wire.ObjectKey("namespaces", "", "shop"), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
		if p := b.exp.Status().Problems; len(p) != 1 {
			t.Errorf("problems %v", p)
		}
		b.put(object, webService(nil)) // not global: any address will do
		if p := b.exp.Status().Problems; len(p) != 0 {
			t.Errorf("problems %v", p)
		}
		b.put(object, webService(global))
		b.put(endpoints, webSlice("10.1.1.2"))
		if p := b.exp.Status().Problems; len(p) != 0 {
			t.Errorf("problems %v", p)
		}
	})
}

// A restart deletes what is no longer wanted, and writes nothing else.
func TestRestartIsMinimal(t *testing.T) {
	run(t, nil, func(b *bench) {
		b.put(wire.EndpointKey("shop", "a"), endpoint("shop", "a", "10.1.1.2", 65537))
		b.put(wire.ObjectKey("services", "shop", "web"), webService(global))
		b.stop()
		b.put(wire.IPStateKey(netip.MustParseAddr("10.1.9.9")), []byte("{}")) // left behind
		before := b.st.Revision()
		b.start()
		b.expect("cilium/state/ip/v1/default/10.1.1.2", "cilium/state/services/v1/east/shop/web")
		if writes := b.st.Revision() - before; writes != 3 { // the deletion, the canaries, the heartbeat
			t.Errorf("%d revisions", writes)
		}
	})
}

// Nothing is deleted while the state cannot be listed.
func TestNoDeletionsBeforeTheStateIsRead(t *testing.T) {
	left := wire.IPStateKey(netip.MustParseAddr("10.1.9.9"))
	before := func(b *bench) {
		b.put(left, []byte("{}"))
		b.st.Fail(func(call, key string) error {
			if call == "list" && key == wire.StatePrefix {
				return store.ErrUnavailable
			}
			return nil
		})
	}
	run(t, before, func(b *bench) {
		time.Sleep(10 * time.Second)
		b.expect(left)
		if _, err := b.st.Get(b.t.Context(), wire.IPs.StateSyncedKey("east")); err == nil {
			t.Error("there is a canary before anything was read")
		}
		b.st.Fail(nil)
		time.Sleep(10 * time.Second)
		b.expect()
	})
}

func TestCompactionAndFailingWrites(t *testing.T) {
	run(t, nil, func(b *bench) {
		failures := 0
		b.st.Fail(func(call, _ string) error {
			if call == "commit" && failures < 3 {
				failures++
				return store.ErrUnavailable
			}
			return nil
		})
		ctx := context.Background()
		for range 3 { // the test's own writes fail too
			_ = store.Write(ctx, b.st, store.Put(wire.RotationKey, []byte("{}")))
		}
		b.put(wire.EndpointKey("shop", "a"), endpoint("shop", "a", "10.1.1.2", 65537))
		b.st.Compact()
		time.Sleep(20 * time.Second)
		synctest.Wait()
		b.expect("cilium/state/ip/v1/default/10.1.1.2")
	})
}

// Whatever someone deletes from the export is restored with its value; what was
// withdrawn is not.
func TestWhatVanishesIsExportedAgain(t *testing.T) {
	run(t, nil, func(b *bench) {
		b.put(wire.RegistrationKey("n1"), wire.Registration{Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("172.16.1.1")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24")}})
		b.put(wire.NodeKey("n1"), wire.NodeState{Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("172.16.1.1")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24")}})
		for round, restart := range []bool{false, true} {
			var keys []string
			for _, prefix := range []string{"cilium/", wire.ExportPrefix} {
				for _, line := range b.st.Dump(prefix) {
					key, _, _ := strings.Cut(line, "=")
					keys = append(keys, key)
				}
			}
			for _, key := range []string{wire.ClusterConfigKey("east"), wire.HeartbeatKey, wire.IPs.StateSyncedKey("east"), wire.ExportClusterKey, wire.NodeStateKey("east", "n1"), wire.ExportNodeKey("n1")} {
				if !slices.Contains(keys, key) {
					t.Errorf("%s is not among %q", key, keys)
				}
			}
			for _, key := range keys {
				before := b.value(key)
				b.write(store.Delete(key))
				if after := b.value(key); after != before {
					t.Errorf("round %d, %s: %q, before %q", round, key, after, before)
				}
			}
			if restart {
				break
			}
			b.stop()
			b.start()
		}
		b.write(store.Delete(wire.RegistrationKey("n1")))
		b.expect()
	})
}
