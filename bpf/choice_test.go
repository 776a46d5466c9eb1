package bpf

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
)

// slot is a backend as the naive chooser sees it.
type slot struct {
	addr    netip.Addr
	cluster uint16
	node    uint32 // 0: of this node
	tier    uint8
	weight  int
}

// allowed says which slots a new flow may go to, each with its share: those of the
// lowest tier in which a path is alive, or if there is none, in which one is silent.
// It is the oracle for choose_backend.
func allowed(slots []slot, path func(slot) Path) map[netip.Addr]int {
	for _, kind := range []Path{PathAlive, PathSilent} {
		best, shares := uint8(255), map[netip.Addr]int{}
		for _, s := range slots {
			switch {
			case s.weight == 0, path(s) != kind, s.tier > best:
				continue
			case s.tier < best:
				best = s.tier
				clear(shares)
			}
			shares[s.addr] += s.weight
		}
		if len(shares) > 0 {
			return shares
		}
	}
	return nil
}

func TestAllowed(t *testing.T) {
	at := func(last byte, tier uint8, weight int) slot {
		return slot{addr: netip.AddrFrom4([4]byte{10, 0, 0, last}), tier: tier, weight: weight}
	}
	for _, c := range []struct {
		name  string
		slots []slot
		paths map[byte]Path
		want  string
	}{
		{"nobody", nil, nil, "map[]"},
		{"all alive, by weight", []slot{at(1, 0, 1), at(2, 0, 2)}, map[byte]Path{1: PathAlive, 2: PathAlive}, "map[10.0.0.1:1 10.0.0.2:2]"},
		{"a dead one is left out", []slot{at(1, 0, 1), at(2, 0, 1)}, map[byte]Path{2: PathAlive}, "map[10.0.0.2:1]"},
		{"weight 0 is no choice", []slot{at(1, 0, 0)}, map[byte]Path{1: PathAlive}, "map[]"},
		{"the next tier only when the first has none alive", []slot{at(1, 0, 1), at(2, 1, 1)}, map[byte]Path{1: PathAlive, 2: PathAlive}, "map[10.0.0.1:1]"},
		{"a silent one loses to a later tier that is alive", []slot{at(1, 0, 1), at(2, 1, 1)}, map[byte]Path{1: PathSilent, 2: PathAlive}, "map[10.0.0.2:1]"},
		{"and serves when no other is left", []slot{at(1, 0, 1), at(2, 1, 1)}, map[byte]Path{1: PathSilent}, "map[10.0.0.1:1]"},
		{"all dead", []slot{at(1, 0, 1)}, nil, "map[]"},
	} {
		got := allowed(c.slots, func(s slot) Path { return c.paths[s.addr.As4()[3]] })
		if fmt.Sprint(got) != c.want {
			t.Errorf("%s: %v, want %s", c.name, got, c.want)
		}
	}
}

// choices opens flows from pod a to the UDP service far, and counts which backends got
// them; the zero address counts those that got none.
func (n *node) choices(times int) map[netip.Addr]int {
	n.Helper()
	const room = 400 // a backend of this node takes two flows
	got := map[netip.Addr]int{}
	for done := 0; done < times; done += room {
		some := min(room, times-done)
		for port := range uint16(some) {
			in := packet(ip(podA, far, udp(port+1, 80)))
			opts := &ebpf.RunOptions{Data: in, Context: skb{Ifindex: uint32(n.a)}, Repeat: 1}
			if _, err := n.progs["from_pod"].Run(opts); err != nil {
				n.Fatal(err)
			}
		}
		found := 0
		rows, failed := n.m.Flows.All()
		for k, f := range rows {
			if k.Remote == addr(far) {
				got[f.Backend.Netip()]++
				found++
			}
		}
		if err := failed(); err != nil {
			n.Fatal(err)
		}
		if found < some {
			got[netip.Addr{}] += some - found
		}
		clearer(n.m.Flows)(n)
		clearer(n.m.Shares)(n)
	}
	return got
}

