package meshagent

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/bpf"
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
