package meshagent

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/endpoint"
	"github.com/weft-mesh/weft/meshagent/endpoint/endpointtest"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/tunnel/probe"
	"github.com/weft-mesh/weft/tunnel/probe/probetest"
	"github.com/weft-mesh/weft/tunnel/tunneltest"
	"github.com/weft-mesh/weft/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is two clusters, east (1) and west (2), without root, network or kernel.
// What the API servers do is done by step, in the shapes of package wire.
type world struct {
	t        *testing.T
	clusters map[string]*testCluster
	net      *probetest.Fabric
	wire     *tunneltest.Wire
}

type testCluster struct {
	name  string
	dual  bool // pods have an address of each family
	id    identity.ClusterID
	store *storetest.Store
	nodes map[string]*testNode
	next  identity.Number
	ids   map[string]identity.Number
}

// testNode is a machine: its kernel and disk outlive the agent.
type testNode struct {
	world    *world
	cluster  *testCluster
	name     string
	number   int
	dir      string
	datapath *bpftest.Datapath
	lanes    *tunneltest.Lanes
	host     *tunneltest.Host
	plumbing *endpointtest.Plumbing
	// alter changes the next agent's edges, if it is set, and log is where it logs.
	alter func(*Edges)
	log   slog.Handler
	// podsFrom is who requests the pods' networks; Objects if empty.
	podsFrom PodsFrom
	agent    *Agent
	stop     func()
}

func newWorld(t *testing.T) *world { return newWorldOf(t, false) }

// newWorldOf is newWorld; in a dual one, pods have an address of each family.
func newWorldOf(t *testing.T, dual bool) *world {
	w := &world{t: t, clusters: map[string]*testCluster{}, net: &probetest.Fabric{}, wire: &tunneltest.Wire{}}
	for i, name := range []string{"east", "west"} {
		c := &testCluster{name: name, dual: dual, id: identity.ClusterID(i + 1), store: storetest.New(), nodes: map[string]*testNode{}, ids: map[string]identity.Number{}}
		c.store.SetSignOfLife(10 * time.Second)
		first, _ := identity.Split255.Range(c.id)
		c.next = first + 1
		w.clusters[name] = c
		own := wire.Cluster{
			Name: name, ID: c.id, PodCIDRs: c.cidrs(), ServiceCIDR: netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", 100+i+1)),
			MaxConnectedClusters: 255, Generation: "g-" + name,
		}
		if dual {
			own.IPv6ServiceCIDR = netip.MustParsePrefix(fmt.Sprintf("fd00:10:%d::/112", 100+i+1))
		}
		c.put(t, wire.ClusterKey, own)
	}
	return w
}

func (c *testCluster) cidr() netip.Prefix {
	return netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", c.id))
}

func (c *testCluster) cidrs() []netip.Prefix {
	out := []netip.Prefix{c.cidr()}
	if c.dual {
		out = append(out, netip.MustParsePrefix(fmt.Sprintf("fd00:10:%d::/48", c.id)))
	}
	return out
}

func (c *testCluster) put(t *testing.T, key string, v any) {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	c.putRaw(key, text)
}

func (c *testCluster) putRaw(key string, text []byte) {
	if old, ok := c.store.Value(key); ok && string(old) == string(text) {
		return
	}
	_ = c.store.Put(context.Background(), key, text)
}

// node adds a machine and registers it.
func (w *world) node(cluster string, number int) *testNode {
	c := w.clusters[cluster]
	n := &testNode{
		world: w, cluster: c, name: fmt.Sprintf("%s-%d", cluster, number), number: number, dir: w.t.TempDir(),
		datapath: bpftest.NewDatapath(), lanes: w.wire.New(), host: &tunneltest.Host{}, plumbing: &endpointtest.Plumbing{},
	}
	c.nodes[n.name] = n
	c.put(w.t, wire.RegistrationKey(n.name), wire.Registration{Name: n.name, Addresses: []netip.Addr{n.ip()}, PodCIDRs: n.cidrs()})
	return n
}

func (n *testNode) ip() netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("172.16.%d.%d", n.cluster.id, n.number))
}

func (n *testNode) cidr() netip.Prefix {
	return netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/24", n.cluster.id, n.number))
}

func (n *testNode) cidrs() []netip.Prefix {
	out := []netip.Prefix{n.cidr()}
	if n.cluster.dual {
		out = append(out, netip.MustParsePrefix(fmt.Sprintf("fd00:10:%d:%d::/64", n.cluster.id, n.number)))
	}
	return out
}

func (n *testNode) internal() netip.Addr { return endpoint.Internal(n.cidr()) }

func (n *testNode) maps() *bpf.Maps { return n.datapath.Maps() }

