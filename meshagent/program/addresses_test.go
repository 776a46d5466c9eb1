package program

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/wire"
)

// Pods cannot reach the address of a member's node outside the mesh: not before a
// tunnel has answered there, and not even if nothing else about the node is believed.
func TestEveryAddressOfANodeIsKnownAsOne(t *testing.T) {
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	b := newBench(t)
	b.servers = []netip.Addr{addr("198.51.100.9")}
	b.restart()
	node := func(cluster, name, cidr, internal string, underlay ...string) *tables.Node {
		n := &tables.Node{Cluster: cluster, Name: name, State: &wire.NodeState{Name: name, Internal: addr(internal), PodCIDRs: []netip.Prefix{prefix(cidr)}}}
		for _, a := range underlay {
			n.State.Addresses = append(n.State.Addresses, addr(a))
		}
		n.Registration = &wire.Registration{Name: name, Addresses: n.State.Addresses, PodCIDRs: n.State.PodCIDRs}
		return n
	}
	registered := node("east", "n3", "10.1.3.0/24", "10.1.3.1", "192.0.2.3", "10.1.3.3")
	registered.State = nil
	liar := node("east", "n4", "10.1.4.0/24", "10.1.4.1", "192.0.2.4")
	liar.State = &wire.NodeState{Name: "n4", Internal: addr("10.1.4.1"), PodCIDRs: []netip.Prefix{prefix("10.1.4.0/24")}, Addresses: []netip.Addr{addr("192.0.2.44")}}
	starting := node("west", "n2", "10.2.2.0/24", "10.2.2.1", "203.0.113.2")
	starting.State.Internal, starting.State.PodCIDRs = netip.Addr{}, nil
	b.write(func(txn statedb.WriteTxn) {
		for _, n := range []*tables.Node{
			node("east", "n1", "10.1.1.0/24", "10.1.1.1", "192.0.2.1"),
			node("east", "n2", "10.1.2.0/24", "10.1.2.1", "192.0.2.2", "192.0.2.22"),
			registered, liar,
			node("west", "n1", "10.2.1.0/24", "10.2.1.1", "203.0.113.1", "203.0.113.11"),
			starting,
			node("west", "n3", "10.1.9.0/24", "10.2.3.1", "203.0.113.3"), // in one of our pod CIDRs
			node("west", "n4", "10.2.4.0/24", "10.2.4.1", "192.0.2.1", "192.0.2.2", "198.51.100.9", "10.1.9.9"),
			node("north", "n1", "10.3.1.0/24", "10.3.1.1", "203.0.113.99"), // not a member
		} {
			tables.Put(txn, b.tab.Nodes, n)
		}
	})
	b.pass()

	info := func(who identity.Number, flags bpf.IPFlags) bpf.IPInfo {
		return bpf.IPInfo{Identity: uint32(who), Flags: flags}
	}
	carried := info(identity.RemoteNode, bpf.IPNode) // processes there may be backends
	if carried.Node = b.p.cfg.Rows.Index("east/n2"); carried.Node == 0 {
		t.Error("east/n2 has no index")
	}
	want := map[string]bpf.IPInfo{
		"192.0.2.1":    info(identity.Host, 0),
		"192.0.2.2":    carried,
		"192.0.2.22":   carried,
		"192.0.2.3":    info(identity.RemoteNode, bpf.IPNode),
		"192.0.2.4":    info(identity.RemoteNode, bpf.IPNode),
		"203.0.113.1":  info(identity.RemoteNode, bpf.IPNode),
		"203.0.113.11": info(identity.RemoteNode, bpf.IPNode),
		"203.0.113.2":  info(identity.RemoteNode, bpf.IPNode),
		"203.0.113.3":  info(identity.RemoteNode, bpf.IPNode),
	}
	for ip, cluster := range map[string]uint16{"10.1.1.1": 1, "10.1.2.1": 1, "10.2.1.1": 2, "10.2.4.1": 2} {
		row := rowsIn(b.maps.IPs)[bpf.AddrOf(addr(ip))]
		if row.Cluster != cluster || row.Flags&bpf.IPMember == 0 || (row.Node == 0) != (ip == "10.1.1.1") {
			t.Errorf("inside the mesh: %s is %+v", ip, row)
		}
	}
	for ip, row := range want {
		if got := rowsIn(b.maps.IPs)[bpf.AddrOf(addr(ip))]; got != row {
			t.Errorf("%s is %+v, want %+v", ip, got, row)
		}
	}
	for ip, row := range rowsIn(b.maps.IPs) {
		if _, ok := want[ip.String()]; !ok && row.Flags&bpf.IPMember == 0 {
			t.Errorf("%s became %+v", ip, row)
		}
	}
}

