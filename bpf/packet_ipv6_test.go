package bpf

import "testing"

// icmpv6 is a packet of ICMPv6 by its own type, whatever stands for one of IPv4.
func icmpv6(kind, code uint8) *icmpLayer { return &icmpLayer{kind: kind, code: code} }

var ipv6Cases = inIPv6([]packetCase{
	{name: "neighbours, routers and listeners are the link's", steps: []step{
		{hook: "from a", in: ip("::", "ff02::1:ff01:2", icmpv6(135, 0)), want: ReasonNotOurs},
		{hook: "from a", in: ip("fe80::2", "ff02::2", icmpv6(133, 0)), want: ReasonNotOurs},
		{hook: "from a", in: ip("fe80::2", "fe80::1", icmpv6(135, 0)), want: ReasonNotOurs},
		{hook: "from a", in: ip("fe80::2", "fe80::1", icmpv6(136, 0)), want: ReasonNotOurs},
		{hook: "from a", in: ip("::", "ff02::16", icmpv6(143, 0)), want: ReasonNotOurs},
		{hook: "from a", in: ip("fe80::2", "ff02::16", icmpv6(143, 0)).withOptions(8), want: ReasonNotOurs},
		{hook: "to a", in: ip("fe80::1", "ff02::1:ff01:2", icmpv6(135, 0)), want: ReasonNotOurs},
		{hook: "into node", in: ip("fe80::9", "ff02::1:ff01:2", icmpv6(135, 0)), want: ReasonNotOurs},
		{hook: "out of node", in: ip("2001:db8::1", "2001:db8::2", icmpv6(136, 0)), want: ReasonNotOurs},
	}},
	{name: "a pod is no router, and nobody is one through a tunnel", steps: []step{
		{hook: "from a", in: ip("fe80::2", "ff02::1", icmpv6(134, 0)), want: ReasonNotSupported, silent: true},
		{hook: "from a", in: ip("fe80::2", "ff02::1", icmpv6(130, 0)), want: ReasonNotSupported, silent: true},
		{hook: "out of tunnel", in: ip("fe80::2", "ff02::1", icmpv6(134, 0)), want: ReasonNotSupported},
		{hook: "out of tunnel", in: ip(podC, "ff02::1", icmpv6(136, 0)), want: ReasonNotSupported},
		{hook: "into tunnel", in: ip("fe80::2", "ff02::2", icmpv6(133, 0)), want: ReasonNotSupported},
		{hook: "into node", in: ip("fe80::9", "ff02::1", icmpv6(134, 0)), want: ReasonNotOurs},
		{hook: "to a", in: ip("fe80::1", "ff02::1", icmpv6(130, 0)), want: ReasonNotOurs},
	}},
	{name: "but nothing of theirs goes further", steps: []step{
		{hook: "out of node", in: ip(podA, "ff02::1:ff01:2", icmpv6(135, 0)), want: ReasonNotSupported},
		{hook: "from a", in: ip(podA, world, icmpv6(135, 0)), want: ReasonNotSupported, silent: true},
		{hook: "from a", in: ip(podA, podC, icmpv6(136, 0)), want: ReasonNotSupported, silent: true},
		{hook: "from a", in: ip("fe80::2", "fe80::1", icmpv6(137, 0)), want: ReasonNotSupported, silent: true},
		{hook: "from a", in: ip("fe80::2", "fe80::1", tcp(1, 22, "S")), want: ReasonSpoofedSource},
		{hook: "out of tunnel", in: ip(podC, podA, icmpv6(137, 0)), want: ReasonNotSupported},
		{hook: "into node", in: ip("fe80::9", podA, icmpv6(137, 0)), want: ReasonNotSupported},
		{hook: "from a", in: ip(podA, podC, icmpv6(139, 0)), want: ReasonNotSupported, silent: true, check: flowsAre(0)},
	}},
	{name: "addresses that would be IPv4 in a map, or none", steps: []step{
		{hook: "from a", in: ip("::ffff:"+podA, podB, tcp(1, 2, "S")), want: ReasonInvalid},
		{hook: "from a", in: ip(podA, "::ffff:"+podB, tcp(1, 2, "S")), want: ReasonInvalid},
		{hook: "from a", in: ip(podA, "::1", tcp(1, 2, "S")), want: ReasonInvalid},
		{hook: "from a", in: ip("::", podB, tcp(1, 2, "S")), want: ReasonInvalid},
		{hook: "out of tunnel", in: ip("::", podA, tcp(1, 2, "S")), want: ReasonInvalid, check: flowsAre(0)},
	}},
	{name: "extension headers", steps: []step{
		{hook: "from a", in: ip(podA, podC, tcp(1, 2, "S")).behind(0), want: ReasonTunnelled},
		{hook: "from a", in: ip(podA, podC, tcp(1, 2, "A")).behind(0, 60, 43, 60), want: ReasonTunnelled, check: flowsAre(1)},
		{hook: "from a", in: ip(podA, podC, tcp(1, 2, "A")).behind(60, 60, 60, 60, 60), want: ReasonTunnelled},
		{hook: "from a", in: ip(podB, podC, tcp(1, 2, "A")).behind(60), want: ReasonSpoofedSource},
		{hook: "from a", in: ip(podA, podC, tcp(1, 2, "A")).behind(60, 60, 60, 60, 60, 60), want: ReasonNotSupported, silent: true},
		{hook: "from a", in: ip(podA, podC, udp(1, 2)).behind(segmentsLeft), want: ReasonNotSupported, silent: true},
		{hook: "from a", in: ip(podA, podC, tcp(1, 2, "A")).behind(51), want: ReasonNotSupported,
			out: ip(podC, podA, (&icmpLayer{kind: 3, code: 2, quoted: 128}).quoting(ip(podA, podC, tcp(1, 2, "A")).behind(51)))},
		{hook: "from a", in: ip(podA, podC, udp(1, 2)).behind(1), want: ReasonNotSupported, silent: true}, // ICMP of IPv4
	}},
	{name: "a packet in a single piece", steps: []step{
		{hook: "from a", in: ip(podA, podC, udp(1, 2)).behind(44), want: ReasonTunnelled},
		{hook: "from a", in: ip(podA, podC, udp(1, 2)).piece(7, 0, true), want: ReasonTunnelled},
		{hook: "from a", in: ip(podA, podC, raw("later")).udp().piece(7, 1448, false), want: ReasonTunnelled},
		{hook: "from a", in: ip(podA, podC, raw("later")).udp().piece(8, 1448, false), want: ReasonEarlyFragment, check: flowsAre(1)},
	}},
	{name: "the path's MTU", steps: []step{
		{hook: "from a", in: ip(podA, far, tcp(1000, 80, "S")), change: onlyC, want: ReasonTunnelled, out: ip(podA, podC, tcp(1000, 8080, "S"))},
		{hook: "out of tunnel", in: ip("10.2.1.1", podA, icmpv6(2, 0).quoting(ip(podA, podC, tcp(1000, 8080, "S")))), want: ReasonDelivered,
			out: ip("10.2.1.1", podA, icmpv6(2, 0).quoting(ip(podA, far, tcp(1000, 80, "S"))))},
		{hook: "out of tunnel", in: ip("10.2.1.1", podA, icmpv6(2, 0).quoting(ip(podA, podC, tcp(1000, 8081, "S")))), want: ReasonInvalid},
	}},
	{name: "a rule for ICMPv6 is none for ICMP", state: func(n *node) {
		n.policy(podA, Egress)
		n.portClass(3, 58, 128)
		n.rule(PolicyKey{Class: AnyClass, Proto: 58, Port: 3}, PolicyEntry{Rule: 4})
	}, steps: []step{
		{hook: "from a", in: ip(podA, podC, echo(77)), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, echoReply(77)), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, podC, udp(1, 128)), want: ReasonPolicyDenied},
	}},
	{name: "the node answers echoes, and takes answers to what it asked", state: onLane(1), steps: []step{
		{hook: "out of tunnel", in: ip(podC, nodeInternal, echo(7)), want: ReasonToStack},
		{hook: "out of tunnel", in: ip(podC, nodeInternal, echoReply(7)), want: ReasonToStack},
		{hook: "out of tunnel", in: ip(podC, nodeInternal, tcp(1, 2379, "S")), want: ReasonNodeClosed},
		{hook: "into tunnel", in: ip(nodeInternal, podC, tcp(4000, 80, "S")), want: ReasonEnteredTunnel},
		{hook: "out of tunnel", in: ip(podC, nodeInternal, tcp(80, 4000, "SA")), want: ReasonToStack},
		{hook: "out of tunnel", in: ip("10.2.1.1", nodeInternal, portUnreachable().quoting(ip(nodeInternal, podC, tcp(4000, 80, "S")))), want: ReasonToStack},
		{hook: "out of tunnel", in: ip("10.2.1.1", nodeInternal, portUnreachable().quoting(ip(podA, podC, udp(4000, 53)))), want: ReasonInvalid},
	}},
	{name: "a protocol that is not carried", steps: []step{
		{hook: "from a", in: ip(podA, podC, raw(make([]byte, 8))), want: ReasonNotSupported,
			out: ip(podC, podA, (&icmpLayer{kind: 3, code: 2, quoted: 128}).quoting(ip(podA, podC, raw(make([]byte, 8)))))},
		{hook: "from a", in: ip(podA, "224.0.0.22", raw(make([]byte, 8))), want: ReasonNotSupported, silent: true},
	}},
})

func inIPv6(cases []packetCase) []packetCase {
	for i := range cases {
		cases[i].only = "IPv6"
	}
	return cases
}

// The two families share all maps: what one has says nothing about the other.
func TestFamiliesAreApart(t *testing.T) {
	n := newNode(t)
	overIPv6 = true
	defer func() { overIPv6 = false }()
	fillMesh(t, n.m, n.a, n.b)
	n.policy(podA, Ingress)
	if s := n.send("from_tunnel", n.b, 0, packet(ip(podC, podA, tcp(1, 80, "S")))); s.reason != ReasonPolicyDenied {
		t.Errorf("IPv6: %s", s.reason)
	}
	overIPv6 = false
	set(t, n.m.Settings, 0, Settings{Revision: 1, PolicyGen: 1, TunnelIfindex: [2]uint32{ifTunnel0, ifTunnel1}, Internal: internal(nodeInternal), Cluster: 1})
	if s := n.send("from_tunnel", n.b, 0, packet(ip(podC, podA, tcp(1, 80, "S")))); s.reason != ReasonDelivered {
		t.Errorf("IPv4: %s", s.reason)
	}
}
