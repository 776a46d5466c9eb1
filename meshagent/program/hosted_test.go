package program

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// The index of what is behind each tunnel endpoint has what a simple one has, also within
// a prefix.
func TestHostedAgreesWithASimpleIndex(t *testing.T) {
	prefixes := []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/32"), netip.MustParsePrefix("255.255.255.255/32"), netip.MustParsePrefix("10.2.1.2/32"), netip.MustParsePrefix("10.2.1.2/31"),
		netip.MustParsePrefix("10.2.0.0/16"), netip.MustParsePrefix("fd00::2/128"), netip.MustParsePrefix("fd00::/64"), netip.MustParsePrefix("::ffff:10.2.1.2/128"),
	}
	for i := range 30 {
		prefixes = append(prefixes, whole(netip.AddrFrom4([4]byte{10, 2, byte(i % 3), byte(i)})))
	}
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		h, simple := newHosted(), map[host]map[bpf.PrefixKey]struct{}{}
		for range 200 {
			ip := &tables.IP{Cluster: fmt.Sprint("c", r.IntN(2)), Host: netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(3))}), Prefix: prefixes[r.IntN(len(prefixes))]}
			if r.IntN(20) == 0 {
				ip.Host = netip.Addr{} // not behind any
			}
			at := host{ip.Cluster, ip.Host}
			if r.IntN(3) > 0 {
				h.put(ip)
				if simple[at] == nil {
					simple[at] = map[bpf.PrefixKey]struct{}{}
				}
				if ip.Host.IsValid() {
					simple[at][bpf.PrefixOf(ip.Prefix)] = struct{}{}
				}
			} else {
				h.drop(ip)
				delete(simple[at], bpf.PrefixOf(ip.Prefix))
			}
		}
		count := 0
		for at, want := range simple {
			count += len(want)
			got := slices.Collect(h.at(at))
			if len(got) != len(want) || !maps.Equal(want, setOf(got)) {
				t.Errorf("seed %d: behind %v: %v, want %v", seed, at, got, want)
			}
		}
		for _, in := range []string{"0.0.0.0/0", "10.2.0.0/16", "10.2.1.0/24", "10.2.1.0/30", "10.2.1.2/32", "192.0.2.0/24", "::/0", "fd00::/64"} {
			for at, set := range simple {
				want := map[bpf.PrefixKey]struct{}{}
				for k := range set {
					if holds(netip.MustParsePrefix(in), k.Netip()) {
						want[k] = struct{}{}
					}
				}
				if spots := h.spots(at); spots != nil && !maps.Equal(want, setOf(slices.Collect(spots.within(netip.MustParsePrefix(in))))) {
					t.Errorf("seed %d: behind %v within %s, want %v", seed, at, in, want)
				}
			}
		}
		if h.count != count {
			t.Errorf("seed %d: counted %d, there are %d", seed, h.count, count)
		}
	}
}

func setOf(keys []bpf.PrefixKey) map[bpf.PrefixKey]struct{} {
	out := map[bpf.PrefixKey]struct{}{}
	for _, k := range keys {
		out[k] = struct{}{}
	}
	return out
}