// An API server is recognised wherever it runs: on this node, on another, or on a
// machine that is not a node.
func TestAPIServersAreToldFromOthers(t *testing.T) {
	addr := netip.MustParseAddr
	b := newBench(t)
	b.servers = []netip.Addr{addr("192.0.2.1"), addr("192.0.2.2"), addr("198.51.100.9")}
	b.restart()
	web := b.pod("web-1", "web", "10.1.1.2", 65537)
	node := func(name, underlay, cidr, internal string) *tables.Node {
		cidrs := []netip.Prefix{netip.MustParsePrefix(cidr)}
		return &tables.Node{Cluster: "east", Name: name,
			Registration: &wire.Registration{Name: name, Addresses: []netip.Addr{addr(underlay)}, PodCIDRs: cidrs},
			State:        &wire.NodeState{Name: name, Addresses: []netip.Addr{addr(underlay)}, Internal: addr(internal), PodCIDRs: cidrs}}
	}
	b.write(func(txn statedb.WriteTxn) {
		tables.Put(txn, b.tab.Nodes, node("n1", "192.0.2.1", "10.1.1.0/24", "10.1.1.1"))
		tables.Put(txn, b.tab.Nodes, node("n2", "192.0.2.2", "10.1.2.0/24", "10.1.2.1"))
		tables.Put(txn, b.tab.Nodes, node("n3", "192.0.2.3", "10.1.3.0/24", "10.1.3.1"))
	})
	look := func(when string, want map[string]bool) {
		t.Helper()
		b.pass()
		for ip, want := range want {
			who := whoIs(b.maps, addr(ip))
			if info, ok := rowsIn(b.maps.IPs)[bpf.AddrOf(addr(ip))]; ok {
				who = identity.Number(info.Identity)
			}
			if got, known := judgePacket(b.maps, web, who, bpf.Egress, 6, 443); got != want || !known {
				t.Errorf("%s: %s as %v: allowed %v (known %v), want %v", when, ip, who, got, known, want)
			}
		}
	}
	const deny = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  enableDefaultDeny: {egress: false}
  egressDeny: [{toEntities: [kube-apiserver]}]
`
	b.policy("web", deny)
	look("denied", map[string]bool{"192.0.2.1": false, "192.0.2.2": false, "192.0.2.3": true, "198.51.100.9": false, "198.51.100.8": true})

	// One is deleted, another added, while the agent runs.
	move := func(a *wire.Access) {
		b.write(func(txn statedb.WriteTxn) {
			tables.Change(txn, b.tab.Clusters, &tables.Cluster{Name: "east"}, func(c *tables.Cluster) bool { c.Access = a; return true })
		})
	}
	move(&wire.Access{Etcd: []string{"192.0.2.1", "192.0.2.3", "198.51.100.8"}})
	look("moved", map[string]bool{"192.0.2.1": false, "192.0.2.2": true, "192.0.2.3": false, "198.51.100.9": true, "198.51.100.8": false})
	move(nil)
	look("moved back", map[string]bool{"192.0.2.1": false, "192.0.2.2": false, "192.0.2.3": true, "198.51.100.9": false, "198.51.100.8": true})
	// With Kubernetes, its API servers are meant, wherever they are, and not those of the mesh.
	kube := []netip.Addr{addr("192.0.2.3"), addr("203.0.113.7")}
	move(&wire.Access{Etcd: []string{"192.0.2.1", "192.0.2.2", "198.51.100.9"}, Kubernetes: kube})
	look("Kubernetes", map[string]bool{"192.0.2.1": true, "192.0.2.2": true, "192.0.2.3": false, "198.51.100.9": true, "203.0.113.7": false})
	move(&wire.Access{Etcd: []string{"192.0.2.1", "192.0.2.2", "198.51.100.9"}, Kubernetes: kube[:1]})
	look("one fewer", map[string]bool{"192.0.2.1": true, "192.0.2.2": true, "192.0.2.3": false, "198.51.100.9": true, "203.0.113.7": true})
	move(nil)
	look("without Kubernetes", map[string]bool{"192.0.2.1": false, "192.0.2.2": false, "192.0.2.3": true, "198.51.100.9": false, "203.0.113.7": true})
	b.policy("web", `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress: [{toEntities: [remote-node]}, {toCIDR: [198.51.100.9/32]}]
`)
	look("by what else they are", map[string]bool{"192.0.2.1": false, "192.0.2.2": true, "192.0.2.3": true, "198.51.100.9": true, "198.51.100.8": false})
}

// A removed node's row goes last. A flow not told to re-judge would find its node dead
// and reset open connections; told to, it waits for the node to come back.
func TestANodesRowOutlivesItsAddresses(t *testing.T) {
	b := newBench(t)
	node := &tables.Node{Cluster: "west", Name: "n1", State: &wire.NodeState{
		Name: "n1", Internal: netip.MustParseAddr("10.2.1.1"), PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.2.1.0/24")},
	}}
	node.Registration = &wire.Registration{PodCIDRs: node.State.PodCIDRs}
	var synced = map[wire.Resource]time.Time{wire.Nodes: {}, wire.Identities: {}, wire.IPs: {}, wire.Services: {}}
	b.write(func(txn statedb.WriteTxn) {
		tables.Change(txn, b.tab.Clusters, &tables.Cluster{Name: "west"}, func(c *tables.Cluster) bool { c.Synced = synced; return true })
		tables.Put(txn, b.tab.Nodes, node)
	})
	b.pass()
	index := uint32(b.p.cfg.Rows.Index("west/n1"))
	row := func() bool { _, ok := rowsIn(b.maps.Nodes)[index]; return ok }
	if index == 0 || !row() {
		t.Fatal("the node has no row")
	}
	revision := func() uint32 {
		n, _, _ := b.maps.Revisions.Lookup(bpf.RevisionOf(bpf.AddrOf(node.State.Internal)))
		return n
	}
	before := revision()
	told, broken := false, true
	b.tap.before = func() error {
		told = revision() != before
		if !told && !row() {
			t.Error("the node's row went before its flows were told to be judged again")
		}
		if broken {
			return errors.New("no")
		}
		return nil
	}
	b.write(func(txn statedb.WriteTxn) { tables.Drop(txn, b.tab.Nodes, node) })
	b.p.pass(t.Context())
	if !row() {
		t.Error("the node's row went although nothing could be written")
	}
	broken = false
	b.p.pass(t.Context())
	if row() {
		t.Error("the node's row was never removed")
	}
}