// group adds count backends of a cluster to service far, the i-th at 10.2.x.y on node
// nodeOf(i).
func (n *node) group(count int, nodeOf func(i int) uint16) {
	n.Helper()
	set(n, n.m.Services, front(far, 17), Service{ID: 81, Groups: 1, Group: [MaxGroups]Group{{Cluster: 2, Count: uint32(count), Weight: 1}}})
	for i := range count {
		node := nodeOf(i)
		at := AddrOf(netip.AddrFrom4([4]byte{10, 2, 64 + byte(i>>8), byte(i)}))
		set(n, n.m.IPs, at, IPInfo{Identity: idC, Cluster: 2, Node: node, Flags: IPMember})
		set(n, n.m.Backends, SlotKey{Service: 81, Slot: uint32(i), Cluster: 2}, Backend{Addr: at, Port: PortOf(8080), Node: node})
	}
}

// One backend of 41 is alive. With sixteen random draws alone, 47 of 100 flows found
// none.
func TestChoiceFindsTheOnlyOneAlive(t *testing.T) {
	n := newNode(t)
	nodeDies(4)(n)
	const flows = 10_000
	n.group(41, func(i int) uint16 {
		if i == 17 {
			return 3
		}
		return 4
	})
	if got := n.choices(flows); got[netip.MustParseAddr("10.2.64.17")] != flows || len(got) != 1 {
		t.Errorf("%v, want all %d at 10.2.64.17", got, flows)
	}
}

// The nearest part of a cluster's backends gets all connections as long as one of it is
// alive, then the next; parts in one tier share evenly.
func TestChoiceGoesNearFirst(t *testing.T) {
	n := newNode(t)
	zone, rest := PartOf(2, 2), PartOf(2, 0)
	at := map[uint16]string{3: "10.2.1.77", 4: "10.2.2.77"} // by node
	put := func(group uint16, slot uint32, node uint16) {
		set(n, n.m.Backends, SlotKey{Service: 81, Slot: slot, Cluster: group}, Backend{Addr: addr(at[node]), Port: PortOf(8080), Node: node})
	}
	put(zone, 0, 3)
	put(rest, 0, 4)
	put(rest, 1, 4)
	tiers := func(zoneTier, restTier uint8) {
		set(n, n.m.Services, front(far, 17), Service{ID: 81, Groups: 2, Group: [MaxGroups]Group{
			{Cluster: zone, Count: 1, Tier: zoneTier, Weight: 1}, {Cluster: rest, Count: 2, Tier: restTier, Weight: 1}}})
	}
	only := func(when, want string) {
		t.Helper()
		if got := n.choices(100); got[netip.MustParseAddr(want)] != 100 {
			t.Errorf("%s: %v, want all 100 at %s", when, got, want)
		}
	}
	tiers(1, 2)
	only("both alive", at[3])
	nodeDies(3)(n)
	only("the near one is dead", at[4])
	set(n, n.m.Nodes, 3, Node{Path: PathSilent, Keyed: 1, Cluster: 2, Lane: 1})
	only("the near one is silent", at[4])
	nodeDies(4)(n)
	only("the near one is silent, the others are dead", at[3])
	set(n, n.m.Nodes, 3, Node{Path: PathAlive, Keyed: 1, Cluster: 2, Lane: 1})
	set(n, n.m.Nodes, 4, Node{Path: PathAlive, Keyed: 1, Cluster: 2})
	only("both are back", at[3])
	tiers(0, 0)
	if got := n.choices(3000)[netip.MustParseAddr(at[3])]; got < 850 || got > 1150 {
		t.Errorf("as near: one of three has %d of 3000", got)
	}
}

