package service

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestStands(t *testing.T) {
	a, b := netip.MustParseAddr("10.2.1.2"), netip.MustParseAddr("10.2.1.3")
	http := Port{Name: "http", Protocol: TCP, Port: 80}
	ready := func(a netip.Addr) Endpoint { return Endpoint{Addr: a, Node: "n1", Ready: true, Serving: true} }
	named := func(name string, e ...Endpoint) Slice {
		return Slice{Ports: []SlicePort{{Name: name, Protocol: TCP, Port: 8080}}, Endpoints: e}
	}
	for name, c := range map[string]struct {
		port Port
		from []Slice
		own  bool
		want string
	}{
		"ready":                    {http, []Slice{named("http", ready(a))}, false, `[10.2.1.2@n1 "" false]`},
		"another name there":       {http, []Slice{named("www", ready(a))}, false, `[10.2.1.2@n1 "no port http, only www" true]`},
		"a port without a name":    {Port{Protocol: TCP, Port: 80}, []Slice{named("www", ready(a))}, false, `[10.2.1.2@n1 "" false]`},
		"another protocol":         {Port{Name: "dns", Protocol: UDP, Port: 53}, []Slice{named("dns", ready(a))}, false, `[10.2.1.2@n1 "no port dns/UDP, only dns" true]`},
		"no port at all":           {http, []Slice{{Endpoints: []Endpoint{ready(a)}}}, false, `[10.2.1.2@n1 "no port http" true]`},
		"no container has it":      {Port{Name: "http", Protocol: TCP, Port: 80, TargetName: "web"}, []Slice{{Endpoints: []Endpoint{ready(a)}}}, true, `[10.2.1.2@n1 "no container port named web" true]`},
		"one address in two":       {http, []Slice{named("http", ready(a)), named("http", ready(a), ready(b))}, false, `[10.2.1.2@n1 "" false] [10.2.1.3@n1 "" false]`},
		"served by one of two":     {http, []Slice{named("www", ready(a)), named("http", ready(a))}, false, `[10.2.1.2@n1 "" false]`},
		"not ready":                {http, []Slice{named("http", Endpoint{Addr: a, Node: "n1"})}, false, `[10.2.1.2@n1 "not ready" false]`},
		"terminating, others live": {http, []Slice{named("http", Endpoint{Addr: a, Node: "n1", Serving: true, Terminating: true}, ready(b))}, false, `[10.2.1.2@n1 "terminating" false] [10.2.1.3@n1 "" false]`},
		"terminating, the last":    {http, []Slice{named("http", Endpoint{Addr: a, Node: "n1", Serving: true, Terminating: true})}, false, `[10.2.1.2@n1 "" false]`},
		"in maintenance":           {http, []Slice{named("http", Endpoint{Addr: a, Node: "n1", Serving: true, Draining: true})}, false, `[10.2.1.2@n1 "in maintenance" false]`},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			for _, s := range Stands(&Service{Ports: []Port{c.port}}, "east", c.from, c.own) {
				if got != "" {
					got += " "
				}
				got += fmt.Sprintf("[%v@%s %q %v]", s.Addr, s.Node, s.Why[0], s.Misfit[0])
			}
			if got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// The endpoints shown as used are exactly those that packets are sent to.
func TestStandsAgreeWithFrontends(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	names := []string{"http", "www", ""}
	for range 2000 {
		svc := Service{Addresses: []netip.Addr{netip.MustParseAddr("10.101.0.7")}, Ports: []Port{{Name: names[r.IntN(3)], Protocol: TCP, Port: 80}, {Name: "dns", Protocol: UDP, Port: 53}}}
		var from []Slice
		for range r.IntN(4) {
			s := Slice{}
			for range r.IntN(3) {
				s.Ports = append(s.Ports, SlicePort{Name: append(names, "dns")[r.IntN(4)], Protocol: []Protocol{TCP, UDP}[r.IntN(2)], Port: uint16(r.IntN(3))})
			}
			for range r.IntN(4) {
				s.Endpoints = append(s.Endpoints, Endpoint{Addr: netip.AddrFrom4([4]byte{10, 1, 1, byte(r.IntN(4))}), Ready: r.IntN(2) == 0, Serving: r.IntN(2) == 0, Terminating: r.IntN(2) == 0, Draining: r.IntN(8) == 0})
			}
			from = append(from, s)
		}
		stands := Stands(&svc, "west", from, false)
		for i, f := range Frontends(Client{Cluster: 1}, &svc, map[ClusterID][]Slice{1: from}) {
			used := map[netip.Addr]bool{}
			for _, g := range f.Groups {
				for _, b := range g.Backends {
					used[b.Addr] = true
				}
			}
			for _, s := range stands {
				if used[s.Addr] != (s.Why[i] == "") {
					t.Fatalf("port %d, %v: used %v, why %q\n%+v", i, s.Addr, used[s.Addr], s.Why[i], from)
				}
			}
		}
	}
}

// An endpoint of a family that the service does not have here is shown, and is no misfit: the
// peer that offers it has both.
func TestStandsOfAnotherFamily(t *testing.T) {
	from := []Slice{
		{Ports: []SlicePort{{Protocol: TCP, Port: 8080}}, Endpoints: []Endpoint{{Addr: netip.MustParseAddr("10.2.1.2"), Ready: true}}},
		{Ports: []SlicePort{{Protocol: TCP, Port: 8080}}, Endpoints: []Endpoint{{Addr: netip.MustParseAddr("fd00:10:2:1::2"), Ready: true}}},
	}
	for families, want := range map[string]string{"IPv4": ` | the service has no IPv6 here`, "IPv6": `the service has no IPv4 here | `, "IPv4 IPv6": " | ", "": " | "} {
		svc := Service{Ports: []Port{{Protocol: TCP, Port: 80}}}
		for _, f := range strings.Fields(families) {
			svc.Families = append(svc.Families, corev1.IPFamily(f))
		}
		all := Stands(&svc, "west", from, false)
		if got := all[0].Why[0] + " | " + all[1].Why[0]; got != want || all[0].Misfit[0] || all[1].Misfit[0] {
			t.Errorf("%q: %s, want %s; misfits %v %v", families, got, want, all[0].Misfit, all[1].Misfit)
		}
	}
}

// A service that publishes addresses that are not ready leads to them, terminating or not; any
// other one leads to terminating ones only while nothing is ready.
func TestPublishNotReadyAddresses(t *testing.T) {
	pods := []Pod{
		{Addr: addr("10.1.1.2"), Ready: true}, {Addr: addr("10.1.1.3")},
		{Addr: addr("10.1.1.4"), Ready: true, Terminating: true}, {Addr: addr("10.1.1.5"), Terminating: true},
	}
	for _, c := range []struct {
		name    string
		publish bool
		pods    []Pod
		want    string
	}{
		{"publishes them", true, pods, "0 1: 10.1.1.2:8080 10.1.1.3:8080 10.1.1.4:8080 10.1.1.5:8080"},
		{"does not", false, pods, "0 1: 10.1.1.2:8080 (10.1.1.4:8080)"},
		{"does not, and none is ready", false, pods[1:], "6 1: 10.1.1.4:8080"},
		{"does not, and none serves", false, []Pod{pods[1], pods[3]}, ""},
	} {
		svc := web(t)
		svc.Selector, svc.PublishNotReady = map[string]string{"app": "web"}, c.publish
		var all []Slice
		for _, p := range c.pods {
			p.Namespace, p.Labels = svc.Namespace, svc.Selector
			s, e, ok := svc.Seat(&p)
			if !ok {
				t.Fatalf("%s: %v has no place", c.name, p.Addr)
			}
			s.Endpoints = []Endpoint{e}
			all = append(all, s)
		}
		if got := text(Frontends(fromEast, svc, map[ClusterID][]Slice{east: all})[0]); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// A service that its labels leave to another proxy has no frontend of any kind, and is told so.
func TestServicesOfAnotherProxy(t *testing.T) {
	for label, alone := range map[string]bool{LabelProxyName: true, corev1.IsHeadlessService: true, "app": false} {
		svc, err := FromKubernetes(&corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", Labels: map[string]string{label: ""}},
			Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.101.0.7", ExternalIPs: []string{"203.0.113.9"}, Selector: map[string]string{"app": "web"},
				ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal, HealthCheckNodePort: 30999, Ports: []corev1.ServicePort{{Port: 80, NodePort: 30080}},
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		fronts := append(svc.Fronts(), svc.Outer([]netip.Addr{netip.MustParseAddr("192.0.2.1")})...)
		if (len(fronts) == 0) != alone || (svc.HealthPort == 0) != alone {
			t.Errorf("label %s: %d frontends, health check at %d", label, len(fronts), svc.HealthPort)
		}
		from := []Slice{{Ports: []SlicePort{{Protocol: TCP, Port: 80}}, Endpoints: []Endpoint{{Addr: netip.MustParseAddr("10.2.1.2"), Ready: true}}}}
		if why := Stands(&svc, "east", from, true)[0].Why[0]; strings.Contains(why, "another proxy") != alone {
			t.Errorf("label %s: told %q", label, why)
		}
	}
}
