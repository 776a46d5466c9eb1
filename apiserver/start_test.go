package apiserver

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

// A cluster that was begun with one service CIDR may be given the other at a restart, and
// keeps what it has.
func TestAServiceCIDRIsAddedAtARestart(t *testing.T) {
	prefix := netip.MustParsePrefix
	s := storetest.New()
	before := `{"name":"east","id":1,"podCIDRs":["10.1.0.0/16"],"serviceCIDR":"10.101.0.0/16","maxConnectedClusters":255,"generation":"g1","released":true}`
	peer := wire.Peer{Name: "west", ID: 2, Connected: true, PodCIDRs: []netip.Prefix{prefix("fd00:10:2::/48")}}
	if err := store.Write(t.Context(), s, store.Put(wire.ClusterKey, []byte(before)), store.Put(wire.PeerKey("west"), wire.Marshal(peer))); err != nil {
		t.Fatal(err)
	}
	want := wire.Cluster{Name: "east", ID: 1, PodCIDRs: []netip.Prefix{prefix("10.1.0.0/16")}, ServiceCIDR: prefix("10.101.0.0/16"), MaxConnectedClusters: 255}
	for _, step := range []struct {
		name, cidr, refused string
	}{
		{"as it was", "", ""},
		{"among a peer's pods", "fd00:10:2:7::/112", "ipv6-service-cidr fd00:10:2:7::/112 overlaps pod CIDR fd00:10:2::/48 of peer west: choose another one"},
		{"added", "fd00:10:101::/112", ""},
		{"again", "fd00:10:101::/112", ""},
		{"another", "fd00:10:103::/112", "ipv6-service-cidr is fd00:10:101::/112 in this store and cannot become fd00:10:103::/112"},
		{"forgotten", "", "ipv6-service-cidr is fd00:10:101::/112 in this store and cannot become"},
	} {
		want.IPv6ServiceCIDR = netip.Prefix{}
		if step.cidr != "" {
			want.IPv6ServiceCIDR = prefix(step.cidr)
		}
		is, err := agree(t.Context(), s, want)
		if step.refused != "" {
			if err == nil || !strings.Contains(err.Error(), step.refused) {
				t.Errorf("%s: %v, want %q", step.name, err, step.refused)
			}
			continue
		}
		if err != nil || is.IPv6ServiceCIDR != want.IPv6ServiceCIDR || is.Generation != "g1" || !is.Released {
			t.Errorf("%s: %+v, %v", step.name, is, err)
		}
		kv, err := s.Get(t.Context(), wire.ClusterKey)
		if err != nil {
			t.Fatal(err)
		}
		if stored, err := wire.Unmarshal[wire.Cluster](kv.Value); err != nil || stored.IPv6ServiceCIDR != want.IPv6ServiceCIDR || step.cidr == "" && string(kv.Value) != before {
			t.Errorf("%s: stored is %s, %v", step.name, kv.Value, err)
		}
	}
}
