package paths

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/wire"
)

func addresses(texts string) (out []netip.Addr) {
	for _, text := range strings.Fields(texts) {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

// Two nodes probe each other over a family that both have, and choose the same.
func TestInCommon(t *testing.T) {
	for _, c := range []struct{ a, b, atB, atA string }{
		{"172.16.1.1", "172.16.2.1", "172.16.2.1", "172.16.1.1"},
		{"fd00::1", "fd00::2", "fd00::2", "fd00::1"},
		{"172.16.1.1 fd00::1", "172.16.2.1 fd00::2", "172.16.2.1", "172.16.1.1"},
		{"172.16.1.1 fd00::1", "fd00::2 172.16.2.1", "172.16.2.1", "172.16.1.1"},
		{"fd00::1 172.16.1.1", "fd00::2 172.16.2.1", "fd00::2", "fd00::1"},
		{"172.16.1.1 fd00::1", "fd00::2", "fd00::2", "fd00::1"},
		{"fd00::1 172.16.1.1", "172.16.2.1", "172.16.2.1", "172.16.1.1"},
		{"172.16.1.1", "fd00::2", "invalid IP", "invalid IP"},
	} {
		a, b := addresses(c.a), addresses(c.b)
		if at := inCommon(a, b).String(); at != c.atB {
			t.Errorf("%s speaks to %s at %s, want %s", c.a, c.b, at, c.atB)
		}
		if at := inCommon(b, a).String(); at != c.atA {
			t.Errorf("%s speaks to %s at %s, want %s", c.b, c.a, at, c.atA)
		}
	}
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"172.16.1.1", "172.16.2.1", false},
		{"fd00::1", "fd00::2 172.16.2.1", false},
		{"172.16.1.1 fd00::1", "fd00::2", true},
		{"172.16.1.1 fd00::1", "fd00::2 172.16.2.1", true},
	} {
		if got := apart(addresses(c.a), addresses(c.b)); got != c.want {
			t.Errorf("%s and %s apart: %v", c.a, c.b, got)
		}
	}
	if apart(addresses("172.16.1.1"), nil) {
		t.Error("a node without addresses may still call, but is apart")
	}
}

// at is the node with other addresses outside the mesh.
func at(n *tables.Node, outside string) *tables.Node {
	cidr := wire.CIDR(n.PodCIDRs()[0])
	place := &wire.Node{IPv4AllocCIDR: &cidr, IPAddresses: []wire.NodeAddress{{Type: wire.NodeCiliumInternalIP, IP: n.Internal()}}}
	for _, a := range addresses(outside) {
		place.IPAddresses = append(place.IPAddresses, wire.NodeAddress{Type: wire.NodeInternalIP, IP: a})
	}
	next := *n
	next.Place = tables.PlaceOf(place)
	return &next
}

// Pods reach processes of our own cluster's nodes at the nodes' addresses, and of no other's. An
// address that is also somebody's in the mesh, or this node's, is not such a one.
func TestProcessesOfOwnNodesAreBehindTheirTunnels(t *testing.T) {
	w := worldOf(t, 0)
	own := nodeOf(0, 0)
	own.Cluster = "own"
	for _, c := range []struct {
		node          *tables.Node
		outside, want string
	}{
		{own, "172.16.0.2 203.0.113.2", "10.0.0.0/24 172.16.0.2/32 203.0.113.2/32"},
		{own, "172.16.0.2 fd00::2 172.16.0.2", "10.0.0.0/24 172.16.0.2/32 fd00::2/128"},
		{own, "10.0.9.9 172.16.0.1 172.16.0.2", "10.0.0.0/24 172.16.0.2/32"},
		{nodeOf(0, 0), "172.16.0.2", "10.0.0.0/24"},
	} {
		w.put(at(c.node, c.outside), true)
		w.turn(t)
		mesh := *w.tunnels.mesh
		mesh.Own, mesh.CIDRs = &tables.Cluster{Name: "own"}, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}
		w.tunnels.mesh = &mesh
		var got []string
		for _, p := range w.tunnels.peerOf(at(c.node, c.outside)).Allowed {
			got = append(got, p.String())
		}
		if got := strings.Join(got, " "); got != c.want {
			t.Errorf("%s at %s: %s, want %s", c.node.Key(), c.outside, got, c.want)
		}
	}
}

// Nothing is sent to a node whose first address is of another family, and operators are told,
// until it has one of ours.
func TestNodesWithFirstAddressesOfTwoFamilies(t *testing.T) {
	w := worldOf(t, 0)
	n := nodeOf(0, 0)
	told := func() (all string) {
		for p := range w.tunnels.cfg.Tables.Problems.All(w.tunnels.cfg.Tables.DB.ReadTxn()) {
			all += p.Table + " " + p.Row + ": " + p.Error
		}
		return all
	}
	const want = "tunnels c0/n0: no tunnel is possible: its first address fd00::2 is IPv6, and this node's 172.16.0.1 is IPv4"
	step := func(outside string, keyed bool, want string) {
		t.Helper()
		w.put(at(n, outside), true)
		w.turn(t)
		if row, _, ok := w.rows.Lane(n.Key()); !ok || row.Keyed != keyed {
			t.Errorf("at %s: %+v", outside, row)
		}
		if got := told(); !strings.HasPrefix(got, want) || want == "" && got != "" {
			t.Errorf("at %s: told %q, want %q", outside, got, want)
		}
	}
	step("fd00::2", false, want)
	w.tunnels.checked = look{} // time for a look at everything
	w.turn(t)
	if got := told(); !strings.HasPrefix(got, want) {
		t.Errorf("after a look: told %q", got)
	}
	step("fd00::2 172.16.0.2", false, want)
	step("172.16.0.2 fd00::2", true, "")
	if got := w.tunnels.peerOf(w.tunnels.mesh.Node(n.Key())).Endpoint[0].String(); got != "172.16.0.2:51871" {
		t.Errorf("its endpoint is %s", got)
	}
}
