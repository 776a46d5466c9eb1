package bpf

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The node port of a service at this node's address, the node's ingress address, and another
// node's.
const (
	nodePort           = 30080
	ingress, ingressTo = "10.1.1.0", "10.1.2.0"
)

// exposes gives the node a node port whose service has these groups of backends. Its number
// is that of a service that has the same.
func exposes(service uint32, groups ...Group) func(*node) {
	return func(n *node) {
		n.Helper()
		row := Service{ID: service, Groups: uint8(len(groups))}
		copy(row.Group[:], groups)
		for _, proto := range []uint8{6, 17} {
			set(n, n.m.Services, ServiceKey{Addr: addr(outside), Port: PortOf(nodePort), Proto: proto}, row)
		}
	}
}

var (
	here  = exposes(80, Group{Cluster: 1, Weight: 1, Count: 1})
	there = func(n *node) { exposes(81, Group{Cluster: 2, Weight: 1, Count: 2})(n); onlyC(n) }
	// First here, and in cluster 2 if there is none.
	both = func(n *node) {
		exposes(80, Group{Cluster: 1, Weight: 1, Count: 1}, Group{Cluster: 2, Tier: 1, Weight: 1, Count: 2})(n)
		onlyC(n)
	}
	nobody = exposes(99)
)

// leaves removes a backend from its service.
func leaves(service uint32, pod string, rows ...func(*node)) func(*node) {
	return func(n *node) {
		unset(n, n.m.Members, MemberKey{Service: service, Addr: addr(pod), Port: PortOf(8080)})
		for _, row := range rows {
			row(n)
		}
	}
}

func ingressRow(n *node) {
	set(n, n.m.Prefixes, prefix("10.1.2.0/24"), IPInfo{Cluster: 1, Flags: IPMember, Node: 2, Bits: uint8(prefix("10.1.2.0/24").Bits)})
}

