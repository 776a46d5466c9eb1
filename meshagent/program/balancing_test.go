package program

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/service"
)

func randomBalancing(r *rand.Rand) (how balancing) {
	if how.maglev = r.IntN(2) == 0; how.maglev {
		how.size = []uint32{0, 251, 509}[r.IntN(3)]
	}
	if r.IntN(3) == 0 {
		how.split = &service.Split{By: map[service.ClusterID]uint16{1: 3}, Rest: 1}
	}
	return how
}

// weight is one of a slice.
func (c changer) weight() uint16 { return []uint16{0, 0, 0, 50, 60, 300}[c.IntN(6)] }

// balancing lets a service choose how its backends share connections.
func (c changer) balancing(s *service.Service) {
	s.Algorithm = service.Random
	if c.IntN(3) == 0 {
		s.Algorithm, s.TableSize = service.Maglev, []uint32{0, 0, 509}[c.IntN(3)]
	}
	if c.IntN(4) == 0 {
		s.ClusterWeights = service.ClusterWeights{"east": uint16(c.IntN(3)), []string{"west", "north", "south", "*"}[c.IntN(4)]: uint16(c.IntN(3))}
	}
}

// listed says what is wrong with the Maglev table of a tier as a packet would find it, if it
// has one.
func listed(m *bpf.Maps, s bpf.Service, tier uint8) error {
	if s.Timeout.Flags()&bpf.ServiceBalanced == 0 {
		return nil
	}
	how, ok, _ := m.Balancing.Lookup(s.ID)
	if !ok {
		return errors.New("how it is balanced is not there")
	}
	for slot := range how.Slots {
		piece, ok, _ := m.Maglev.Lookup(bpf.MaglevKey{Service: s.ID, Piece: uint16(slot / bpf.Piece), Tier: tier, Generation: how.Generation})
		if !ok {
			return nil // a backend is chosen at random until it is there
		}
		number := piece.Backend[slot%bpf.Piece]
		b, ok, _ := m.Backends.Lookup(bpf.SlotKey{Service: s.ID, Slot: uint32(number), Cluster: tableGroup})
		if !ok || number == 0 {
			return fmt.Errorf("slot %d of tier %d has backend %d, which has no row", slot, tier, number)
		}
		if _, ok, _ := m.Members.Lookup(bpf.MemberKey{Addr: b.Addr, Service: s.ID, Port: b.Port}); !ok {
			return fmt.Errorf("slot %d of tier %d has %v, which is not a member", slot, tier, b.Addr)
		}
	}
	return nil
}

// balances says how a row differs from how the frontend's backends should share connections, and
// how many rows of backends its tables have.
func balances(got everything, row bpf.Service, w frontend) (backends int, where string) {
	var portions []service.Portion
	tiers, all := map[uint8][]service.Listed{}, map[netip.AddrPort]bool{}
	n := 0
	for _, b := range w.slots {
		n += len(b)
	}
	for _, g := range w.groups {
		cluster, _ := bpf.ClusterOf(g.Cluster)
		p := service.Portion{Cluster: service.ClusterID(cluster), Tier: g.Tier, Class: classOf(g.Cluster)}
		if g.Weight > 0 {
			p.Count = int(g.Count)
			var weights uint64 // of its cluster in this tier
			for _, h := range w.groups {
				if other, _ := bpf.ClusterOf(h.Cluster); other == cluster && h.Tier == g.Tier {
					for _, b := range w.slots[h.Cluster] {
						weights += uint64(cmp.Or(b.Weight, service.DefaultWeight))
					}
				}
			}
			for _, b := range w.slots[g.Cluster] {
				weight := uint64(cmp.Or(b.Weight, service.DefaultWeight))
				if w.how.split != nil {
					weight = max(1, uint64(w.how.split.Of(service.ClusterID(cluster)))<<26*weight/weights)
				}
				tiers[g.Tier] = append(tiers[g.Tier], service.Listed{Addr: b.Addr.Netip(), Port: b.Port.Number(), Weight: weight})
				all[netip.AddrPortFrom(b.Addr.Netip(), b.Port.Number())] = true
			}
		}
		for _, b := range w.slots[g.Cluster] {
			p.Rejected += uint64(b.Reject)
		}
		portions = append(portions, p)
	}
	want := bpf.Balancing{}
	weighted := copy(want.Weights[:], service.Tickets(portions, w.how.split)) > 0
	if w.how.maglev && service.FitsTable(n, w.how.size) {
		want.Slots = cmp.Or(w.how.size, service.TableSizeFor(n))
	}
	have := got.balancing[row.ID]
	want.Generation = have.Generation
	balanced := want.Slots > 0 || weighted
	for i := range w.groups {
		if balanced && !weighted {
			want.Weights[i] = 1
		}
	}
	if have != want || balanced != (row.Timeout.Flags()&bpf.ServiceBalanced != 0) {
		return 0, fmt.Sprintf("balanced as %+v (%v), want %+v", have, row.Timeout, want)
	}
	if want.Slots == 0 {
		return 0, ""
	}
	for tier, backends := range tiers {
		table := service.LookupTable(want.Slots, backends)
		for slot, b := range table {
			number := got.maglev[bpf.MaglevKey{Service: row.ID, Piece: uint16(slot / bpf.Piece), Tier: tier, Generation: have.Generation}].Backend[slot%bpf.Piece]
			to := got.slots[bpf.SlotKey{Service: row.ID, Slot: uint32(number), Cluster: tableGroup}]
			if at := netip.AddrPortFrom(backends[b].Addr, backends[b].Port); number == 0 || spotOf(to) != at {
				return 0, fmt.Sprintf("slot %d of tier %d has backend %d, %v, want %v", slot, tier, number, spotOf(to), at)
			}
		}
	}
	return len(all), ""
}

