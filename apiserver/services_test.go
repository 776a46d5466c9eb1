package apiserver

import (
	"testing"

	"github.com/weft-mesh/weft/apiserver/api"
	"github.com/weft-mesh/weft/apiserver/store"
	"github.com/weft-mesh/weft/service"
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
