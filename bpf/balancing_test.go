package bpf

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"testing"
	"time"
)

// balanced has the UDP and TCP service far share connections like this.
func (n *node) balanced(how Balancing, groups ...Group) {
	n.Helper()
	row := Service{ID: 81, Groups: uint8(len(groups)), Timeout: SecondsOf(0).With(ServiceBalanced)}
	copy(row.Group[:], groups)
	for i := range groups {
		how.Weights[i] = max(1, how.Weights[i])
	}
	for _, proto := range []uint8{6, 17} {
		set(n, n.m.Services, front(far, proto), row)
		set(n, n.m.Services, ServiceKey{Addr: addr(outside), Port: PortOf(nodePort), Proto: proto}, row)
	}
	set(n, n.m.Balancing, 81, how)
}

// remote is the i-th backend on a node of cluster 2; each has a row.
func (n *node) remote(i, node int) Backend {
	n.Helper()
	at := AddrOf(netip.AddrFrom4([4]byte{10, 2, 64 + byte(i>>8), byte(i)}))
	set(n, n.m.IPs, at, IPInfo{Identity: idC, Cluster: 2, Node: uint16(node), Flags: IPMember})
	set(n, n.m.Members, MemberKey{Service: 81, Addr: at, Port: PortOf(8080)}, Member{})
	return Backend{Addr: at, Port: PortOf(8080), Node: uint16(node)}
}

// Connections are shared by tickets, and by how often a backend is rejected: exactly, as far
// as six standard deviations tell.
func TestChoiceByWeight(t *testing.T) {
	shared := newNode(t)
	const flows = 12_000
	for name, c := range map[string]struct {
		weights [2]uint32  // of the groups
		reject  [][]uint16 // of the backends of each, out of 65536
		dead    map[int]bool
	}{
		"by group":                       {[2]uint32{1, 3}, [][]uint16{{0, 0}, {0}}, nil},
		"by rejection":                   {[2]uint32{1, 1}, [][]uint16{{0, 32768}, {16384}}, nil},
		"by both, with many tickets":     {[2]uint32{1 << 29, 1 << 30}, [][]uint16{{0, 32768}, {16384}}, nil},
		"over a hundred times as much":   {[2]uint32{1, 200}, [][]uint16{{0, 0}, {0}}, nil},
		"among those alive":              {[2]uint32{2, 5}, [][]uint16{{0, 32768, 0}, {0, 0, 20000}}, map[int]bool{2: true, 3: true, 4: true}},
		"most dead, the living rejected": {[2]uint32{1, 2}, [][]uint16{{60000, 0, 0, 0, 0, 0}, {30000, 0, 0, 0, 0, 0}}, map[int]bool{1: true, 2: true, 3: true, 4: true, 5: true, 7: true, 8: true, 9: true, 10: true, 11: true}},
	} {
		t.Run(name, func(t *testing.T) {
			n := shared.again(t)
			nodeDies(4)(n)
			var groups []Group
			shares, all, i := map[netip.Addr]float64{}, 0.0, 0
			for g, rejects := range c.reject {
				groups = append(groups, Group{Cluster: PartOf(2, uint8(g)), Count: uint32(len(rejects)), Weight: 1})
				for slot, reject := range rejects {
					on := 3
					if c.dead[i] {
						on = 4
					}
					b := n.remote(i, on)
					b.Reject = reject
					set(t, n.m.Backends, SlotKey{Service: 81, Slot: uint32(slot), Cluster: PartOf(2, uint8(g))}, b)
					if i++; on == 3 {
						share := float64(c.weights[g]) * (1 - float64(reject)/65536)
						shares[b.Addr.Netip()], all = share, all+share
					}
				}
			}
			how := Balancing{}
			copy(how.Weights[:], c.weights[:])
			n.balanced(how, groups...)
			got := n.choices(flows)
			for at, share := range shares {
				p := share / all
				if off := math.Abs(float64(got[at]) - flows*p); off > 6*math.Sqrt(flows*p*(1-p))+1 {
					t.Errorf("%v has %d of %d flows, want %.0f", at, got[at], flows, flows*p)
				}
				delete(got, at)
			}
			if len(got) > 0 {
				t.Errorf("chosen as well: %v", got)
			}
		})
	}
}