var nodePortCases = []packetCase{
	{name: "a client outside, and a backend on this node, which sees it", state: here, steps: []step{
		{hook: "into node", in: ip(world, outside, tcp(7000, nodePort, "S")), want: ReasonDelivered, out: ip(world, podB, tcp(7000, 8080, "S")), check: rowsAre(2)},
		{hook: "from b", in: ip(podB, world, tcp(8080, 7000, "SA")), want: ReasonToStack},
		{hook: "out of node", in: ip(podB, world, tcp(8080, 7000, "SA")), want: ReasonNotOurs, out: ip(outside, world, tcp(nodePort, 7000, "SA"))},
		{hook: "into node", in: ip(world, outside, tcp(7000, nodePort, "PA").says("odd")), want: ReasonDelivered, out: ip(world, podB, tcp(7000, 8080, "PA").says("odd")), check: flowsAre(1)},
		{hook: "from b", in: ip(podB, world, tcp(8080, 7000, "PA").says("even")), want: ReasonToStack},
		{hook: "out of node", in: ip(podB, world, tcp(8080, 7000, "PA").says("even")), want: ReasonNotOurs, out: ip(outside, world, tcp(nodePort, 7000, "PA").says("even")), check: rowsAre(2)},
	}},
	{name: "beside pods' own connections to the world", state: func(n *node) { here(n); masquerades(5000, 5000)(n) }, steps: []step{
		{hook: "into node", in: ip(world, outside, udp(443, nodePort).says("?")), want: ReasonDelivered, out: ip(world, podB, udp(443, 8080).says("?"))},
		{hook: "from b", in: ip(podB, world, udp(8080, 443).says("!")), want: ReasonToStack},
		{hook: "out of node", in: ip(podB, world, udp(8080, 443).says("!")), want: ReasonNotOurs, out: ip(outside, world, udp(nodePort, 443).says("!"))},
		{hook: "from b", in: ip(podB, world, udp(8081, 443)), want: ReasonToStack},
		{hook: "out of node", in: ip(podB, world, udp(8081, 443)), want: ReasonNotOurs, out: ip(outside, world, udp(5000, 443)), check: rowsAre(4)},
		{hook: "into node", in: ip(world, outside, udp(443, 5000)), want: ReasonDelivered, out: ip(world, podB, udp(443, 8081))},
	}},
	{name: "a client outside, and a backend elsewhere, which sees the ingress address", state: there, steps: []step{
		{hook: "into node", in: ip(world, outside, tcp(7000, nodePort, "S")), want: ReasonTunnelled, out: ip(ingress, podC, tcp(7000, 8080, "S")), check: rowsAre(4)},
		{hook: "into tunnel", in: ip(ingress, podC, tcp(7000, 8080, "S")), want: ReasonEnteredTunnel},
		{hook: "out of tunnel", in: ip(podC, ingress, tcp(8080, 7000, "SA")), want: ReasonToStack, out: ip(podC, world, tcp(8080, 7000, "SA"))},
		{hook: "out of node", in: ip(podC, world, tcp(8080, 7000, "SA")), want: ReasonNotOurs, out: ip(outside, world, tcp(nodePort, 7000, "SA"))},
		{hook: "into node", in: ip(world, outside, tcp(7000, nodePort, "PA").says("odd")), want: ReasonTunnelled, out: ip(ingress, podC, tcp(7000, 8080, "PA").says("odd")), check: func(n *node, s sent) {
			flowsAre(1)(n, s)
			f, ok := n.flow(ingress, 7000, podC, 8080, 6)
			if !ok || f.Owner != SharesOutside || f.Node != 3 || f.Cluster != 2 || f.Via != ViaTunnel || f.Flags != FlowReplied {
				n.Errorf("flow %+v", f)
			}
		}},
	}},
	{name: "UDP to a backend elsewhere", state: there, steps: []step{
		{hook: "into node", in: ip(world, outside, udp(53, nodePort).says("?")), want: ReasonTunnelled, out: ip(ingress, podC, udp(53, 8080).says("?"))},
		{hook: "out of tunnel", in: ip(podC, ingress, udp(8080, 53).says("!")), want: ReasonToStack, out: ip(podC, world, udp(8080, 53).says("!"))},
		{hook: "out of node", in: ip(podC, world, udp(8080, 53).says("!")), want: ReasonNotOurs, out: ip(outside, world, udp(nodePort, 53).says("!"))},
		{hook: "into node", in: ip(world, outside, udp(54, nodePort).unchecked()), want: ReasonTunnelled, out: ip(ingress, podC, udp(54, 8080).unchecked())},
	}},
	{name: "what nobody asked for does not get through", state: there, steps: []step{
		{hook: "out of tunnel", in: ip(podC, ingress, tcp(8080, 7000, "SA")), want: ReasonNodeClosed},
		{hook: "out of tunnel", in: ip(podC, ingress, tcp(7000, 22, "S")), want: ReasonNodeClosed},
		{hook: "out of tunnel", in: ip(podC, ingress, echo(9)), want: ReasonNodeClosed},
		{hook: "out of node", in: ip(podC, world, tcp(8080, 7000, "SA")), want: ReasonPlaintext},
		{hook: "into node", in: ip(podC, outside, tcp(7000, nodePort, "S")), want: ReasonPlaintext},
		{hook: "into node", in: ip(ingressTo, outside, tcp(7000, nodePort, "S")), want: ReasonPlaintext},
		{hook: "from a", in: ip(ingress, podC, tcp(7000, 8080, "S")), want: ReasonSpoofedSource},
		{hook: "into node", in: ip(world, outside, tcp(7000, nodePort, "S")), want: ReasonTunnelled, out: ip(ingress, podC, tcp(7000, 8080, "S"))},
		{hook: "out of tunnel", in: ip(podD, ingress, tcp(8080, 7000, "SA")), want: ReasonNodeClosed},
		{hook: "out of node", in: ip(podC, world, tcp(8081, 7000, "SA")), want: ReasonPlaintext, check: rowsAre(4)},
	}},
	{name: "a node's address in the clear proves nothing", state: func(n *node) {
		there(n)
		set(n, n.m.IPs, addr("192.0.2.99"), IPInfo{Identity: 6, Flags: IPNode})
	}, steps: []step{
		{hook: "into node", in: ip("192.0.2.99", outside, tcp(7000, nodePort, "S")), want: ReasonPlaintext, check: rowsAre(0)},
		{change: here, hook: "into node", in: ip("192.0.2.99", outside, tcp(7000, nodePort, "S")), want: ReasonPlaintext, check: rowsAre(0)},
	}},
	{name: "the policy of a backend here judges the client's address", state: func(n *node) {
		here(n)
		n.policy(podB, Ingress)
		n.class(4, 16777217)
		n.rule(PolicyKey{Class: 4, Dir: Ingress}, PolicyEntry{Rule: 1})
		set(n, n.m.IPs, addr("192.0.2.8"), IPInfo{Identity: 16777217})
	}, steps: []step{
		{hook: "into node", in: ip(world, outside, tcp(7000, nodePort, "S")), want: ReasonPolicyDenied, check: rowsAre(0)},
		{hook: "into node", in: ip("192.0.2.8", outside, tcp(7000, nodePort, "S")), want: ReasonDelivered, out: ip("192.0.2.8", podB, tcp(7000, 8080, "S")), check: rowsAre(2)},
	}},
	{name: "that of one elsewhere sees the world, and no node", state: func(n *node) {
		ingressRow(n)
		n.policy(podA, Ingress)
		n.class(4, 6)
		n.rule(PolicyKey{Class: 4, Dir: Ingress}, PolicyEntry{Rule: 1})
	}, steps: []step{
		{hook: "out of tunnel", in: ip(ingressTo, podA, tcp(7000, 80, "S")), want: ReasonPolicyDenied, check: func(n *node, s sent) {
			if s.event.SrcIdentity != 2 {
				n.Errorf("event %+v", *s.event)
			}
		}},
		{change: func(n *node) {
			n.class(5, 2)
			n.rule(PolicyKey{Class: 5, Dir: Ingress}, PolicyEntry{Rule: 2})
		}, hook: "out of tunnel", in: ip(ingressTo, podA, tcp(7000, 80, "S")), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, ingressTo, tcp(80, 7000, "SA")), want: ReasonTunnelled},
		{change: revisionMoves, hook: "out of tunnel", in: ip(ingressTo, podA, tcp(7000, 80, "A")), want: ReasonDelivered, check: flowsAre(1)},
		{hook: "out of tunnel", in: ip("10.1.2.77", podA, tcp(7000, 80, "S")), want: ReasonUnknownMember},
	}},
	{name: "a rule for all addresses means clients of node ports elsewhere too", state: func(n *node) {
		ingressRow(n)
		all := prefix("0.0.0.0/0")
		if overIPv6 {
			all = PrefixKey{}
		}
		set(n, n.m.Prefixes, all, IPInfo{Identity: 16777218})
		n.policy(podA, Ingress)
		n.class(4, 16777218)
		n.rule(PolicyKey{Class: 4, Dir: Ingress}, PolicyEntry{Rule: 1})
	}, steps: []step{
		{hook: "out of tunnel", in: ip(ingressTo, podA, tcp(7000, 80, "S")), want: ReasonDelivered},
	}},
	{name: "nobody behind it: the client is told", state: nobody, steps: []step{
		{hook: "into node", in: ip(world, outside, tcp(7000, nodePort, "S").at(4, 0)), want: ReasonNoBackend, out: ip(outside, world, tcp(nodePort, 7000, "RA").at(0, 5))},
		{hook: "into node", in: ip(world, outside, udp(7000, nodePort).says("?")), want: ReasonNoBackend,
			out: ip(outside, world, &icmpLayer{kind: 3, code: 3, quote: ip(world, outside, udp(7000, nodePort).says("?")), quoted: 128}), check: rowsAre(0)},
	}},
	{name: "the node's own ports stay its own", state: here, steps: []step{
		{hook: "into node", in: ip(world, outside, tcp(7000, 22, "S")), want: ReasonNotOurs},
		{hook: "into node", in: ip(world, outside, tcp(443, nodePort, "SA")), want: ReasonNotOurs},
		{hook: "into node", in: ip(world, "192.0.2.2", tcp(7000, nodePort, "S")), want: ReasonNotOurs},
		{hook: "into node", in: ip(world, outside, echo(7)), want: ReasonNotOurs, check: rowsAre(0)},
	}},
	{name: "cluster IPs are not for the world", state: func(n *node) {
		set(n, n.m.Prefixes, prefix("10.101.0.0/16"), IPInfo{Identity: 2, Flags: IPService})
	}, steps: []step{
		{hook: "into node", in: ip(world, near, tcp(7000, 80, "S")), want: ReasonNotOurs, check: rowsAre(0)},
	}},
	{name: "pods of this node reach its node ports", state: here, steps: []step{
		{hook: "from a", in: ip(podA, outside, tcp(1000, nodePort, "S")), want: ReasonDelivered, out: ip(podA, podB, tcp(1000, 8080, "S"))},
		{hook: "from b", in: ip(podB, podA, tcp(8080, 1000, "SA")), want: ReasonDelivered, out: ip(outside, podA, tcp(nodePort, 1000, "SA"))},
	}},
	{name: "fragments", state: there, steps: []step{
		{hook: "into node", in: ip(world, outside, udp(53, nodePort).says("12345678")).piece(9, 0, true), want: ReasonTunnelled,
			out: ip(ingress, podC, udp(53, 8080).says("12345678")).piece(9, 0, true)},
		{hook: "into tunnel", in: ip(ingress, podC, udp(53, 8080).says("12345678")).piece(9, 0, true), want: ReasonEnteredTunnel},
		{hook: "into node", in: ip(world, outside, raw("later")).udp().piece(9, 16, false), want: ReasonTunnelled, out: ip(ingress, podC, raw("later")).udp().piece(9, 16, false)},
		{hook: "into tunnel", in: ip(ingress, podC, raw("later")).udp().piece(9, 16, false), want: ReasonEnteredTunnel},
		{hook: "out of tunnel", in: ip(podC, ingress, udp(8080, 53).says("87654321")).piece(8, 0, true), want: ReasonToStack, out: ip(podC, world, udp(8080, 53).says("87654321")).piece(8, 0, true)},
		{hook: "out of tunnel", in: ip(podC, ingress, raw("later")).udp().piece(8, 16, false), want: ReasonToStack, out: ip(podC, world, raw("later")).udp().piece(8, 16, false)},
		{hook: "out of node", in: ip(podC, world, udp(8080, 53).says("87654321")).piece(8, 0, true), want: ReasonNotOurs, out: ip(outside, world, udp(nodePort, 53).says("87654321")).piece(8, 0, true)},
		{hook: "out of node", in: ip(podC, world, raw("later")).udp().piece(8, 16, false), want: ReasonNotOurs, out: ip(outside, world, raw("later")).udp().piece(8, 16, false)},
	}},
	{name: "errors about what a backend here answered, and its own", state: here, steps: []step{
		{hook: "into node", in: ip(world, outside, udp(53, nodePort)), want: ReasonDelivered, out: ip(world, podB, udp(53, 8080))},
		{hook: "from b", in: ip(podB, world, udp(8080, 53)), want: ReasonToStack},
		{hook: "into node", in: ip("192.0.2.9", outside, portUnreachable().quoting(ip(outside, world, udp(nodePort, 53)))), want: ReasonDelivered,
			out: ip("192.0.2.9", podB, portUnreachable().quoting(ip(podB, world, udp(8080, 53))))},
		{hook: "from b", in: ip(podB, world, portUnreachable().quoting(ip(world, podB, udp(53, 8080)))), want: ReasonToStack},
		{hook: "out of node", in: ip(podB, world, portUnreachable().quoting(ip(world, podB, udp(53, 8080)))), want: ReasonNotOurs,
			out: ip(outside, world, portUnreachable().quoting(ip(world, outside, udp(53, nodePort))))},
	}},
	{name: "the same of one elsewhere", state: there, steps: []step{
		{hook: "into node", in: ip(world, outside, udp(53, nodePort)), want: ReasonTunnelled, out: ip(ingress, podC, udp(53, 8080))},
		{hook: "into node", in: ip("192.0.2.9", outside, portUnreachable().quoting(ip(outside, world, udp(nodePort, 53)))), want: ReasonTunnelled,
			out: ip(ingress, podC, portUnreachable().quoting(ip(podC, ingress, udp(8080, 53))))},
		{hook: "into node", in: ip("192.0.2.9", outside, portUnreachable().quoting(ip(outside, world, udp(nodePort, 54)))), want: ReasonNotOurs},
		{hook: "out of tunnel", in: ip(podC, ingress, portUnreachable().quoting(ip(ingress, podC, udp(53, 8080)))), want: ReasonToStack,
			out: ip(podC, world, portUnreachable().quoting(ip(world, podC, udp(53, 8080))))},
		{hook: "out of node", in: ip(podC, world, portUnreachable().quoting(ip(world, podC, udp(53, 8080)))), want: ReasonNotOurs,
			out: ip(outside, world, portUnreachable().quoting(ip(world, outside, udp(53, nodePort))))},
		{hook: "out of tunnel", in: ip(podE, ingress, portUnreachable().quoting(ip(ingress, podC, udp(53, 8080)))), want: ReasonSpoofedSource},
		{hook: "out of tunnel", in: ip(podC, ingress, portUnreachable().quoting(ip(ingress, podC, udp(54, 8080)))), want: ReasonNodeClosed},
	}},
	{name: "an error about an idle connection with a backend elsewhere", state: there, steps: []step{
		{hook: "into node", in: ip(world, outside, tcp(7000, nodePort, "S")), want: ReasonTunnelled, out: ip(ingress, podC, tcp(7000, 8080, "S"))},
		{hook: "out of tunnel", in: ip(podC, ingress, tcp(8080, 7000, "SA")), want: ReasonToStack, out: ip(podC, world, tcp(8080, 7000, "SA"))},
		{change: ages(2 * time.Minute), hook: "out of tunnel", in: ip(podC, ingress, portUnreachable().quoting(ip(ingress, podC, tcp(7000, 8080, "PA")))), want: ReasonToStack,
			out: ip(podC, world, portUnreachable().quoting(ip(world, podC, tcp(7000, 8080, "PA"))))},
	}},
	{name: "the own backends go, and the other cluster answers", state: both, steps: []step{
		{hook: "into node", in: ip(world, outside, tcp(7000, nodePort, "S")), want: ReasonDelivered, out: ip(world, podB, tcp(7000, 8080, "S"))},
		{hook: "from b", in: ip(podB, world, tcp(8080, 7000, "SA")), want: ReasonToStack},
		{hook: "into node", in: ip(world, outside, udp(7000, nodePort)), want: ReasonDelivered, out: ip(world, podB, udp(7000, 8080))},
		{change: leaves(80, podB, func(n *node) {
			exposes(80, Group{Cluster: 1, Weight: 1}, Group{Cluster: 2, Tier: 1, Weight: 1, Count: 2})(n)
		}), hook: "into node", in: ip(world, outside, udp(7000, nodePort)), want: ReasonTunnelled, out: ip(ingress, podC, udp(7000, 8080))},
		{hook: "into node", in: ip(world, outside, tcp(7000, nodePort, "A")), want: ReasonDelivered, out: ip(world, podB, tcp(7000, 8080, "A"))},
		{hook: "into node", in: ip(world, outside, tcp(7001, nodePort, "S")), want: ReasonTunnelled, out: ip(ingress, podC, tcp(7001, 8080, "S"))},
	}},
	{name: "an open connection over a dead path is reset, what is new or not open goes elsewhere", state: there, steps: []step{
		{hook: "into node", in: ip(world, outside, tcp(7000, nodePort, "S")), want: ReasonTunnelled, out: ip(ingress, podC, tcp(7000, 8080, "S"))},
		{hook: "out of tunnel", in: ip(podC, ingress, tcp(8080, 7000, "SA")), want: ReasonToStack, out: ip(podC, world, tcp(8080, 7000, "SA"))},
		{hook: "into node", in: ip(world, outside, tcp(7001, nodePort, "S")), want: ReasonTunnelled, out: ip(ingress, podC, tcp(7001, 8080, "S"))},
		{hook: "into node", in: ip(world, outside, udp(7000, nodePort)), want: ReasonTunnelled, out: ip(ingress, podC, udp(7000, 8080))},
		{change: func(n *node) {
			row, _, _ := n.m.Nodes.Lookup(4)
			row.Path = PathAlive
			set(n, n.m.Nodes, 4, row)
			nodeDies(3)(n)
		}, hook: "into node", in: ip(world, outside, udp(7000, nodePort)), want: ReasonTunnelled, out: ip(ingress, podD, udp(7000, 8080))},
		{hook: "into node", in: ip(world, outside, tcp(7001, nodePort, "S")), want: ReasonTunnelled, out: ip(ingress, podD, tcp(7001, 8080, "S"))},
		{hook: "into node", in: ip(world, outside, tcp(7000, nodePort, "A").at(7, 9)), want: ReasonResetSent, out: ip(outside, world, tcp(nodePort, 7000, "R").at(9, 0)), check: rowsAre(8)},
		{hook: "into node", in: ip(world, outside, tcp(7000, nodePort, "S")), want: ReasonTunnelled, out: ip(ingress, podD, tcp(7000, 8080, "S")), check: flowsAre(3)},
	}},
	{name: "a silent path keeps what is open, and nothing else", state: there, steps: []step{
		{hook: "into node", in: ip(world, outside, tcp(7000, nodePort, "S")), want: ReasonTunnelled, out: ip(ingress, podC, tcp(7000, 8080, "S"))},
		{hook: "out of tunnel", in: ip(podC, ingress, tcp(8080, 7000, "SA")), want: ReasonToStack, out: ip(podC, world, tcp(8080, 7000, "SA"))},
		{hook: "into node", in: ip(world, outside, tcp(7001, nodePort, "S")), want: ReasonTunnelled, out: ip(ingress, podC, tcp(7001, 8080, "S"))},
		{change: func(n *node) {
			for id, path := range map[uint32]Path{3: PathSilent, 4: PathAlive} {
				row, _, _ := n.m.Nodes.Lookup(id)
				row.Path = path
				set(n, n.m.Nodes, id, row)
			}
		}, hook: "into node", in: ip(world, outside, tcp(7001, nodePort, "S")), want: ReasonTunnelled, out: ip(ingress, podD, tcp(7001, 8080, "S"))},
		{hook: "into node", in: ip(world, outside, tcp(7000, nodePort, "A")), want: ReasonTunnelled, out: ip(ingress, podC, tcp(7000, 8080, "A"))},
	}},
	{name: "rows go with their flow", state: both, steps: []step{
		{hook: "into node", in: ip(world, outside, udp(7000, nodePort)), want: ReasonDelivered, out: ip(world, podB, udp(7000, 8080))},
		{change: func(n *node) {
			unmasks(n)
			exposes(80, Group{Cluster: 2, Weight: 1, Count: 2})(n)
		}, hook: "into node", in: ip(world, outside, udp(7001, nodePort)), want: ReasonTunnelled, out: ip(ingress, podC, udp(7001, 8080)), check: rowsAre(6)},
		{change: unmasks, hook: "into node", in: ip(world, outside, echo(1)), want: ReasonNotOurs, check: rowsAre(6)},
		{change: func(n *node) { n.age(time.Hour); unmasks(n) }, hook: "into node", in: ip(world, outside, echo(1)), want: ReasonNotOurs, check: rowsAre(0)},
	}},
	{name: "a connection that is over begins again, with the same rows", state: both, steps: []step{
		{hook: "into node", in: ip(world, outside, udp(7000, nodePort)), want: ReasonDelivered, out: ip(world, podB, udp(7000, 8080))},
		{change: func(n *node) {
			n.age(time.Hour)
			exposes(80, Group{Cluster: 2, Weight: 1, Count: 2})(n)
		}, hook: "into node", in: ip(world, outside, udp(7000, nodePort)), want: ReasonTunnelled, out: ip(ingress, podC, udp(7000, 8080)), check: rowsAre(4)},
		{change: func(n *node) {
			n.age(time.Hour)
			both(n)
		}, hook: "into node", in: ip(world, outside, udp(7000, nodePort)), want: ReasonDelivered, out: ip(world, podB, udp(7000, 8080)), check: rowsAre(2)},
	}},
	{name: "clients outside stay on this node, and its own pods do not", state: func(n *node) {
		there(n)
		at := ServiceKey{Addr: addr(outside), Port: PortOf(nodePort), Proto: 6}
		row, _, _ := n.m.Services.Lookup(at)
		row.Timeout = row.Timeout.With(ServiceSplit)
		set(n, n.m.Services, at, row)
		row = Service{ID: 80, Groups: 1}
		row.Group[0] = Group{Cluster: 1, Weight: 1, Count: 1}
		at.Scope = ScopeOutside
		set(n, n.m.Services, at, row)
	}, steps: []step{
		{hook: "into node", in: ip(world, outside, tcp(7000, nodePort, "S")), want: ReasonDelivered, out: ip(world, podB, tcp(7000, 8080, "S"))},
		{hook: "from a", in: ip(podA, outside, tcp(1000, nodePort, "S")), want: ReasonTunnelled, out: ip(podA, podC, tcp(1000, 8080, "S"))},
		{change: func(n *node) {
			set(n, n.m.Services, ServiceKey{Addr: addr(outside), Port: PortOf(nodePort), Proto: 6, Scope: ScopeOutside}, Service{ID: 80})
		}, hook: "into node", in: ip(world, outside, tcp(7001, nodePort, "S")), want: ReasonNoBackend, out: ip(outside, world, tcp(nodePort, 7001, "RA").at(0, 1))},
		{hook: "from a", in: ip(podA, outside, tcp(1001, nodePort, "S")), want: ReasonTunnelled, out: ip(podA, podC, tcp(1001, 8080, "S")), check: func(n *node, _ sent) {
			if got, _, _ := n.m.Affinities.Lookup(AffinityKey{Client: addr(podA), Service: 81}); got != (Affinity{}) {
				n.Errorf("the bit is taken for a timeout: %+v", got)
			}
		}},
	}},
	{name: "a hop too many", state: there, steps: []step{
		{hook: "into node", in: ip(world, outside, tcp(7000, nodePort, "S")).withTTL(1), want: ReasonTTLExceeded, check: rowsAre(0)},
		{change: here, hook: "into node", in: ip(world, outside, tcp(7000, nodePort, "S")).withTTL(1), want: ReasonTTLExceeded, check: rowsAre(0)},
	}},
}

