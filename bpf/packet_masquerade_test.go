package bpf

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// outside is what the world sees of the node.
const outside = "192.0.2.1"

// masquerades lets pods leave as outside, with ports of a range.
func masquerades(first, last uint16) func(*node) {
	return func(n *node) {
		n.Helper()
		row := Masquerading{First: first, Last: last}
		row.Addr[bit(overIPv6)] = addr(outside)
		set(n, n.m.Masquerading, 0, row)
	}
}

// rowsAre is how many rows masqueraded connections have.
func rowsAre(want int) func(*node, sent) {
	return func(n *node, _ sent) {
		n.Helper()
		if got, err := n.m.Masquerades.Len(); got != want || err != nil {
			n.Errorf("%d rows of masqueraded connections, want %d: %v", got, want, err)
		}
	}
}

// unmasks deletes the rows of flows that are over.
func unmasks(n *node) {
	n.Helper()
	if _, err := n.forgetMasqueradesLocked(Now()); err != nil {
		n.Fatal(err)
	}
}

// Pods' connections to the world come from the node, and their answers reach them.
var masqueradeCases = []packetCase{
	{name: "a pod's connection to the world", state: masquerades(5000, 5000), steps: []step{
		{hook: "from a", in: ip(podA, world, tcp(2000, 443, "S")), want: ReasonToStack},
		{hook: "out of node", in: ip(podA, world, tcp(2000, 443, "S")), want: ReasonNotOurs, out: ip(outside, world, tcp(5000, 443, "S"))},
		{hook: "into node", in: ip(world, outside, tcp(443, 5000, "SA")), want: ReasonDelivered, out: ip(world, podA, tcp(443, 2000, "SA")), check: flowsAre(1)},
		{hook: "from a", in: ip(podA, world, tcp(2000, 443, "A").says("hello")), want: ReasonToStack},
		{hook: "out of node", in: ip(podA, world, tcp(2000, 443, "A").says("hello")), want: ReasonNotOurs, out: ip(outside, world, tcp(5000, 443, "A").says("hello")), check: rowsAre(2)},
	}},
	{name: "a pod's datagram to the world, and who may answer it", state: masquerades(5000, 5000), steps: []step{
		{hook: "from a", in: ip(podA, world, udp(40000, 53).says("?")), want: ReasonToStack},
		{hook: "out of node", in: ip(podA, world, udp(40000, 53).says("?")), want: ReasonNotOurs, out: ip(outside, world, udp(5000, 53).says("?"))},
		{hook: "into node", in: ip(world, outside, udp(53, 5000).says("!")), want: ReasonDelivered, out: ip(world, podA, udp(53, 40000).says("!"))},
		{hook: "into node", in: ip("192.0.2.8", outside, udp(53, 5000).says("!")), want: ReasonNotOurs},
		{hook: "into node", in: ip(world, outside, udp(54, 5000).says("!")), want: ReasonNotOurs},
	}},
	{name: "two pods from the same port, and the world tells them apart", state: masquerades(5000, 5000), steps: []step{
		{hook: "from a", in: ip(podA, world, tcp(2000, 443, "S")), want: ReasonToStack},
		{hook: "out of node", in: ip(podA, world, tcp(2000, 443, "S")), want: ReasonNotOurs, out: ip(outside, world, tcp(5000, 443, "S"))},
		{change: masquerades(5000, 5001), hook: "from b", in: ip(podB, world, tcp(2000, 443, "S")), want: ReasonToStack},
		{hook: "out of node", in: ip(podB, world, tcp(2000, 443, "S")), want: ReasonNotOurs, out: ip(outside, world, tcp(5001, 443, "S"))},
		{hook: "into node", in: ip(world, outside, tcp(443, 5001, "SA")), want: ReasonDelivered, out: ip(world, podB, tcp(443, 2000, "SA"))},
		{hook: "into node", in: ip(world, outside, tcp(443, 5000, "SA")), want: ReasonDelivered, out: ip(world, podA, tcp(443, 2000, "SA"))},
	}},
	{name: "the world opens connections to the node, not to pods", state: masquerades(5000, 5000), steps: []step{
		{hook: "from a", in: ip(podA, world, tcp(2000, 443, "S")), want: ReasonToStack},
		{hook: "out of node", in: ip(podA, world, tcp(2000, 443, "S")), want: ReasonNotOurs, out: ip(outside, world, tcp(5000, 443, "S"))},
		{hook: "into node", in: ip(world, outside, tcp(443, 5000, "S")), want: ReasonNotOurs},
	}},
	{name: "without a free port nothing leaves, and a port is free again when its flow is over", state: masquerades(2000, 2000), steps: []step{
		{hook: "from a", in: ip(podA, world, udp(2000, 99)), want: ReasonToStack},
		{hook: "out of node", in: ip(podA, world, udp(2000, 99)), want: ReasonNotOurs, out: ip(outside, world, udp(2000, 99))},
		{hook: "from b", in: ip(podB, world, udp(2000, 99)), want: ReasonToStack},
		{hook: "out of node", in: ip(podB, world, udp(2000, 99)), want: ReasonNoPort},
		{hook: "from b", in: ip(podB, world, udp(2000, 98)), want: ReasonToStack},
		{hook: "out of node", in: ip(podB, world, udp(2000, 98)), want: ReasonNotOurs, out: ip(outside, world, udp(2000, 98)), check: rowsAre(4)},
		{change: ages(time.Hour), hook: "from b", in: ip(podB, world, udp(2000, 99)), want: ReasonToStack},
		{hook: "out of node", in: ip(podB, world, udp(2000, 99)), want: ReasonNotOurs, out: ip(outside, world, udp(2000, 99)), check: rowsAre(4)},
		{hook: "into node", in: ip(world, outside, udp(99, 2000)), want: ReasonDelivered, out: ip(world, podB, udp(99, 2000))},
	}},
	{name: "rows go when their flow has gone, and not before", state: masquerades(2000, 2000), steps: []step{
		{hook: "from a", in: ip(podA, world, udp(2000, 53)), want: ReasonToStack},
		{hook: "out of node", in: ip(podA, world, udp(2000, 53)), want: ReasonNotOurs, out: ip(outside, world, udp(2000, 53))},
		{change: unmasks, hook: "into node", in: ip(world, outside, udp(53, 2000)), want: ReasonDelivered, out: ip(world, podA, udp(53, 2000)), check: rowsAre(2)},
		{change: func(n *node) { n.age(time.Hour); unmasks(n) }, hook: "into node", in: ip(world, outside, udp(53, 2000)), want: ReasonNotOurs, check: rowsAre(0)},
	}},
	{name: "half a pair of rows gives its port to nobody until it is swept", state: masquerades(2000, 2000), steps: []step{
		{hook: "from a", in: ip(podA, world, udp(2000, 53)), want: ReasonToStack},
		{hook: "out of node", in: ip(podA, world, udp(2000, 53)), want: ReasonNotOurs, out: ip(outside, world, udp(2000, 53))},
		{change: func(n *node) {
			n.age(time.Hour)
			unset(n, n.m.Masquerades, FlowKey{Local: addr(podA), Remote: addr(world), Lport: PortOf(2000), Rport: PortOf(53), Proto: 17})
		}, hook: "from b", in: ip(podB, world, udp(2000, 53)), want: ReasonToStack},
		{hook: "out of node", in: ip(podB, world, udp(2000, 53)), want: ReasonNoPort, check: rowsAre(1)},
		{change: unmasks, hook: "out of node", in: ip(podB, world, udp(2000, 53)), want: ReasonNotOurs, out: ip(outside, world, udp(2000, 53)), check: rowsAre(2)},
	}},
	{name: "echoes are told apart by their identifier", state: masquerades(7, 7), steps: []step{
		{hook: "from a", in: ip(podA, world, echo(9)), want: ReasonToStack},
		{hook: "out of node", in: ip(podA, world, echo(9)), want: ReasonNotOurs, out: ip(outside, world, echo(7))},
		{change: masquerades(7, 8), hook: "from b", in: ip(podB, world, echo(9)), want: ReasonToStack},
		{hook: "out of node", in: ip(podB, world, echo(9)), want: ReasonNotOurs, out: ip(outside, world, echo(8))},
		{hook: "into node", in: ip(world, outside, echoReply(8)), want: ReasonDelivered, out: ip(world, podB, echoReply(9))},
		{hook: "into node", in: ip(world, outside, echoReply(7)), want: ReasonDelivered, out: ip(world, podA, echoReply(9))},
		{hook: "into node", in: ip(world, outside, echo(8)), want: ReasonNotOurs},
	}},
	{name: "the node's own echoes come first", state: masquerades(7, 7), steps: []step{
		{hook: "from a", in: ip(podA, world, echo(9)), want: ReasonToStack},
		{hook: "out of node", in: ip(podA, world, echo(9)), want: ReasonNotOurs, out: ip(outside, world, echo(7)), check: rowsAre(2)},
		{hook: "out of node", in: ip(outside, world, echo(7)), want: ReasonNotOurs, check: rowsAre(0)},
		{hook: "into node", in: ip(world, outside, echoReply(7)), want: ReasonNotOurs},
	}},
	{name: "errors of routers about what a pod sent", state: masquerades(5000, 5000), steps: []step{
		{hook: "from a", in: ip(podA, world, udp(40000, 53)), want: ReasonToStack},
		{hook: "out of node", in: ip(podA, world, udp(40000, 53)), want: ReasonNotOurs, out: ip(outside, world, udp(5000, 53))},
		{hook: "into node", in: ip("192.0.2.9", outside, portUnreachable().quoting(ip(outside, world, udp(5000, 53)))), want: ReasonDelivered,
			out: ip("192.0.2.9", podA, portUnreachable().quoting(ip(podA, world, udp(40000, 53))))},
		{hook: "into node", in: ip("192.0.2.9", outside, portUnreachable().quoting(ip(outside, world, udp(5001, 53)))), want: ReasonNotOurs},
		{hook: "from a", in: ip(podA, world, echo(9)), want: ReasonToStack},
		{hook: "out of node", in: ip(podA, world, echo(9)), want: ReasonNotOurs, out: ip(outside, world, echo(5000))},
		{hook: "into node", in: ip("192.0.2.9", outside, portUnreachable().quoting(ip(outside, world, echo(5000)))), want: ReasonDelivered,
			out: ip("192.0.2.9", podA, portUnreachable().quoting(ip(podA, world, echo(9))))},
	}},
	{name: "a pod's error about what the world answered", state: masquerades(5000, 5000), steps: []step{
		{hook: "from a", in: ip(podA, world, udp(40000, 53)), want: ReasonToStack},
		{hook: "out of node", in: ip(podA, world, udp(40000, 53)), want: ReasonNotOurs, out: ip(outside, world, udp(5000, 53))},
		{hook: "into node", in: ip(world, outside, udp(53, 5000)), want: ReasonDelivered, out: ip(world, podA, udp(53, 40000))},
		{hook: "from a", in: ip(podA, world, portUnreachable().quoting(ip(world, podA, udp(53, 40000)))), want: ReasonToStack},
		{hook: "out of node", in: ip(podA, world, portUnreachable().quoting(ip(world, podA, udp(53, 40000)))), want: ReasonNotOurs,
			out: ip(outside, world, portUnreachable().quoting(ip(world, outside, udp(53, 5000))))},
	}},
	{name: "what the world opens to a pod is answered by the pod", state: masquerades(1024, 29999), steps: []step{
		{hook: "into node", in: ip(world, podA, tcp(7000, 80, "S")), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, world, tcp(80, 7000, "SA")), want: ReasonToStack},
		{hook: "out of node", in: ip(podA, world, tcp(80, 7000, "SA")), want: ReasonNotOurs, check: rowsAre(0)},
	}},
	{name: "what was answered under the pod's own address goes on under it", steps: []step{
		{hook: "from a", in: ip(podA, world, tcp(2000, 443, "S")), want: ReasonToStack},
		{hook: "out of node", in: ip(podA, world, tcp(2000, 443, "S")), want: ReasonNotOurs},
		{hook: "into node", in: ip(world, podA, tcp(443, 2000, "SA")), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, world, tcp(2000, 443, "A")), want: ReasonToStack},
		{change: masquerades(1024, 29999), hook: "out of node", in: ip(podA, world, tcp(2000, 443, "A")), want: ReasonNotOurs, check: rowsAre(0)},
	}},
	{name: "towards native prefixes pods keep their addresses", state: func(n *node) {
		masquerades(1024, 29999)(n)
		set(n, n.m.Native, prefix("192.0.2.0/24"), 1)
		n.Cleanup(func() { unset(n, n.m.Native, prefix("192.0.2.0/24")) })
	}, steps: []step{
		{hook: "from a", in: ip(podA, world, tcp(2000, 443, "S")), want: ReasonToStack},
		{hook: "out of node", in: ip(podA, world, tcp(2000, 443, "S")), want: ReasonNotOurs, check: rowsAre(0)},
	}},
	{name: "what the node itself sends stays as it is", state: masquerades(1024, 29999), steps: []step{
		{hook: "out of node", in: ip(outside, world, tcp(2000, 443, "S")), want: ReasonNotOurs},
		{hook: "into node", in: ip(world, outside, tcp(443, 2000, "SA")), want: ReasonNotOurs},
		{hook: "out of node", in: ip(nodeInternal, world, tcp(2000, 443, "S")), want: ReasonNotOurs, check: rowsAre(0)},
	}},
	{name: "the guard comes first", state: masquerades(1024, 29999), steps: []step{
		{hook: "out of node", in: ip(podA, podC, udp(1, 2)), want: ReasonPlaintext},
		{hook: "out of node", in: ip(podC, world, udp(1, 2)), want: ReasonPlaintext, check: rowsAre(0)},
	}},
	{name: "fragments on their way out, and of answers", state: masquerades(5000, 5000), steps: []step{
		{hook: "from a", in: ip(podA, world, udp(40000, 53).says("12345678")).piece(9, 0, true), want: ReasonToStack},
		{hook: "out of node", in: ip(podA, world, udp(40000, 53).says("12345678")).piece(9, 0, true), want: ReasonNotOurs,
			out: ip(outside, world, udp(5000, 53).says("12345678")).piece(9, 0, true)},
		{hook: "from a", in: ip(podA, world, raw("later")).udp().piece(9, 16, false), want: ReasonToStack},
		{hook: "out of node", in: ip(podA, world, raw("later")).udp().piece(9, 16, false), want: ReasonNotOurs, out: ip(outside, world, raw("later")).udp().piece(9, 16, false)},
		{hook: "into node", in: ip(world, outside, udp(53, 5000).says("87654321")).piece(8, 0, true), want: ReasonDelivered,
			out: ip(world, podA, udp(53, 40000).says("87654321")).piece(8, 0, true)},
		{hook: "into node", in: ip(world, outside, raw("later")).udp().piece(8, 16, false), want: ReasonDelivered, out: ip(world, podA, raw("later")).udp().piece(8, 16, false)},
	}},
	{name: "a later fragment that comes first may be the node's, and a copy waits", state: masquerades(5000, 5000), steps: []step{
		{hook: "into node", in: ip(world, outside, raw("later")).udp().piece(8, 16, false), want: ReasonNotOurs}, // and a copy waits
		{hook: "into node", in: ip(world, outside, raw("later")).udp().piece(8, 16, false), waited: 1, want: ReasonEarlyFragment},
		{hook: "into node", in: ip(world, outside, raw("later")).udp().piece(8, 16, false), waited: 31, want: ReasonNotOurs, ends: true},
		{hook: "into node", in: ip(world, "192.0.2.77", raw("later")).udp().piece(8, 16, false), want: ReasonNotOurs},
		{hook: "into node", in: ip(podC, outside, raw("later")).udp().piece(8, 16, false), want: ReasonPlaintext},
	}},
	{name: "SCTP keeps its port, or does not leave", state: masquerades(1024, 29999), steps: []step{
		{hook: "from a", in: ip(podA, world, &sctpLayer{2000, 443}), want: ReasonToStack},
		{hook: "out of node", in: ip(podA, world, &sctpLayer{2000, 443}), want: ReasonNotOurs, out: ip(outside, world, &sctpLayer{2000, 443})},
		{hook: "from b", in: ip(podB, world, &sctpLayer{2000, 443}), want: ReasonToStack},
		{hook: "out of node", in: ip(podB, world, &sctpLayer{2000, 443}), want: ReasonNoPort},
		{hook: "into node", in: ip(world, outside, &sctpLayer{443, 2000}), want: ReasonDelivered, out: ip(world, podA, &sctpLayer{443, 2000})},
		{hook: "from a", in: ip(podA, world, &sctpLayer{2001, 443}), want: ReasonToStack},
		{hook: "out of node", in: ip(podA, world, &sctpLayer{2001, 443}), want: ReasonNotOurs, out: ip(outside, world, &sctpLayer{2001, 443})},
	}},
	{name: "the node gets another address", state: masquerades(2000, 2000), steps: []step{
		{hook: "from a", in: ip(podA, world, udp(2000, 53)), want: ReasonToStack},
		{hook: "out of node", in: ip(podA, world, udp(2000, 53)), want: ReasonNotOurs, out: ip(outside, world, udp(2000, 53))},
		{change: func(n *node) {
			row := Masquerading{First: 2000, Last: 2000}
			row.Addr[bit(overIPv6)] = addr("192.0.2.2")
			set(n, n.m.Masquerading, 0, row)
		}, hook: "out of node", in: ip(podA, world, udp(2000, 53)), want: ReasonNotOurs, out: ip("192.0.2.2", world, udp(2000, 53))},
		{hook: "into node", in: ip(world, "192.0.2.2", udp(53, 2000)), want: ReasonDelivered, out: ip(world, podA, udp(53, 2000))},
	}},
}

