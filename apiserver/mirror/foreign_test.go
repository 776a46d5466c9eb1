package mirror

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// A foreign backend is dropped without the others.
func TestForeignBackendsGoAlone(t *testing.T) {
	c := newClaims(east, westAsPeer, nil)
	for _, tc := range []struct {
		name           string
		resource       wire.Resource
		key            string
		value, want    []byte
		refusedBecause string
	}{
		{"service", wire.Services, "cilium/state/services/v1/west/shop/web",
			[]byte(`{"cluster":"west","namespace":"shop","name":"web","clusterID":2,"shared":true,` +
				`"backends":{"10.2.1.2":{"http":{"Protocol":"TCP","Port":80}},"172.16.2.1":{},"10.1.1.2":{}},` +
				`"hostnames":{"10.2.1.2":"a","10.1.1.2":"b"},"zones":{"10.2.1.2":{"zone":"x","forZones":null},"10.1.1.2":{"zone":"y","forZones":null}}}`),
			wire.Marshal(wire.ClusterService{Cluster: "west", ClusterID: 2, Namespace: "shop", Name: "web", Shared: true,
				Backends:  map[netip.Addr]map[string]wire.L4Addr{netip.MustParseAddr("10.2.1.2"): {"http": {Protocol: "TCP", Port: 80}}},
				Hostnames: map[netip.Addr]string{netip.MustParseAddr("10.2.1.2"): "a"},
				Zones:     map[netip.Addr]wire.BackendZone{netip.MustParseAddr("10.2.1.2"): {Zone: "x"}}}),
			"backend 10.1.1.2 (and 1 more) is outside [10.2.0.0/16]"},
		{"slice", wire.EndpointSlices, "cilium/state/endpointslices/v1/west/shop/web-1",
			slice(func(s *wire.ClusterEndpointSlice) {
				s.Endpoints = []wire.SliceEndpoint{{Addresses: []string{"10.3.1.2"}}, {Addresses: []string{"10.2.1.2", "10.3.1.3"}, NodeName: "n1"}}
			}),
			slice(func(s *wire.ClusterEndpointSlice) {
				s.Endpoints = []wire.SliceEndpoint{{Addresses: []string{"10.2.1.2"}, NodeName: "n1"}}
			}),
			"endpoint 10.3.1.2 (and 1 more) is outside [10.2.0.0/16]"},
	} {
		_, kept, reason, err := c.judge(folder{name: string(tc.resource), prefix: tc.resource.StatePrefix("west"), resource: tc.resource}, tc.key, tc.value)
		if reason != ForeignAddress || err == nil || err.Error() != tc.refusedBecause {
			t.Errorf("%s: %q, %v", tc.name, reason, err)
		}
		if string(kept) != string(tc.want) {
			t.Errorf("%s: kept %q, want %q", tc.name, kept, tc.want)
		}
	}
}

// A slice keeps its valid addresses when one that is not the peer's is added.
func TestAForeignBackendTakesNoOtherWithIt(t *testing.T) {
	run(t, func(b *bench) {
		const key = "cilium/state/endpointslices/v1/west/shop/web-1"
		write := func(addresses ...string) {
			b.there(store.Put(key, slice(func(s *wire.ClusterEndpointSlice) {
				s.Endpoints = nil
				for _, a := range addresses {
					s.Endpoints = append(s.Endpoints, wire.SliceEndpoint{Addresses: []string{a}})
				}
			})))
		}
		refused := func() (n uint64) {
			for _, r := range b.m.Status(time.Now()).Refused {
				n += r.Count
			}
			return n
		}
		write("10.2.1.2", "10.2.1.3")
		before, revision := b.got(), b.ours.Revision()
		write("10.2.1.2", "192.0.2.7", "10.2.1.3")
		if diff := cmp.Diff(before, b.got()); diff != "" {
			t.Errorf("an address was added:\n%s", diff)
		}
		if n := refused(); n != 1 {
			t.Errorf("%d refused", n)
		}
		b.stop()
		b.start()
		if b.ours.Revision() != revision {
			t.Error("a copy that did not change was written again")
		}
		if n := refused(); n != 1 {
			t.Errorf("%d refused after a restart", n)
		}
		write("192.0.2.7")
		if got := b.ours.Dump(wire.EndpointSlices.CachePrefix("west")); len(got) != 0 {
			t.Errorf("only foreign addresses, and copied is %q", got)
		}
		b.same()
	})
}