// Two clients with the same port towards one backend elsewhere get different ports.
func TestClientsOfNodePortsAreToldApart(t *testing.T) {
	n := newNode(t)
	families(t, func(t *testing.T) {
		n := n.again(t)
		there(n)
		seen := map[uint16]bool{}
		for _, client := range []string{world, "192.0.2.8", "192.0.2.9"} {
			s := n.send("from_device", n.b, 0, packet(ip(client, outside, udp(7000, nodePort))))
			if s.reason != ReasonTunnelled {
				t.Fatal(s.reason)
			}
			port := be16(s.out[14+map[bool]int{false: 20, true: 40}[overIPv6]:])
			if seen[port] {
				t.Errorf("port %d twice", port)
			}
			seen[port] = true
			back := n.send("from_tunnel", n.b, 0, packet(ip(podC, ingress, udp(8080, port))))
			if want := packet(ip(podC, client, udp(8080, 7000))); string(back.out[14:]) != string(want[14:]) {
				t.Errorf("the answer to port %d is for %s, want %s", port, describe(back.out), describe(want))
			}
		}
	})
}

// Clients cannot fill the flow table: what they open has a share of its own.
func TestClientsOfNodePortsHaveAShare(t *testing.T) {
	n := newNode(t)
	there(n)
	var refused int
	for port := range uint16(2000) {
		if n.send("from_device", n.b, 0, packet(ip(world, outside, udp(1024+port, nodePort)))).reason != ReasonTunnelled {
			refused++
		}
	}
	all, err := n.Holdings()
	if err != nil {
		t.Fatal(err)
	}
	if all[0].Owner != SharesOutside || all[0].Used > 900 || all[0].Evicted+all[0].Refused == 0 {
		t.Errorf("%+v, %d refused", all[0], refused)
	}
	if s := n.send("from_pod", n.a, 0, packet(ip(podA, podC, udp(1, 2)))); s.reason != ReasonTunnelled {
		t.Errorf("a pod's flow: %v", s.reason)
	}
	// A flow that gave way to a newer one left no rows, so pods still find ports.
	rows, err := n.m.Masquerades.Len()
	if err != nil {
		t.Fatal(err)
	}
	if most := 4*int(all[0].Used) + 8; rows > most {
		t.Errorf("%d flows have %d rows", all[0].Used, rows)
	}
	masquerades(1024, 29999)(n)
	n.send("from_pod", n.a, 0, packet(ip(podA, world, udp(1, 53))))
	if s := n.send("to_device", n.b, 0, packet(ip(podA, world, udp(1, 53)))); s.reason != ReasonNotOurs {
		t.Errorf("a pod towards the world: %v", s.reason)
	}
}

// What the node itself asked from the number of a node port is answered to the node.
func TestNodePortsLeaveTheNodesAnswers(t *testing.T) {
	n := newNode(t)
	loopbackUp(t)
	here(n)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_FREEBIND, 1); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: nodePort, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	exposesAt := func(a string) {
		row, _, _ := n.m.Services.Lookup(ServiceKey{Addr: addr(outside), Port: PortOf(nodePort), Proto: 17})
		set(n, n.m.Services, ServiceKey{Addr: addr(a), Port: PortOf(nodePort), Proto: 17}, row)
	}
	exposesAt("127.0.0.1")
	ask := func(port uint16) Reason {
		return n.send("from_device", n.b, 0, packet(ip("127.0.0.9", "127.0.0.1", udp(port, nodePort)))).reason
	}
	if r := ask(53); r != ReasonDelivered {
		t.Errorf("beside a socket that is not connected: %v", r)
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: 54, Addr: [4]byte{127, 0, 0, 9}}); err != nil {
		t.Fatal(err)
	}
	if r := ask(54); r != ReasonNotOurs {
		t.Errorf("an answer to a connected socket: %v", r)
	}
	if r := ask(55); r != ReasonDelivered {
		t.Errorf("somebody else: %v", r)
	}
}
