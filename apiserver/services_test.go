package apiserver

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// Backends in maintenance are shown as what they are for new connections,
// whichever cluster's they are.
func TestServicesShowMaintenance(t *testing.T) {
	p := start(t, config(t))
	for weight, ready := range map[string]bool{"0": false, "1": true} {
		if _, err := p.admin().Apply(t.Context(), []byte(`
apiVersion: v1
kind: Service
metadata: {name: vm, namespace: shop, annotations: {service.cilium.io/global: "true"}}
spec: {ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: vm-1, namespace: shop, labels: {kubernetes.io/service-name: vm}, annotations: {service.cilium.io/weight: "`+weight+`"}}
addressType: IPv4
endpoints: [{addresses: [10.1.1.2]}]
ports: [{port: 80}]
`), api.ManifestOptions{}); err != nil {
			t.Fatal(err)
		}
		remote := &wire.ClusterEndpointSlice{
			Cluster: "west", ClusterID: 2, Namespace: "shop", Name: "vm-1", AddressType: "IPv4",
			Labels:      map[string]string{wire.ServiceNameLabel: "vm"},
			Annotations: map[string]string{service.AnnotationWeight: weight},
			Ports:       []wire.SlicePort{{Port: 80, Protocol: "TCP"}},
			Endpoints:   []wire.SliceEndpoint{{Addresses: []string{"10.2.1.2"}}},
		}
		if err := store.Write(t.Context(), p.srv.store, store.Put(wire.EndpointSlices.CachePrefix("west")+"shop/vm-1", remote.Marshal())); err != nil {
			t.Fatal(err)
		}
		list, err := p.admin().Services(t.Context())
		if err != nil || len(list.Services) != 1 || len(list.Services[0].Backends) != 2 {
			t.Fatalf("%+v, %v", list, err)
		}
		for _, b := range list.Services[0].Backends {
			if b.Ready != ready {
				t.Errorf("weight %s: %+v", weight, b)
			}
		}
	}
}

// A service's backends are counted by port, and what is left out is said once for
// each cause.
func TestServiceListSaysWhatIsLeftOut(t *testing.T) {
	slice := func(port string, addrs ...string) service.Slice {
		s := service.Slice{Ports: []service.SlicePort{{Name: port, Protocol: service.TCP, Port: 8080}, {Name: "echo", Protocol: service.TCP, Port: 81}}}
		for i, a := range addrs {
			s.Endpoints = append(s.Endpoints, service.Endpoint{Addr: netip.MustParseAddr(a), Node: fmt.Sprintf("n%d", i+1), Ready: true, Serving: true})
		}
		return s
	}
	web := stored{
		Service: service.Service{Namespace: "shop", Name: "web", Global: true, Shared: true, Ports: []service.Port{
			{Name: "http", Protocol: service.TCP, Port: 80}, {Name: "echo", Protocol: service.TCP, Port: 81},
		}},
		slices: map[string][]service.Slice{
			"east":  {slice("http", "10.1.1.2")},
			"west":  {slice("www", "10.2.1.2", "10.2.2.2"), slice("www", "10.2.1.2")}, // one address in two slices
			"north": {slice("http", "10.3.1.2", "10.3.2.2")},
			"south": {slice("http", "10.4.1.2")},
		},
	}
	alone := web
	alone.Name, alone.Global = "alone", false
	r := reachOf("east", []api.NodeStatus{node("e1", "north/n2", "south*1"), node("e2", "north/n2", "south*1")}, nil)
	list := serviceList("east", []stored{web, alone}, r)
	var got []string
	for _, b := range list.Services[0].Backends {
		text := b.Cluster + "/" + b.Address.String()
		for _, l := range b.LeftOut {
			text += fmt.Sprintf(" [%s: %s]", l.Port, l.Reason)
		}
		if b.Ready != (len(b.LeftOut) == 0) {
			t.Errorf("ready %v: %s", b.Ready, text)
		}
		got = append(got, text)
	}
	if diff := cmp.Diff([]string{
		"east/10.1.1.2",
		"north/10.3.1.2", "north/10.3.2.2 [: no path to north/n2 is up]",
		"south/10.4.1.2 [: no path to south is up]",
		"west/10.2.1.2 [http: no port http, only echo, www]", "west/10.2.2.2 [http: no port http, only echo, www]",
	}, got); diff != "" {
		t.Error(diff)
	}
	if n := len(list.Services[1].Backends); n != 1 {
		t.Errorf("a service that is not global has %d backends", n)
	}
	var lines []string
	for _, c := range misfitConcerns(list) {
		lines = append(lines, c.String())
	}
	if diff := cmp.Diff([]string{"service shop/web: no backend of west serves port http (no port http, only echo, www); give the port the same name in both clusters"}, lines); diff != "" {
		t.Error(diff)
	}
}

func TestATargetPortThatNoContainerHas(t *testing.T) {
	e := []service.Endpoint{{Addr: netip.MustParseAddr("10.1.1.2"), Ready: true, Serving: true}}
	svc := stored{
		Service: service.Service{Namespace: "shop", Name: "web", Ports: []service.Port{{Protocol: service.TCP, Port: 80, TargetName: "web"}}},
		slices:  map[string][]service.Slice{"east": {{Endpoints: e}}},
	}
	concerns := misfitConcerns(serviceList("east", []stored{svc}, reachOf("east", nil, nil)))
	if len(concerns) != 1 || concerns[0].String() != "service shop/web: no backend of east serves port 80 (no container port named web); correct the service's targetPort, or give a container port that name" {
		t.Errorf("%+v", concerns)
	}
}
