package meshagent

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"runtime"
	"runtime/pprof"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/endpoint/endpointtest"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/tunnel"
	"github.com/weft-mesh/weft/tunnel/probe"
	"github.com/weft-mesh/weft/tunnel/probe/probetest"
	"github.com/weft-mesh/weft/tunnel/tunneltest"
	"github.com/weft-mesh/weft/wire"
)

// BenchmarkBootstrap starts an agent on a store with so many clusters and waits until all of it has been written to the kernel. It reports for each endpoint, its
// share of nodes, identities and services included, the CPU time and the garbage that takes,
// and the heap in use afterwards. Kernel and WireGuard are left out: they remember nothing
// here. With HEAP_PROFILE, the last heap is written to that file. Three million endpoints take
// some 4 GiB with the store, and are left out unless MILLIONS is set.
func BenchmarkBootstrap(b *testing.B) {
	type mesh struct {
		of       exporter
		clusters int
	}
	all := []mesh{{sparse, 10}, {sparse, 50}, {sparse, 250}, {dense, 20}}
	if os.Getenv("MILLIONS") != "" {
		all = append(all, mesh{dense, 200})
	}
	for _, c := range all {
		known := c.clusters * c.of.endpoints
		b.Run(fmt.Sprintf("%s/known=%d", c.of.name, known), func(b *testing.B) {
			s := storetest.New()
			for i := range c.clusters {
				c.of.exportTo(b, s, i+2)
			}
			var cpu time.Duration
			var allocated, objects, heap uint64
			for b.Loop() {
				before, began := inUse(), processTime(b)
				stop := c.of.bootstrap(b, s, c.clusters)
				cpu += processTime(b) - began
				var now runtime.MemStats
				runtime.ReadMemStats(&now)
				allocated, objects = allocated+now.TotalAlloc-before.TotalAlloc, objects+now.Mallocs-before.Mallocs
				after := inUse()
				heap += after.HeapAlloc - before.HeapAlloc
				if path := os.Getenv("HEAP_PROFILE"); path != "" {
					writeHeap(b, path)
				}
				stop()
			}
			each := float64(known * b.N)
			b.ReportMetric(float64(cpu)/each, "cpu-ns/endpoint")
			b.ReportMetric(float64(allocated)/each, "allocated-B/endpoint")
			b.ReportMetric(float64(objects)/each, "allocs/endpoint")
			b.ReportMetric(float64(heap)/each, "heap-B/endpoint")
		})
	}
}

// What an agent keeps of a large mesh fits into what is promised, and it is read without
// much garbage. Both are the same on any machine.
func TestBootstrapIsFrugal(t *testing.T) {
	for _, c := range []struct {
		of                             exporter
		clusters, mostAllocs, mostHeap int
	}{{sparse, 20, 36, 770}, {dense, 2, 11, 235}} {
		t.Run(c.of.name, func(t *testing.T) {
			s := storetest.New()
			for i := range c.clusters {
				c.of.exportTo(t, s, i+2)
			}
			before := inUse()
			stop := c.of.bootstrap(t, s, c.clusters)
			defer stop()
			var now runtime.MemStats
			runtime.ReadMemStats(&now)
			known := float64(c.clusters * c.of.endpoints)
			allocs := float64(now.Mallocs-before.Mallocs) / known
			heap := float64(inUse().HeapAlloc-before.HeapAlloc) / known
			t.Logf("%.1f allocations and %.0f bytes for each endpoint", allocs, heap)
			if allocs > float64(c.mostAllocs) || heap > float64(c.mostHeap) {
				t.Errorf("%.1f allocations and %.0f bytes for each endpoint, want at most %d and %d", allocs, heap, c.mostAllocs, c.mostHeap)
			}
		})
	}
}

func inUse() (now runtime.MemStats) {
	runtime.GC()
	runtime.GC() // what the first one has only marked, and pools
	runtime.ReadMemStats(&now)
	return now
}

