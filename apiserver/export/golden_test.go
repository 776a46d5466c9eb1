package export

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weft-mesh/weft/wire"
)

func TestClusterIntroducesItself(t *testing.T) {
	run(t, nil, func(b *bench) {
		if got, want := b.value("cilium/cluster-config/east"), `{"id":1,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,"serviceExportsEnabled":true,"endpointSlicesExportMode":"services-and-endpointslices"}}`; got != want {
			t.Errorf("cluster-config %s", got)
		}
		if got, want := b.value(wire.ExportClusterKey), `{"podCIDRs":["10.1.0.0/16"],"generation":"g1"}`; got != want {
			t.Errorf("export %s", got)
		}
		var canaries []string
		for _, line := range b.st.Dump("cilium/synced/") {
			key, value, _ := strings.Cut(line, "=")
			canaries = append(canaries, key)
			if _, err := wire.ParseTime([]byte(value)); err != nil {
				t.Errorf("canary %s: %v", key, err)
			}
		}
		if diff := cmp.Diff([]string{
			"cilium/synced/east/cilium/state/endpointslices/v1",
			"cilium/synced/east/cilium/state/identities/v1",
			"cilium/synced/east/cilium/state/ip/v1",
			"cilium/synced/east/cilium/state/nodes/v1",
			"cilium/synced/east/cilium/state/serviceexports/v1",
			"cilium/synced/east/cilium/state/services/v1",
		}, canaries); diff != "" {
			t.Errorf("canaries (-want +got):\n%s", diff)
		}
		first := b.value(wire.HeartbeatKey)
		time.Sleep(61 * time.Second)
		synctest.Wait()
		if second := b.value(wire.HeartbeatKey); second == first {
			t.Error("no second heartbeat after a minute")
		}
	})
}

// As Cilium 1.20 writes the same objects: a backend that is serving is listed although
// it is not ready, one that is not serving is left out; hints are written only along
// with a zone.
func TestServiceInTheOlderForm(t *testing.T) {
	run(t, nil, func(b *bench) {
		yes, no := true, false
		slice := webSlice()
		slice.Endpoints = []discoveryv1.Endpoint{
			{
				Addresses: []string{"10.1.1.2"}, Conditions: discoveryv1.EndpointConditions{Ready: &yes},
				Hostname: new("web-0"), Zone: new("z1"), Hints: &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "z1"}, {Name: "z2"}}},
			},
			{Addresses: []string{"10.1.1.3"}, Conditions: discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}},
			{Addresses: []string{"10.1.1.4"}, Conditions: discoveryv1.EndpointConditions{Ready: &no, Serving: &yes}, Zone: new("z2")},
			{Addresses: []string{"10.1.1.5"}, Conditions: discoveryv1.EndpointConditions{Ready: &no, Serving: &no, Terminating: &yes}},
			{Addresses: []string{"10.1.1.6"}, Conditions: discoveryv1.EndpointConditions{Ready: &no}, Hints: &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "z1"}}}},
		}
		b.put(wire.ObjectKey("endpointslices", "shop", "web-v4"), slice)
		b.put(wire.ObjectKey("services", "shop", "web"), webService(global))
		port := `{"http":{"Protocol":"TCP","Port":8080}}`
		want := `{"cluster":"east","namespace":"shop","name":"web","frontends":{"10.101.0.1":{"http":{"Protocol":"TCP","Port":80}}},` +
			`"backends":{"10.1.1.2":` + port + `,"10.1.1.3":` + port + `,"10.1.1.4":` + port + `},` +
			`"hostnames":{"10.1.1.2":"web-0"},` +
			`"zones":{"10.1.1.2":{"zone":"z1","forZones":[{"name":"z1"},{"name":"z2"}]},"10.1.1.4":{"zone":"z2","forZones":[]}},` +
			`"labels":{},"selector":{"app":"web"},"includeExternal":true,"shared":true,"clusterID":1}`
		if diff := cmp.Diff(want, b.value(wire.ServiceStateKey("east", "shop", "web"))); diff != "" {
			t.Errorf("service (-want +got):\n%s", diff)
		}
	})
}
