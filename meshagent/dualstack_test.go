package meshagent

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/wire"
)

// A peer may be a dual-stack cluster: its IPv6 CIDRs, addresses and slices are no problem
// on any node, they reach no map that could let them through, and IPv4 goes on.
func TestADualStackPeerIsNoLastingProblem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, east, west, _ := raise(t)
		c := w.clusters["east"]
		six := netip.MustParsePrefix("fd00:10:2::/48")
		text, _ := c.store.Value(wire.PeerKey("west"))
		peer, err := wire.Unmarshal[wire.Peer](text)
		if err != nil {
			t.Fatal(err)
		}
		peer.PodCIDRs = append(peer.PodCIDRs, six)
		c.put(t, wire.PeerKey("west"), peer)
		key := wire.Nodes.CachePrefix("west") + west.name
		text, _ = c.store.Value(key)
		var node wire.Node
		if err := json.Unmarshal(text, &node); err != nil {
			t.Fatal(err)
		}
		node.SetPodCIDRs(append(node.PodCIDRs(), netip.MustParsePrefix("fd00:10:2:1::/64")))
		node.IPAddresses = append(node.IPAddresses,
			wire.NodeAddress{Type: wire.NodeInternalIP, IP: netip.MustParseAddr("fd00:172:16::1")},
			wire.NodeAddress{Type: wire.NodeCiliumInternalIP, IP: netip.MustParseAddr("fd00:10:2:1::1")})
		node.IPv6HealthIP = netip.MustParseAddr("fd00:10:2:1::9")
		c.putRaw(key, wire.Marshal(node))
		pod := netip.MustParseAddr("fd00:10:2:1::2")
		number := w.clusters["west"].next - 1
		c.putRaw(wire.IPs.CachePrefix("west")+pod.String(), wire.Marshal(wire.IPIdentityPair{IP: pod, HostIP: west.ip(), ID: number, K8sNamespace: "shop", K8sPodName: "web-1"}))
		c.putRaw(wire.EndpointSlices.CachePrefix("west")+"shop/web-v6", (&wire.ClusterEndpointSlice{
			Cluster: "west", ClusterID: 2, Namespace: "shop", Name: "web-v6", Labels: map[string]string{wire.ServiceNameLabel: "web"}, AddressType: "IPv6",
			Endpoints: []wire.SliceEndpoint{{Addresses: []string{pod.String()}, NodeName: west.name}}, Ports: []wire.SlicePort{{Protocol: "TCP", Port: 8080}},
		}).Marshal())

		// Through a restart of the agent, too.
		for _, when := range []string{"it becomes one", "the agent starts again"} {
			time.Sleep(2 * lastingAfter)
			synctest.Wait()
			for _, p := range tables.All(east.agent.Tables.DB.ReadTxn(), east.agent.Tables.Problems) {
				t.Errorf("%s: problem %+v", when, p)
			}
			if net := east.host.Network(); len(net.Members) != 3 {
				t.Errorf("%s: members %v", when, net.Members)
			}
			if row, ok, _ := east.maps().IPs.Lookup(bpf.AddrOf(netip.MustParseAddr("10.2.1.2"))); !ok || row.Cluster != 2 || row.Node == 0 {
				t.Errorf("%s: west's pod is %+v, %v", when, row, ok)
			}
			for addr, row := range rowsOf(t, east.maps().Backends) {
				if strings.Contains(row.Addr.String(), "fd00") {
					t.Errorf("%s: backend %v is %+v", when, addr, row)
				}
			}
			east.stop()
			east.run()
		}
		east.stop()
		west.stop()
	})
}