// run starts the node's agent.
func (n *testNode) run() {
	t := n.world.t
	cfg := Defaults()
	cfg.StateDir, cfg.Hosts, cfg.Log = n.dir, "", slog.New(slog.DiscardHandler)
	if n.log != nil {
		cfg.Log = slog.New(n.log)
	}
	cfg.PodsFrom = cmp.Or(n.podsFrom, cfg.PodsFrom)
	bundle := &api.JoinBundle{
		Cluster: n.cluster.name, ClusterID: uint32(n.cluster.id), ClusterPodCIDRs: n.cluster.cidrs(),
		Node: n.name, Addresses: []netip.Addr{n.ip()}, PodCIDRs: n.cidrs(),
	}
	edges := &Edges{
		Store: n.cluster.store, Datapath: n.datapath, Lanes: n.lanes, Host: n.host, Plumbing: n.plumbing,
		Transport: func(src ...netip.Addr) (probe.Transport, error) { return n.world.net.From(src...), nil },
		MTU:       1420, BootID: "boot",
	}
	if n.alter != nil {
		n.alter(edges)
	}
	var err error
	if n.agent, err = New(cfg, bundle, edges); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.agent.Run(ctx) }()
	var once sync.Once
	n.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("agent %s: %v", n.name, err)
			}
		})
	}
	t.Cleanup(n.stop)
}

// peer joins the two clusters, as both operators would.
func (w *world) peer() {
	for _, c := range w.clusters {
		for _, other := range w.clusters {
			if c != other {
				c.put(w.t, wire.PeerKey(other.name), wire.Peer{Name: other.name, ID: other.id, PodCIDRs: other.cidrs(), MaxConnectedClusters: 255, Connected: true})
			}
		}
	}
}

// step does what API servers do, until nothing changes any more, and lets time
// pass for it.
func (w *world) step() {
	for range 4 {
		synctest.Wait()
		for _, c := range w.clusters {
			c.vouch(w.t)
		}
		synctest.Wait()
		for _, c := range w.clusters {
			for _, other := range w.clusters {
				if c != other {
					w.mirror(other, c)
				}
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	time.Sleep(time.Second)
	synctest.Wait()
}

func list[V any](t *testing.T, c *testCluster, prefix string) map[string]V {
	t.Helper()
	kvs, _, err := c.store.List(context.Background(), prefix)
	if err != nil {
		return nil
	}
	out := map[string]V{}
	for _, kv := range kvs {
		if strings.HasSuffix(kv.Key, "/synced") {
			continue // plain text
		}
		var v V
		if err := json.Unmarshal(kv.Value, &v); err != nil {
			t.Fatalf("%s: %v", kv.Key, err)
		}
		out[kv.Key] = v
	}
	return out
}

// vouch turns what agents claim into endpoints with identities, and services'
// selectors into slices.
func (c *testCluster) vouch(t *testing.T) {
	pods := list[corev1.Pod](t, c, wire.ObjectKindPrefix("pods"))
	claims := map[string]wire.EndpointState{}
	for _, n := range c.nodes {
		for _, s := range list[wire.EndpointState](t, c, wire.NodeEndpointsPrefix(n.name)) {
			claims[s.Namespace+"/"+s.Pod] = s
		}
	}
	for _, pod := range pods {
		key := wire.EndpointKey(pod.Namespace, pod.Name)
		claim, ok := claims[pod.Namespace+"/"+pod.Name]
		n := c.nodes[pod.Spec.NodeName]
		if !ok || n == nil {
			continue
		}
		labels := identity.PodLabels(pod.Namespace, nil, pod.Labels, "default", c.name)
		number, ok := c.ids[labels.String()]
		if !ok {
			number = c.next
			c.next++
			c.ids[labels.String()] = number
			c.putRaw(wire.IdentityIDKey(number), []byte(labels.String()))
		}
		c.put(t, key, wire.Endpoint{
			Namespace: pod.Namespace, Pod: pod.Name, UID: string(pod.UID), Node: n.name, NodeIP: n.ip(), IP: claim.IP, Second: claim.Second,
			Identity: number, Labels: labels, Ready: claim.Ready, State: claim.State,
		})
	}
	for key, e := range list[wire.Endpoint](t, c, wire.EndpointsPrefix) {
		if _, ok := pods[wire.ObjectKey("pods", e.Namespace, e.Pod)]; !ok {
			_ = c.store.Delete(context.Background(), key)
		}
	}
	for _, svc := range list[corev1.Service](t, c, wire.ObjectKindPrefix("services")) {
		for _, ip := range service.ClusterIPs(&svc) {
			family := service.FamilyOf(netip.MustParseAddr(ip))
			s := discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressType(family)}
			s.Namespace, s.Name = svc.Namespace, svc.Name+"-v"+string(family[3])
			s.Labels = map[string]string{discoveryv1.LabelServiceName: svc.Name}
			for _, p := range svc.Spec.Ports {
				port := p.TargetPort.IntVal
				s.Ports = append(s.Ports, discoveryv1.EndpointPort{Port: &port})
			}
			for _, e := range list[wire.Endpoint](t, c, wire.EndpointsPrefix) {
				pod, ok := pods[wire.ObjectKey("pods", e.Namespace, e.Pod)]
				for _, ip := range e.IPs() {
					if ok && pod.Labels["app"] == svc.Spec.Selector["app"] && service.FamilyOf(ip) == family {
						ready, node := e.Ready, e.Node
						s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip.String()}, NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: &ready}})
					}
				}
			}
			slices.SortFunc(s.Endpoints, func(a, b discoveryv1.Endpoint) int { return strings.Compare(a.Addresses[0], b.Addresses[0]) })
			c.put(t, wire.ObjectKey("endpointslices", s.Namespace, s.Name), s)
		}
	}
}

