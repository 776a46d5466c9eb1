package tunnel

import (
	"net/netip"
	"testing"
)

func TestWantedRoutes(t *testing.T) {
	want := Network{
		Internal: netip.MustParseAddr("10.1.1.1"),
		Members:  []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")},
		Local:    []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24")},
	}
	want.Members = append(want.Members, netip.MustParsePrefix("fd00:10:2::/48")) // a dual-stack peer's
	want.Former = []netip.Prefix{netip.MustParsePrefix("10.3.0.0/16"), netip.MustParsePrefix("fd00:10:3::/48")}
	both := wantedRoutes([2]int{7, 8}, want)
	none := wantedRoutes([2]int{}, want)
	member, former, local := want.Members[0], want.Former[0], want.Local[0]
	if got := both[routeKey{member, metricLane}]; got != (routeWant{7, want.Internal}) {
		t.Errorf("by lane 0: %+v", got)
	}
	if got := both[routeKey{member, metricLane + 1}]; got != (routeWant{8, want.Internal}) {
		t.Errorf("by lane 1: %+v", got)
	}
	for name, routes := range map[string]map[routeKey]routeWant{"with lanes": both, "without": none} {
		for _, prefix := range []netip.Prefix{member, former, local} {
			if w, there := routes[routeKey{prefix, metricUnreachable}]; !there || w.device != 0 {
				t.Errorf("%s, %v has a way out in the clear", name, prefix)
			}
		}
	}
	if len(both) != 5 || len(none) != 3 { // none of them IPv6
		t.Errorf("%d routes with lanes, %d without, want 5 and 3", len(both), len(none))
	}

	// With a pod CIDR of IPv6 of its own, the node has the same routes there.
	want.Second, want.Local = netip.MustParseAddr("fd00:10:1:1::1"), append(want.Local, netip.MustParsePrefix("fd00:10:1:1::/64"))
	both, none = wantedRoutes([2]int{7, 8}, want), wantedRoutes([2]int{}, want)
	if got := both[routeKey{want.Members[1], metricLane}]; got != (routeWant{7, want.Second}) {
		t.Errorf("IPv6 by lane 0: %+v", got)
	}
	for _, prefix := range []netip.Prefix{want.Members[1], want.Former[1], want.Local[1]} {
		if w, there := none[routeKey{prefix, metricUnreachable}]; !there || w.device != 0 {
			t.Errorf("%v has a way out in the clear", prefix)
		}
	}
	if len(both) != 10 || len(none) != 6 {
		t.Errorf("of both families, %d routes with lanes, %d without, want 10 and 6", len(both), len(none))
	}
}
