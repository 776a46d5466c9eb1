package program

import (
	"cmp"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/wire"
)

// Who has an address is known in order, whoever comes and goes.
func TestHolders(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	v := &view{own: &tables.Cluster{Name: "m"}}
	var h holders
	have := map[netip.Addr][]string{}
	clusters := []string{"a", "a-b", "a.b", "ab", "m", "z"}
	for range 20_000 {
		a := netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(3))})
		key := fmt.Sprintf("%s/%d", clusters[r.IntN(len(clusters))], r.IntN(3))
		i, there := slices.BinarySearchFunc(have[a], key, v.order)
		if r.IntN(2) == 0 {
			if h.take(a, key, v.order); !there {
				have[a] = slices.Insert(have[a], i, key)
			}
		} else if h.release(a, key, v.order); there {
			have[a] = slices.Delete(have[a], i, i+1)
		}
		if got := slices.Collect(h.each(a)); !slices.Equal(got, have[a]) || h.has(a, key, v.order) != slices.Contains(have[a], key) {
			t.Fatalf("%v has %v, want %v", a, got, have[a])
		}
		if len(have[a]) > 0 && h.first(a) != have[a][0] || len(have[a]) == 0 && h.first(a) != "" || len(have[a]) < 2 && h.all[bpf.AddrOf(a)] != nil {
			t.Fatalf("first is %q of %v", h.first(a), have[a])
		}
		for _, c := range clusters {
			want := slices.DeleteFunc(slices.Clone(have[a]), func(key string) bool { return clusterOf(key) != c })
			if got := slices.Collect(h.ofCluster(a, c, v.order)); !slices.Equal(got, want) {
				t.Fatalf("of %s: %v, want %v", c, got, want)
			}
		}
	}
}

// One address that all nodes name, of every cluster, costs no more for each than any other.
func TestOneAddressOfAllNodes(t *testing.T) {
	const n = 1 << 13
	a := netip.MustParseAddr("192.0.2.1")
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf("c%d/n%d", i%250, i)
	}
	compared := 0
	order := func(a, b string) int { compared++; return cmp.Compare(a, b) }
	var h holders
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, key := range keys {
		h.take(a, key, order)
	}
	for _, key := range keys {
		h.release(a, key, order)
	}
	runtime.ReadMemStats(&after)
	if got := (after.TotalAlloc - before.TotalAlloc) / n; got > 200 {
		t.Errorf("%d bytes for each of %d nodes", got, n)
	}
	if most := 2 * n * (bits.Len(n) + 1); compared > most {
		t.Errorf("%d comparisons, at most %d expected", compared, most)
	}
}

// A peer whose nodes all name one address has all that is behind it found in one walk, and again
// when its nodes change.
func TestBehindAsksOnce(t *testing.T) {
	b := newBench(t)
	oneAddress(b, 200)
	asked := host{"west", sharedHost}
	v := b.p.beliefs.view
	if key, known := v.nodes.found[asked]; !known || key != "west/believed" || len(v.nodes.found) != 1 {
		t.Fatalf("found %v", v.nodes.found)
	}
	row := rowsIn(b.maps.IPs)[bpf.AddrOf(netip.MustParseAddr("10.2.0.7"))]
	if row.Node == 0 || row.Node != b.p.cfg.Rows.Index("west/believed") {
		t.Errorf("behind node %d", row.Node)
	}
	b.write(func(txn statedb.WriteTxn) { put(txn, b.tab.Nodes, believedThere(), false) })
	b.pass()
	if row := rowsIn(b.maps.IPs)[bpf.AddrOf(netip.MustParseAddr("10.2.0.7"))]; row.Node != 0 || v.nodes.found[asked] != "" {
		t.Errorf("still behind node %d", row.Node)
	}
}

var sharedHost = netip.MustParseAddr("192.0.2.77")

func believedThere() *tables.Node {
	return nodeThere("west", "believed", "10.2.255.0/24", "10.2.255.1")
}

func nodeThere(cluster, name, cidr, internal string) *tables.Node {
	alloc := wire.CIDR(netip.MustParsePrefix(cidr))
	return &tables.Node{Cluster: cluster, Name: name, Place: tables.PlaceOf(&wire.Node{IPv4AllocCIDR: &alloc, IPAddresses: []wire.NodeAddress{
		{Type: wire.NodeInternalIP, IP: sharedHost}, {Type: wire.NodeCiliumInternalIP, IP: netip.MustParseAddr(internal)}}})}
}

// oneAddress has n nodes of west, all but the last of them not believed, name one address, and n
// pods there.
func oneAddress(b *bench, n int) {
	b.write(func(txn statedb.WriteTxn) {
		tables.Put(txn, b.tab.Clusters, &tables.Cluster{Name: "west", Peer: &wire.Peer{Name: "west", ID: 2, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")}}})
		tables.Put(txn, b.tab.Nodes, believedThere())
		for i := range n {
			at := netip.AddrFrom4([4]byte{10, 3, byte(i >> 8), byte(i)})
			tables.Put(txn, b.tab.Nodes, nodeThere("west", fmt.Sprintf("a%05d", i), at.String()+"/32", at.String()))
			tables.PutIP(txn, b.tab, &tables.IP{Cluster: "west", Prefix: whole(netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)})), Identity: 2<<16 + 1, Host: sharedHost})
		}
	})
	b.pass()
}

// BenchmarkOneAddressOfAllNodes is a peer with n nodes and n pods, all at one address.
func BenchmarkOneAddressOfAllNodes(b *testing.B) {
	for _, n := range []int{1000, 4000, 16000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			began := ownTime(b)
			b.ReportAllocs()
			for b.Loop() {
				oneAddress(newBench(b), n)
			}
			b.ReportMetric(float64(ownTime(b)-began)/float64(b.N*n), "cpu-ns/node")
		})
	}
}