// strayShares says which rows of balancing and maglev belong to no service that uses them.
func strayShares(got everything) string {
	of, tiers := map[uint32]bpf.Service{}, map[uint32]map[uint8]bool{}
	for _, row := range got.services {
		if row.Timeout.Flags()&bpf.ServiceBalanced != 0 {
			of[row.ID], tiers[row.ID] = row, map[uint8]bool{}
			for _, g := range row.Group[:row.Groups] {
				if g.Weight > 0 && g.Count > 0 {
					tiers[row.ID][g.Tier] = true
				}
			}
		}
	}
	for id := range got.balancing {
		if _, ok := of[id]; !ok {
			return fmt.Sprintf("service %d is not there, and how it is balanced is", id)
		}
	}
	for k := range got.maglev {
		if how := got.balancing[k.Service]; !tiers[k.Service][k.Tier] || k.Generation != how.Generation || uint32(k.Piece)*bpf.Piece >= how.Slots {
			return fmt.Sprintf("a stray piece of a table: %+v, %+v", k, how)
		}
	}
	return ""
}

// When backends come and go, the others keep their numbers, and only pieces that change are
// written; a restart changes nothing.
func TestTablesChangeLittle(t *testing.T) {
	m := bpftest.New()
	writes := 0
	tp := &tap{before: func() error { writes++; return nil }}
	inner := m.Maglev
	m.Maglev = tappedBatch[bpf.MaglevKey, bpf.MaglevSlots]{tapped[bpf.MaglevKey, bpf.MaglevSlots]{inner, tp}}
	b, err := newBalancer(m, func(bpf.Addr) {})
	if err != nil {
		t.Fatal(err)
	}
	var backends []bpf.Backend
	for i := range 40 {
		backends = append(backends, backendAt(i))
	}
	put := func(n int) {
		t.Helper()
		f := frontendWith(map[uint16][]bpf.Backend{1: backends[:n]})
		f.how = balancing{maglev: true, size: 16381}
		writes = 0
		if _, err := b.put(f); err != nil {
			t.Fatal(err)
		}
	}
	// led is where each slot leads: a backend that comes back has another number.
	led := func() map[bpf.MaglevKey][bpf.Piece]netip.AddrPort {
		all := map[bpf.MaglevKey][bpf.Piece]netip.AddrPort{}
		for k, piece := range rowsIn(inner) {
			var slots [bpf.Piece]netip.AddrPort
			for i, n := range piece.Backend {
				slots[i] = spotOf(b.behind[1].shares.listed[n])
			}
			all[k] = slots
		}
		return all
	}
	put(40)
	whole := led()
	numbers := maps.Clone(b.behind[1].shares.number)
	before := rowsIn(inner)
	if len(before) != 256 || writes != 256 {
		t.Errorf("%d pieces, %d writes, want 256", len(before), writes)
	}
	if put(40); writes != 0 {
		t.Errorf("%d writes for nothing", writes)
	}
	put(39)
	differing := 0
	for k, piece := range rowsIn(inner) {
		for i, n := range piece.Backend {
			if n != before[k].Backend[i] {
				differing++
			}
		}
	}
	if share := float64(differing) / 16381; share < 1.0/40 || share > 1.0/40+0.03 {
		t.Errorf("%.2f %% of the slots changed, of which one backend of 40 had %.2f %%", share*100, 100.0/40)
	}
	for who, n := range b.behind[1].shares.number {
		if numbers[who] != n {
			t.Errorf("%v had number %d, now %d", who, numbers[who], n)
		}
	}
	if b, err = newBalancer(m, func(bpf.Addr) {}); err != nil {
		t.Fatal(err)
	}
	if put(39); writes != 0 {
		t.Errorf("%d writes after a restart", writes)
	}
	if put(40); !maps.Equal(whole, led()) {
		t.Error("the backend is back, the table is not")
	}
}

