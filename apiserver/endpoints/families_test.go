package endpoints

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/apiserver/registry"
	"github.com/weft-mesh/weft/wire"
)

// Of a pod with an address of each family both must be its node's and nobody else's.
func TestNodeLiesAboutNeitherAddress(t *testing.T) {
	run(t, func(e *east) {
		addr := netip.MustParseAddr
		e.put(wire.RegistrationKey("n1"), wire.Registration{Name: "n1", Addresses: []netip.Addr{addr("172.16.1.1")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24"), netip.MustParsePrefix("fd00:10:1:1::/64")}})
		claim := func(pod, ip, second string) {
			s := wire.EndpointState{Namespace: "shop", Pod: pod, IP: addr(ip), Ready: true}
			if second != "" {
				s.Second = addr(second)
			}
			e.put(wire.NodeEndpointKey("n1", "shop", pod), s)
		}
		second := func(pod string) netip.Addr {
			kv, err := e.store.Get(t.Context(), wire.EndpointKey("shop", pod))
			if err != nil {
				return netip.Addr{}
			}
			v, err := wire.Unmarshal[wire.Endpoint](kv.Value)
			if err != nil {
				t.Error(err)
			}
			return v.Second
		}
		e.pod("web-1", "n1", "web")
		e.pod("web-2", "n1", "web")
		claim("web-1", "10.1.1.5", "fd00:10:1:1::5")
		if got := second("web-1"); got != addr("fd00:10:1:1::5") {
			t.Errorf("second address %v", got)
		}
		for _, lie := range []string{"fd00:10:1:2::6", "fd00:10:1:1::1", "fd00:10:1:1::5", "10.1.1.7"} {
			claim("web-2", "10.1.1.6", lie)
		}
		e.want("refused", e.refused(), strings.Join([]string{
			"n1 endpoint 1× address belongs to another pod of the node (shop/web-2 at 10.1.1.6 and fd00:10:1:1::5)",
			"n1 endpoint 1× address is outside the node's pod CIDRs (shop/web-2 at 10.1.1.6 and fd00:10:1:2::6)",
			"n1 endpoint 1× address is the node's own (shop/web-2 at 10.1.1.6 and fd00:10:1:1::1)",
			"n1 endpoint 1× has two addresses of one family (shop/web-2 at 10.1.1.6 and 10.1.1.7)",
		}, "\n"))
		if second("web-2").IsValid() {
			t.Error("one of them is believed")
		}
		// An address that is given up, the second too, is for whoever waits for it.
		claim("web-2", "10.1.1.6", "fd00:10:1:1::5")
		claim("web-1", "10.1.1.5", "")
		if got := second("web-2"); got != addr("fd00:10:1:1::5") || second("web-1").IsValid() {
			t.Errorf("exchanged: %v", got)
		}
	})
}

// Pods with an address of each family are endpoints in the families that the service has, each
// in slices of their own.
func TestSlicesOfTheServicesFamilies(t *testing.T) {
	run(t, func(e *east) {
		e.registry = registry.New(e.store, registry.Config{Cluster: "east", ServiceCIDR: netip.MustParsePrefix("10.101.0.0/16"), IPv6ServiceCIDR: netip.MustParsePrefix("fd00:10:101::/112")})
		addr := netip.MustParseAddr
		e.put(wire.RegistrationKey("n1"), wire.Registration{Name: "n1", Addresses: []netip.Addr{addr("172.16.1.1")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24"), netip.MustParsePrefix("fd00:10:1:1::/64")}})
		claim := func(pod, last string, second, ready bool) {
			s := wire.EndpointState{Namespace: "shop", Pod: pod, IP: addr("10.1.1." + last), Ready: ready}
			if second {
				s.Second = addr("fd00:10:1:1::" + last)
			}
			e.put(wire.NodeEndpointKey("n1", "shop", pod), s)
		}
		serve := func(spec string) { e.apply(strings.Replace(shopService, "spec: {", "spec: {"+spec+", ", 1)) }
		e.pod("web-1", "n1", "web")
		e.pod("web-2", "n1", "web")
		claim("web-1", "5", true, true)
		claim("web-2", "6", false, true) // from before its node had both

		serve("ipFamilyPolicy: SingleStack")
		e.want("IPv4", e.slices(), "web-v4-8080 8080: 10.1.1.5 10.1.1.6")
		serve("ipFamilyPolicy: PreferDualStack")
		e.want("both", e.slices(), "web-v4-8080 8080: 10.1.1.5 10.1.1.6\nweb-v6-8080 8080: fd00:10:1:1::5")
		claim("web-1", "5", true, false)
		e.want("not ready", e.slices(), "web-v4-8080 8080: !10.1.1.5 10.1.1.6\nweb-v6-8080 8080: !fd00:10:1:1::5")
		claim("web-2", "6", true, true)
		e.want("its second address", e.slices(), "web-v4-8080 8080: !10.1.1.5 10.1.1.6\nweb-v6-8080 8080: !fd00:10:1:1::5 fd00:10:1:1::6")
		revision := e.store.Revision()
		stop := e.start() // a second API server
		stop()
		if now := e.store.Revision(); now != revision {
			t.Errorf("a new controller wrote %d times", now-revision)
		}
		claim("web-2", "6", false, true)
		e.want("taken away", e.slices(), "web-v4-8080 8080: !10.1.1.5 10.1.1.6\nweb-v6-8080 8080: !fd00:10:1:1::5")
		serve("ipFamilyPolicy: SingleStack")
		e.want("IPv4 again", e.slices(), "web-v4-8080 8080: !10.1.1.5 10.1.1.6")
		e.delete("services", "shop", "web")
		serve("ipFamilies: [IPv6]")
		e.want("IPv6", e.slices(), "web-v6-8080 8080: !fd00:10:1:1::5")
		e.delete("pods", "shop", "web-1")
		e.want("its pod is gone", e.slices(), "")
	})
}
