package mirror

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

// ciliumWest is west as a Cilium cluster.
func ciliumWest() wire.Peer {
	p := westAsPeer
	p.Cilium = true
	return p
}

// entriesOf are what Cilium's clustermesh-apiserver writes, tied to a lease: in the plain
// form, or as a KVStoreMesh copies it.
func entriesOf(lease store.Lease, cached bool) (entries, canaries []store.Op) {
	put := func(r wire.Resource, rest string, value []byte) {
		prefix, canary := r.StatePrefix("west"), r.StateSyncedKey("west")
		if cached {
			prefix, canary = r.CachePrefix("west"), r.CacheSyncedKey("west")
		}
		entries = append(entries, store.Op{Key: prefix + rest, Value: value, Lease: lease})
		canaries = append(canaries, store.Op{Key: canary, Value: []byte("2026-11-21T12:00:00Z"), Lease: lease})
	}
	put(wire.Nodes, "worker", []byte(`{"Name":"worker","Cluster":"west","IPAddresses":[{"Type":"InternalIP","IP":"172.18.0.2"},{"Type":"CiliumInternalIP","IP":"10.2.1.10"}],`+
		`"IPv4AllocCIDR":{"IP":"10.2.1.0","Mask":"////AA=="},"IPv4HealthIP":"10.2.1.134","ClusterID":2,"Source":"custom-resource","EncryptionKey":0,"NodeIdentity":6}`))
	put(wire.Identities, "131073", []byte("k8s:app=web;k8s:io.cilium.k8s.policy.cluster=west;k8s:io.kubernetes.pod.namespace=shop;"))
	put(wire.IPs, "10.2.1.2", []byte(`{"IP":"10.2.1.2","HostIP":"172.18.0.2","ID":131073,"Key":0,"Metadata":"","K8sNamespace":"shop","K8sPodName":"web-1"}`))
	put(wire.Services, "shop/web", []byte(`{"cluster":"west","namespace":"shop","name":"web","frontends":{"10.102.0.1":{"http":{"Protocol":"TCP","Port":80}}},`+
		`"backends":{"10.2.1.2":{"http":{"Protocol":"TCP","Port":8080}}},"hostnames":{},"zones":{},"labels":{},"selector":{"app":"web"},"includeExternal":true,"shared":true,"clusterID":2}`))
	put(wire.EndpointSlices, "shop/web-x7k2p", slice(func(s *wire.ClusterEndpointSlice) { s.Name = "web-x7k2p" }))
	put(wire.ServiceExports, "shop/web", []byte(`{"cluster":"west","name":"web","namespace":"shop","exportCreationTimestamp":"2026-02-03T04:05:06Z",`+
		`"ports":[{"name":"http","protocol":"TCP","port":80}],"type":"ClusterSetIP","sessionAffinity":"None"}`))
	return entries, canaries
}

const (
	plainConfig  = `{"id":2,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,"serviceExportsEnabled":true,"endpointSlicesExportMode":"services-and-endpointslices"}}`
	cachedConfig = `{"id":2,"capabilities":{"syncedCanaries":true,"cached":true,"maxConnectedClusters":255,"serviceExportsEnabled":true,"endpointSlicesExportMode":"services-and-endpointslices"}}`
)

// cilium runs a mirror of a Cilium cluster whose store is still empty, apart from its
// cluster config.
func cilium(t *testing.T, config string, each func(b *bench, lease store.Lease)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, ours: storetest.New(), theirs: storetest.New()}
		lease, err := b.theirs.Grant(t.Context(), 15*time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		b.there(store.Op{Key: "cilium/cluster-config/west", Value: []byte(config), Lease: lease})
		b.startAs(ciliumWest(), b.ours)
		each(b, lease)
		b.stop()
	})
}