// A table that has no room, in the map or for its backends, is told, and backends are chosen
// at random.
func TestTablesWithoutRoom(t *testing.T) {
	m := bpftest.New()
	m.Maglev = bpftest.NewTable[bpf.MaglevKey, bpf.MaglevSlots]("maglev", 3)
	b, err := newBalancer(m, func(bpf.Addr) {})
	if err != nil {
		t.Fatal(err)
	}
	f := frontendWith(map[uint16][]bpf.Backend{1: {backendAt(1), backendAt(2)}})
	f.how = balancing{maglev: true}
	if _, err := b.put(f); !errors.Is(err, bpf.ErrFull) || !strings.Contains(err.Error(), "limits.maglev") {
		t.Errorf("a full map: %v", err)
	}
	if row := rowsIn(m.Services)[f.key]; row.Groups != 1 || row.Timeout.Flags() != 0 {
		t.Errorf("row %+v", row)
	}
	if n := len(rowsIn(m.Maglev)); n > 0 {
		t.Errorf("%d pieces of the table keep their room", n)
	}
	// A smaller table fits, and is given up for one that does not: nobody is sent to who is gone.
	m.Maglev = bpftest.NewTable[bpf.MaglevKey, bpf.MaglevSlots]("maglev", 4)
	if b, err = newBalancer(m, func(bpf.Addr) {}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.put(f); err != nil || len(rowsIn(m.Maglev)) != 4 {
		t.Errorf("a table of 251 slots: %v, %d pieces", err, len(rowsIn(m.Maglev)))
	}
	grown := frontendWith(map[uint16][]bpf.Backend{1: {backendAt(3), backendAt(4), backendAt(5), backendAt(6), backendAt(7), backendAt(8)}})
	grown.key, grown.how = f.key, f.how
	if _, err := b.put(grown); !errors.Is(err, bpf.ErrFull) {
		t.Errorf("a table of 1021 slots: %v", err)
	}
	for k, backend := range rowsIn(m.Backends) {
		if backend.Addr == backendAt(1).Addr || backend.Addr == backendAt(2).Addr {
			t.Errorf("slot %v still leads to %v", k, backend)
		}
	}
	if n := len(rowsIn(m.Maglev)); n > 0 {
		t.Errorf("%d pieces are left of a table that leads nowhere", n)
	}
	f.how.maglev = false
	if _, err := b.put(f); err != nil || len(rowsIn(m.Maglev))+len(rowsIn(m.Balancing)) != 0 || len(rowsIn(m.Backends)) != 2 {
		t.Errorf("%v: %v, %v, %v", err, rowsIn(m.Maglev), rowsIn(m.Balancing), rowsIn(m.Backends))
	}
}

// What a service's annotations ask for and cannot have is said on its row, until it can.
func TestBalancingThatCannotBe(t *testing.T) {
	b := newBench(t)
	svc := &tables.Service{Cluster: "east", Service: service.Service{Namespace: "shop", Name: "web", Global: true, Addresses: []netip.Addr{netip.MustParseAddr("10.101.0.1")},
		Ports: []service.Port{{Protocol: service.TCP, Port: 80}}, Algorithm: service.Maglev, TableSize: 251, ClusterWeights: service.ClusterWeights{"west": 2, "nowhere": 1}}}
	endpoints := func(n int) *tables.Slice {
		var all []netip.Addr
		for i := range n {
			all = append(all, netip.AddrFrom4([4]byte{10, 1, 1 + byte(i/200), byte(2 + i%200)}))
		}
		s := sliceOf("east", "web-1", "web", all...)
		s.Derived = true
		return s
	}
	problem := func() string {
		for _, p := range tables.All(b.tab.DB.ReadTxn(), b.tab.Problems) {
			if strings.HasSuffix(p.Key(), "east/shop/web") {
				return p.Error
			}
		}
		return ""
	}
	for _, c := range []struct {
		n    int
		want []string
	}{
		{2, []string{"names nowhere, which is not a cluster of the mesh"}},
		{252, []string{"a Maglev table of 251 slots does not fit its 252 backends: they are chosen at random; raise annotation weft.io/maglev-table-size"}},
		{3, []string{"names nowhere"}},
	} {
		b.write(func(txn statedb.WriteTxn) {
			tables.Put(txn, b.tab.Services, &tables.Service{Cluster: svc.Cluster, Service: svc.Service})
			tables.Put(txn, b.tab.Slices, endpoints(c.n))
		})
		b.pass()
		got := problem()
		for _, want := range c.want {
			if !strings.Contains(got, want) {
				t.Errorf("%d backends: %q, want %q", c.n, got, want)
			}
		}
		if tabled := len(rowsIn(b.maps.Maglev)) > 0; tabled != (c.n < 252) || !tabled == !strings.Contains(got, "Maglev") {
			t.Errorf("%d backends: %d pieces, %q", c.n, len(rowsIn(b.maps.Maglev)), got)
		}
	}
	// The same by the slice alone.
	for _, n := range []int{4, 252, 251} {
		b.write(func(txn statedb.WriteTxn) { tables.Put(txn, b.tab.Slices, endpoints(n)) })
		b.pass()
		if got := problem(); strings.Contains(got, "Maglev") != (n == 252) {
			t.Errorf("%d backends: %q", n, got)
		}
	}
	svc = &tables.Service{Cluster: svc.Cluster, Service: svc.Service}
	svc.ClusterWeights = service.ClusterWeights{"west": 2}
	b.write(func(txn statedb.WriteTxn) { tables.Put(txn, b.tab.Services, svc) })
	if b.pass(); problem() != "" {
		t.Errorf("a problem is left: %s", problem())
	}
}
