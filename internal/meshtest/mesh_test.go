package meshtest_test

import (
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/internal/meshtest"
	"github.com/weft-mesh/weft/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// converge is how long a change may take until it is in every map.
const converge = 2 * time.Second

const globalService = `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, annotations: {service.cilium.io/global: "true"}}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
`

const fromClients = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client, io.cilium.k8s.policy.cluster: east}}]
`

// raise makes two joined clusters with a node each: a client in east, web in west.
func raise(t *testing.T) (m *meshtest.Mesh, east, west *meshtest.Cluster, e, w *meshtest.Node) {
	t.Helper()
	m, all := meshtest.New(t, "east", "west")
	east, west = all[0], all[1]
	m.Join(east, west)
	e, w = east.Node(), west.Node()
	east.Apply(globalService)
	west.Apply(globalService)
	e.Pod("shop", "client", "client")
	w.Pod("shop", "web", "web")
	m.Pass(2 * converge)
	return m, east, west, e, w
}

var client, web = bpf.AddrOf(netip.MustParseAddr("10.1.1.2")), bpf.AddrOf(netip.MustParseAddr("10.2.1.2"))

// identityOf is who an address stands for on a node; 0 if it is not known.
func identityOf(n *meshtest.Node, a bpf.Addr) identity.Number {
	row, _, _ := n.Maps().IPs.Lookup(a)
	return identity.Number(row.Identity)
}

// admits reports whether a node's policy lets a pod of another cluster speak to one of its
// own, by what the maps say.
func admits(n *meshtest.Node, from, to bpf.Addr) bool {
	pod, ok, _ := n.Maps().Endpoints.Lookup(to)
	if !ok || pod.Held != 0 {
		return false
	}
	allow, _ := bpftest.Judge(n.Maps(), to, uint32(identityOf(n, from)), bpf.Ingress, 6, 80)
	return allow
}

func TestAPodOfOneClusterIsReachableFromTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, east, west, e, w := raise(t)
		for _, c := range []struct {
			on   *meshtest.Node
			addr bpf.Addr
			of   identity.ClusterID
		}{{e, web, 2}, {w, client, 1}} {
			row, ok, _ := c.on.Maps().IPs.Lookup(c.addr)
			if !ok || identity.Split255.Cluster(identity.Number(row.Identity)) != c.of || row.Cluster != uint16(c.of) || row.Node == 0 {
				t.Errorf("%s knows the other's pod as %+v, %v", c.on.Name, row, ok)
			}
			if way, ok, _ := c.on.Maps().Nodes.Lookup(uint32(row.Node)); !ok || way.Path != bpf.PathAlive || way.Keyed == 0 {
				t.Errorf("%s's way to it: %+v, %v", c.on.Name, way, ok)
			}
		}
		backends := func() (n int) {
			for _, s := range meshtest.Rows(e, e.Maps().Services) {
				for _, g := range s.Group {
					n += int(g.Count)
				}
			}
			return n
		}
		if n := backends(); n != 1 {
			t.Errorf("east's service has %d backends, want web in west", n)
		}

		// One more pod, until all maps of the other cluster have it.
		w.Pod("shop", "web-2", "web")
		m.Pass(converge)
		if n := backends(); n != 2 {
			t.Errorf("with a second pod, east's service has %d backends", n)
		}

		// Nothing of this needs an API server once it is there.
		east.Stop()
		west.Stop()
		e.Stop()
		m.Pass(time.Hour)
		if identityOf(e, web) == 0 || backends() != 2 {
			t.Error("east lost what it had when all of it stopped")
		}
	})
}

func TestAPolicyThatIsWithdrawnLeavesTheMaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, east, west, e, w := raise(t)
		e.Pod("shop", "stranger", "stranger")
		m.Pass(converge)
		stranger := bpf.AddrOf(netip.MustParseAddr("10.1.1.3"))
		if identityOf(w, stranger) == 0 {
			t.Fatal("west does not know the stranger")
		}
		want := func(when string, clients, strangers bool) {
			t.Helper()
			if a, b := admits(w, client, web), admits(w, stranger, web); a != clients || b != strangers {
				t.Errorf("%s: client %v, stranger %v; want %v, %v", when, a, b, clients, strangers)
			}
		}
		want("without a policy", true, true)
		west.Apply(fromClients)
		m.Pass(converge)
		want("with one", true, false)
		west.Delete("ciliumnetworkpolicies", "shop", "web")
		m.Pass(converge)
		want("withdrawn", true, true)
		if rows := meshtest.Rows(w, w.Maps().Policy); len(rows) != 0 {
			t.Errorf("left in the map: %v", rows)
		}

		// The same, while the other cluster cannot be reached: a policy is one's own.
		m.SetCut(east, true)
		west.Apply(fromClients)
		m.Pass(10 * converge)
		want("while east is cut off", true, false)
	})
}

func TestARemovedPeerLeavesTheMaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, east, west, e, w := raise(t)
		if len(east.Store.Dump("cilium/cache/")) == 0 {
			t.Fatal("east has no copy of west")
		}
		east.Remove(west)
		m.Pass(converge)
		if left := east.Store.Dump("cilium/cache/"); len(left) != 0 {
			t.Errorf("left in the store: %q", left)
		}
		if n := identityOf(e, web); n != 0 {
			t.Errorf("east still knows web as %v", n)
		}
		if rows := meshtest.Rows(e, e.Maps().Nodes); len(rows) != 0 {
			t.Errorf("east's ways: %v", rows)
		}
		if _, ok, _ := e.Maps().Endpoints.Lookup(client); !ok {
			t.Error("east lost its own pod")
		}
		// West may no longer read east, but keeps what it knows: nobody has withdrawn it.
		e.Pod("shop", "late", "client")
		m.Pass(10 * converge)
		if identityOf(w, client) == 0 {
			t.Error("west forgot the client of a peer that it cannot read")
		}
		if identityOf(w, bpf.AddrOf(netip.MustParseAddr("10.1.1.3"))) != 0 {
			t.Error("west reads a cluster that has removed it")
		}
	})
}

// A leader that lost its lease, because its store was busy, does not read its peers again: with
// hundreds of them, that would cost it the next one.
func TestALostLeaseReadsNoPeerAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, east, west, e, w := raise(t)
		var lists atomic.Int64
		west.Store.Fail(func(call, key string) error {
			if call == "list" && (strings.HasPrefix(key, wire.CiliumStatePrefix) || strings.HasPrefix(key, wire.ExportPrefix)) {
				lists.Add(1)
			}
			return nil
		})
		for range 3 {
			east.Depose()
			m.Pass(wire.ServerTTL)
		}
		w.Pod("shop", "web-2", "web")
		m.Pass(2 * converge)
		if n := lists.Load(); n != 0 {
			t.Errorf("%d lists of what the peer exports", n)
		}
		if n := identityOf(e, bpf.AddrOf(netip.MustParseAddr("10.2.1.3"))); n == 0 {
			t.Error("what the peer has changed since is not known")
		}
	})
}
