package program

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/statedb"
	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/wire"
)

// tiers writes the addresses behind a frontend, tier by tier.
func (b *bench) tiers(frontend netip.Addr) string {
	row, _, _ := b.maps.Services.Lookup(keyOf(frontend, 80, service.TCP))
	var tiers [256][]string
	for _, g := range row.Group[:row.Groups] {
		for i := range g.Count {
			slot, _, _ := b.maps.Backends.Lookup(bpf.SlotKey{Service: row.ID, Slot: i, Cluster: g.Cluster})
			tiers[g.Tier] = append(tiers[g.Tier], slot.Addr.String())
		}
	}
	var out []string
	for _, tier := range tiers {
		if slices.Sort(tier); len(tier) > 0 {
			out = append(out, strings.Join(tier, " "))
		}
	}
	return strings.Join(out, " | ")
}

// A service prefers what is near this node, also when backends come and go one by one and
// when the node moves to another zone.
func TestNearBackendsComeFirst(t *testing.T) {
	b := newBench(t)
	frontend := netip.MustParseAddr("10.101.0.1")
	inZone := func(zone string) {
		b.write(func(txn statedb.WriteTxn) {
			tables.Put(txn, b.tab.Nodes, &tables.Node{Cluster: "east", Name: "n1", Registration: &wire.Registration{Name: "n1", Labels: map[string]string{corev1.LabelTopologyZone: zone}}})
		})
	}
	backends := func(cluster string, zones ...string) {
		b.write(func(txn statedb.WriteTxn) {
			s := sliceOf(cluster, "web-1", "web")
			for i, zone := range zones {
				a := netip.AddrFrom4([4]byte{10, map[string]byte{"east": 1, "west": 2}[cluster], 1, byte(2 + i)})
				s.Endpoints = append(s.Endpoints, service.Endpoint{Addr: a, Node: fmt.Sprint("n", 1+i), Zone: zone, Ready: true, Serving: true})
			}
			s.Derived = true
			tables.Put(txn, b.tab.Slices, s)
		})
	}
	declare := func(d service.Distribution) {
		b.write(func(txn statedb.WriteTxn) {
			tables.Put(txn, b.tab.Services, &tables.Service{Cluster: "east", Service: service.Service{Namespace: "shop", Name: "web", Global: true,
				Affinity: service.AffinityNone, Distribution: d, Addresses: []netip.Addr{frontend}, Ports: []service.Port{{Protocol: service.TCP, Port: 80}}}})
		})
	}
	want := func(when, should string) {
		t.Helper()
		b.pass()
		if got := b.tiers(frontend); got != should {
			t.Errorf("%s: %s, want %s", when, got, should)
		}
		if where := b.balance(b.everything()); where != "" {
			t.Errorf("%s: %s", when, where)
		}
	}
	inZone("a")
	declare(service.SameZone)
	backends("east", "b", "a")
	backends("west", "b", "a")
	want("at first", "10.1.1.3 10.2.1.3 | 10.1.1.2 10.2.1.2")
	backends("west", "b", "a", "a")
	want("one more", "10.1.1.3 10.2.1.3 10.2.1.4 | 10.1.1.2 10.2.1.2")
	backends("west", "a", "b", "a")
	want("two have moved", "10.1.1.3 10.2.1.2 10.2.1.4 | 10.1.1.2 10.2.1.3")
	backends("west", "a", "", "a")
	want("one zone is not known", "10.1.1.3 | 10.1.1.2 10.2.1.2 10.2.1.3 10.2.1.4")
	backends("west", "a", "b", "a")
	want("all are", "10.1.1.3 10.2.1.2 10.2.1.4 | 10.1.1.2 10.2.1.3")
	inZone("b")
	want("this node has moved", "10.1.1.2 10.2.1.3 | 10.1.1.3 10.2.1.2 10.2.1.4")
	declare(service.SameNode)
	want("same node", "10.1.1.2 | 10.2.1.3 | 10.1.1.3 10.2.1.2 10.2.1.4")
	declare(service.Anywhere)
	want("anywhere", "10.1.1.2 10.1.1.3 10.2.1.2 10.2.1.3 10.2.1.4")
	if rows := rowsIn(b.maps.Backends); len(rows) != 5 {
		t.Errorf("%d slots are left of 5 backends: %v", len(rows), rows)
	}
}

// A cluster joins in the same moment in which a slice of it goes: the slice was counted,
// and its backends never were.
func TestASliceGoesAsItsClusterJoins(t *testing.T) {
	b := newBench(t)
	frontend := netip.MustParseAddr("10.101.0.1")
	west := tables.Get(b.tab.DB.ReadTxn(), b.tab.Clusters, "west")
	one, two := sliceOf("west", "web-1", "web", netip.MustParseAddr("10.2.1.2")), sliceOf("west", "web-2", "web", netip.MustParseAddr("10.2.1.3"))
	ours := sliceOf("east", "web-1", "web", netip.MustParseAddr("10.1.1.2"))
	ours.Derived = true
	b.write(func(txn statedb.WriteTxn) {
		tables.Drop(txn, b.tab.Clusters, west)
		tables.Put(txn, b.tab.Services, &tables.Service{Cluster: "east", Service: service.Service{Namespace: "shop", Name: "web", Global: true,
			Addresses: []netip.Addr{frontend}, Ports: []service.Port{{Protocol: service.TCP, Port: 80}}}})
		tables.Put(txn, b.tab.Slices, one)
		tables.Put(txn, b.tab.Slices, two)
		tables.Put(txn, b.tab.Slices, ours)
	})
	b.pass()
	for range 2 { // it is followed slice by slice from the second change on
		again := *ours
		b.write(func(txn statedb.WriteTxn) { tables.Put(txn, b.tab.Slices, &again) })
		b.pass()
	}
	b.write(func(txn statedb.WriteTxn) {
		tables.Put(txn, b.tab.Clusters, west)
		tables.Drop(txn, b.tab.Slices, one)
		tables.Drop(txn, b.tab.Slices, two)
	})
	b.pass()
	if got := b.tiers(frontend); got != "10.1.1.2" {
		t.Errorf("backends %s", got)
	}
}