// Whatever one pod holds, another has ports of its own.
func TestEachPodHasPortsOfItsOwn(t *testing.T) {
	n := newNodeWith(t, func(c *Config) { c.Limits.Flows = 1 << 15 })
	masquerades(1024, 1024+4*256-1)(n) // 768 for all, and one for each pod
	left := func(pod, from string, sport uint16) Reason {
		t.Helper()
		n.send("from_pod", map[string]int{"a": n.a, "b": n.b}[from], 0, packet(ip(pod, world, udp(sport, 53))))
		return n.send("to_device", n.b, 0, packet(ip(pod, world, udp(sport, 53)))).reason
	}
	got := 0
	for sport := uint16(1); sport <= 3000; sport++ {
		if left(podA, "a", sport) == ReasonNotOurs {
			got++
		}
	}
	if got < 700 || got > 769 {
		t.Errorf("one pod got %d of 768 common ports and its own", got)
	}
	if r := left(podB, "b", 1); r != ReasonNotOurs {
		t.Errorf("the other one got none: %v", r)
	}
}

// A flow that gives way to a newer one of its pod leaves no rows.
func TestAFlowGivenUpGivesBackItsPort(t *testing.T) {
	n := newNode(t)
	set(t, n.m.Budgets, 0, BudgetFor(n.config.Limits.Flows, 2))
	masquerades(1024, 29999)(n)
	for sport := uint16(1000); sport < 4000; sport++ {
		n.send("from_pod", n.a, 0, packet(ip(podA, world, udp(sport, 53))))
		n.send("to_device", n.b, 0, packet(ip(podA, world, udp(sport, 53))))
	}
	rows, err := n.m.Masquerades.Len()
	if err != nil {
		t.Fatal(err)
	}
	// Those that found no flow to give up may have left theirs.
	if flows := n.flows(); rows > 2*flows+100 {
		t.Errorf("%d flows have %d rows", flows, rows)
	}
}

