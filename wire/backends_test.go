package wire

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-mesh/weft/service"
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

// Parts of a service that are joined say what the whole says; a single one says it in the
// same bytes.
func TestJoin(t *testing.T) {
	whole, none := NewClusterService(), NewClusterService()
	for _, s := range []*ClusterService{&whole, &none} {
		s.Cluster, s.Namespace, s.Name, s.ClusterID, s.Shared, s.IncludeExternal = "east", "shop", `"backends":{}`, 1, true, true
		s.Labels["hostnames"], s.Selector["zones"] = `"}`, "{}"
		s.Frontends[netip.MustParseAddr("10.101.0.1")] = map[string]L4Addr{"backends": {"TCP", 80}}
	}
	parts := []ServicePart{none.Part()}
	for i := range 6 {
		part := NewClusterService()
		a := netip.AddrFrom4([4]byte{10, 1, 1, byte(i)})
		for _, s := range []*ClusterService{&whole, &part} {
			s.Backends[a] = map[string]L4Addr{"http": {"TCP", 8080}, "metrics": {"TCP", 9090}}
			if i%2 == 0 {
				s.Hostnames[a] = fmt.Sprint("web-", i)
			}
			if i%3 > 0 {
				s.Zones[a] = BackendZone{Zone: "z", ForZones: []ForZone{{"y"}}}
			}
		}
		parts = append(parts, part.Part(), ServicePart{})
	}
	want := string(Marshal(whole))
	for what, got := range map[string][]byte{"as a whole": none.Join([]ServicePart{whole.Part()}), "in parts": none.Join(parts)} {
		if string(got) != want {
			t.Errorf("%s:\n%s\nwant:\n%s", what, got, want)
		}
	}
	if got, want := string(none.Join(nil)), string(Marshal(none)); got != want {
		t.Errorf("without parts:\n%s\nwant:\n%s", got, want)
	}
}

// A service's backends come in one slice for all that have the same ports.
func TestSlicesOfAService(t *testing.T) {
	s := NewClusterService()
	s.Namespace, s.Name, s.Shared = "shop", "web", true
	for i := range byte(6) {
		ports := map[string]L4Addr{"http": {"TCP", 8080}, "metrics": {"TCP", 9090}}
		if i%3 == 2 {
			ports = map[string]L4Addr{"http": {"TCP", 8081}}
		}
		s.Backends[netip.AddrFrom4([4]byte{10, 2, 0, i})] = ports
	}
	var got []string
	for _, slice := range s.Slices() {
		text := slice.Service
		for _, p := range slice.Ports {
			text += fmt.Sprintf(" %s=%d/%s", p.Name, p.Port, p.Protocol)
		}
		for _, e := range slice.Endpoints {
			if text += " " + e.Addr.String(); !e.Ready || !e.Serving {
				t.Errorf("%v is not ready", e.Addr)
			}
		}
		got = append(got, text)
	}
	want := []string{"web http=8080/TCP metrics=9090/TCP 10.2.0.0 10.2.0.1 10.2.0.3 10.2.0.4", "web http=8081/TCP 10.2.0.2 10.2.0.5"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if s.Shared = false; s.Slices() != nil {
		t.Error("a service that is not shared offers backends")
	}
}

// Where backends are, and which clients they are meant for, is read from both formats.
func TestZonesOfBackends(t *testing.T) {
	old, addr := NewClusterService(), netip.MustParseAddr
	old.Shared = true
	for _, text := range []string{"10.2.0.1", "10.2.0.2", "10.2.0.3"} {
		old.Backends[addr(text)] = map[string]L4Addr{"http": {"TCP", 8080}}
	}
	old.Zones[addr("10.2.0.1")] = BackendZone{Zone: "a", ForZones: []ForZone{{"a"}, {"b"}}}
	old.Zones[addr("10.2.0.2")] = BackendZone{Zone: "b", ForZones: []ForZone{}}
	newer := ClusterEndpointSlice{Endpoints: []SliceEndpoint{
		{Addresses: []string{"10.2.0.1"}, Zone: "a", ForZones: []string{"a", "b"}}, {Addresses: []string{"10.2.0.2"}, Zone: "b"}, {Addresses: []string{"10.2.0.3"}},
	}}
	for name, ends := range map[string][]service.Endpoint{"older": old.Slices()[0].Endpoints, "newer": newer.Slice().Endpoints} {
		var got []string
		for _, e := range ends {
			text := fmt.Sprintf("%v %q", e.Addr, e.Zone)
			if e.Hints != nil {
				text += fmt.Sprint(" for ", e.Hints.Zones)
			}
			got = append(got, text)
		}
		if want := []string{`10.2.0.1 "a" for [a b]`, `10.2.0.2 "b"`, `10.2.0.3 ""`}; !slices.Equal(got, want) {
			t.Errorf("%s format: %q, want %q", name, got, want)
		}
	}
}
