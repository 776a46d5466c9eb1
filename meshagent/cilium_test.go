package meshagent

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/wire"
)

// A peer that runs Cilium is known by its pods, identities and services, as our API server
// mirrors them. Its nodes have no tunnels of ours: nothing may be sent to them, and no
// service may choose its backends, also after a restart, when the kernel has its row.
func TestNothingIsSentToACiliumPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		east, c := w.node("east", 1), w.clusters["east"]
		vip := c.web(t, global)
		east.pod("client", "client")
		pod, cidr := netip.MustParseAddr("10.3.1.2"), netip.MustParsePrefix("10.3.0.0/16")
		c.put(t, wire.PeerKey("south"), wire.Peer{Name: "south", ID: 3, PodCIDRs: []netip.Prefix{cidr}, MaxConnectedClusters: 255, Connected: true, Cilium: true})
		const key = "VRksOB6ZNds4oXWIGfSVpvc0gBhcOWFmzvTDcyvULlI=" // of Cilium's own WireGuard
		for key, text := range map[string]string{
			wire.ClusterConfigKey("south"): `{"id":3,"capabilities":{"syncedCanaries":true,"cached":true,"maxConnectedClusters":255,"endpointSlicesExportMode":"services-and-endpointslices"}}`,
			wire.Nodes.CachePrefix("south") + "worker": `{"Name":"worker","Cluster":"south","IPAddresses":[{"Type":"InternalIP","IP":"172.18.0.2"},{"Type":"CiliumInternalIP","IP":"10.3.1.10"}],` +
				`"IPv4AllocCIDR":{"IP":"10.3.1.0","Mask":"////AA=="},"ClusterID":3,"Source":"custom-resource","EncryptionKey":255,"WireguardPubKey":"` + key + `"}`,
			wire.Identities.CachePrefix("south") + "196609": "k8s:app=web;k8s:io.cilium.k8s.policy.cluster=south;k8s:io.kubernetes.pod.namespace=shop;",
			wire.IPs.CachePrefix("south") + pod.String():    `{"IP":"10.3.1.2","HostIP":"172.18.0.2","ID":196609,"Key":255,"Metadata":"","K8sNamespace":"shop","K8sPodName":"web-1"}`,
			wire.Services.CachePrefix("south") + "shop/web": `{"cluster":"south","namespace":"shop","name":"web","backends":{"10.3.1.2":{"":{"Protocol":"TCP","Port":8080}}},"includeExternal":true,"shared":true,"clusterID":3}`,
		} {
			c.putRaw(key, []byte(text))
		}
		ready := true
		c.putRaw(wire.EndpointSlices.CachePrefix("south")+"shop/web-x7k2p", (&wire.ClusterEndpointSlice{
			Cluster: "south", ClusterID: 3, Namespace: "shop", Name: "web-x7k2p", Labels: map[string]string{wire.ServiceNameLabel: "web"}, AddressType: "IPv4",
			Endpoints: []wire.SliceEndpoint{{Addresses: []string{pod.String()}, Conditions: wire.Conditions{Ready: &ready}, NodeName: "worker"}}, Ports: []wire.SlicePort{{Protocol: "TCP", Port: 8080}},
		}).Marshal())
		for _, r := range wire.Resources {
			c.putRaw(r.CacheSyncedKey("south"), wire.TimeText(time.Now()))
		}
		east.run()
		w.step()

		for _, when := range []string{"at first", "after a restart"} {
			time.Sleep(2 * lastingAfter)
			synctest.Wait()
			info, ok, _ := east.maps().IPs.Lookup(bpf.AddrOf(pod))
			if !ok || info.Identity != 196609 || info.Cluster != 3 || info.Node == 0 || info.Flags != bpf.IPMember {
				t.Errorf("%s: its pod is %+v, %v", when, info, ok)
			}
			if prefix, ok, _ := east.maps().Prefixes.Lookup(bpf.PrefixOf(cidr)); !ok || prefix.Flags != bpf.IPMember {
				t.Errorf("%s: its CIDR is %+v, %v", when, prefix, ok)
			}
			if node, ok, _ := east.maps().Nodes.Lookup(uint32(info.Node)); !ok || node.Keyed != 0 || node.Cluster != 3 {
				t.Errorf("%s: packets may be sent to its node: %+v, %v", when, node, ok)
			}
			if peers := east.lanes.Peers(); len(peers) != 0 {
				t.Errorf("%s: tunnels to %v", when, peers)
			}
			service, ok, _ := east.maps().Services.Lookup(frontend(vip))
			if !ok || service.Groups != 1 || service.Group[0] != (bpf.Group{Count: 1, Cluster: 3, Weight: 0}) {
				t.Errorf("%s: the service may choose its backend: %+v, %v", when, service, ok)
			}
			for _, p := range tables.All(east.agent.Tables.DB.ReadTxn(), east.agent.Tables.Problems) {
				t.Errorf("%s: problem %+v", when, p)
			}
			if when == "at first" {
				east.stop()
				east.run()
			}
		}
		east.stop()
	})
}
