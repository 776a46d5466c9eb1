package apiserver

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

// globalService is a service whose slices have to name port http.
func globalService(name string) []byte {
	svc := corev1.Service{}
	svc.Namespace, svc.Name = "shop", name
	svc.Annotations = map[string]string{service.AnnotationGlobal: "true"}
	svc.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("http")}}
	return wire.Marshal(svc)
}

func ownSlice(name, svc, port string, addresses ...string) []byte {
	s := discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &port, Port: new(int32(80))}}}
	s.Namespace, s.Name, s.Labels = "shop", name, map[string]string{wire.ServiceNameLabel: svc}
	for _, a := range addresses {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	return wire.Marshal(s)
}

func remoteSlice(cluster, name, svc, port string, addresses ...string) []byte {
	s := &wire.ClusterEndpointSlice{
		Cluster: cluster, ClusterID: 2, Namespace: "shop", Name: name, AddressType: "IPv4",
		Labels: map[string]string{wire.ServiceNameLabel: svc}, Ports: []wire.SlicePort{{Name: port, Port: 80, Protocol: "TCP"}},
	}
	for _, a := range addresses {
		s.Endpoints = append(s.Endpoints, wire.SliceEndpoint{Addresses: []string{a}})
	}
	return s.Marshal()
}

func remoteService(cluster, name, port string, addresses ...string) []byte {
	var backends []string
	for _, a := range addresses {
		backends = append(backends, fmt.Sprintf(`%q:{%q:{"protocol":"TCP","port":80}}`, a, port))
	}
	return fmt.Appendf(nil, `{"cluster":%q,"namespace":"shop","name":%q,"clusterID":2,"shared":true,"includeExternal":true,"frontends":{},"backends":{%s}}`, cluster, name, strings.Join(backends, ","))
}

// tableOf has a table follow a store, in a bubble.
func tableOf(t *testing.T, test func(s *storetest.Store, table *serviceTable, put func(key string, value []byte))) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := storetest.New()
		table := newServiceTable("east", s, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- table.Run(ctx) }()
		test(s, table, func(key string, value []byte) {
			t.Helper()
			op := store.Delete(key)
			if value != nil {
				op = store.Put(key, value)
			}
			if err := store.Write(t.Context(), s, op); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		})
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func concernLines(all []api.Concern) (out []string) {
	for _, c := range all {
		out = append(out, c.String())
	}
	return out
}

func TestTheServiceTableFollows(t *testing.T) {
	tableOf(t, func(s *storetest.Store, table *serviceTable, put func(string, []byte)) {
		want := func(lines ...string) {
			t.Helper()
			if diff := cmp.Diff(lines, concernLines(table.concerns(reach{})), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("concerns (-want +got):\n%s", diff)
			}
		}
		key := wire.ObjectKey("services", "shop", "web")
		slice := wire.EndpointSlices.CachePrefix("west") + "shop/web-1"
		v1 := wire.Services.CachePrefix("west") + "shop/web"
		west := "service shop/web: no backend of west serves port http (no port http, only www); give the port the same name in both clusters"
		put(key, globalService("web"))
		want()
		put(v1, remoteService("west", "web", "www", "10.2.1.9"))
		want(west)
		put(slice, remoteSlice("west", "web-1", "web", "http", "10.2.1.2")) // counts more
		want()
		put(slice, nil)
		want(west)
		put(v1, nil)
		put(slice, remoteSlice("west", "web-1", "web", "www", "10.2.1.2"))
		want(west)
		s.Compact() // all is listed again
		synctest.Wait()
		want(west)
		// None of its nodes is reached: that is said elsewhere.
		if got := table.concerns(reachOf("east", []api.NodeStatus{node("e1", "west*1")}, nil)); len(got) != 0 {
			t.Errorf("%v", got)
		}
		want(west)
		put(slice, remoteSlice("west", "web-1", "other", "www", "10.2.1.2"))
		want()
		own := wire.ObjectKey("endpointslices", "shop", "web-1")
		put(own, []byte("{"))
		if got := concernLines(table.concerns(reach{})); len(got) != 1 || !strings.HasPrefix(got[0], "endpointslice shop/web-1 in the store cannot be read and is left out: ") {
			t.Errorf("%q", got)
		}
		put(own, ownSlice("web-1", "web", "www", "10.1.1.2"))
		want("service shop/web: no backend of east serves port http (no container port named http); correct the service's targetPort, or give a container port that name")
		put(key, nil)
		want()
		if n := len(table.objects) + len(table.suspects) + len(table.dirty) + len(table.damaged); n != 0 || len(table.parts) != 2 {
			t.Errorf("%d entries of services that are gone, %d parts", n, len(table.parts))
		}
	})
}