// However little the only one alive weighs, it is found.
func TestChoiceFindsTheLightestAlive(t *testing.T) {
	n := newNode(t)
	nodeDies(4)(n)
	const flows = 400
	for i := range 300 {
		on, group, reject := 4, 0, uint16(0)
		if i == 17 {
			on, reject = 3, math.MaxUint16
		}
		if i > 250 {
			group = 1
		}
		b := n.remote(i, on)
		b.Reject = reject
		set(n, n.m.Backends, SlotKey{Service: 81, Slot: uint32(i % 251), Cluster: PartOf(2, uint8(group))}, b)
	}
	how := Balancing{}
	how.Weights[0], how.Weights[1] = 1, 1<<24
	n.balanced(how, Group{Cluster: 2, Count: 251, Weight: 1}, Group{Cluster: PartOf(2, 1), Count: 49, Weight: 1})
	if got := n.choices(flows); got[netip.MustParseAddr("10.2.64.17")] != flows {
		t.Errorf("%v, want all %d at 10.2.64.17", got, flows)
	}
}

// mixed and hashOf are those of lib/service.h.
func mixed(h, word uint32) uint32 {
	h = (h ^ word) * 0xcc9e2d51
	h ^= h >> 15
	return h * 0x1b873593
}

func hashOf(client Addr, port, front Port, proto uint8) uint32 {
	h := uint32(0x77656674)
	for i := range 4 {
		h = mixed(h, binary.LittleEndian.Uint32(client[4*i:]))
	}
	return mixed(mixed(h, uint32(binary.LittleEndian.Uint16(port[:]))<<16|uint32(binary.LittleEndian.Uint16(front[:]))), uint32(proto))
}

// Clients that differ in a few bits begin at slots all over the table, and go on from there in
// steps that differ.
func TestClientsSpreadOverATable(t *testing.T) {
	const clients = 60_000
	for name, hash := range map[string]func(i int) uint32{
		"ports of a client": func(i int) uint32 { return hashOf(addr(podA), PortOf(uint16(i)), PortOf(80), 6) },
		"clients of a /16": func(i int) uint32 {
			return hashOf(AddrOf(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})), Port{}, PortOf(80), 6)
		},
		"IPv6 clients": func(i int) uint32 {
			return hashOf(AddrOf(netip.AddrFrom16([16]byte{0xfd, 6: byte(i >> 8), 7: byte(i), 15: 1})), PortOf(1000), PortOf(443), 17)
		},
	} {
		for _, slots := range []uint32{251, 1021, 16381} {
			first, second := make([]int, slots), make([]int, slots)
			for i := range clients {
				n := 0
				for at := range probes(hash(i), slots) {
					if n++; n == 1 {
						first[at]++
					} else {
						second[at]++
						break
					}
				}
			}
			want := clients / float64(slots)
			for at := range first {
				if limit := 6*math.Sqrt(want) + 3; math.Abs(float64(first[at])-want) > limit || math.Abs(float64(second[at])-want) > limit {
					t.Errorf("%s: slot %d of %d is first for %d and second for %d, want %.1f", name, at, slots, first[at], second[at], want)
				}
			}
		}
	}
}

// probes are the slots of a table in the order in which a client tries them.
func probes(hash, slots uint32) func(func(uint32) bool) {
	return func(yield func(uint32) bool) {
		at, step := hash%slots, mixed(hash, slots)%(slots-1)+1
		for yield(at) {
			at = (at + step) % slots
		}
	}
}

// table writes a Maglev table of a tier: of each slot the number of its backend.
func (n *node) table(tier, generation uint8, slots []uint16) {
	n.Helper()
	for i := 0; i < len(slots); i += Piece {
		var row MaglevSlots
		copy(row.Backend[:], slots[i:])
		set(n, n.m.Maglev, MaglevKey{Service: 81, Piece: uint16(i / Piece), Tier: tier, Generation: generation}, row)
	}
}

// maglev has four backends of service far: two on node 3, two on node 4, with a table of 251
// slots.
func (n *node) maglev(timeout time.Duration) (slots []uint16, backends map[uint16]Backend) {
	n.Helper()
	backends = map[uint16]Backend{}
	for i := range 4 {
		b := n.remote(i, 3+i/2)
		backends[uint16(7+i)] = b
		set(n, n.m.Backends, SlotKey{Service: 81, Slot: uint32(i), Cluster: 2}, b)
		set(n, n.m.Backends, SlotKey{Service: 81, Slot: uint32(7 + i)}, b)
	}
	for i := range 251 {
		slots = append(slots, uint16(7+i*i%4+i/7%3))
	}
	n.table(0, 5, slots)
	n.balanced(Balancing{Slots: 251, Generation: 5}, Group{Cluster: 2, Count: 4, Weight: 1})
	for _, key := range []ServiceKey{front(far, 6), front(far, 17), {Addr: addr(outside), Port: PortOf(nodePort), Proto: 6}} {
		row, _, _ := n.m.Services.Lookup(key)
		row.Timeout = SecondsOf(timeout).With(ServiceBalanced)
		set(n, n.m.Services, key, row)
	}
	return slots, backends
}

