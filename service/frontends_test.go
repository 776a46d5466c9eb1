package service

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }
func ptr[T any](v T) *T        { return &v }

const (
	east ClusterID = 1
	west ClusterID = 2
)

// fromEast is a client on n1 in zone a.
var fromEast = Client{Cluster: east, Node: "n1", Zone: "a"}

// web returns a service of east with one port; pairs are names and values of annotations.
func web(t *testing.T, pairs ...string) *Service {
	t.Helper()
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", Annotations: map[string]string{}},
		Spec: corev1.ServiceSpec{
			ClusterIP: "10.101.0.1",
			Ports:     []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}},
		},
	}
	for i := 0; i < len(pairs); i += 2 {
		svc.Annotations[pairs[i]] = pairs[i+1]
	}
	s, err := FromKubernetes(svc)
	if err != nil {
		t.Fatal(err)
	}
	return &s
}

// at returns a slice with endpoints written as "10.1.1.2", "10.1.1.2 not-ready",
// "10.1.1.2 serving", "10.1.1.2 terminating", "10.1.1.2 draining".
func at(port uint16, endpoints ...string) []Slice {
	s := Slice{Namespace: "shop", Name: "web-1", Service: "web", Ports: []SlicePort{{"http", TCP, port}}}
	for _, text := range endpoints {
		a, state, _ := strings.Cut(text, " ")
		e := Endpoint{Addr: addr(a), Node: "n"}
		switch state {
		case "":
			e.Ready, e.Serving = true, true
		case "serving":
			e.Serving = true
		case "terminating":
			e.Serving, e.Terminating = true, true
		case "draining":
			e.Serving, e.Draining = true, true
		case "terminating and draining":
			e.Serving, e.Terminating, e.Draining = true, true, true
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return []Slice{s}
}

// text writes groups as "tier cluster: backends (draining)".
func text(f Frontend) string {
	var lines []string
	for _, g := range f.Groups {
		line := fmt.Sprintf("%d %d:", g.Tier, g.Cluster)
		for _, b := range g.Backends {
			line += fmt.Sprintf(" %v:%d", b.Addr, b.Port)
		}
		for _, b := range g.Draining {
			line += fmt.Sprintf(" (%v:%d)", b.Addr, b.Port)
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

func TestGlobalServices(t *testing.T) {
	both := map[ClusterID][]Slice{east: at(8080, "10.1.1.2"), west: at(8081, "10.2.1.2")}
	for _, c := range []struct {
		name        string
		annotations []string
		slices      map[ClusterID][]Slice
		want        string
	}{
		{"not global is local only", nil, both, "0 1: 10.1.1.2:8080"},
		{"global false is local only", []string{AnnotationGlobal, "false"}, both, "0 1: 10.1.1.2:8080"},
		{"global merges, ports from each cluster", []string{AnnotationGlobal, "true"}, both, "0 1: 10.1.1.2:8080\n0 2: 10.2.1.2:8081"},
		{"the older name counts", []string{"io.cilium/global-service", "true"}, both, "0 1: 10.1.1.2:8080\n0 2: 10.2.1.2:8081"},
		{"the newer name wins", []string{AnnotationGlobal, "false", "io.cilium/global-service", "true"}, both, "0 1: 10.1.1.2:8080"},
		{"not shared still consumes", []string{AnnotationGlobal, "true", AnnotationShared, "false"}, both, "0 1: 10.1.1.2:8080\n0 2: 10.2.1.2:8081"},
		{"affinity local", []string{AnnotationGlobal, "True", AnnotationAffinity, "local"}, both, "0 1: 10.1.1.2:8080\n3 2: 10.2.1.2:8081"},
		{"affinity remote", []string{AnnotationGlobal, "true", AnnotationAffinity, "remote"}, both, "0 2: 10.2.1.2:8081\n3 1: 10.1.1.2:8080"},
		{"affinity by its older name", []string{AnnotationGlobal, "true", "io.cilium/service-affinity", "remote"}, both, "0 2: 10.2.1.2:8081\n3 1: 10.1.1.2:8080"},
		{"affinity none is no affinity", []string{AnnotationGlobal, "true", AnnotationAffinity, "none"}, both, "0 1: 10.1.1.2:8080\n0 2: 10.2.1.2:8081"},
		{"an unknown affinity is none", []string{AnnotationGlobal, "true", AnnotationAffinity, "nearest"}, both, "0 1: 10.1.1.2:8080\n0 2: 10.2.1.2:8081"},
		{"affinity without global has no effect", []string{AnnotationAffinity, "remote"}, both, "0 1: 10.1.1.2:8080"},
		{"local unhealthy leaves remote", []string{AnnotationGlobal, "true", AnnotationAffinity, "local"},
			map[ClusterID][]Slice{east: at(8080, "10.1.1.2 not-ready"), west: at(8080, "10.2.1.2")}, "3 2: 10.2.1.2:8080"},
		{"terminating is no match for ready elsewhere", []string{AnnotationGlobal, "true", AnnotationAffinity, "local"},
			map[ClusterID][]Slice{east: at(8080, "10.1.1.2 terminating"), west: at(8080, "10.2.1.2")}, "3 2: 10.2.1.2:8080\n6 1: 10.1.1.2:8080"},
		{"terminating drains beside ready", nil,
			map[ClusterID][]Slice{east: at(8080, "10.1.1.2 terminating", "10.1.1.3")}, "0 1: 10.1.1.3:8080 (10.1.1.2:8080)"},
		{"terminating serves where nobody is ready", nil,
			map[ClusterID][]Slice{east: at(8080, "10.1.1.2 terminating", "10.1.1.3 not-ready")}, "6 1: 10.1.1.2:8080"},
		{"not ready keeps nothing but open TCP, which needs no row", nil,
			map[ClusterID][]Slice{east: at(8080, "10.1.1.2 not-ready", "10.1.1.3 serving", "10.1.1.4")}, "0 1: 10.1.1.4:8080"},
		{"not ready, and nobody else", nil, map[ClusterID][]Slice{east: at(8080, "10.1.1.2 not-ready")}, ""},
		{"draining beside ready and terminating", nil,
			map[ClusterID][]Slice{east: at(8080, "10.1.1.2 terminating", "10.1.1.3", "10.1.1.4 draining")}, "0 1: 10.1.1.3:8080 (10.1.1.2:8080) (10.1.1.4:8080)"},
		{"draining, and nobody else", nil,
			map[ClusterID][]Slice{east: at(8080, "10.1.1.2 draining", "10.1.1.3 terminating and draining")}, "0 1: (10.1.1.2:8080) (10.1.1.3:8080)"},
		{"terminating serves, draining does not", nil,
			map[ClusterID][]Slice{east: at(8080, "10.1.1.2 terminating", "10.1.1.3 draining")}, "6 1: 10.1.1.2:8080 (10.1.1.3:8080)"},
		{"drained in one slice, ready in another", nil,
			map[ClusterID][]Slice{east: append(at(8080, "10.1.1.2 draining"), at(8080, "10.1.1.2")...)}, "0 1: 10.1.1.2:8080"},
		{"in two slices at once", nil,
			map[ClusterID][]Slice{east: append(at(8080, "10.1.1.2 not-ready"), at(8080, "10.1.1.2")...)}, "0 1: 10.1.1.2:8080"},
		{"nobody", []string{AnnotationGlobal, "true"}, nil, ""},
		{"other family", nil, map[ClusterID][]Slice{east: at(8080, "fd00::1")}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := Frontends(fromEast, web(t, c.annotations...), c.slices)
			if len(got) != 1 || got[0].Addr != addr("10.101.0.1") || got[0].Port != 80 || got[0].Protocol != TCP {
				t.Fatalf("frontends: %+v", got)
			}
			if diff := cmp.Diff(c.want, text(got[0])); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestSharing(t *testing.T) {
	for _, c := range []struct {
		name        string
		annotations []string
		exported    bool
	}{
		{"plain", nil, false},
		{"global", []string{AnnotationGlobal, "true"}, true},
		{"global and shared", []string{AnnotationGlobal, "true", AnnotationShared, "true"}, true},
		{"global, not shared", []string{AnnotationGlobal, "true", AnnotationShared, "false"}, false},
		{"global, shared by its older name", []string{AnnotationGlobal, "true", "io.cilium/shared-service", "false"}, false},
		{"shared alone", []string{AnnotationShared, "true"}, false},
	} {
		if s := web(t, c.annotations...); s.Exported() != c.exported {
			t.Errorf("%s: exported %v", c.name, s.Exported())
		}
	}
}

func TestPortMatching(t *testing.T) {
	http, dns := SlicePort{"http", TCP, 8080}, SlicePort{"dns", UDP, 5353}
	for _, c := range []struct {
		name string
		port Port
		have []SlicePort
		want uint16
	}{
		{"by name", Port{Name: "http", Protocol: TCP}, []SlicePort{{"admin", TCP, 9000}, http}, 8080},
		{"two names for one number", Port{Name: "web", Protocol: TCP}, []SlicePort{http, {"web", TCP, 8080}}, 8080},
		{"same name, other protocol", Port{Name: "http", Protocol: UDP}, []SlicePort{http}, 0},
		{"one name for two protocols", Port{Name: "dns", Protocol: TCP}, []SlicePort{dns, {"dns", TCP, 5354}}, 5354},
		{"other name", Port{Name: "web", Protocol: TCP}, []SlicePort{http}, 0},
		{"no name, one candidate", Port{Protocol: TCP}, []SlicePort{http, dns}, 8080},
		{"no name, two candidates", Port{Protocol: TCP}, []SlicePort{http, {"admin", TCP, 9000}}, 0},
		{"no name on both sides", Port{Protocol: TCP}, []SlicePort{{"admin", TCP, 9000}, {"", TCP, 80}}, 80},
	} {
		got, ok := match(c.port, c.have)
		if ok != (c.want != 0) || ok && got != c.want {
			t.Errorf("%s: %d, %v; want %d", c.name, got, ok, c.want)
		}
	}
}

func TestMoreClustersThanGroups(t *testing.T) {
	all := map[ClusterID][]Slice{}
	for c := ClusterID(1); c <= 40; c++ {
		all[c] = at(8080, fmt.Sprintf("10.%d.1.2", c))
	}
	f := Frontends(Client{Cluster: 40}, web(t, AnnotationGlobal, "true"), all)[0]
	if len(f.Groups) != MaxGroups || len(f.Omitted) != 8 || f.Groups[0].Cluster != 40 {
		t.Errorf("%d groups, first %d, omitted %v", len(f.Groups), f.Groups[0].Cluster, f.Omitted)
	}
	for c := ClusterID(1); c < 40; c++ {
		all[c] = at(8080, fmt.Sprintf("10.%d.1.2 draining", c))
	}
	all[39] = at(8080, "10.39.1.2")
	if f := Frontends(fromEast, web(t, AnnotationGlobal, "true"), all)[0]; f.Groups[0].Cluster != 39 || f.Groups[1].Cluster != 40 {
		t.Errorf("those in maintenance come before those that take connections: %v", f.Groups)
	}
}

// The result does not depend on the order of slices and endpoints.
func TestOrderDoesNotMatter(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	svc := web(t, AnnotationGlobal, "true", AnnotationAffinity, "local")
	states := []string{"", " not-ready", " terminating", " draining"}
	for range 200 {
		var all [2][]Slice
		for c := range all {
			for range r.IntN(4) {
				var ends []string
				for range r.IntN(4) {
					ends = append(ends, fmt.Sprintf("10.%d.0.%d%s", c+1, r.IntN(6), states[r.IntN(4)]))
				}
				all[c] = append(all[c], at(8080, ends...)...)
			}
		}
		want := Frontends(fromEast, svc, map[ClusterID][]Slice{east: all[0], west: all[1]})
		for c := range all {
			r.Shuffle(len(all[c]), func(i, j int) { all[c][i], all[c][j] = all[c][j], all[c][i] })
			for _, s := range all[c] {
				r.Shuffle(len(s.Endpoints), func(i, j int) { s.Endpoints[i], s.Endpoints[j] = s.Endpoints[j], s.Endpoints[i] })
			}
		}
		got := Frontends(fromEast, svc, map[ClusterID][]Slice{west: all[1], east: all[0]})
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Fatal(diff)
		}
	}
}

func TestFromKubernetes(t *testing.T) {
	local := corev1.ServiceInternalTrafficPolicyLocal
	s, err := FromKubernetes(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
		Spec: corev1.ServiceSpec{
			SessionAffinity: corev1.ServiceAffinityClientIP, InternalTrafficPolicy: &local,
			ClusterIP: "10.101.0.1", ClusterIPs: []string{"10.101.0.1", "fd00::1"}, PublishNotReadyAddresses: true,
			Ports: []corev1.ServicePort{
				{Name: "http", Port: 80},
				{Name: "admin", Port: 81, TargetPort: intstr.FromString("adm"), Protocol: "TCP"},
				{Name: "dns", Port: 53, TargetPort: intstr.FromInt32(5353), Protocol: "UDP"},
			},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := Service{
		Namespace: "shop", Name: "web", Affinity: AffinityNone, Algorithm: Random, PublishNotReady: true, Session: 3 * time.Hour, NodeLocal: true,
		Addresses: []netip.Addr{addr("10.101.0.1"), addr("fd00::1")},
		Families:  []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},
		Ports:     []Port{{"http", TCP, 80, 0, 80, ""}, {"admin", TCP, 81, 0, 0, "adm"}, {"dns", UDP, 53, 0, 5353, ""}},
	}
	if diff := cmp.Diff(want, s, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Error(diff)
	}
	if got := Frontends(fromEast, &s, nil); len(got) != 6 {
		t.Errorf("%d frontends for two addresses and three ports", len(got))
	}
	for name, spec := range map[string]corev1.ServiceSpec{
		"headless":      {ClusterIP: "None", Ports: []corev1.ServicePort{{Port: 80}}},
		"external name": {Type: corev1.ServiceTypeExternalName, ExternalName: "example.org", Ports: []corev1.ServicePort{{Port: 80}}},
		"no address":    {Ports: []corev1.ServicePort{{Port: 80}}},
	} {
		s, err := FromKubernetes(&corev1.Service{Spec: spec})
		if err != nil || len(Frontends(fromEast, &s, nil)) != 0 {
			t.Errorf("%s has a frontend, %v", name, err)
		}
	}
	for name, spec := range map[string]corev1.ServiceSpec{
		"address":     {ClusterIP: "10.1"},
		"port":        {ClusterIP: "10.101.0.1", Ports: []corev1.ServicePort{{Port: 0}}},
		"target port": {ClusterIP: "10.101.0.1", Ports: []corev1.ServicePort{{Port: 1, TargetPort: intstr.FromInt32(70000)}}},
	} {
		if _, err := FromKubernetes(&corev1.Service{Spec: spec}); err == nil {
			t.Errorf("bad %s was accepted", name)
		}
	}
}

func TestSliceFromKubernetes(t *testing.T) {
	s := SliceFromKubernetes(&discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		Ports:      []discoveryv1.EndpointPort{{Name: ptr("http"), Port: ptr(int32(80))}, {Name: ptr("all")}, {Port: ptr(int32(53)), Protocol: ptr(corev1.ProtocolUDP)}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.1.1.2"}, NodeName: ptr("n1"), Zone: ptr("a")},
			{Addresses: []string{"10.1.1.3"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr(false), Serving: ptr(true), Terminating: ptr(true)}},
			{Addresses: []string{"example.org"}},
		},
	})
	want := Slice{Namespace: "shop", Name: "web-1", Service: "web",
		Ports: []SlicePort{{"http", TCP, 80}, {"", UDP, 53}},
		Endpoints: []Endpoint{
			{Addr: addr("10.1.1.2"), Node: "n1", Zone: "a", Ready: true, Serving: true},
			{Addr: addr("10.1.1.3"), Serving: true, Terminating: true},
		}}
	if diff := cmp.Diff(want, s, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Error(diff)
	}
}

// Weight 0 means maintenance. Nothing else does, not even an unreadable weight.
func TestWeightOfASlice(t *testing.T) {
	for weight, maintained := range map[string]bool{"0": true, "00": true, "1": false, "100": false, "": false, "none": false, "-0": false} {
		s := SliceFromKubernetes(&discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{AnnotationWeight: weight}},
			Endpoints: []discoveryv1.Endpoint{
				{Addresses: []string{"10.1.1.2"}},
				{Addresses: []string{"10.1.1.3"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr(false), Serving: ptr(true), Terminating: ptr(true)}},
				{Addresses: []string{"10.1.1.4"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr(false)}},
			},
		})
		want := []Endpoint{
			{Addr: addr("10.1.1.2"), Ready: !maintained, Serving: true, Draining: maintained},
			{Addr: addr("10.1.1.3"), Serving: true, Terminating: true, Draining: maintained},
			{Addr: addr("10.1.1.4")},
		}
		if diff := cmp.Diff(want, s.Endpoints, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("weight %q:\n%s", weight, diff)
		}
	}
}

func TestSlicesFromPods(t *testing.T) {
	svc := Service{Namespace: "shop", Name: "web", Selector: map[string]string{"app": "web"},
		Ports: []Port{{"http", TCP, 80, 0, 8080, ""}, {"admin", TCP, 81, 0, 0, "adm"}}}
	pod := func(name, ip string, change func(*Pod)) Pod {
		p := Pod{Namespace: "shop", Name: name, Node: "n1", Addr: addr(ip), Ready: true,
			Labels: map[string]string{"app": "web", "tier": "x"}, NamedPorts: []NamedPort{{"adm", TCP, 9000}}}
		if change != nil {
			change(&p)
		}
		return p
	}
	var lines []string
	for _, p := range []Pod{
		pod("b", "10.1.1.3", func(p *Pod) { p.Ready = false }),
		pod("a", "10.1.1.2", nil),
		pod("other", "10.1.1.4", func(p *Pod) { p.Labels = map[string]string{"app": "db"} }),
		pod("elsewhere", "10.1.1.5", func(p *Pod) { p.Namespace = "bank" }),
		pod("new", "10.1.1.6", func(p *Pod) { p.NamedPorts[0].Port = 9001 }),
		pod("plain", "10.1.1.7", func(p *Pod) { p.NamedPorts = nil }),
		pod("leaving", "10.1.1.8", func(p *Pod) { p.Terminating = true }),
		pod("unborn", "10.1.1.9", func(p *Pod) { p.Addr = netip.Addr{} }),
	} {
		if s, e, ok := svc.Seat(&p); ok {
			lines = append(lines, fmt.Sprintf("%s %v %v ready=%v serving=%v terminating=%v", s.Name, s.Ports, e.Addr, e.Ready, e.Serving, e.Terminating))
		}
	}
	want := []string{
		"web-v4-9000 [{http TCP 8080} {admin TCP 9000}] 10.1.1.3 ready=false serving=false terminating=false",
		"web-v4-9000 [{http TCP 8080} {admin TCP 9000}] 10.1.1.2 ready=true serving=true terminating=false",
		"web-v4-9001 [{http TCP 8080} {admin TCP 9001}] 10.1.1.6 ready=true serving=true terminating=false",
		"web-v4-0 [{http TCP 8080}] 10.1.1.7 ready=true serving=true terminating=false",
		"web-v4-9000 [{http TCP 8080} {admin TCP 9000}] 10.1.1.8 ready=false serving=true terminating=true",
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Error(diff)
	}
	svc.Selector = nil
	a := pod("a", "10.1.1.2", nil)
	if s, _, ok := svc.Seat(&a); ok {
		t.Errorf("an empty selector picked %v", s)
	}
}

// TestSlots applies each write to a model of the map and checks after every write that
// the kernel would find a backend in every slot.
func TestSlots(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 5000 {
		have, want := r.Perm(1+r.IntN(12)), r.Perm(1+r.IntN(12))
		have, want = have[:r.IntN(len(have)+1)], want[:r.IntN(len(want)+1)]
		if len(want) > 0 {
			want = append(want, want[0]) // a duplicate counts once
		}
		ops, slots := Slots(have, want)
		rows, count := map[uint32]int{}, uint32(len(have))
		for i, b := range have {
			rows[uint32(i)] = b
		}
		puts := 0
		for _, op := range ops {
			switch op.Kind {
			case Put:
				rows[op.Slot] = op.Backend
				puts++
			case SetCount:
				count = op.Count
			case Clear:
				delete(rows, op.Slot)
			}
			for i := range count {
				b, ok := rows[i]
				if !ok || !slices.Contains(have, b) && !slices.Contains(want, b) {
					t.Fatalf("%v → %v: slot %d of %d holds %d, %v after %+v of %+v", have, want, i, count, b, ok, op, ops)
				}
			}
		}
		var after []int
		for i := range count {
			after = append(after, rows[i])
		}
		if !slices.Equal(after, slots) || len(rows) != len(slots) {
			t.Fatalf("%v → %v: rows %v of %d, told %v", have, want, after, len(rows), slots)
		}
		slices.Sort(after)
		naive := slices.Compact(slices.Sorted(slices.Values(want)))
		if !slices.Equal(after, naive) {
			t.Fatalf("%v → %v gave %v", have, want, after)
		}
		// Fewer writes are impossible: every newcomer needs one, and so does every
		// hole below the new count that no newcomer fills.
		added, holes := 0, 0
		for _, b := range naive {
			if !slices.Contains(have, b) {
				added++
			}
		}
		for i, b := range have {
			if i < len(naive) && !slices.Contains(want, b) {
				holes++
			}
		}
		if least := max(added, holes); puts != least {
			t.Fatalf("%v → %v took %d writes, %d suffice", have, want, puts, least)
		}
	}
}

func TestSlotsUnchanged(t *testing.T) {
	if ops, _ := Slots([]int{3, 1, 2}, []int{1, 2, 3}); len(ops) != 0 {
		t.Errorf("nothing changed, yet %+v", ops)
	}
	ops, _ := Slots([]int{1, 2, 3}, []int{2, 3})
	want := []SlotOp[int]{{Kind: Put, Slot: 0, Backend: 3}, {Kind: SetCount, Count: 2}, {Kind: Clear, Slot: 2}}
	if diff := cmp.Diff(want, ops); diff != "" {
		t.Error(diff)
	}
}

func BenchmarkOneOfTenThousandBackends(b *testing.B) {
	s := Slice{Ports: []SlicePort{{"http", TCP, 8080}}}
	for i := range 10_000 {
		s.Endpoints = append(s.Endpoints, Endpoint{Addr: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), Ready: true})
	}
	svc := Service{Addresses: []netip.Addr{addr("10.101.0.1")}, Ports: []Port{{Name: "http", Protocol: TCP, Port: 80}}}
	for b.Loop() {
		Frontends(fromEast, &svc, map[ClusterID][]Slice{east: {s}})
	}
}

// A number outside of the range, stored before node ports had any effect, could be that of the
// node's own SSH or WireGuard.
func TestNodePortsAreOfTheirRange(t *testing.T) {
	for number, want := range map[int32]uint16{22: 0, 29999: 0, 30000: 30000, 32767: 32767, 32768: 0, 51871: 0} {
		s, err := FromKubernetes(&corev1.Service{Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 80, NodePort: number}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Ports[0].NodePort; got != want {
			t.Errorf("node port %d of a stored service is %d, want %d", number, got, want)
		}
	}
}

// At addresses outside of the mesh, clients from there have a frontend of their own if they are to
// stay on the node, and source ranges are for those of a load balancer alone.
func TestOuter(t *testing.T) {
	ips := func(all ...string) (out []netip.Addr) {
		for _, a := range all {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	svc := Service{
		Namespace: "shop", Name: "web", Families: []corev1.IPFamily{corev1.IPv4Protocol},
		Ports:    []Port{{Name: "http", Protocol: TCP, Port: 80, NodePort: 30080}, {Name: "sctp", Protocol: SCTP, Port: 81}},
		External: ips("203.0.113.9", "2001:db8::9", "203.0.113.20"), Balanced: ips("203.0.113.20"),
		Ranged: true, Ranges: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8::/32")},
	}
	slice := func(addrs ...string) map[ClusterID][]Slice {
		s := Slice{Ports: []SlicePort{{"http", TCP, 8080}}}
		for _, a := range ips(addrs...) {
			s.Endpoints = append(s.Endpoints, Endpoint{Addr: a, Ready: true})
		}
		return map[ClusterID][]Slice{1: {s}}
	}
	show := func() string {
		var out []string
		for _, f := range Outer(Client{Cluster: 1}, &svc, ips("192.0.2.1", "2001:db8::1"), slice("10.1.1.2", "10.1.2.2"), slice("10.1.1.2")) {
			text := fmt.Sprintf("%v:%d %d", f.Addr, f.Port, len(f.Groups[0].Backends))
			if f.Split {
				text += " split"
			}
			if f.Outside {
				text += " outside"
			}
			if f.Ranged {
				text += fmt.Sprint(" ", f.Ranges)
			}
			out = append(out, text)
		}
		return strings.Join(out, ", ")
	}
	if got, want := show(), "192.0.2.1:30080 2, 203.0.113.20:80 2 [198.51.100.0/24], 203.0.113.9:80 2"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	svc.ExternalLocal = true
	if got, want := show(), "192.0.2.1:30080 1 outside, 192.0.2.1:30080 2 split, 203.0.113.20:80 1 outside [198.51.100.0/24], "+
		"203.0.113.20:80 2 split [198.51.100.0/24], 203.0.113.9:80 1 outside, 203.0.113.9:80 2 split"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