// Both forms of a Cilium cluster are mirrored under the same keys, once its canaries are
// raised and not before.
func TestMirrorsCilium(t *testing.T) {
	var copies [2][]string
	for i, config := range []string{plainConfig, cachedConfig} {
		cilium(t, config, func(b *bench, lease store.Lease) {
			entries, canaries := entriesOf(lease, i == 1)
			b.there(entries...)
			b.there(canaries[1:]...) // that of the older form of services is not waited for
			b.wait()
			if got := b.ours.Dump("cilium/"); len(got) != 0 {
				t.Errorf("copied before the last canary: %q", got)
			}
			if s := b.state(); s.State == api.LinkUp || !strings.Contains(s.Error, "still filling its store: 1 of its resources") {
				t.Errorf("control link %+v", s)
			}
			b.there(canaries[0])
			if s := b.state(); s.State != api.LinkUp {
				t.Errorf("control link %+v", s)
			}
			if got := b.m.Status(time.Now()); len(got.Refused) != 0 || got.AddedUs != nil {
				t.Errorf("%+v", got)
			}
			copies[i] = b.ours.Dump("cilium/cache/")
			if got := b.ours.Dump("cilium/cluster-config/"); len(got) != 1 || !strings.Contains(got[0], `"cached":true`) {
				t.Errorf("introduced as %q", got)
			}
			if got := len(b.ours.Dump("cilium/synced/west/cilium/cache/")); got != len(wire.Resources)-1 {
				t.Errorf("%d canaries", got)
			}

			// It is followed as well: a change, an addition, a withdrawal.
			key := entries[2].Key
			b.there(store.Op{Key: strings.TrimSuffix(key, "2") + "3", Value: []byte(strings.ReplaceAll(string(entries[2].Value), "10.2.1.2", "10.2.1.3")), Lease: lease})
			b.there(store.Delete(key))
			var addresses []string
			for _, line := range b.ours.Dump(wire.IPs.CachePrefix("west")) {
				addresses = append(addresses, line[:strings.Index(line, "=")])
			}
			if want := []string{"cilium/cache/ip/v1/west/10.2.1.3"}; !slices.Equal(addresses, want) {
				t.Errorf("addresses %q, want %q", addresses, want)
			}
		})
	}
	if len(copies[0]) != 5 {
		t.Errorf("%d of 5 entries copied: %q", len(copies[0]), copies[0])
	}
	if diff := cmp.Diff(copies[0], copies[1]); diff != "" {
		t.Errorf("a KVStoreMesh's copy is mirrored otherwise:\n%s", diff)
	}
}