// In clusters with pod CIDRs of both families, all that holds of a pod's first address holds of
// its second: who it is, where, by which policies it is judged, and that it is encrypted.
func TestAPodOfBothFamiliesIsOneToEveryone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorldOf(t, true)
		east, west := w.node("east", 1), w.node("west", 1)
		w.peer()
		w.clusters["west"].web(t, global)
		east.pod("client", "client")
		west.pod("web-1", "web")
		east.run()
		west.run()
		w.step()

		addr := netip.MustParseAddr
		four, six := bpf.AddrOf(addr("10.2.1.2")), bpf.AddrOf(addr("fd00:10:2:1::2"))
		first, _, _ := west.maps().Endpoints.Lookup(four)
		second, ok, _ := west.maps().Endpoints.Lookup(six)
		if !ok || first != second || second.Held != 0 || second.Identity == 0 || second.Ifindex == 0 {
			t.Errorf("in west it is %+v and %+v", first, second)
		}
		first4, _, _ := east.maps().IPs.Lookup(four)
		second6, ok, _ := east.maps().IPs.Lookup(six)
		if !ok || first4 != second6 || second6.Cluster != 2 || second6.Node == 0 || second6.Identity != first.Identity {
			t.Errorf("in east it is %+v and %+v", first4, second6)
		}
		if row, ok, _ := east.maps().IPs.Lookup(bpf.AddrOf(addr("fd00:10:2:1::1"))); !ok || row.Identity != uint32(identity.RemoteNode) || row.Node != second6.Node {
			t.Errorf("west's node is %+v, %v", row, ok)
		}
		for _, cidr := range []string{"fd00:10:2::/48", "fd00:10:2:1::/64", "fd00:10:1::/48"} {
			if row, ok, _ := east.maps().Prefixes.Lookup(bpf.PrefixOf(netip.MustParsePrefix(cidr))); !ok || row.Flags&bpf.IPMember == 0 {
				t.Errorf("%s in east: %+v, %v", cidr, row, ok)
			}
		}
		settings, _, _ := east.maps().Settings.Lookup(0)
		if settings.Internal != [2]bpf.Addr{bpf.AddrOf(east.internal()), bpf.AddrOf(addr("fd00:10:1:1::1"))} {
			t.Errorf("the node's own addresses are %v", settings.Internal)
		}
		if n := east.host.Network(); n.Second != addr("fd00:10:1:1::1") || len(n.Local) != 2 || !slices.Contains(n.Members, netip.MustParsePrefix("fd00:10:2::/48")) {
			t.Errorf("network %+v", n)
		}
		status, err := east.lanes.Status(t.Context())
		if err != nil || len(status.Peers) != 1 {
			t.Fatalf("tunnels %+v, %v", status, err)
		}
		text, _ := w.clusters["west"].store.Value(wire.NodeKey(west.name))
		state, err := wire.Unmarshal[wire.NodeState](text)
		if err != nil || !slices.Equal(state.PodCIDRs, west.cidrs()) || state.Internal != west.internal() {
			t.Errorf("west's node says %+v, %v", state, err)
		}

		// A policy that begins to select the pod changes the rows of both addresses.
		w.clusters["west"].putRaw(wire.ObjectKey("ciliumnetworkpolicies", "shop", "nobody"), []byte(`{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{"namespace":"shop","name":"nobody"},"spec":{"endpointSelector":{"matchLabels":{"app":"web"}},"ingress":[{}]}}`))
		w.step()
		was := first.Set
		first, _, _ = west.maps().Endpoints.Lookup(four)
		second, _, _ = west.maps().Endpoints.Lookup(six)
		if first != second || first.Set == was {
			t.Errorf("under a policy it is %+v and %+v", first, second)
		}

		// An agent that starts again keeps both; with the pod both go.
		west.stop()
		west.run()
		w.step()
		if row, _, _ := west.maps().Endpoints.Lookup(six); row != second {
			t.Errorf("restarted: %+v, before %+v", row, second)
		}
		_ = w.clusters["west"].store.Delete(t.Context(), wire.ObjectKey("pods", "shop", "web-1"))
		w.step()
		for _, a := range []bpf.Addr{four, six} {
			if row, ok, _ := west.maps().Endpoints.Lookup(a); ok {
				t.Errorf("removed, in west: %v is %+v", a, row)
			}
			if row, ok, _ := east.maps().IPs.Lookup(a); ok {
				t.Errorf("removed, in east: %v is %+v", a, row)
			}
		}
		east.stop()
		west.stop()
	})
}

// A service of both families has a frontend of each, with the backends of its own family in
// every cluster, whatever families the peer's service has.
func TestAServiceOfBothFamiliesIsTwoFrontends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorldOf(t, true)
		east, west := w.node("east", 1), w.node("west", 1)
		w.peer()
		four, six := w.clusters["east"].web(t, global), netip.MustParseAddr("fd00:10:101::10")
		w.clusters["west"].web(t, global)
		east.pod("web-0", "web")
		west.pod("web-1", "web")
		east.run()
		west.run()
		w.step()

		backends := func(vip netip.Addr) string {
			row, ok, _ := east.maps().Services.Lookup(frontend(vip))
			if !ok {
				return "none"
			}
			var out []string
			for _, g := range row.Group[:row.Groups] {
				for i := range g.Count {
					b, _, _ := east.maps().Backends.Lookup(bpf.SlotKey{Service: row.ID, Slot: i, Cluster: g.Cluster})
					out = append(out, b.Addr.String())
				}
			}
			return strings.Join(out, " ")
		}
		want := func(when, want4, want6 string) {
			t.Helper()
			if got4, got6 := backends(four), backends(six); got4 != want4 || got6 != want6 {
				t.Errorf("%s: %s and %s, want %s and %s", when, got4, got6, want4, want6)
			}
		}
		const in4, in6, there4, there6 = "10.1.1.2", "fd00:10:1:1::2", "10.2.1.2", "fd00:10:2:1::2"
		want("both", in4+" "+there4, in6+" "+there6)
		if row, ok, _ := east.maps().Prefixes.Lookup(bpf.PrefixOf(netip.MustParsePrefix("fd00:10:101::/112"))); !ok || row.Flags != bpf.IPService {
			t.Errorf("the service CIDR is %+v, %v", row, ok)
		}

		// West gives up one family, then the other.
		only := func(ip string) {
			c := w.clusters["west"]
			text, _ := c.store.Value(wire.ObjectKey("services", "shop", "web"))
			svc, err := wire.Unmarshal[corev1.Service](text)
			if err != nil {
				t.Fatal(err)
			}
			svc.Spec.ClusterIP, svc.Spec.ClusterIPs = ip, []string{ip}
			c.put(t, wire.ObjectKey("services", "shop", "web"), svc)
			for _, name := range []string{"web-v4", "web-v6"} {
				_ = c.store.Delete(t.Context(), wire.ObjectKey("endpointslices", "shop", name))
			}
			w.step()
		}
		only("10.102.0.10")
		want("west has IPv4", in4+" "+there4, in6)
		only("fd00:10:102::10")
		want("west has IPv6", in4, in6+" "+there6)

		// East does: the frontend goes, and the other stays as it is.
		c := w.clusters["east"]
		text, _ := c.store.Value(wire.ObjectKey("services", "shop", "web"))
		svc, err := wire.Unmarshal[corev1.Service](text)
		if err != nil {
			t.Fatal(err)
		}
		svc.Spec.ClusterIP, svc.Spec.ClusterIPs = six.String(), []string{six.String()}
		c.put(t, wire.ObjectKey("services", "shop", "web"), svc)
		w.step()
		want("east has IPv6", "none", in6+" "+there6)
		for _, p := range tables.All(east.agent.Tables.DB.ReadTxn(), east.agent.Tables.Problems) {
			t.Errorf("problem %+v", p)
		}
		east.stop()
		west.stop()
	})
}
