package program

import (
	"net/netip"
	"testing"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/wire"
)

// A peer that announces a node at some address of the world must not take it out
// of the policies about that part of the world, nor out of reach. Where a tunnel to
// the node has answered, it is the node's.
func TestAPeersNodeHasTheAddressesThatAreProven(t *testing.T) {
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	own := &tables.Cluster{Name: "east", Own: &wire.Cluster{Name: "east", ID: 1, PodCIDRs: []netip.Prefix{prefix("10.1.0.0/16")}}}
	peer := &tables.Cluster{Name: "west", Peer: &wire.Peer{Name: "west", ID: 2, PodCIDRs: []netip.Prefix{prefix("10.2.0.0/16")}}}
	v := &view{self: "n1", own: own, members: map[string]*tables.Cluster{"east": own, "west": peer}}
	v.proven = func(a netip.Addr) bool { return a == addr("192.0.2.9") || a == addr("10.1.9.9") }
	node := func(cluster, name, underlay, internal string) *tables.Node {
		return &tables.Node{Cluster: cluster, Name: name, State: &wire.NodeState{
			Name: name, Addresses: []netip.Addr{addr(underlay)}, Internal: addr(internal),
		}}
	}
	who := func(e endpointAt) identity.Number { return e.who }
	a := addresses{number: who, ips: map[bpf.Addr]bpf.IPInfo{}, prefixes: map[bpf.PrefixKey]bpf.IPInfo{}, from: map[bpf.Addr]string{}}
	a.node(v, node("east", "n1", "192.0.2.1", "10.1.1.1"), 0)
	a.node(v, node("east", "n2", "192.0.2.2", "10.1.2.1"), 1)
	a.node(v, node("west", "n1", "8.8.8.8", "10.2.1.1"), 2)
	a.node(v, node("west", "n2", "192.0.2.9", "10.2.2.1"), 3)
	a.node(v, node("west", "n3", "10.1.9.9", "10.2.3.1"), 4)
	a.registered(v, &tables.Node{Cluster: "east", Name: "n3", Registration: &tables.Registration{Addresses: []netip.Addr{addr("192.0.2.3"), addr("10.1.3.3")}}})
	a.registered(v, &tables.Node{Cluster: "west", Name: "n4", Registration: &tables.Registration{Addresses: []netip.Addr{addr("192.0.2.4")}}})
	a.registered(v, &tables.Node{Cluster: "east", Name: "n1", Registration: &tables.Registration{Addresses: []netip.Addr{addr("192.0.2.1")}}})

	want := map[string]bpf.IPInfo{
		"192.0.2.1": {Identity: uint32(identity.Host)},
		"192.0.2.2": {Identity: uint32(identity.RemoteNode), Flags: bpf.IPNode},
		"192.0.2.3": {Identity: uint32(identity.RemoteNode), Flags: bpf.IPNode},
		"192.0.2.9": {Identity: uint32(identity.RemoteNode), Flags: bpf.IPNode},
		"10.1.1.1":  {Identity: uint32(identity.Host), Cluster: 1, Flags: bpf.IPMember | bpf.IPLocal},
		"10.1.2.1":  {Identity: uint32(identity.RemoteNode), Cluster: 1, Node: 1, Flags: bpf.IPMember},
		"10.2.1.1":  {Identity: uint32(identity.RemoteNode), Cluster: 2, Node: 2, Flags: bpf.IPMember},
		"10.2.2.1":  {Identity: uint32(identity.RemoteNode), Cluster: 2, Node: 3, Flags: bpf.IPMember},
		"10.2.3.1":  {Identity: uint32(identity.RemoteNode), Cluster: 2, Node: 4, Flags: bpf.IPMember},
	}
	for ip, row := range want {
		if got := a.ips[bpf.AddrOf(addr(ip))]; got != row {
			t.Errorf("%s is %+v, want %+v", ip, got, row)
		}
	}
	for ip, row := range a.ips {
		if _, ok := want[ip.String()]; !ok {
			t.Errorf("%s became %+v", ip, row)
		}
	}
}

// An API server is one wherever it runs: on this node, on another, on a machine
// that is no node.
func TestAPIServersAreToldFromOthers(t *testing.T) {
	addr := netip.MustParseAddr
	b := newBench(t)
	b.servers = []netip.Addr{addr("192.0.2.1"), addr("192.0.2.2"), addr("198.51.100.9")}
	b.restart()
	web := b.pod("web-1", "web", "10.1.1.2", 65537)
	node := func(name, underlay, cidr, internal string) *tables.Node {
		cidrs := []netip.Prefix{netip.MustParsePrefix(cidr)}
		return &tables.Node{Cluster: "east", Name: name,
			Registration: &tables.Registration{Name: name, Addresses: []netip.Addr{addr(underlay)}, PodCIDRs: cidrs},
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