// mirror copies what from exports into to's store, in Cilium's form, and marks
// it complete.
func (w *world) mirror(from, to *testCluster) {
	if _, ok := to.store.Value(wire.PeerKey(from.name)); !ok {
		return
	}
	want := map[string][]byte{}
	for _, n := range list[wire.NodeState](w.t, from, wire.NodesPrefix) {
		if n.Name == "" {
			continue
		}
		cn := wire.Node{Name: n.Name, Cluster: from.name, ClusterID: uint32(from.id)}
		cn.IPAddresses = []wire.NodeAddress{{Type: wire.NodeInternalIP, IP: n.Addresses[0]}}
		for _, a := range n.Internals() {
			cn.IPAddresses = append(cn.IPAddresses, wire.NodeAddress{Type: wire.NodeCiliumInternalIP, IP: a})
		}
		cn.SetPodCIDRs(n.PodCIDRs)
		want[wire.Nodes.CachePrefix(from.name)+n.Name] = wire.Marshal(cn)
		want[wire.PeerNodeKey(from.name, n.Name)] = wire.Marshal(wire.ExportNode{Name: n.Name, Epoch: n.Epoch, Lanes: n.Lanes})
	}
	for _, e := range list[wire.Endpoint](w.t, from, wire.EndpointsPrefix) {
		for _, ip := range e.IPs() {
			want[wire.IPs.CachePrefix(from.name)+ip.String()] = wire.Marshal(wire.IPIdentityPair{IP: ip, HostIP: e.NodeIP, ID: e.Identity, K8sNamespace: e.Namespace, K8sPodName: e.Pod})
		}
		want[wire.Identities.CachePrefix(from.name)+fmt.Sprint(uint32(e.Identity))] = []byte(e.Labels.String())
	}
	for _, s := range list[discoveryv1.EndpointSlice](w.t, from, wire.ObjectKindPrefix("endpointslices")) {
		out := wire.ClusterEndpointSlice{Cluster: from.name, ClusterID: uint32(from.id), Namespace: s.Namespace, Name: s.Name, Labels: s.Labels, AddressType: string(s.AddressType)}
		for _, p := range s.Ports {
			out.Ports = append(out.Ports, wire.SlicePort{Protocol: "TCP", Port: *p.Port})
		}
		for _, e := range s.Endpoints {
			out.Endpoints = append(out.Endpoints, wire.SliceEndpoint{Addresses: e.Addresses, NodeName: *e.NodeName, Conditions: wire.Conditions{Ready: e.Conditions.Ready}})
		}
		want[wire.EndpointSlices.CachePrefix(from.name)+s.Namespace+"/"+s.Name] = out.Marshal()
	}
	for key, text := range want {
		to.putRaw(key, text)
	}
	for _, r := range wire.Resources {
		kvs, _, _ := to.store.List(context.Background(), r.CachePrefix(from.name))
		for _, kv := range kvs {
			if want[kv.Key] == nil {
				_ = to.store.Delete(context.Background(), kv.Key)
			}
		}
		if _, ok := to.store.Value(r.CacheSyncedKey(from.name)); !ok {
			to.putRaw(r.CacheSyncedKey(from.name), wire.TimeText(time.Now()))
		}
	}
}

func (n *testNode) pod(name, app string) {
	p := corev1.Pod{}
	p.Namespace, p.Name, p.UID = "shop", name, "uid-1"
	p.Labels = map[string]string{"app": app}
	p.Spec.NodeName = n.name
	n.cluster.put(n.world.t, wire.ObjectKey("pods", p.Namespace, p.Name), p)
}

// podOf declares a pod with a certain UID.
func (n *testNode) podOf(name string, uid types.UID) {
	p := corev1.Pod{}
	p.Namespace, p.Name, p.UID = "shop", name, uid
	p.Spec.NodeName = n.name
	n.cluster.put(n.world.t, wire.ObjectKey("pods", p.Namespace, p.Name), p)
}

// endpoint is the agent's row of a pod.
func (n *testNode) endpoint(name string) (row tables.Endpoint) {
	if e := tables.Get(n.agent.Tables.DB.ReadTxn(), n.agent.Tables.Endpoints, "shop/"+name); e != nil {
		row = *e
	}
	return row
}

// setCut cuts a cluster off from the other, or ends that.
func (w *world) setCut(cluster string, cut bool) { w.net.SetCut(w.clusters[cluster].cidr(), cut) }

func rowsOf[K comparable, V any](t *testing.T, table bpf.Table[K, V]) map[K]V {
	t.Helper()
	rows, failed := table.All()
	out := maps.Collect(rows)
	if err := failed(); err != nil {
		t.Fatal(err)
	}
	return out
}
