package tables

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/wire"
)

// Blocks of addresses hold what a simple map does, and what has changed in them is what
// differs between two states of the map.
func TestBlocksAgreeWithASimpleMap(t *testing.T) {
	prefixes := []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("0.0.0.0/32"), netip.MustParsePrefix("255.255.255.255/32"), netip.MustParsePrefix("10.2.1.0/24"),
		netip.MustParsePrefix("10.2.1.5/24"), netip.MustParsePrefix("10.2.1.0/26"), netip.MustParsePrefix("::/0"), netip.MustParsePrefix("fd00::/64"), netip.MustParsePrefix("fd00::2/128"),
		netip.MustParsePrefix("fd00::ff/128"), netip.MustParsePrefix("::ffff:10.2.1.2/128"), netip.MustParsePrefix("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"),
	}
	for i := range 40 {
		a := netip.AddrFrom4([4]byte{10, 2, byte(i % 2), byte(i * 7)})
		prefixes = append(prefixes, netip.PrefixFrom(a, 32))
	}
	type at struct {
		cluster string
		prefix  netip.Prefix
	}
	equal := cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})
	for seed := range uint64(10) {
		r := rand.New(rand.NewPCG(seed, 3))
		all, simple := New(), map[at]IP{}
		seen, before := map[string]*IPBlock{}, map[at]IP{}
		for range 10 {
			txn := all.DB.WriteTxn(all.IPs)
			w := all.WriteIPs(txn)
			for range r.IntN(20) {
				k := at{[]string{"a", "ab"}[r.IntN(2)], prefixes[r.IntN(len(prefixes))]}
				if r.IntN(3) == 0 {
					w.Drop(k.cluster, k.prefix)
					delete(simple, k)
				} else {
					ip := IP{Cluster: k.cluster, Prefix: k.prefix, Identity: identity.Number(r.IntN(2)), Namespace: fmt.Sprint("n", r.IntN(2)), Pod: fmt.Sprint("p", r.IntN(2))}
					if r.IntN(2) == 0 {
						ip.Host, ip.NamedPorts = netip.MustParseAddr("192.0.2.1"), []wire.NamedPort{{Name: "http", Port: 80}}
					}
					w.Put(&ip)
					simple[k] = ip
				}
				if got, there := w.Get(k.cluster, k.prefix), simple[k]; (got != nil) != (there.Cluster != "") || got != nil && !cmp.Equal(*got, there, equal) {
					t.Fatalf("seed %d: the writer has %+v, want %+v", seed, got, there)
				}
				if r.IntN(10) == 0 {
					w.Flush()
				}
			}
			w.Flush()
			read := txn.Commit()

			got := map[at]IP{}
			for ip := range all.EachIP(read) {
				got[at{ip.Cluster, ip.Prefix}] = ip
			}
			if diff := cmp.Diff(simple, got, equal); diff != "" {
				t.Fatalf("seed %d: (-want +got)\n%s", seed, diff)
			}
			if of := slices.Collect(all.IPsOf(read, "a")); slices.ContainsFunc(of, func(ip IP) bool { return ip.Cluster != "a" }) || len(of)+len(slices.Collect(all.IPsOf(read, "ab"))) != len(got) {
				t.Fatalf("seed %d: of cluster a: %v", seed, of)
			}
			if all.CountIPs() != len(simple) {
				t.Fatalf("seed %d: %d are counted, want %d", seed, all.CountIPs(), len(simple))
			}
			for _, p := range prefixes {
				if ip, there := all.IPAt(read, "a", p), simple[at{"a", p}]; (ip != nil) != (there.Cluster != "") || ip != nil && !cmp.Equal(*ip, there, equal) {
					t.Fatalf("seed %d: %v is %+v, want %+v", seed, p, ip, there)
				}
			}

			if r.IntN(2) == 0 {
				continue // several writes later
			}
			now := map[string]*IPBlock{}
			for b := range all.IPs.All(read) {
				now[b.Key()] = b
			}
			told, want := map[at]IP{}, map[at]IP{}
			for key := range merged(seen, now) {
				for ip, gone := range now[key].Since(seen[key]) {
					k := at{ip.Cluster, ip.Prefix}
					if _, twice := told[k]; twice {
						t.Errorf("seed %d: %v is told twice", seed, k)
					}
					if told[k] = ip; gone {
						if !cmp.Equal(ip, before[k], equal) {
							t.Errorf("seed %d: %+v is gone, it was %+v", seed, ip, before[k])
						}
						told[k] = IP{}
					}
				}
			}
			for k := range merged(before, simple) {
				if !cmp.Equal(before[k], simple[k], equal) {
					want[k] = simple[k]
				}
			}
			if diff := cmp.Diff(want, told, equal); diff != "" {
				t.Fatalf("seed %d: changes (-want +told)\n%s", seed, diff)
			}
			seen, before = now, maps.Clone(simple)
		}
	}
}

// merged has the keys of both.
func merged[K comparable, V any](a, b map[K]V) map[K]V {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}
