package meshagent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/internal/loopbacktest"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/tunnel"
	"github.com/weft-mesh/weft/wire"
)

// web is a global service at 10.10<cluster>.0.10:80, and in dual clusters at
// [fd00:10:10<cluster>::10]:80 too.
func (c *testCluster) web(t *testing.T, annotations map[string]string) netip.Addr {
	vip := fmt.Sprintf("10.%d.0.10", 100+int(c.id))
	s := corev1.Service{}
	s.Namespace, s.Name, s.Annotations = "shop", "web", annotations
	s.Spec.ClusterIP, s.Spec.ClusterIPs = vip, []string{vip}
	if c.dual {
		s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, fmt.Sprintf("fd00:10:%d::10", 100+int(c.id)))
	}
	s.Spec.Selector = map[string]string{"app": "web"}
	s.Spec.Ports = []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080), Protocol: corev1.ProtocolTCP}}
	c.put(t, wire.ObjectKey("services", "shop", "web"), s)
	return netip.MustParseAddr(vip)
}

var global = map[string]string{"service.cilium.io/global": "true"}

func frontend(vip netip.Addr) bpf.ServiceKey {
	return bpf.ServiceKey{Addr: bpf.AddrOf(vip), Port: bpf.PortOf(80), Proto: 6}
}

// raise makes two joined clusters with one node and one pod each: a client in
// east, web in west, and a global service.
func raise(t *testing.T) (w *world, east, west *testNode, vip netip.Addr) {
	w = newWorld(t)
	east, west = w.node("east", 1), w.node("west", 1)
	w.peer()
	vip = w.clusters["east"].web(t, global)
	w.clusters["west"].web(t, global)
	east.pod("client", "client")
	west.pod("web-1", "web")
	east.run()
	west.run()
	w.step()
	return w, east, west, vip
}

func TestTwoClustersReachOneAnotherByIdentityAndEncrypted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, east, west, vip := raise(t)

		client, web := netip.MustParseAddr("10.1.1.2"), netip.MustParseAddr("10.2.1.2")
		info, ok, _ := east.maps().IPs.Lookup(bpf.AddrOf(web))
		if !ok || identity.Split255.Cluster(identity.Number(info.Identity)) != 2 || info.Node == 0 || info.Cluster != 2 || info.Flags != bpf.IPMember {
			t.Errorf("east knows web as %+v, %v", info, ok)
		}
		info, _, _ = west.maps().IPs.Lookup(bpf.AddrOf(client))
		if identity.Split255.Cluster(identity.Number(info.Identity)) != 1 {
			t.Errorf("west sees the client's own identity as %+v", info)
		}
		prefix, ok, _ := east.maps().Prefixes.Lookup(bpf.PrefixOf(netip.MustParsePrefix("10.2.0.0/16")))
		if !ok || prefix.Flags != bpf.IPMember || prefix.Identity != 0 {
			t.Errorf("west's CIDR in east: %+v, %v", prefix, ok)
		}
		node, ok, _ := east.maps().Nodes.Lookup(1)
		if !ok || node.Path != bpf.PathAlive || node.Keyed != 1 || node.Cluster != 2 {
			t.Errorf("way to west-1: %+v, %v", node, ok)
		}
		pod, ok, _ := east.maps().Endpoints.Lookup(bpf.AddrOf(client))
		if !ok || pod.Held != 0 || pod.Identity == 0 {
			t.Errorf("client's row: %+v, %v", pod, ok)
		}
		service, ok, _ := east.maps().Services.Lookup(frontend(vip))
		if !ok || service.Groups != 1 || service.Group[0] != (bpf.Group{Count: 1, Cluster: 2, Weight: 1}) {
			t.Errorf("web in east: %+v, %v", service, ok)
		}
		slot, _, _ := east.maps().Backends.Lookup(bpf.SlotKey{Service: service.ID, Cluster: 2})
		if slot.Addr.Netip() != web || slot.Port.Number() != 8080 || slot.Node != 1 {
			t.Errorf("its backend: %+v", slot)
		}
		settings, _, _ := east.maps().Settings.Lookup(0)
		if settings.Revision == 0 || settings.PolicyGen == 0 || settings.TunnelIfindex != [2]uint32{100, 101} || settings.Internal[0].Netip() != east.internal() || settings.Cluster != 1 {
			t.Errorf("settings: %+v", settings)
		}
		if got := east.host.Network(); len(got.Members) != 2 || got.MTU != 1420 {
			t.Errorf("routes of east: %+v", got)
		}
		// No row anywhere is left pending or wrong.
		for _, s := range east.agent.Tables.Summaries() {
			if s.Errors+s.Pending > 0 {
				shown, _ := east.agent.Tables.Show(s.Name)
				t.Errorf("table %s: %+v\n%v", s.Name, s, shown.Rows)
			}
		}
	})
}

func TestALostClusterIsOneWriteWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, east, _, _ := raise(t)
		are := func(when string, want bpf.Path) {
			t.Helper()
			synctest.Wait()
			n, _, _ := east.maps().Nodes.Lookup(1)
			c, _, _ := east.maps().Clusters.Lookup(2)
			if n.Path != want || c.Path != want {
				t.Fatalf("%s: node %d, cluster %d, want %d", when, n.Path, c.Path, want)
			}
		}
		are("before", bpf.PathAlive)
		services := rowsOf(t, east.maps().Services)
		w.setCut("west", true)
		time.Sleep(800 * time.Millisecond)
		are("800 ms after the cut", bpf.PathSilent)
		time.Sleep(500 * time.Millisecond)
		are("1.3 s after the cut", bpf.PathDead)
		if got := rowsOf(t, east.maps().Services); !reflect.DeepEqual(got, services) {
			t.Error("the loss of a path changed services")
		}
		w.setCut("west", false)
		time.Sleep(800 * time.Millisecond)
		are("800 ms after healing", bpf.PathAlive)
	})
}

func TestARestartedAgentDoesNotDoubtWhatIsDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, east, west, _ := raise(t)
		w.setCut("west", true)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		before := kernel(t, east)
		east.stop()
		east.run()
		for range 200 {
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
			n, _, _ := east.maps().Nodes.Lookup(1)
			c, known, _ := east.maps().Clusters.Lookup(2)
			if n.Path != bpf.PathDead || c.Path != bpf.PathDead || !known {
				t.Fatalf("node %d, cluster %d (known %v), want both dead", n.Path, c.Path, known)
			}
		}
		w.step()
		sameKernel(t, "restarted", kernel(t, east), before)
		w.setCut("west", false)
		time.Sleep(time.Second)
		synctest.Wait()
		if c, _, _ := east.maps().Clusters.Lookup(2); c.Path != bpf.PathAlive {
			t.Errorf("healed, the cluster is %d", c.Path)
		}
		east.stop()
		west.stop()
	})
}

// kernel is everything that must survive.
func kernel(t *testing.T, n *testNode) map[string]any {
	m := n.maps()
	settings, _, _ := m.Settings.Lookup(0)
	settings.Revision, settings.PolicyGen = 0, 0
	return map[string]any{
		"settings": settings, "endpoints": rowsOf(t, m.Endpoints), "ips": rowsOf(t, m.IPs), "prefixes": rowsOf(t, m.Prefixes),
		"nodes": rowsOf(t, m.Nodes), "clusters": rowsOf(t, m.Clusters), "services": rowsOf(t, m.Services), "backends": rowsOf(t, m.Backends), "members": rowsOf(t, m.Members),
	}
}

func sameKernel(t *testing.T, when string, got, want map[string]any) {
	t.Helper()
	for name := range want {
		if !reflect.DeepEqual(got[name], want[name]) {
			t.Errorf("%s, map %s:\n got %v\nwant %v", when, name, got[name], want[name])
		}
	}
}

func TestARestartedAgentChangesNothingWithOrWithoutItsStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, east, west, _ := raise(t)
		before := kernel(t, east)
		east.stop()
		sameKernel(t, "stopped", kernel(t, east), before)

		east.cluster.store.SetAway(true)
		east.run()
		time.Sleep(time.Minute)
		synctest.Wait()
		sameKernel(t, "store away", kernel(t, east), before)

		// The store comes back empty: no reason to remove anything.
		east.stop()
		east.cluster.store.SetAway(false)
		full := east.cluster.store
		east.cluster.store = newWorld(t).clusters["east"].store
		_ = east.cluster.store.Delete(context.Background(), wire.ClusterKey)
		east.run()
		time.Sleep(time.Minute)
		synctest.Wait()
		sameKernel(t, "store empty", kernel(t, east), before)
		east.stop()

		east.cluster.store = full
		east.run()
		w.step()
		sameKernel(t, "restarted", kernel(t, east), before)
		// And it works on.
		west.pod("web-2", "web")
		w.step()
		svc := rowsOf(t, east.maps().Services)
		for _, s := range svc {
			if s.Group[0].Count != 2 {
				t.Errorf("a new backend after the restart: %+v", s.Group[0])
			}
		}
		east.stop()
	})
}

