package export

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// A node and a pod of both families are exported as Cilium exports them: a CIDR and an
// internal address of each, and a key for each address.
func TestBothFamilies(t *testing.T) {
	dual := func(b *bench) {
		b.cluster.PodCIDRs = append(slices.Clone(b.cluster.PodCIDRs), netip.MustParsePrefix("fd00:10:1::/48"))
	}
	run(t, dual, func(b *bench) {
		r, n := node(1)
		r.PodCIDRs = append(r.PodCIDRs, netip.MustParsePrefix("fd00:10:1:1::/64"))
		n.PodCIDRs = r.PodCIDRs
		b.put(wire.RegistrationKey("n1"), r)
		b.put(wire.NodeKey("n1"), n)
		e := endpoint("shop", "web-1", "10.1.1.5", 65540)
		e.Second = netip.MustParseAddr("fd00:10:1:1::5")
		b.put(wire.EndpointKey("shop", "web-1"), e)
		key := "cilium/state/nodes/v1/east/n1"
		both := []string{"cilium/state/ip/v1/default/10.1.1.5", "cilium/state/ip/v1/default/fd00:10:1:1::5"}
		b.expect(append(both, key, "weft/export/nodes/n1")...)
		if got := b.value(key); !strings.Contains(got, `"IPAddresses":[{"Type":"InternalIP","IP":"172.16.1.1"},{"Type":"CiliumInternalIP","IP":"10.1.1.1"},{"Type":"CiliumInternalIP","IP":"fd00:10:1:1::1"}],`+
			`"IPv4AllocCIDR":{"IP":"10.1.1.0","Mask":"////AA=="},"IPv4SecondaryAllocCIDRs":null,"IPv6AllocCIDR":{"IP":"fd00:10:1:1::","Mask":"//////////8AAAAAAAAAAA=="},`) {
			t.Errorf("node %s", got)
		}
		if got := b.value(both[1]); !strings.HasPrefix(got, `{"IP":"fd00:10:1:1::5","Mask":null,"HostIP":"172.16.1.1","ID":65540,"Key":255,`) || !strings.Contains(got, `"K8sPodName":"web-1"`) {
			t.Errorf("address %s", got)
		}

		// The second address changes hands, as the first does.
		e.Second = netip.MustParseAddr("fd00:10:1:1::6")
		b.put(wire.EndpointKey("shop", "web-1"), e)
		b.expect(both[0], "cilium/state/ip/v1/default/fd00:10:1:1::6", key, "weft/export/nodes/n1")
		b.write(store.Delete(wire.EndpointKey("shop", "web-1")))
		b.expect(key, "weft/export/nodes/n1")
	})
}

// A service of both families is exported as Cilium exports it: in the older format with the
// addresses and backends of both, in the newer one with slices of each.
func TestServiceOfBothFamilies(t *testing.T) {
	dual := func(b *bench) {
		b.cluster.PodCIDRs = append(slices.Clone(b.cluster.PodCIDRs), netip.MustParsePrefix("fd00:10:1::/48"))
	}
	run(t, dual, func(b *bench) {
		svc := webService(global)
		svc.Spec.ClusterIPs = []string{"10.101.0.1", "fd00:10:101::1"}
		six := webSlice("fd00:10:1:1::2", "fd00:10:2:1::2")
		six.Name, six.AddressType = "web-v6", discoveryv1.AddressTypeIPv6
		b.put(wire.ObjectKey("services", "shop", "web"), svc)
		b.put(wire.ObjectKey("endpointslices", "shop", "web-v4"), webSlice("10.1.1.2"))
		b.put(wire.ObjectKey("endpointslices", "shop", "web-v6"), six)
		older, v4, v6 := wire.ServiceStateKey("east", "shop", "web"), wire.SliceStateKey("east", "shop", "web-v4"), wire.SliceStateKey("east", "shop", "web-v6")
		b.expect(older, v4, v6)
		front, back := `{"http":{"Protocol":"TCP","Port":80}}`, `{"http":{"Protocol":"TCP","Port":8080}}`
		if got, want := b.value(older), `"frontends":{"10.101.0.1":`+front+`,"fd00:10:101::1":`+front+`},"backends":{"10.1.1.2":`+back+`,"fd00:10:1:1::2":`+back+`},`; !strings.Contains(got, want) {
			t.Errorf("older format %s, want %s in it", got, want)
		}
		for key, want := range map[string]string{v4: "IPv4 10.1.1.2", v6: "IPv6 fd00:10:1:1::2"} {
			ref := wire.CacheRef{Cluster: "east", Namespace: "shop", Name: key[strings.LastIndexByte(key, '/')+1:]}
			s, err := wire.ParseSlice(ref, 1, []byte(b.value(key)))
			if err != nil || len(s.Endpoints) != 1 || s.AddressType+" "+s.Endpoints[0].Addresses[0] != want {
				t.Errorf("%s is %+v, %v", key, s, err)
			}
		}
		if got := b.exp.Status().Problems[wire.ObjectKey("services", "shop", "web")]; !strings.HasSuffix(got, "left out: fd00:10:2:1::2 of slice web-v6") {
			t.Errorf("problem %q", got)
		}

		// It gives up the second family.
		b.put(wire.ObjectKey("services", "shop", "web"), webService(global))
		b.write(store.Delete(wire.ObjectKey("endpointslices", "shop", "web-v6")))
		b.expect(older, v4)
		if got := b.value(older); strings.Contains(got, "fd00") {
			t.Errorf("older format %s", got)
		}
	})
}