// Backends that are alive among many dead ones get equal shares, wherever their slots
// are.
func TestChoiceIsEven(t *testing.T) {
	n := newNode(t)
	nodeDies(4)(n)
	const each = 1500 // flows per backend; five standard deviations of that are 194
	for _, c := range []struct {
		slots int
		alive []int
	}{
		{2, []int{0, 1}},
		{3, []int{0, 1, 2}},
		{41, []int{5, 6}}, // neighbours
		{41, []int{0, 20, 40}},
		{64, []int{0, 16, 32, 48}},
		{900, []int{0, 1, 450, 899}},
	} {
		lives := map[int]bool{}
		for _, i := range c.alive {
			lives[i] = true
		}
		n.group(c.slots, func(i int) uint16 {
			if lives[i] {
				return 3
			}
			return 4
		})
		got := n.choices(each * len(c.alive))
		if len(got) != len(c.alive) {
			t.Errorf("%d alive of %d: %v", len(c.alive), c.slots, got)
		}
		for at, flows := range got {
			if flows < each-200 || flows > each+200 {
				t.Errorf("%v alive of %d slots: %v has %d flows, want about %d", c.alive, c.slots, at, flows, each)
			}
		}
	}
}

// Whatever is alive, silent, dead or without a key, the kernel chooses only backends
// that the naive chooser allows, and finds none only if there is none.
func TestChoiceIsTheNaiveOne(t *testing.T) {
	n := newNode(t)
	r := rand.New(rand.NewPCG(10, 4))
	weighed := func(of ...int) int { return of[r.IntN(len(of))] }
	for world := range 300 {
		const clusters, nodes = 5, 4
		var paths [clusters + 1]Path // of foreign clusters
		rows := map[uint32]Node{}
		for c := 1; c <= clusters; c++ {
			paths[c] = Path(weighed(0, 1, 1, 1, 2))
			set(n, n.m.Clusters, uint32(c), Cluster{Path: paths[c], Member: 1})
			for i := range nodes {
				id := uint32(c*nodes + i)
				rows[id] = Node{Path: Path(weighed(0, 0, 0, 1, 2)), Keyed: uint8(weighed(0, 1, 1, 1)), Cluster: uint16(c)}
				set(n, n.m.Nodes, id, rows[id])
				set(n, n.m.Prefixes, prefix(fmt.Sprintf("10.%d.%d.0/24", 100+c, i)), IPInfo{Identity: idC, Cluster: uint16(c), Node: uint16(id), Flags: IPMember})
			}
		}
		svc, slots := Service{ID: 81}, []slot(nil)
		for c := 1; c <= clusters; c++ {
			for part := range weighed(1, 1, 2, 4) { // some are nearer
				g := Group{Cluster: PartOf(uint16(c), uint8(part)), Count: uint32(weighed(0, 1, 2, 5, 30)), Tier: uint8(weighed(0, 0, 1, 3)), Weight: uint8(weighed(0, 1, 1, 3))}
				for i := range g.Count {
					on := r.IntN(nodes)
					s := slot{netip.AddrFrom4([4]byte{10, 100 + byte(c), byte(on), byte(40*part + int(i))}), uint16(c), uint32(c*nodes + on), g.Tier, int(g.Weight)}
					if c == 1 && part == 0 && i == 0 && r.IntN(4) == 0 {
						s.addr, s.node = netip.MustParseAddr(podB), 0
					}
					set(n, n.m.Backends, SlotKey{Service: 81, Slot: i, Cluster: g.Cluster}, Backend{Addr: AddrOf(s.addr), Port: PortOf(8080), Node: uint16(s.node)})
					slots = append(slots, s)
				}
				svc.Group[svc.Groups] = g
				svc.Groups++
			}
		}
		set(n, n.m.Services, front(far, 17), svc)
		want := allowed(slots, func(s slot) Path {
			node := rows[s.node]
			switch {
			case s.cluster != 1 && paths[s.cluster] == PathDead, s.node != 0 && (node.Path == PathDead || node.Keyed == 0):
				return PathDead
			case s.cluster != 1 && paths[s.cluster] == PathSilent, s.node != 0 && node.Path == PathSilent:
				return PathSilent
			}
			return PathAlive
		})
		for at := range n.choices(20) {
			if _, ok := want[at]; !ok && (at.IsValid() || want != nil) {
				t.Errorf("world %d: %v was chosen of %v", world, at, want)
			}
		}
	}
}
