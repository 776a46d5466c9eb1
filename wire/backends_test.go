package wire

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
)

// A service keeps as many backends as fit, the lowest addresses, and none of what is
// left out leaves a trace.
func TestShrink(t *testing.T) {
	const backends = 500
	build := func() *ClusterService {
		s := &ClusterService{Cluster: "east", Namespace: "shop", Name: "web", Backends: map[netip.Addr]map[string]L4Addr{}, Hostnames: map[netip.Addr]string{}, Zones: map[netip.Addr]BackendZone{}}
		for i := range backends {
			a := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
			s.Backends[a] = map[string]L4Addr{"http": {"TCP", 8080}, "metrics": {"TCP", 9090}}
			s.Zones[a] = BackendZone{Zone: fmt.Sprint("zone-", i%3), ForZones: []ForZone{{"zone-1"}}}
			if i%2 == 0 {
				s.Hostnames[a] = fmt.Sprint("web-", i)
			}
		}
		return s
	}
	whole := len(Marshal(build()))
	for _, c := range []struct{ most, least, left int }{
		{whole + 10, backends, backends}, // the sum counts a comma too many in each map
		{whole - 100, backends - 3, backends - 1},
		{whole / 2, backends/2 - 5, backends/2 + 5},
		{0, 0, 0},
	} {
		s := build()
		left := s.Shrink(c.most)
		if left < c.least || left > c.left || left != len(s.Backends) {
			t.Errorf("at most %d bytes: %d backends, and it says %d; want %d to %d", c.most, len(s.Backends), left, c.least, c.left)
		}
		if got := len(Marshal(s)); got > c.most && left > 0 {
			t.Errorf("at most %d bytes: %d", c.most, got)
		}
		if len(s.Zones) != left || len(s.Hostnames) != (left+1)/2 {
			t.Errorf("at most %d bytes: %d backends, %d zones, %d hostnames", c.most, left, len(s.Zones), len(s.Hostnames))
		}
		if kept := slices.SortedFunc(maps.Keys(s.Backends), netip.Addr.Compare); left > 0 && kept[left-1] != netip.AddrFrom4([4]byte{10, 1, byte((left - 1) >> 8), byte(left - 1)}) {
			t.Errorf("at most %d bytes: the last of %d is %v", c.most, left, kept[left-1])
		}
	}
}
