package peering

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-mesh/weft/wire"
)

// The index answers as a look at all peers would, whatever came and went.
func TestOwnersAreThoseOfALookAtAllPeers(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	address := func() netip.Addr {
		if r.IntN(3) == 0 {
			return netip.AddrFrom16([16]byte{0xfd, 15: byte(r.IntN(64))})
		}
		return netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(64))})
	}
	o, peers := newOwners(), map[string]wire.Peer{}
	for range 5000 {
		name := fmt.Sprint("p", r.IntN(6))
		o.remove(peers[name])
		delete(peers, name)
		if r.IntN(4) > 0 {
			peer := wire.Peer{Name: name, Connected: r.IntN(4) > 0}
			for range 1 + r.IntN(3) {
				a := address()
				peer.PodCIDRs = append(peer.PodCIDRs, netip.PrefixFrom(a, a.BitLen()-r.IntN(6)).Masked())
			}
			peers[name] = peer
			o.add(peer)
		}
		a, except := address(), fmt.Sprint("p", r.IntN(6))
		var want []string
		for _, peer := range peers {
			if peer.Connected && peer.Name != except && slices.ContainsFunc(peer.PodCIDRs, func(p netip.Prefix) bool { return p.Contains(a) }) {
				want = append(want, peer.Name)
			}
		}
		if got := o.of(a, except); got == "" && len(want) > 0 || got != "" && !slices.Contains(want, got) {
			t.Fatalf("%v belongs to %q, want one of %q of %v", a, got, want, slices.Collect(maps.Values(peers)))
		}
	}
	for _, peer := range peers {
		o.remove(peer)
	}
	if len(o.names)+len(o.lengths) != 0 {
		t.Errorf("left of no peers: %v, %v", o.names, o.lengths)
	}
}

// What a look costs does not grow with the peers.
func TestOwnersOfManyPeers(t *testing.T) {
	for _, n := range []int{10, 100} {
		o := newOwners()
		for i := range n {
			o.add(wire.Peer{Name: fmt.Sprint("p", i), Connected: true, PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 16)}})
		}
		if got := o.of(netip.MustParseAddr("10.7.1.2"), ""); got != "p7" || len(o.lengths) != 1 {
			t.Errorf("%d peers: %q after %d lookups", n, got, len(o.lengths))
		}
	}
}
