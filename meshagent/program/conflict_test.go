package program

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/wire"
)

// Of those that claim one thing, one has it; when it leaves, the next one does.
func TestTheNextOneHasItWhenTheFirstLeaves(t *testing.T) {
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	peer := func(name string, id identity.ClusterID, cidrs ...string) *tables.Cluster {
		return &tables.Cluster{Name: name, Peer: &wire.Peer{Name: name, ID: id, PodCIDRs: parse(cidrs...)},
			Synced: map[wire.Resource]time.Time{wire.Nodes: {}, wire.Identities: {}, wire.IPs: {}, wire.Services: {}}}
	}
	node := func(name, cidr, internal, endpoint string) *tables.Node {
		alloc := wire.CIDR(prefix(cidr))
		return &tables.Node{Cluster: "west", Name: name, Place: tables.PlaceOf(&wire.Node{IPv4AllocCIDR: &alloc, IPAddresses: []wire.NodeAddress{
			{Type: wire.NodeInternalIP, IP: addr(endpoint)}, {Type: wire.NodeCiliumInternalIP, IP: addr(internal)}}})}
	}
	pod := func(cluster, ip, host string, n identity.Number) *tables.IP {
		return &tables.IP{Cluster: cluster, Prefix: whole(addr(ip)), Identity: n, Host: addr(host)}
	}
	west := peer("west", 2, "10.2.0.0/16")
	for name, c := range map[string]struct {
		rows  []any
		gone  any
		which string // an address or prefix
		// Whose its row is, before and after: a node's key, a cluster's name, or "-" for
		// none.
		before, after string
		// loser is the row that is not believed before.
		loser string
	}{
		"one pod CIDR": {rows: []any{west, node("a", "10.2.1.0/24", "10.2.1.1", "192.0.2.1"), node("b", "10.2.1.0/24", "10.2.1.2", "192.0.2.2")},
			gone: node("a", "10.2.1.0/24", "10.2.1.1", "192.0.2.1"), which: "10.2.1.0/24", before: "west/a", after: "west/b", loser: "nodes west/b"},
		"a pod CIDR inside another": {rows: []any{west, node("b", "10.2.0.0/20", "10.2.1.1", "192.0.2.1"), node("a", "10.2.1.0/24", "10.2.1.2", "192.0.2.2")},
			gone: node("b", "10.2.0.0/20", "10.2.1.1", "192.0.2.1"), which: "10.2.1.0/24", before: "-", after: "west/a", loser: "nodes west/a"},
		"one address inside the mesh": {rows: []any{west, node("a", "10.2.1.0/24", "10.2.1.1", "192.0.2.1"), node("b", "10.2.2.0/24", "10.2.1.1", "192.0.2.2")},
			gone: node("a", "10.2.1.0/24", "10.2.1.1", "192.0.2.1"), which: "10.2.1.1", before: "west/a", after: "west/b"},
		"a node's address and a pod's": {rows: []any{west, node("a", "10.2.1.0/24", "10.2.1.1", "192.0.2.1"), node("b", "10.2.2.0/24", "10.2.2.1", "192.0.2.2"), pod("west", "10.2.1.1", "192.0.2.2", 2<<16+1)},
			gone: node("a", "10.2.1.0/24", "10.2.1.1", "192.0.2.1"), which: "10.2.1.1", before: "west/a", after: "west/b"},
		"one tunnel endpoint": {rows: []any{west, node("a", "10.2.1.0/24", "10.2.1.1", "192.0.2.1"), node("b", "10.2.2.0/24", "10.2.2.1", "192.0.2.1"), pod("west", "10.2.3.4", "192.0.2.1", 2<<16+1)},
			gone: node("a", "10.2.1.0/24", "10.2.1.1", "192.0.2.1"), which: "10.2.3.4", before: "west/a", after: "west/b"},
		"one cluster ID": {rows: []any{peer("south", 3, "10.3.0.0/16"), peer("west", 3, "10.2.0.0/16"), pod("west", "10.2.3.4", "192.0.2.1", 3<<16+1)},
			gone: peer("south", 3, "10.3.0.0/16"), which: "10.2.3.4", before: "-", after: "west", loser: "clusters west"},
		"a cluster's CIDR inside another's": {rows: []any{peer("south", 3, "10.2.0.0/15"), west, pod("west", "10.2.3.4", "192.0.2.1", 2<<16+1)},
			gone: peer("south", 3, "10.2.0.0/15"), which: "10.2.3.4", before: "-", after: "west", loser: "clusters west"},
		"who comes in keeps out another": {rows: []any{peer("a", 3, "10.2.0.0/16"), peer("b", 4, "10.2.0.0/16", "10.4.0.0/16"), peer("c", 5, "10.4.0.0/16"), pod("c", "10.4.0.4", "192.0.2.1", 5<<16+1)},
			gone: peer("a", 3, "10.2.0.0/16"), which: "10.4.0.4", before: "c", after: "-", loser: "clusters b"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			write := func(rows []any, there bool) {
				b.write(func(txn statedb.WriteTxn) {
					for _, row := range rows {
						switch row := row.(type) {
						case *tables.Cluster:
							put(txn, b.tab.Clusters, row, there)
						case *tables.Node:
							put(txn, b.tab.Nodes, row, there)
						case *tables.IP:
							putIP(txn, b.tab, row, there)
						}
					}
				})
				b.pass()
			}
			write([]any{west}, false)
			write(c.rows, true)
			look := func(when, want string) {
				t.Helper()
				info, ok := bpf.IPInfo{}, false
				if strings.Contains(c.which, "/") {
					info, ok = rowsIn(b.maps.Prefixes)[bpf.PrefixOf(prefix(c.which))]
				} else {
					info, ok = rowsIn(b.maps.IPs)[bpf.AddrOf(addr(c.which))]
				}
				switch {
				case want == "-" && !ok:
				case ok && strings.Contains(want, "/") && info.Node == b.p.cfg.Rows.Index(want) && info.Node != 0:
				case ok && b.p.beliefs.view.member(want) != nil && info.Cluster == uint16(b.p.beliefs.view.member(want).ID()):
				default:
					t.Errorf("%s: %s has row %+v (%v), want one of %s", when, c.which, info, ok, want)
				}
			}
			look("before", c.before)
			if c.loser != "" && b.everything().problems[c.loser] == "" {
				t.Errorf("nothing says why %s is left out", c.loser)
			}
			write([]any{c.gone}, false)
			look("after", c.after)
			if said := b.everything().problems[c.loser]; c.loser != "" && said != "" {
				t.Errorf("%s is still left out: %s", c.loser, said)
			}
		})
	}
}

