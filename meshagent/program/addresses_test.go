package program

import (
	"net/netip"
	"testing"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/wire"
)

// A peer that announces a node at some address of the world must not take it
// out of the policies about that part of the world.
func TestAPeersNodeOwnsNoAddressOutsideOfItsCIDRs(t *testing.T) {
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	own := &tables.Cluster{Name: "east", Own: &wire.Cluster{Name: "east", ID: 1, PodCIDRs: []netip.Prefix{prefix("10.1.0.0/16")}}}
	peer := &tables.Cluster{Name: "west", Peer: &wire.Peer{Name: "west", ID: 2, PodCIDRs: []netip.Prefix{prefix("10.2.0.0/16")}}}
	v := &view{self: "n1", own: own, members: map[string]*tables.Cluster{"east": own, "west": peer}}
	node := func(cluster, name, underlay, internal string) *tables.Node {
		return &tables.Node{Cluster: cluster, Name: name, State: &wire.NodeState{
			Name: name, Addresses: []netip.Addr{addr(underlay)}, Internal: addr(internal),
		}}
	}
	a := addresses{ips: map[bpf.Addr]bpf.IPInfo{}, prefixes: map[bpf.PrefixKey]bpf.IPInfo{}, from: map[bpf.Addr]string{}}
	a.node(v, node("east", "n1", "192.0.2.1", "10.1.1.1"), 0)
	a.node(v, node("east", "n2", "192.0.2.2", "10.1.2.1"), 1)
	a.node(v, node("west", "n1", "8.8.8.8", "10.2.1.1"), 2)

	for ip, want := range map[string]identity.Number{
		"192.0.2.1": identity.Host, "10.1.1.1": identity.Host,
		"192.0.2.2": identity.RemoteNode, "10.1.2.1": identity.RemoteNode, "10.2.1.1": identity.RemoteNode,
	} {
		if got, ok := a.ips[bpf.AddrOf(addr(ip))]; !ok || identity.Number(got.Identity) != want {
			t.Errorf("%s is %v (%v), want %v", ip, identity.Number(got.Identity), ok, want)
		}
	}
	if got, ok := a.ips[bpf.AddrOf(addr("8.8.8.8"))]; ok {
		t.Errorf("a peer's word made 8.8.8.8 %v", identity.Number(got.Identity))
	}
}