// A port that a socket of the node listens on, or is connected from, is not a pod's.
func TestMasqueradeLeavesTheNodesPorts(t *testing.T) {
	n := newNode(t)
	lo := loopbackUp(t)
	families(t, func(t *testing.T) {
		n := n.again(t)
		ip6 := inFamily(netip.MustParseAddr(outside))
		a := &netlink.Addr{IPNet: &net.IPNet{IP: ip6.AsSlice(), Mask: net.CIDRMask(ip6.BitLen(), ip6.BitLen())}, Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrAdd(lo, a); err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", net.JoinHostPort(ip6.String(), "2000"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		u, err := net.ListenPacket("udp", net.JoinHostPort(ip6.String(), "2000"))
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		n.play(packetCase{name: "ports in use", state: masquerades(2000, 2001), steps: []step{
			{hook: "from a", in: ip(podA, world, tcp(2000, 443, "S")), want: ReasonToStack},
			{hook: "out of node", in: ip(podA, world, tcp(2000, 443, "S")), want: ReasonNotOurs, out: ip(outside, world, tcp(2001, 443, "S"))},
			{hook: "from a", in: ip(podA, world, udp(2000, 443)), want: ReasonToStack},
			{hook: "out of node", in: ip(podA, world, udp(2000, 443)), want: ReasonNotOurs, out: ip(outside, world, udp(2001, 443))},
		}})
	})
}
