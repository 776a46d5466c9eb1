package service

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// where returns a slice with endpoints written as "10.1.1.2 n1 a", a node and a zone or "-"
// for none, and after that any of not-ready, terminating, zones=a,b and nodes=n1,n2.
func where(endpoints ...string) []Slice {
	s := at(8080)[0]
	for _, text := range endpoints {
		words := strings.Fields(text)
		e := Endpoint{Addr: addr(words[0]), Node: strings.Trim(words[1], "-"), Zone: strings.Trim(words[2], "-"), Ready: true, Serving: true}
		hints := Hints{}
		for _, word := range words[3:] {
			switch kind, names, _ := strings.Cut(word, "="); kind {
			case "not-ready":
				e.Ready, e.Serving = false, false
			case "terminating":
				e.Ready, e.Terminating = false, true
			case "zones":
				hints.Zones, e.Hints = strings.Split(names, ","), &hints
			case "nodes":
				hints.Nodes, e.Hints = strings.Split(names, ","), &hints
			}
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return []Slice{s}
}

// tiers writes the backends of each tier by the last byte of their addresses, with the
// cluster before it: "e2 e3 | w2".
func tiers(f Frontend) string {
	var out, tier []string
	for i, g := range f.Groups {
		for _, b := range g.Backends {
			tier = append(tier, fmt.Sprintf("%c%d", " ew"[g.Cluster], b.Addr.As4()[3]))
		}
		if i == len(f.Groups)-1 || f.Groups[i+1].Tier != g.Tier {
			slices.Sort(tier)
			out, tier = append(out, strings.Join(tier, " ")), nil
		}
	}
	return strings.Join(out, " | ")
}

// The client is on n1 in zone a. What Kubernetes has in kube-proxy's tests of topology is
// here too.
func TestTrafficDistribution(t *testing.T) {
	spread := where("10.1.1.2 n1 a", "10.1.1.3 n2 a", "10.1.1.4 n3 b")
	far := where("10.2.1.2 n1 a", "10.2.1.3 n2 c")
	for _, c := range []struct {
		name         string
		distribution string
		affinity     Affinity
		east, west   []Slice
		want         string
	}{
		{"no distribution", "", "", spread, nil, "e2 e3 e4"},
		{"PreferClose", "PreferClose", "", spread, nil, "e2 e3 | e4"},
		{"PreferSameZone", "PreferSameZone", "", spread, nil, "e2 e3 | e4"},
		{"PreferSameNode", "PreferSameNode", "", spread, nil, "e2 | e3 | e4"},
		{"nobody in the zone", "PreferSameZone", "", where("10.1.1.2 n2 b", "10.1.1.3 n3 c"), nil, "e2 e3"},
		{"nobody on the node", "PreferSameNode", "", where("10.1.1.2 n2 a", "10.1.1.3 n3 c"), nil, "e2 | e3"},
		{"those of the zone are not ready", "PreferSameZone", "", where("10.1.1.2 n1 a not-ready", "10.1.1.3 n3 c"), nil, "e3"},
		{"a zone is not known", "PreferSameZone", "", where("10.1.1.2 n1 a", "10.1.1.3 n2 -"), nil, "e2 e3"},
		{"a zone of what is not ready is not known", "PreferSameZone", "", where("10.1.1.2 n1 a", "10.1.1.3 n2 - not-ready", "10.1.1.4 n2 b"), nil, "e2 | e4"},
		{"no zones, but nodes", "PreferSameNode", "", where("10.1.1.2 n1 -", "10.1.1.3 n2 -"), nil, "e2 | e3"},
		{"a node is not known", "PreferSameNode", "", where("10.1.1.2 n1 a", "10.1.1.3 - a", "10.1.1.4 n2 b"), nil, "e2 e3 | e4"},
		{"ready elsewhere before terminating here", "PreferSameNode", "", where("10.1.1.2 n1 a terminating", "10.1.1.3 n3 b"), nil, "e3"},
		{"terminating only: all alike", "PreferSameNode", "", where("10.1.1.2 n1 a terminating", "10.1.1.3 n3 b terminating"), nil, "e2 e3"},

		{"hints for zones", "", "", where("10.1.1.2 n1 b zones=b", "10.1.1.3 n2 b zones=a,c"), nil, "e3 | e2"},
		{"hints for nodes", "", "", where("10.1.1.2 n1 a nodes=n2", "10.1.1.3 n2 b nodes=n1,n3"), nil, "e3 | e2"},
		{"hints for nodes and zones", "", "", where("10.1.1.2 n1 a nodes=n2 zones=a", "10.1.1.3 n2 b nodes=n1 zones=b", "10.1.1.4 n3 c nodes=n3 zones=c"), nil, "e3 | e2 | e4"},
		{"hints of other zones alone", "", "", where("10.1.1.2 n1 a zones=b", "10.1.1.3 n2 b zones=c"), nil, "e2 e3"},
		{"hints of some endpoints only", "", "", where("10.1.1.2 n1 a zones=a", "10.1.1.3 n2 b"), nil, "e2 e3"},
		{"hints for some nodes, for all zones", "", "", where("10.1.1.2 n1 a nodes=n1 zones=a", "10.1.1.3 n2 a zones=a", "10.1.1.4 n3 b zones=b"), nil, "e2 e3 | e4"},
		{"hints before the distribution", "PreferSameZone", "", where("10.1.1.2 n1 a zones=b", "10.1.1.3 n2 b zones=a"), nil, "e3 | e2"},

		{"peers have zones", "PreferSameZone", AffinityNone, spread, far, "e2 e3 w2 | e4 w3"},
		{"peers' nodes are not ours", "PreferSameNode", AffinityNone, spread, far, "e2 | e3 w2 | e4 w3"},
		{"a peer's zone, none of ours", "PreferSameZone", AffinityNone, where("10.1.1.2 n2 b"), far, "w2 | e2 w3"},
		{"affinity local comes first", "PreferSameNode", AffinityLocal, spread, far, "e2 | e3 | e4 | w2 | w3"},
		{"affinity remote comes first", "PreferSameNode", AffinityRemote, spread, far, "w2 | w3 | e2 | e3 | e4"},
		{"a peer's hints for nodes", "", AffinityNone, spread, where("10.2.1.2 n1 a nodes=n1"), "e2 e3 e4 w2"},
		{"a peer's zone is not known", "PreferSameZone", AffinityNone, spread, where("10.2.1.2 n1 a", "10.2.1.3 n2 -"), "e2 e3 | e4 w2 w3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			svc := web(t)
			if c.affinity != "" {
				svc.Global, svc.Affinity = true, c.affinity
			}
			if c.distribution != "" {
				d, ok := DistributionOf(c.distribution)
				if svc.Distribution = d; !ok {
					t.Fatal("unknown")
				}
			}
			from := map[ClusterID][]Slice{east: c.east}
			if c.west != nil {
				from[west] = c.west
			}
			if got := tiers(Frontends(fromEast, svc, from)[0]); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// A node without a zone is near nothing, and a local traffic policy leaves nothing to
// prefer.
func TestTrafficDistributionWithoutEffect(t *testing.T) {
	from := map[ClusterID][]Slice{east: where("10.1.1.2 n2 a", "10.1.1.3 n1 b")}
	svc := web(t)
	svc.Distribution = SameZone
	if got := tiers(Frontends(Client{Cluster: east, Node: "n1"}, svc, from)[0]); got != "e2 e3" {
		t.Errorf("without a zone: %s", got)
	}
	svc.NodeLocal = true
	if got := tiers(Frontends(fromEast, svc, from)[0]); got != "e2 e3" {
		t.Errorf("local: %s", got)
	}
}

// As in kube-proxy: at node ports, the node's own pods and processes have all backends, the
// near ones first, whatever the traffic policies say; clients outside have those on the node
// alone under externalTrafficPolicy Local, however near, and else the same as pods.
func TestNodePortsHaveTheirOwnPolicy(t *testing.T) {
	from := map[ClusterID][]Slice{east: where("10.1.1.2 n2 a", "10.1.1.3 n1 b", "10.1.1.4 n3 a"), west: where("10.2.1.2 n1 a")}
	here := map[ClusterID][]Slice{east: where("10.1.1.3 n1 b")}
	node := []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	for _, c := range []struct {
		internal, external     bool
		inside, nodes, outside string
	}{
		{false, false, "e2 e4 w2 | e3", "e2 e4 w2 | e3", ""},
		{true, false, "e3", "e2 e4 w2 | e3", ""},
		{false, true, "e2 e4 w2 | e3", "e2 e4 w2 | e3", "e3"},
		{true, true, "e3", "e2 e4 w2 | e3", "e3"},
	} {
		svc := web(t, AnnotationGlobal, "true")
		svc.Distribution, svc.NodeLocal, svc.ExternalLocal = SameZone, c.internal, c.external
		svc.Ports[0].NodePort = 30080
		inside := from
		if c.internal {
			inside = here
		}
		got := map[bool]string{}
		for _, f := range Outer(fromEast, svc, node, from, here) {
			if f.Port != 30080 {
				continue
			}
			if f.Split != (c.external && !f.Outside) {
				t.Errorf("%+v", f)
			}
			got[f.Outside] = tiers(f)
		}
		if i := tiers(Frontends(fromEast, svc, inside)[0]); i != c.inside || got[false] != c.nodes || got[true] != c.outside {
			t.Errorf("policies %v %v: inside %q, node port %q, from outside %q", c.internal, c.external, i, got[false], got[true])
		}
	}
}

// How near backends are counts as long as there is room for the groups that it takes.
func TestMoreZonesThanGroups(t *testing.T) {
	svc := web(t, AnnotationGlobal, "true")
	svc.Distribution = SameZone
	all := map[ClusterID][]Slice{}
	for c := ClusterID(1); c <= 16; c++ {
		all[c] = where(fmt.Sprintf("10.%d.1.2 n1 a", c), fmt.Sprintf("10.%d.1.3 n2 b", c))
	}
	f := Frontends(fromEast, svc, all)[0]
	if len(f.Groups) != MaxGroups || f.Flat || f.Groups[15].Tier == f.Groups[16].Tier {
		t.Errorf("%d groups, flat %v: %v", len(f.Groups), f.Flat, f.Groups)
	}
	all[17] = where("10.17.1.2 n1 a", "10.17.1.3 n2 b", "10.17.1.4 n1 a")
	f = Frontends(fromEast, svc, all)[0]
	if len(f.Groups) != 17 || !f.Flat || len(f.Omitted) != 0 || len(f.Groups[16].Backends) != 3 || f.Groups[16].Tier != f.Groups[0].Tier {
		t.Errorf("%d groups, flat %v, omitted %v: %v", len(f.Groups), f.Flat, f.Omitted, f.Groups)
	}
	if !slices.IsSortedFunc(f.Groups[16].Backends, Backend.compare) {
		t.Errorf("not in order: %v", f.Groups[16].Backends)
	}
}

func TestHintsFromKubernetes(t *testing.T) {
	s := SliceFromKubernetes(&discoveryv1.EndpointSlice{Endpoints: []discoveryv1.Endpoint{
		{Addresses: []string{"10.1.1.2"}, Hints: &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "a"}, {Name: "b"}}, ForNodes: []discoveryv1.ForNode{{Name: "n1"}}}},
		{Addresses: []string{"10.1.1.3"}, Hints: &discoveryv1.EndpointHints{}},
	}})
	if h := s.Endpoints[0].Hints; h == nil || fmt.Sprint(*h) != "{[n1] [a b]}" || s.Endpoints[1].Hints != nil {
		t.Errorf("hints %v and %v", s.Endpoints[0].Hints, s.Endpoints[1].Hints)
	}
	for text, want := range map[string]Distribution{"PreferClose": SameZone, "PreferSameZone": SameZone, "PreferSameNode": SameNode} {
		if svc, err := FromKubernetes(&corev1.Service{Spec: corev1.ServiceSpec{TrafficDistribution: &text}}); err != nil || svc.Distribution != want {
			t.Errorf("%s is %d, %v", text, svc.Distribution, err)
		}
	}
	if _, ok := DistributionOf("preferClose"); ok {
		t.Error("an unknown distribution was accepted")
	}
}