// lateSource takes its time to list some prefixes.
type lateSource struct {
	Store
	late map[string]time.Duration
}

func (s lateSource) List(ctx context.Context, prefix string) ([]store.KV, store.Point, error) {
	time.Sleep(s.late[prefix])
	return s.Store.List(ctx, prefix)
}

// slowLanes takes its time to look at devices.
type slowLanes struct {
	tunnel.Lanes
	pause time.Duration
}

func (l slowLanes) Ensure(ctx context.Context) (tunnel.Own, error) {
	time.Sleep(l.pause)
	return l.Lanes.Ensure(ctx)
}

// loudSink tells what is written.
type loudSink struct {
	Store
	wrote func(store.Op)
}

func (s loudSink) Commit(ctx context.Context, txn store.Txn) (int64, bool, error) {
	for _, op := range txn.Then {
		if op.Lease == 0 {
			s.wrote(op)
		}
	}
	return s.Store.Commit(ctx, txn)
}

func TestARestartedAgentNeverCallsAReadyPodNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, east, west, _ := raise(t)
		west.stop()
		var wrote []string
		west.alter = func(e *Edges) {
			e.Store = lateSource{e.Store, map[string]time.Duration{wire.StatePrefix: 20 * time.Millisecond, wire.CachePrefix: 30 * time.Millisecond}}
			e.Store = loudSink{e.Store, func(c store.Op) { wrote = append(wrote, fmt.Sprintf("%s: %s", c.Key, c.Value)) }}
		}
		west.run()
		w.step()
		if len(wrote) > 0 {
			t.Errorf("the agent wrote %q", wrote)
		}
		east.stop()
		west.stop()
	})
}

func TestAPodOfABootedMachineIsNotReadyUntilAsked(t *testing.T) {
	addr := netip.AddrPortFrom(loopbacktest.Addr(t), 10080)
	server, err := net.Listen("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		w, east, west, _ := raise(t)
		var p corev1.Pod
		p.Namespace, p.Name, p.UID, p.Spec.NodeName = "shop", "db-1", "uid-db", west.name
		p.Spec.Containers = []corev1.Container{{ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{
			TCPSocket: &corev1.TCPSocketAction{Host: addr.Addr().String(), Port: intstr.FromInt(int(addr.Port()))},
		}}}}
		west.cluster.put(t, wire.ObjectKey("pods", p.Namespace, p.Name), p)
		w.step()
		state := func() string {
			kv, _ := west.cluster.store.Value(wire.NodeEndpointKey(west.name, p.Namespace, p.Name))
			return string(kv)
		}
		if !strings.Contains(state(), `"ready":true`) {
			t.Fatalf("before: %s", state())
		}

		west.stop()
		server.Close()
		west.datapath = bpftest.NewDatapath()
		west.plumbing.Reboot()
		west.run()
		time.Sleep(50 * time.Millisecond)
		synctest.Wait()
		if !strings.Contains(state(), `"ready":false`) {
			t.Errorf("booted: %s", state())
		}
		east.stop()
		west.stop()
	})
}

// What is read last holds the keys of other clusters' nodes. A snapshot from
// before must not count as complete because it is so by the time it is used.
func TestARestartedAgentKeepsKeysThatItHasNotReadYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, east, west, _ := raise(t)
		before := kernel(t, east)
		east.stop()
		east.datapath.Maps().Nodes.(*bpftest.Table[uint32, bpf.Node]).Fail(func(op string, k uint32) error {
			t.Errorf("%s of node %d", op, k)
			return nil
		})
		east.alter = func(e *Edges) {
			e.Store = lateSource{e.Store, map[string]time.Duration{wire.CachePrefix: 20 * time.Millisecond}}
			e.Lanes = slowLanes{e.Lanes, 15 * time.Millisecond}
		}
		east.run()
		w.step()
		sameKernel(t, "restarted", kernel(t, east), before)
		east.stop()
		west.stop()
	})
}

