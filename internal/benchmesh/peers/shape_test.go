package peers

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/service"
)

func shape(clusters int) Shape {
	s := PerCluster()
	s.Clusters = clusters
	return s
}

func TestShapesOfTheBench(t *testing.T) {
	large := shape(510)
	large.Split = identity.Split511
	millions := Shape{Clusters: 200, FirstID: 2, Split: identity.Split255, Nodes: 300, Endpoints: 15000, Identities: 100}
	for name, s := range map[string]Shape{"one": shape(1), "250": shape(249), "511": large, "3 million endpoints": millions} {
		if err := s.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		// No two clusters share an address, and none is one of the lab's.
		ours := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12")}
		for i := range s.Clusters {
			p := s.PodCIDR(i)
			if i > 0 && p.Overlaps(s.PodCIDR(i-1)) {
				t.Fatalf("%s: clusters %d and %d overlap", name, i-1, i)
			}
			if err := service.CheckCIDR(p); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			for _, q := range ours {
				if p.Overlaps(q) || q.Contains(s.outside(i, s.nodeRoom()-1)) {
					t.Fatalf("%s: cluster %d has addresses of %v", name, i, q)
				}
			}
			if i > 0 && s.outside(i-1, s.nodeRoom()-1).Compare(s.outside(i, 0)) >= 0 {
				t.Fatalf("%s: nodes of clusters %d and %d overlap", name, i-1, i)
			}
		}
		last := s.slot(s.Clusters-1, s.nodeRoom()-1, s.slots()-1)
		if !s.PodCIDR(s.Clusters - 1).Contains(last) {
			t.Errorf("%s: %v is outside of its cluster", name, last)
		}
	}
	if got := shape(250).Known(); got != 250_000 {
		t.Errorf("250 clusters have %d endpoints", got)
	}
}

func TestShapesThatCannotBe(t *testing.T) {
	for want, change := range map[string]func(*Shape){
		"at least one cluster":  func(s *Shape) { s.Clusters = 0 },
		"exceed the 255":        func(s *Shape) { s.Clusters = 255 },
		"nodes in a cluster":    func(s *Shape) { s.Nodes = 600 },
		"no room for more":      func(s *Shape) { s.Identities = 40000 },
		"has addresses for":     func(s *Shape) { s.Endpoints = 10_000_000 },
		"backends of a service": func(s *Shape) { s.Backends = 1001 },
	} {
		s := shape(250)
		change(&s)
		if err := s.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func TestTheLargeServiceIsSpread(t *testing.T) {
	s := shape(250)
	sum := 0
	for i := range s.Clusters {
		sum += s.large(i)
	}
	if sum != s.Large || s.large(9) != 1000 || s.large(10) != 0 {
		t.Errorf("%d backends in all, %d in the tenth cluster, %d in the eleventh", sum, s.large(9), s.large(10))
	}
	s = shape(3)
	if s.large(2) != 1000 {
		t.Errorf("with too few clusters, one offers %d of its endpoints", s.large(2))
	}
}
