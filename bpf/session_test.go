package bpf

import (
	"net/netip"
	"testing"
	"time"
)

// sticky lets clients of service 81 stay with their backends for a while.
func (n *node) sticky(d time.Duration) {
	n.Helper()
	for _, proto := range []uint8{6, 17} {
		row, _, err := n.m.Services.Lookup(front(far, proto))
		if err != nil {
			n.Fatal(err)
		}
		row.Timeout = SecondsOf(d)
		set(n, n.m.Services, front(far, proto), row)
	}
}

// given opens a connection of a pod to service 81 and returns its backend.
func (n *node) given(pod string, device int, sport uint16) Addr {
	n.Helper()
	if got := n.send("from_pod", device, 0, packet(ip(pod, far, tcp(sport, 80, "S")))); got.reason != ReasonTunnelled {
		n.Fatalf("from port %d: %v", sport, got.reason)
	}
	f, ok := n.flow(pod, sport, far, 80, 6)
	if !ok {
		n.Fatalf("no flow from port %d", sport)
	}
	return f.Backend
}

// A client of a service with session affinity stays with its backend until that is gone, its
// path is not alive, or the client has been away for too long.
func TestAClientStaysWithItsBackend(t *testing.T) {
	shared := newNode(t)
	families(t, func(t *testing.T) {
		n := shared.again(t)
		both := map[Addr]bool{}
		for sport := uint16(1); sport <= 100; sport++ {
			both[n.given(podA, n.a, sport)] = true
		}
		if len(both) != 2 {
			t.Fatalf("without affinity all connections went to %v", both)
		}
		n.sticky(100000 * time.Second)
		first := n.given(podA, n.a, 1000)
		for sport := uint16(1001); sport < 1100; sport++ {
			if got := n.given(podA, n.a, sport); got != first {
				t.Fatalf("connection %d went to %v, those before to %v", sport, got, first)
			}
		}
		// Each client has its own.
		seen := map[Addr]bool{}
		for i := range 60 {
			n.forgetClients()
			seen[n.given(podB, n.b, uint16(1000+i))] = true
		}
		if len(seen) != 2 {
			t.Errorf("60 times a new client, always the same backend: %v", seen)
		}

		// One that is about to go gets no new connections.
		n.forgetClients()
		first = n.given(podA, n.a, 2000)
		member := MemberKey{Service: 81, Addr: first, Port: PortOf(8080)}
		set(t, n.m.Members, member, Member{Terminating: 1})
		row, _, _ := n.m.Services.Lookup(front(far, 6))
		other := addr(podC)
		if first == other {
			other = addr(podD)
		}
		node := map[Addr]uint16{addr(podC): 3, addr(podD): 4}
		set(t, n.m.Backends, SlotKey{Service: 81, Cluster: 2}, Backend{Addr: other, Port: PortOf(8080), Node: node[other]})
		row.Group[0].Count = 1
		set(t, n.m.Services, front(far, 6), row)
		if got := n.given(podA, n.a, 2001); got != other {
			t.Errorf("went to %v, which is about to go", got)
		}

		// Nor one that cannot be reached; afterwards the client stays where it is.
		set(t, n.m.Members, member, Member{})
		set(t, n.m.Backends, SlotKey{Service: 81, Slot: 1, Cluster: 2}, Backend{Addr: first, Port: PortOf(8080), Node: node[first]})
		row.Group[0].Count = 2
		set(t, n.m.Services, front(far, 6), row)
		nodeDies(uint32(node[other]))(n)
		if got := n.given(podA, n.a, 2002); got != first {
			t.Errorf("went to %v, whose node is dead", got)
		}
		set(t, n.m.Nodes, uint32(node[other]), Node{Path: PathAlive, Keyed: 1, Cluster: 2})
		for sport := uint16(2003); sport < 2023; sport++ {
			if got := n.given(podA, n.a, sport); got != first {
				t.Errorf("came back to %v", got)
			}
		}
	})
}

// A session ends when the client has not connected for its timeout.
func TestASessionEnds(t *testing.T) {
	n := newNode(t)
	n.sticky(20 * time.Second) // less than any machine has been up
	age := func(by time.Duration) {
		rows, failed := n.m.Affinities.All()
		for k, a := range rows {
			a.Seen -= min(a.Seen, uint64(by))
			set(t, n.m.Affinities, k, a)
		}
		if err := failed(); err != nil {
			t.Fatal(err)
		}
	}
	first := n.given(podA, n.a, 1)
	for sport := uint16(2); sport < 60; sport++ {
		age(19 * time.Second) // since the last connection, not since the first
		if got := n.given(podA, n.a, sport); got != first {
			t.Fatalf("connection %d went to %v, not to %v", sport, got, first)
		}
	}
	for sport := uint16(100); ; sport++ {
		age(21 * time.Second)
		if n.given(podA, n.a, sport) != first {
			break
		}
		if sport == 200 {
			t.Fatal("a hundred sessions, all with the same backend")
		}
	}
}

// forgetClients ends all sessions.
func (n *node) forgetClients() { clearer(n.m.Affinities)(n) }

// Clients outside have sessions too, and however many there are, pods keep theirs.
func TestVisitorsDoNotEndSessionsOfPods(t *testing.T) {
	const rows = 64
	shared := newNodeWith(t, func(c *Config) { c.Limits.Affinities = rows })
	families(t, func(t *testing.T) {
		n := shared.again(t)
		n.sticky(100000 * time.Second)
		exposes(81, Group{Cluster: 2, Weight: 1, Count: 2})(n)
		at := ServiceKey{Addr: addr(outside), Port: PortOf(nodePort), Proto: 6}
		row, _, _ := n.m.Services.Lookup(at)
		row.Timeout = SecondsOf(100000 * time.Second)
		set(t, n.m.Services, at, row)
		visits := func(from string, sport uint16) Addr {
			t.Helper()
			if got := n.send("from_device", n.b, 0, packet(ip(from, outside, tcp(sport, nodePort, "S")))); got.reason != ReasonTunnelled {
				t.Fatalf("%s: %v", from, got.reason)
			}
			exposed, _, _ := n.m.Masquerades.Lookup(FlowKey{Local: addr(outside), Remote: addr(from), Lport: PortOf(nodePort), Rport: PortOf(sport), Proto: 6})
			return exposed.Addr
		}
		first, visited := n.given(podA, n.a, 1), visits(world, 1)
		for sport := uint16(2); sport < 30; sport++ {
			if got := visits(world, sport); got != visited {
				t.Fatalf("visit %d went to %v, the first to %v", sport, got, visited)
			}
		}
		for i := range 20 * rows {
			clearer(n.m.Flows)(n)
			clearer(n.m.Masquerades)(n)
			clearer(n.m.Shares)(n)
			visits(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}).String(), 1)
		}
		if n, err := n.m.Visitors.Len(); n > rows || err != nil {
			t.Errorf("%d rows of visitors, %v", n, err)
		}
		for sport := uint16(2); sport < 30; sport++ {
			if got := n.given(podA, n.a, sport); got != first {
				t.Fatalf("connection %d went to %v, the first to %v", sport, got, first)
			}
		}
	})
}