// If the writer of a Cilium cluster's store dies, its leases expire, and everything
// vanishes at once. That withdraws nothing: the copy stays until the store is full again.
func TestExpiredLeasesWithdrawNothing(t *testing.T) {
	for _, config := range []string{plainConfig, cachedConfig} {
		cilium(t, config, func(b *bench, lease store.Lease) {
			entries, canaries := entriesOf(lease, config == cachedConfig)
			b.there(entries...)
			b.there(canaries...)
			before := b.ours.Dump("cilium/cache/")
			if len(before) != 5 {
				t.Fatalf("%d of 5 entries copied", len(before))
			}
			b.theirs.Expire(lease)
			b.wait()
			if diff := cmp.Diff(before, b.ours.Dump("cilium/cache/")); diff != "" {
				t.Errorf("after the lease expired:\n%s", diff)
			}
			if s := b.state(); s.State == api.LinkUp {
				t.Errorf("control link %+v", s)
			}

			// It comes back without one of two addresses: that one was withdrawn.
			again, err := b.theirs.Grant(b.t.Context(), 15*time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			entries, canaries = entriesOf(again, config == cachedConfig)
			b.there(store.Op{Key: "cilium/cluster-config/west", Value: []byte(config), Lease: again})
			b.there(slices.Delete(entries, 2, 3)...)
			b.wait()
			if diff := cmp.Diff(before, b.ours.Dump("cilium/cache/")); diff != "" {
				t.Errorf("before the canaries are raised:\n%s", diff)
			}
			b.there(canaries...)
			b.wait()
			if got := b.ours.Dump(wire.IPs.CachePrefix("west")); len(got) != 0 || b.state().State != api.LinkUp {
				t.Errorf("withdrawn, but still there: %q, %+v", got, b.state())
			}
		})
	}
}

// Releases before 1.20 have no endpoint slices, and later ones no services: neither is
// waited for, nor reported as incomplete. Of those that have both only slices are read,
// although the others are written as well.
func TestModesOfExport(t *testing.T) {
	for mode, lacks := range map[string]wire.Resource{"": wire.EndpointSlices, wire.EndpointSlicesOnly: wire.Services, wire.ServicesAndEndpointSlices: wire.Services} {
		config := strings.Replace(plainConfig, wire.ServicesAndEndpointSlices, mode, 1)
		cilium(t, config, func(b *bench, lease store.Lease) {
			entries, canaries := entriesOf(lease, false)
			if mode != wire.ServicesAndEndpointSlices {
				i := slices.Index(wire.Resources, lacks)
				entries, canaries = slices.Delete(entries, i, i+1), slices.Delete(canaries, i, i+1)
			}
			asked := 0
			b.theirs.Fail(func(call, key string) error {
				if (call == "list" || call == "watch") && strings.HasPrefix(key, lacks.StatePrefix("west")) {
					asked++
				}
				return nil
			})
			b.there(entries...)
			b.there(canaries...)
			s := b.m.Status(time.Now())
			if s.Control.State != api.LinkUp {
				t.Errorf("mode %q: control link %+v", mode, s.Control)
			}
			for _, m := range s.Mirrors {
				if m.Resource == string(lacks) || !m.Synced || m.Entries != 1 {
					t.Errorf("mode %q: %+v", mode, m)
				}
			}
			if len(s.Mirrors) != len(wire.Resources)-1 {
				t.Errorf("mode %q: %+v", mode, s.Mirrors)
			}
			if got := b.ours.Dump(lacks.CachePrefix("west")); len(got) != 0 {
				t.Errorf("mode %q: copied %q", mode, got)
			}
			if asked != 0 {
				t.Errorf("mode %q: asked %d times for %s", mode, asked, lacks)
			}
		})
	}
}

// A peer that begins to write slices, or no longer does, is copied in the other form
// without a hold, however many services it has. An empty list takes nothing away.
func TestTheOtherFormTakesOver(t *testing.T) {
	older := strings.Replace(plainConfig, wire.ServicesAndEndpointSlices, "", 1)
	cilium(t, older, func(b *bench, lease store.Lease) {
		entries, canaries := entriesOf(lease, false)
		service := func(name string) store.Op {
			return store.Op{Key: wire.ServiceStateKey("west", "shop", name), Lease: lease, Value: wire.Marshal(wire.ClusterService{Cluster: "west", ClusterID: 2, Namespace: "shop", Name: name, Shared: true})}
		}
		for i := range 50 {
			entries = append(entries, service(fmt.Sprintf("s-%d", i)))
		}
		slices := entries[4]
		b.there(append(append([]store.Op{}, entries[:4]...), entries[5:]...)...)
		b.there(canaries...)
		become := func(config string) {
			t.Helper()
			b.there(store.Op{Key: "cilium/cluster-config/west", Value: []byte(config), Lease: lease})
			b.stop()
			b.startAs(ciliumWest(), b.ours)
		}
		want := func(services, slices int, held bool) {
			t.Helper()
			got := [2]int{len(b.ours.Dump(wire.Services.CachePrefix("west"))), len(b.ours.Dump(wire.EndpointSlices.CachePrefix("west")))}
			if n, why := b.m.Held(); got != [2]int{services, slices} || (n > 0) != held {
				t.Errorf("%d services and %d slices are copied, %d held (%s); want %d and %d, held %v", got[0], got[1], n, why, services, slices, held)
			}
			raised := [2]int{len(b.ours.Dump(wire.Services.CacheSyncedKey("west"))), len(b.ours.Dump(wire.EndpointSlices.CacheSyncedKey("west")))}
			if services > 0 && slices == 0 && !held && raised != [2]int{1, 0} || slices > 0 && raised != [2]int{0, 1} {
				t.Errorf("canaries of services and slices: %v", raised)
			}
		}
		want(51, 0, false)
		become(plainConfig) // and no slice is there yet
		want(51, 0, true)
		b.there(slices)
		become(plainConfig)
		want(0, 1, false)
		become(older)
		want(51, 0, false)
	})
}

// A canary that is read when nothing is deleted would cost a request per change.
func TestOnlyDeletionsAreVouchedFor(t *testing.T) {
	cilium(t, plainConfig, func(b *bench, lease store.Lease) {
		entries, canaries := entriesOf(lease, false)
		b.there(entries...)
		b.there(canaries...)
		asked := 0
		b.theirs.Fail(func(call, key string) error {
			if call == "get" && strings.HasPrefix(key, wire.CiliumSyncedPrefix) {
				asked++
			}
			return nil
		})
		b.there(store.Put(wire.IPStateKey(netip.MustParseAddr("10.2.1.7")), []byte(`{"IP":"10.2.1.7","ID":131073}`)))
		if asked != 0 {
			t.Errorf("%d requests for an addition", asked)
		}
		b.there(store.Delete(wire.IPStateKey(netip.MustParseAddr("10.2.1.7"))))
		if asked != 1 {
			t.Errorf("%d requests for a deletion", asked)
		}
	})
}