// processTime is the CPU time of this process.
func processTime(tb testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func writeHeap(tb testing.TB, path string) {
	f, err := os.Create(path)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	if err := pprof.Lookup("heap").WriteTo(f, 0); err != nil {
		tb.Error(err)
	}
}

// bootstrap runs an agent until all that the clusters export is in its maps.
func (e exporter) bootstrap(tb testing.TB, s *storetest.Store, clusters int) (stop func()) {
	const own = "east"
	pods, addr := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParseAddr("172.16.1.1")
	put := func(key string, v any) {
		if err := s.Put(context.Background(), key, wire.Marshal(v)); err != nil {
			tb.Fatal(err)
		}
	}
	put(wire.ClusterKey, wire.Cluster{Name: own, ID: 1, PodCIDRs: []netip.Prefix{pods}, ServiceCIDR: netip.MustParsePrefix("10.101.0.0/16"), MaxConnectedClusters: 255, Generation: "g"})
	put(wire.RegistrationKey("n1"), wire.Registration{Name: "n1", Addresses: []netip.Addr{addr}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24")}})

	datapath := bpftest.NewDatapath()
	m := datapath.Maps()
	ips := &sink[bpf.Addr, bpf.IPInfo]{Table: m.IPs, max: 1 << 22}
	m.IPs, m.Prefixes = ips, &sink[bpf.PrefixKey, bpf.IPInfo]{Table: m.Prefixes, max: 1 << 17}
	m.Nodes = &sink[uint32, bpf.Node]{Table: m.Nodes, max: 1 << 16}
	m.Backends = &sink[bpf.SlotKey, bpf.Backend]{Table: m.Backends, max: 1 << 18}
	m.Members = &sink[bpf.MemberKey, bpf.Member]{Table: m.Members, max: 1 << 18}
	m.Classes = &sink[bpf.ClassKey, uint32]{Table: m.Classes, max: 1 << 18}

	cfg := Defaults()
	cfg.StateDir, cfg.Hosts, cfg.Log = tb.TempDir(), "", slog.New(slog.DiscardHandler)
	bundle := &api.JoinBundle{
		Cluster: own, ClusterID: 1, ClusterPodCIDRs: []netip.Prefix{pods},
		Node: "n1", Addresses: []netip.Addr{addr}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24")},
	}
	net := &probetest.Fabric{}
	a, err := New(cfg, bundle, &Edges{
		Store: s, Datapath: datapath, Lanes: &forgetful{Lanes: (&tunneltest.Wire{}).New()}, Host: &tunneltest.Host{}, Plumbing: &endpointtest.Plumbing{},
		Transport: func(src ...netip.Addr) (probe.Transport, error) { return net.From(src...), nil },
		MTU:       1420, BootID: "boot",
	})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	stop = func() {
		cancel()
		if err := <-done; err != nil {
			tb.Error(err)
		}
	}
	// Each node has two rows of its own: its address inside the mesh and the one outside.
	want := int64(clusters * (e.endpoints + 2*e.nodes))
	for deadline := time.Now().Add(5 * time.Minute); ips.written.Load() < want; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			stop()
			tb.Fatalf("%d of %d addresses are in the kernel", ips.written.Load(), want)
		}
	}
	<-a.program.Passed()
	return stop
}

// sink is a map that forgets what it is given, and counts it.
type sink[K comparable, V any] struct {
	bpf.Table[K, V]
	max     int
	written atomic.Int64
}

func (s *sink[K, V]) MaxEntries() int       { return s.max }
func (s *sink[K, V]) Update(K, V) error     { s.written.Add(1); return nil }
func (s *sink[K, V]) Delete(K) error        { return nil }
func (s *sink[K, V]) DeleteBatch([]K) error { return nil }
func (s *sink[K, V]) UpdateBatch(rows map[K]V) error {
	s.written.Add(int64(len(rows)))
	return nil
}

func (s *sink[K, V]) Lookup(K) (v V, ok bool, err error) { return v, false, nil }
func (s *sink[K, V]) All() (iter.Seq2[K, V], func() error) {
	return maps.All(map[K]V{}), func() error { return nil }
}

// forgetful are tunnels that take every peer, and have none.
type forgetful struct{ tunnel.Lanes }

func (f forgetful) Set(ctx context.Context, _ []tunnel.Peer, _ bool) (tunnel.Status, error) {
	return f.Status(ctx)
}

func (forgetful) Change(context.Context, []tunnel.Peer, []string, bool) (tunnel.Verdicts, error) {
	return nil, nil
}

// exporter is what each generated cluster exports: sparse as much as the benchmark of a large
// mesh has it export, dense with as many endpoints on a node as real ones have.
type exporter struct {
	name                                             string
	nodes, endpoints, identities, services, backends int
	bits                                             int // of a node's pod CIDR
}

var (
	sparse = exporter{"sparse", 100, 1000, 100, exporterServices, 5, 27}
	dense  = exporter{"dense", 300, 15_000, 100, 0, 0, 26}
)

const exporterServices = 40

// exportTo writes what our API server has copied from the cluster with this ID.
func (e exporter) exportTo(tb testing.TB, s *storetest.Store, id int) {
	if e.services > 0 {
		declare(tb, s, id)
	}
	name := fmt.Sprintf("gen-%03d", id)
	first, _ := identity.Split255.Range(identity.ClusterID(id))
	var ops []store.Op
	put := func(key string, value []byte) { ops = append(ops, store.Put(key, value)) }
	at := func(a, b, c, d int) netip.Addr { return netip.AddrFrom4([4]byte{byte(a), byte(b), byte(c), byte(d)}) }
	pods := netip.PrefixFrom(at(20, id, 0, 0), 16)
	put(wire.PeerKey(name), wire.Marshal(wire.Peer{Name: name, ID: identity.ClusterID(id), PodCIDRs: []netip.Prefix{pods}, MaxConnectedClusters: 255, Connected: true}))
	put(wire.PeerClusterKey(name), wire.Marshal(wire.ExportCluster{PodCIDRs: []netip.Prefix{pods}, Generation: "generated"}))
	// Addresses of a cluster's nodes and pods by number.
	host := func(j int) netip.Addr { return at(100, 64+j>>8, id, j) }
	pod := func(j, k int) netip.Addr { n := j<<(32-e.bits) + k; return at(20, id, n>>8, n) }
	for j := range e.nodes {
		node, cidr := fmt.Sprintf("n%04d", j), netip.PrefixFrom(pod(j, 0), e.bits)
		key := tunnel.Key{1, byte(id), byte(j), byte(j >> 8)}.String()
		n := wire.Node{
			Name: node, Cluster: name, ClusterID: uint32(id), Source: wire.SourceCustomResource, EncryptionKey: wire.WireGuardKey, WireguardPubKey: key,
			IPAddresses: []wire.NodeAddress{{Type: wire.NodeInternalIP, IP: host(j)}, {Type: wire.NodeCiliumInternalIP, IP: cidr.Addr().Next()}},
			Labels:      map[string]string{"kubernetes.io/hostname": node, "topology.kubernetes.io/zone": fmt.Sprintf("z%d", j%3)},
			Annotations: map[string]string{"network.cilium.io/wg-pub-key": key},
			BootID:      "00000000-0000-4000-8000-000000000000",
		}
		n.SetPodCIDRs([]netip.Prefix{cidr})
		put(wire.Nodes.CachePrefix(name)+node, wire.Marshal(n))
		put(wire.PeerNodeKey(name, node), wire.Marshal(wire.ExportNode{Name: node, Epoch: 1, Lanes: [2]wire.Lane{1: {PublicKey: key, Port: 51872}}}))
	}
	for k := range e.identities {
		labels := identity.PodLabels("mesh", nil, map[string]string{"app": fmt.Sprintf("app-%d", k), "group": fmt.Sprintf("g%d", k%10)}, "default", name)
		put(fmt.Sprint(wire.Identities.CachePrefix(name), uint32(first)+1+uint32(k)), []byte(labels.String()))
	}
	endpoint := func(k int) netip.Addr { return pod(k%e.nodes, 2+k/e.nodes) }
	for k := range e.endpoints {
		a := endpoint(k)
		put(wire.IPs.CachePrefix(name)+a.String(), wire.Marshal(wire.IPIdentityPair{
			IP: a, HostIP: host(k % e.nodes), ID: first + 1 + identity.Number(k%e.identities), Key: wire.WireGuardKey,
			K8sNamespace: "mesh", K8sPodName: "pod-" + a.String(), K8sServiceAccount: "default",
		}))
	}
	yes, no := true, false
	for n := range e.services {
		service := fmt.Sprintf("svc-%05d", (id*exporterServices/2+n)%(250*exporterServices/2))
		svc := wire.NewClusterService()
		svc.Cluster, svc.ClusterID, svc.Namespace, svc.Name, svc.Shared, svc.IncludeExternal = name, uint32(id), "mesh", service, true, true
		svc.Selector["app"] = service
		svc.Frontends[netip.MustParseAddr("198.18.0.1")] = map[string]wire.L4Addr{"http": {Protocol: "TCP", Port: 80}}
		slice := wire.ClusterEndpointSlice{
			Cluster: name, ClusterID: uint32(id), Namespace: "mesh", Name: service + "-0", AddressType: "IPv4",
			Labels: map[string]string{wire.ServiceNameLabel: service}, Ports: []wire.SlicePort{{Name: "http", Protocol: "TCP", Port: 8080}},
		}
		for k := range e.backends {
			a := endpoint(n*e.backends + k)
			svc.Backends[a] = map[string]wire.L4Addr{"http": {Protocol: "TCP", Port: 8080}}
			slice.Endpoints = append(slice.Endpoints, wire.SliceEndpoint{Addresses: []string{a.String()}, NodeName: host(k).String(), Conditions: wire.Conditions{Ready: &yes, Serving: &yes, Terminating: &no}})
		}
		put(wire.Services.CachePrefix(name)+"mesh/"+service, wire.Marshal(svc))
		put(wire.EndpointSlices.CachePrefix(name)+"mesh/"+slice.Name, slice.Marshal())
	}
	for _, r := range wire.Resources {
		put(r.CacheSyncedKey(name), wire.TimeText(time.Unix(1, 0)))
	}
	if _, done, err := s.Commit(context.Background(), store.Txn{Then: ops}); err != nil || !done {
		tb.Fatal(done, err)
	}
}

// declare writes services of our own that merge with those of the cluster with this ID.
func declare(tb testing.TB, s *storetest.Store, id int) {
	for n := range exporterServices / 2 {
		i := (id*exporterServices/2 + n) % (250 * exporterServices / 2)
		svc := corev1.Service{}
		svc.Namespace, svc.Name = "mesh", fmt.Sprintf("svc-%05d", i)
		svc.Annotations = map[string]string{"service.cilium.io/global": "true"}
		svc.Spec.ClusterIP = netip.AddrFrom4([4]byte{10, 101, byte(i >> 8), byte(i)}).String()
		svc.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80}}
		text, err := json.Marshal(svc)
		if err == nil {
			err = s.Put(context.Background(), wire.ObjectKey("services", svc.Namespace, svc.Name), text)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
}