// asked is the backend that a pod's new connection gets.
func (n *node) asked(port uint16) Addr {
	n.Helper()
	clearer(n.m.Flows)(n)
	clearer(n.m.Shares)(n)
	n.send("from_pod", n.a, 0, packet(ip(podA, far, udp(port, 80))))
	f, _ := n.flow(podA, port, far, 80, 17)
	return f.Backend
}

// A client's address and port say which slot it begins at, and the step to the next: the first
// whose path is alive counts, whatever else happens.
func TestMaglev(t *testing.T) {
	shared := newNode(t)
	families(t, func(t *testing.T) {
		n := shared.again(t)
		slots, backends := n.maglev(0)
		want := func(hash uint32, dead func(Backend) bool) Addr {
			for slot := range probes(hash, 251) {
				if b := backends[slots[slot]]; !dead(b) {
					return b.Addr
				}
			}
			return Addr{}
		}
		check := func(when string, dead func(Backend) bool) {
			t.Helper()
			got := map[Addr]int{}
			for port := uint16(1); port <= 120; port++ {
				to := n.asked(port)
				if want := want(hashOf(addr(podA), PortOf(port), PortOf(80), 17), dead); to != want {
					t.Fatalf("%s: port %d goes to %v, want %v", when, port, to, want)
				}
				got[to]++
			}
			if len(got) < 2 {
				t.Errorf("%s: all go to %v", when, got)
			}
		}
		none := func(Backend) bool { return false }
		check("all alive", none)
		nodeDies(4)(n)
		check("half of them dead", func(b Backend) bool { return b.Node == 4 })
		set(t, n.m.Nodes, 4, Node{Path: PathAlive, Keyed: 1, Cluster: 2})
		check("alive again", none)
		// A backend that is removed while slots still have it is passed over.
		unset(n, n.m.Backends, SlotKey{Service: 81, Slot: 8})
		check("one removed", func(b Backend) bool { return b == backends[8] })
		set(t, n.m.Backends, SlotKey{Service: 81, Slot: 8}, backends[8])

		// Clients outside, at a port of the node, by the same rule.
		for port := uint16(7000); port < 7040; port++ {
			clearer(n.m.Flows)(n)
			clearer(n.m.Masquerades)(n)
			clearer(n.m.Shares)(n)
			if got := n.send("from_device", n.b, 0, packet(ip(world, outside, tcp(port, nodePort, "S")))); got.reason != ReasonTunnelled {
				t.Fatalf("%v", got.reason)
			}
			row, _, _ := n.m.Masquerades.Lookup(FlowKey{Local: addr(outside), Remote: addr(world), Lport: PortOf(nodePort), Rport: PortOf(port), Proto: 6})
			if want := want(hashOf(addr(world), PortOf(port), PortOf(nodePort), 6), none); row.Addr != want {
				t.Fatalf("a client's port %d goes to %v, want %v", port, row.Addr, want)
			}
		}

		// Another table takes its place with one row. Of that, one piece is missing: those who
		// ask for it get any backend.
		other := make([]uint16, 251)
		for i := range other {
			other[i] = 9
		}
		n.table(0, 6, other)
		unset(n, n.m.Maglev, MaglevKey{Service: 81, Piece: 1, Generation: 6})
		set(t, n.m.Balancing, 81, Balancing{Slots: 251, Generation: 6, Weights: [MaxGroups]uint32{1}})
		for port := uint16(1); port <= 120; port++ {
			to, begins := n.asked(port), hashOf(addr(podA), PortOf(port), PortOf(80), 17)%251/Piece
			if to != backends[9].Addr && begins != 1 || to == (Addr{}) {
				t.Fatalf("port %d begins in piece %d and goes to %v", port, begins, to)
			}
		}
	})
}

// A client that stays with its backend has one for all of its ports, and the same again after
// its session.
func TestMaglevWithSessions(t *testing.T) {
	n := newNode(t)
	slots, backends := n.maglev(100 * time.Second)
	want := backends[slots[hashOf(addr(podA), Port{}, PortOf(80), 17)%251]].Addr
	for port := uint16(1); port < 60; port++ {
		if port%3 == 0 {
			clearer(n.m.Affinities)(n)
		}
		if got := n.asked(port); got != want {
			t.Fatalf("port %d goes to %v, want %v", port, got, want)
		}
	}
}

