package peers

import (
	"context"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/wire"
)

func small(clusters int) Shape {
	return Shape{
		Clusters: clusters, FirstID: 2, Split: identity.Split255,
		Nodes: 4, Endpoints: 40, Identities: 10, Services: 3, Backends: 2, Large: 60,
	}
}

func world(t *testing.T, s Shape) *World {
	t.Helper()
	w, err := New(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// content reads a store as a mirror does: every key of every folder. It fails for keys and
// values that readers of the format refuse.
func content(t *testing.T, c *Cluster) (counts map[wire.Resource]int, pods map[netip.Addr]identity.Number) {
	t.Helper()
	counts, pods = map[wire.Resource]int{}, map[netip.Addr]identity.Number{}
	for _, r := range wire.Resources {
		prefix := r.StatePrefix(c.Name())
		kvs, _, _, _ := c.Store.list(prefix, prefix[:len(prefix)-1]+"0", 0, 0)
		for _, kv := range kvs {
			ref, ok := r.ParseStateKey(string(kv.Key), c.Name())
			if !ok {
				t.Fatalf("%s is not a key of %s", kv.Key, r)
			}
			counts[r]++
			var err error
			switch r {
			case wire.Nodes:
				var n *wire.Node
				if n, err = wire.ParseNode(ref, c.ID(), kv.Value); err == nil {
					inside(t, c, n.Address(wire.NodeCiliumInternalIP))
					inside(t, c, n.PodCIDRs()[0].Addr())
				}
			case wire.IPs:
				var p *wire.IPIdentityPair
				if p, err = wire.ParseIPIdentityPair(ref, kv.Value); err == nil {
					inside(t, c, p.IP)
					pods[p.IP] = p.ID
					host(t, c, p)
				}
			case wire.Identities:
				var labels identity.Labels
				if labels, err = wire.ParseIdentity(kv.Value); err == nil {
					err = labels.Foreign(c.Name())
				}
				if c.shape.Split.Cluster(ref.Identity) != c.ID() {
					t.Fatalf("identity %d is not of cluster %d", ref.Identity, c.ID())
				}
			case wire.Services:
				_, err = wire.ParseClusterService(ref, c.ID(), kv.Value)
			case wire.EndpointSlices:
				_, err = wire.ParseSlice(ref, c.ID(), kv.Value)
			}
			if err != nil {
				t.Fatalf("%s: %v", kv.Key, err)
			}
		}
	}
	return counts, pods
}

func inside(t *testing.T, c *Cluster, a netip.Addr) {
	t.Helper()
	if !c.PodCIDR().Contains(a) {
		t.Fatalf("%v is outside of %v", a, c.PodCIDR())
	}
}

// host checks that a pod is on the node whose addresses it has.
func host(t *testing.T, c *Cluster, p *wire.IPIdentityPair) {
	t.Helper()
	for j := range c.nodes {
		if c.shape.outside(c.index, j) == p.HostIP {
			if !c.shape.nodeCIDR(c.index, j).Contains(p.IP) {
				t.Fatalf("pod %v is on node %d, which has %v", p.IP, j, c.shape.nodeCIDR(c.index, j))
			}
			return
		}
	}
	t.Fatalf("pod %v is on %v, which is not a node", p.IP, p.HostIP)
}

func TestWhatAClusterExports(t *testing.T) {
	w := world(t, small(3))
	for _, c := range w.Clusters {
		counts, pods := content(t, c)
		// Services: three of its own, three of the previous one's, and the large one.
		want := map[wire.Resource]int{wire.Nodes: 4, wire.IPs: 40, wire.Identities: 10, wire.Services: 7, wire.EndpointSlices: 7}
		if c.index == 2 { // offers none of the large one's 60 backends
			want[wire.Services], want[wire.EndpointSlices] = 6, 6
		}
		if !maps.Equal(counts, want) {
			t.Errorf("%s exports %v, want %v", c.Name(), counts, want)
		}
		if !maps.Equal(pods, c.Pods()) {
			t.Errorf("%s exports %d pods, not the %d it has", c.Name(), len(pods), len(c.Pods()))
		}
		config, err := wire.ParseClusterConfig(c.Store.Get(wire.ClusterConfigKey(c.Name())))
		if err != nil || config.ID != uint32(c.ID()) || !config.Capabilities.SyncedCanaries {
			t.Errorf("%s introduces itself as %+v: %v", c.Name(), config, err)
		}
		for _, r := range wire.Resources {
			if c.Store.Get(r.StateSyncedKey(c.Name())) == nil {
				t.Errorf("%s raises no canary for %s", c.Name(), r)
			}
		}
	}
}

// Whatever changes, the store holds what the cluster says it has, and readers accept all
// of it.
func TestChangesKeepTheFormat(t *testing.T) {
	w := world(t, small(3))
	r := rand.New(rand.NewPCG(1, 2))
	for range 600 {
		w.Random(r, []Kind{Address, Address, Identity, Node}[r.IntN(4)])
	}
	for i := range 8 {
		for _, k := range []Kind{Address, Identity, Backend, Node} {
			if _, err := w.Add(i%2, k); err != nil {
				t.Errorf("add %v: %v", k, err)
			}
		}
	}
	for _, c := range w.Clusters {
		counts, pods := content(t, c)
		listed := 0
		for n := 0; ; n++ {
			text := c.Store.Get(wire.SliceStateKey(c.Name(), Namespace, sliceAt{LargeService, n}.name()))
			if text == nil {
				break
			}
			s, err := wire.ParseClusterEndpointSlice(text)
			if err != nil {
				t.Fatal(err)
			}
			listed += len(s.Endpoints)
		}
		if n := c.backends(LargeService); n != listed {
			t.Errorf("%s says that it offers %d backends, and lists %d", c.Name(), n, listed)
		}
		if !maps.Equal(pods, c.Pods()) {
			t.Errorf("%s exports other pods than it has", c.Name())
		}
		if n := counts[wire.IPs]; n < 20 || n > 60 {
			t.Errorf("%s has %d pods after a while, 40 at the start", c.Name(), n)
		}
		for at, backends := range c.slices {
			text := c.Store.Get(wire.SliceStateKey(c.Name(), Namespace, at.name()))
			s, err := wire.ParseClusterEndpointSlice(text)
			if err != nil || len(s.Endpoints) != len(backends) {
				t.Errorf("slice %s has %v endpoints, want %d: %v", at.name(), len(s.Endpoints), len(backends), err)
			}
			for _, a := range backends {
				if !slices.Contains(c.in[a], at) {
					t.Errorf("%v is not known to be in %s", a, at.name())
				}
			}
		}
	}
	if all := w.First(2).Pods(); len(all) != len(w.Clusters[0].Pods())+len(w.Clusters[1].Pods()) {
		t.Errorf("the first two clusters have %d pods", len(all))
	}
	if _, err := w.Add(2, Backend); err == nil || !strings.Contains(err.Error(), "no backends") {
		t.Errorf("a cluster without the large service changes its backends: %v", err)
	}
}

// The change says what readers are to have.
func TestWhatAChangeSays(t *testing.T) {
	w := world(t, small(1))
	c := w.Clusters[0]
	a, err := w.Add(0, Address)
	if err != nil || c.Pods()[a.Addr] != a.Identity || a.Gone {
		t.Errorf("a pod: %+v, %v", a, err)
	}
	id, err := w.Add(0, Identity)
	labels, _ := wire.ParseIdentity(c.Store.Get(wire.IdentityStateKey(id.Identity)))
	if group, _ := labels.Get(identity.SourceK8s, GroupLabel); err != nil || group != "g0" {
		t.Errorf("an identity: %+v with %v, %v", id, labels, err)
	}
	for range 2 * 40 { // around the slice
		b, err := w.Add(0, Backend)
		s, _ := wire.ParseClusterEndpointSlice(c.Store.Get(wire.SliceStateKey(c.Name(), Namespace, LargeService+"-0")))
		listed := slices.ContainsFunc(s.Endpoints, func(e wire.SliceEndpoint) bool { return e.Addresses[0] == b.Addr.String() })
		if err != nil || !listed || len(s.Endpoints) != 40 {
			t.Fatalf("a backend: %+v of %d, %v", b, len(s.Endpoints), err)
		}
	}
	n, err := w.Add(0, Node)
	if node, _ := wire.Unmarshal[wire.Node](c.Store.Get(wire.NodeStateKey(c.Name(), "n0004"))); err != nil || node.Address(wire.NodeCiliumInternalIP) != n.Addr {
		t.Errorf("a node: %+v, %v", n, err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		change := w.Random(r, Address)
		if now, there := c.Pods()[change.Addr]; there == change.Gone || there && now != change.Identity {
			t.Fatalf("change %+v, but the pod has %v", change, now)
		}
	}
}

func TestRates(t *testing.T) {
	if got := ScaleTest().Total(250); got < 324.9 || got > 325.1 {
		t.Errorf("250 clusters make %v changes per second, want 325", got)
	}
	if got, want := ScaleTest().due(250, 10*time.Second), [kinds]int{Address: 2500, Identity: 500, Node: 250}; got != want {
		t.Errorf("in 10 s %v are due, want %v", got, want)
	}
	synctest.Test(t, func(t *testing.T) {
		w := world(t, small(10))
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second+2*churnTick)
		defer cancel()
		told := [kinds]int{}
		made := w.Churn(ctx, ScaleTest(), 1, func(c Change) { told[c.Kind]++ })
		if want := [kinds]int{Address: 200, Identity: 40, Node: 20}; made != 260 || told != want {
			t.Errorf("10 clusters made %d changes in 20 s, want 260: %v", made, told)
		}
	})
}