func TestWritesThatFailAreTriedAgainAndHarmNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, east, west, vip := raise(t)
		refusal := errors.New("not now")
		ips := east.maps().IPs.(*bpftest.Table[bpf.Addr, bpf.IPInfo])
		ips.Fail(func(op string, k bpf.Addr) error {
			if k.Netip() == netip.MustParseAddr("10.2.1.3") {
				return refusal
			}
			return nil
		})
		west.pod("web-2", "web")
		west.pod("web-3", "web")
		w.step()
		if _, ok, _ := ips.Lookup(bpf.AddrOf(netip.MustParseAddr("10.2.1.4"))); !ok {
			if _, ok, _ := ips.Lookup(bpf.AddrOf(netip.MustParseAddr("10.2.1.2"))); !ok {
				t.Error("one failure kept others out")
			}
		}
		shown, _ := east.agent.Tables.Show("ips")
		found := false
		for _, row := range shown.Rows {
			if row[1] == "10.2.1.3" {
				found = strings.HasPrefix(row[len(row)-1], "error: ") && strings.Contains(row[len(row)-1], "not now")
			}
		}
		if !found {
			t.Errorf("the row does not say what is wrong: %v", shown.Rows)
		}
		ips.Fail(nil)
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if _, ok, _ := ips.Lookup(bpf.AddrOf(netip.MustParseAddr("10.2.1.3"))); !ok {
			t.Error("it was not tried again")
		}
		if problems := tables.All(east.agent.Tables.DB.ReadTxn(), east.agent.Tables.Problems); len(problems) != 0 {
			t.Errorf("problems that are over: %v", problems)
		}
		s, _, _ := east.maps().Services.Lookup(frontend(vip))
		if s.Group[0].Count != 3 {
			t.Errorf("backends: %+v", s.Group[0])
		}
	})
}

func TestAPeerThatLeavesTakesExactlyItsState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, east, _, vip := raise(t)
		east.pod("web-9", "web")
		w.step()
		ctx := context.Background()
		_ = east.cluster.store.Delete(ctx, wire.PeerKey("west"))
		w.step()
		for a, info := range rowsOf(t, east.maps().IPs) {
			if info.Cluster == 2 {
				t.Errorf("left behind: %v %+v", a, info)
			}
		}
		for p, info := range rowsOf(t, east.maps().Prefixes) {
			if info.Cluster == 2 {
				t.Errorf("left behind: %v %+v", p, info)
			}
		}
		if nodes := rowsOf(t, east.maps().Nodes); len(nodes) != 0 {
			t.Errorf("left behind: %v", nodes)
		}
		if got := east.lanes.Peers(); len(got) != 0 {
			t.Errorf("left behind: %v", got)
		}
		s, ok, _ := east.maps().Services.Lookup(frontend(vip))
		if !ok || s.Groups != 1 || s.Group[0].Cluster != 1 || s.Group[0].Count != 1 {
			t.Errorf("the service of the own cluster: %+v, %v", s, ok)
		}
		if _, ok, _ := east.maps().Endpoints.Lookup(bpf.AddrOf(netip.MustParseAddr("10.1.1.2"))); !ok {
			t.Error("an own pod is gone")
		}
	})
}

func TestAPodIsHeldUntilItsPolicyAndIdentityAreThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, east, _, _ := raise(t)
		east.pod("late", "late")
		time.Sleep(time.Second)
		synctest.Wait()
		addr := bpf.AddrOf(netip.MustParseAddr("10.1.1.3"))
		row, ok, _ := east.maps().Endpoints.Lookup(addr)
		if !ok || row.Held != 1 {
			t.Fatalf("without identity: %+v, %v", row, ok)
		}
		w.step()
		if row, _, _ = east.maps().Endpoints.Lookup(addr); row.Held != 0 || row.Identity == 0 {
			t.Errorf("with identity: %+v", row)
		}
		// Deleted explicitly, it goes altogether.
		_ = east.cluster.store.Delete(context.Background(), wire.ObjectKey("pods", "shop", "late"))
		w.step()
		if _, ok, _ := east.maps().Endpoints.Lookup(addr); ok || east.plumbing.Links() != 1 {
			t.Errorf("after its deletion: row %v, %d links", ok, east.plumbing.Links())
		}
	})
}