// Whatever happens, the table says what one made from scratch says.
func TestTheServiceTableAgreesWithANewOne(t *testing.T) {
	for seed := range uint64(10) {
		tableOf(t, func(s *storetest.Store, table *serviceTable, put func(string, []byte)) {
			random := rand.New(rand.NewPCG(seed, 2))
			pick := func(of ...string) string { return of[random.IntN(len(of))] }
			for range 200 {
				svc, n, port := pick("a", "b", "c"), fmt.Sprint(1+random.IntN(3)), pick("http", "www")
				cluster := pick("west", "north")
				key, value := wire.ObjectKey("services", "shop", svc), globalService(svc)
				switch random.IntN(4) {
				case 0:
					key, value = wire.ObjectKey("endpointslices", "shop", n), ownSlice(n, svc, port, "10.1.1."+n)
				case 1:
					key, value = wire.EndpointSlices.CachePrefix(cluster)+"shop/"+n, remoteSlice(cluster, n, svc, port, "10.2.1."+n)
				case 2:
					key, value = wire.Services.CachePrefix(cluster)+"shop/"+svc, remoteService(cluster, svc, port, "10.2.2."+n)
				}
				if random.IntN(3) == 0 {
					value = nil
				} else if random.IntN(10) == 0 {
					value = []byte("{")
				}
				put(key, value)
				if random.IntN(30) == 0 {
					s.Compact()
					synctest.Wait()
				}
				if random.IntN(3) > 0 {
					continue
				}
				fresh := newServiceTable("east", s, nil)
				for _, prefix := range servicePrefixes() {
					kvs, _, err := s.List(t.Context(), prefix)
					if err != nil {
						t.Fatal(err)
					}
					fresh.replace(prefix, kvs)
				}
				if diff := cmp.Diff(fresh.concerns(reach{}), table.concerns(reach{}), cmpopts.EquateEmpty()); diff != "" {
					t.Errorf("seed %d: concerns (-fresh +followed):\n%s", seed, diff)
				}
				if diff := cmp.Diff(string(wire.Marshal(serviceList("east", fresh.all(), reach{}))), string(wire.Marshal(serviceList("east", table.all(), reach{})))); diff != "" {
					t.Errorf("seed %d: services (-fresh +followed):\n%s", seed, diff)
				}
			}
		})
	}
}

// The server's own look at services costs what changed, however many there are.
func TestLookingAtServicesCostsWhatChanged(t *testing.T) {
	const services, backends = 500, 100
	table := newServiceTable("east", nil, nil)
	feed := func(key string, value []byte) {
		for _, prefix := range servicePrefixes() {
			if strings.HasPrefix(key, prefix) {
				table.apply(prefix, store.Batch{Events: []store.Event{{KV: store.KV{Key: key, Value: value}}}})
			}
		}
	}
	var addresses []string
	for i := range backends {
		addresses = append(addresses, fmt.Sprintf("10.2.1.%d", i))
	}
	for i := range services {
		name := fmt.Sprint("s", i)
		feed(wire.ObjectKey("services", "shop", name), globalService(name))
		feed(wire.EndpointSlices.CachePrefix("west")+"shop/"+name, remoteSlice("west", name, name, "http", addresses...))
	}
	took := func() time.Duration {
		began := time.Now()
		if c := table.concerns(reach{}); len(c) != 0 {
			t.Fatal(c)
		}
		return time.Since(began)
	}
	whole := took()
	one := time.Hour
	for range 10 {
		feed(wire.EndpointSlices.CachePrefix("west")+"shop/s7", remoteSlice("west", "s7", "s7", "http", addresses[1:]...))
		one = min(one, took())
	}
	if one > whole/20 {
		t.Errorf("one changed service took %v, all %d took %v", one, services, whole)
	}
}

// Backends of peers' services cost about what they take in the store.
func TestPeersBackendsAreKeptAsTheyWereWritten(t *testing.T) {
	const slices, each = 100, 100
	table := newServiceTable("east", nil, slog.New(slog.DiscardHandler))
	used := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := used()
	for n := range slices {
		addresses := make([]string, each)
		for i := range addresses {
			addresses[i] = fmt.Sprintf("10.2.%d.%d", n, i)
		}
		name := fmt.Sprint("web-", n)
		key := wire.EndpointSlices.CachePrefix("west") + "shop/" + name
		table.apply(wire.EndpointSlices.AllCachePrefix(), store.Batch{Events: []store.Event{{KV: store.KV{Key: key, Value: remoteSlice("west", name, "web", "http", addresses...)}}}})
	}
	if bytes := (used() - before) / (slices * each); bytes > 60 {
		t.Errorf("%d bytes per backend", bytes)
	}
	table.apply(wire.ObjectKindPrefix("services"), store.Batch{Events: []store.Event{{KV: store.KV{Key: wire.ObjectKey("services", "shop", "web"), Value: globalService("web")}}}})
	all := table.all()
	if len(all) != 1 || len(all[0].slices["west"]) != slices {
		t.Fatalf("%d services, with %d slices", len(all), len(all[0].slices["west"]))
	}
}