// The only backend alive is found, though few slots have it; and where there is none in the
// tier, that of the next, by its own table.
func TestMaglevFindsTheOnlyOneAlive(t *testing.T) {
	n := newNode(t)
	slots, backends := n.maglev(0)
	nodeDies(4)(n)
	for i := range slots {
		slots[i] = 9 + uint16(i%2)
	}
	slots[77] = 7
	n.table(0, 5, slots)
	n.balanced(Balancing{Slots: 251, Generation: 5}, Group{Cluster: 2, Count: 4, Weight: 1})
	unset(n, n.m.Backends, SlotKey{Service: 81, Slot: 1, Cluster: 2})
	far := 0
	for port := uint16(1); port <= 100; port++ {
		tries := 0
		for slot := range probes(hashOf(addr(podA), PortOf(port), PortOf(80), 17), 251) {
			if tries++; slot == 77 {
				break
			}
		}
		if tries > 128 {
			far++
		}
		if got := n.asked(port); got != backends[7].Addr {
			t.Fatalf("port %d, after %d probes: %v", port, tries, got)
		}
	}
	if far == 0 || far == 100 {
		t.Errorf("%d of 100 clients need more probes than they have", far)
	}
	next := make([]uint16, 251)
	for i := range next {
		next[i] = 8
	}
	n.table(1, 5, next)
	set(n, n.m.Backends, SlotKey{Service: 81, Slot: 0, Cluster: PartOf(2, 1)}, backends[8])
	n.balanced(Balancing{Slots: 251, Generation: 5}, Group{Cluster: 2, Count: 4, Weight: 1}, Group{Cluster: PartOf(2, 1), Count: 1, Tier: 1, Weight: 1})
	set(n, n.m.Backends, SlotKey{Service: 81, Slot: 7}, backends[9])
	set(n, n.m.Backends, SlotKey{Service: 81, Slot: 0, Cluster: 2}, backends[9])
	for port := uint16(1); port <= 40; port++ {
		if got := n.asked(port); got != backends[8].Addr {
			t.Fatalf("port %d: %v, want that of the next tier", port, got)
		}
	}
}

// BenchmarkBalancing measures new connections to a service of 400 backends: at random, by
// weight, by Maglev, and by Maglev with half of them dead.
func BenchmarkBalancing(b *testing.B) {
	n := benchNode(b, 100)
	set(b, n.rows.Budgets, 0, Budget{Each: 1 << 17})
	set(b, n.rows.Nodes, 5, Node{Path: PathDead, Keyed: 1, Cluster: 2})
	const backends, slots = 400, 65521
	row := Service{ID: 1000, Groups: 1, Group: [MaxGroups]Group{{Cluster: 2, Count: backends, Weight: 1}}}
	fill := func(dead int, reject uint16) {
		for i := range uint32(backends) {
			at := Backend{Addr: addr(podC), Port: PortOf(8080), Node: 3, Reject: reject}
			if int(i) < dead {
				at.Node = 5
			}
			set(b, n.rows.Backends, SlotKey{Service: 1000, Slot: i, Cluster: 2}, at)
			set(b, n.rows.Backends, SlotKey{Service: 1000, Slot: i + 1}, at)
		}
	}
	for i := range slots/Piece + 1 {
		var piece MaglevSlots
		for j := range piece.Backend {
			piece.Backend[j] = uint16(1 + (i*Piece+j)*7919%backends)
		}
		set(b, n.rows.Maglev, MaglevKey{Service: 1000, Piece: uint16(i)}, piece)
	}
	for _, c := range []struct {
		name   string
		how    *Balancing
		dead   int
		reject uint16
	}{
		{"random", nil, 0, 0}, {"weights", &Balancing{Weights: [MaxGroups]uint32{1}}, 0, 0}, {"weights, a third rejected", &Balancing{Weights: [MaxGroups]uint32{1}}, 0, 21845},
		{"maglev", &Balancing{Slots: slots, Weights: [MaxGroups]uint32{1}}, 0, 0}, {"maglev, half dead", &Balancing{Slots: slots, Weights: [MaxGroups]uint32{1}}, 200, 0},
	} {
		b.Run(fmt.Sprintf("new/%s", c.name), func(b *testing.B) {
			fill(c.dead, c.reject)
			if row.Timeout = (Seconds{}); c.how != nil {
				row.Timeout = row.Timeout.With(ServiceBalanced)
				set(b, n.rows.Balancing, 1000, *c.how)
			}
			set(b, n.rows.Services, front("10.101.0.100", 6), row)
			to := func(p uint16) []byte { return packet(ip(podA, "10.101.0.100", tcp(p, 80, "S"))) }
			single(b, n.progs["from_pod"], redirect, to, func() { forgetNew(b, n) })
		})
	}
}