// An address that moves from host to host does not fill the index of what is behind
// each, and is found behind the last one.
func TestWhatMovedAwayIsForgotten(t *testing.T) {
	b := newBench(t)
	for i := range 3000 {
		b.write(func(txn statedb.WriteTxn) {
			tables.PutIP(txn, b.tab, &tables.IP{Cluster: "west", Prefix: netip.MustParsePrefix("10.2.3.4/32"), Identity: 2<<16 + 1, Host: netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)})})
		})
		b.p.pass(t.Context())
		if b.p.hosted.count > 1002 {
			t.Fatalf("%d entries for one address", b.p.hosted.count)
		}
	}
	alloc := wire.CIDR(netip.MustParsePrefix("10.2.3.0/24"))
	b.write(func(txn statedb.WriteTxn) {
		tables.Put(txn, b.tab.Nodes, &tables.Node{Cluster: "west", Name: "a", Place: tables.PlaceOf(&wire.Node{IPv4AllocCIDR: &alloc, IPAddresses: []wire.NodeAddress{
			{Type: wire.NodeInternalIP, IP: netip.AddrFrom4([4]byte{192, 0, 2999 >> 8, 2999 & 255})}, {Type: wire.NodeCiliumInternalIP, IP: netip.MustParseAddr("10.2.3.1")}}})})
	})
	b.pass()
	if row := rowsIn(b.maps.IPs)[bpf.AddrOf(netip.MustParseAddr("10.2.3.4"))]; row.Node == 0 || row.Node != b.p.cfg.Rows.Index("west/a") {
		t.Errorf("behind its node the address has row %+v", row)
	}
}
