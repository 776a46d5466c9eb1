package bpf

import (
	"testing"
	"time"
)

var serviceCases = []packetCase{
	{name: "to a backend of this node and back", steps: []step{
		{hook: "from a", in: ip(podA, near, tcp(1000, 80, "S")), want: ReasonDelivered,
			out: ip(podA, podB, tcp(1000, 8080, "S")), check: func(n *node, _ sent) {
				f, ok := n.flow(podA, 1000, near, 80, 6)
				if !ok || f.Flags != FlowService || f.Backend != addr(podB) || f.Bport.Number() != 8080 || f.Service != 80 {
					n.Errorf("flow %+v", f)
				}
			}},
		{hook: "from b", in: ip(podB, podA, tcp(8080, 1000, "SA")), want: ReasonDelivered, out: ip(near, podA, tcp(80, 1000, "SA"))},
		{hook: "from a", in: ip(podA, near, tcp(1000, 80, "PA").says("odd")), want: ReasonDelivered,
			out: ip(podA, podB, tcp(1000, 8080, "PA").says("odd")), check: flowsAre(2)},
	}},
	{name: "to a remote backend and back", state: onlyC, steps: []step{
		{hook: "from a", in: ip(podA, far, udp(1000, 80).says("hello")), want: ReasonTunnelled, out: ip(podA, podC, udp(1000, 8080).says("hello"))},
		{hook: "out of tunnel", in: ip(podC, podA, udp(8080, 1000).says("you")), want: ReasonDelivered, out: ip(far, podA, udp(80, 1000).says("you"))},
	}},
	{name: "UDP without checksum stays without", state: onlyC, steps: []step{
		{hook: "from a", in: ip(podA, far, udp(1000, 80).unchecked()), want: ReasonTunnelled, out: ip(podA, podC, udp(1000, 8080).unchecked())},
	}},
	{name: "policy is asked about the backend and its port", state: func(n *node) {
		n.policy(podA, Egress)
		n.class(5, idC)
		n.portClass(1, 6, 8080)
		n.rule(PolicyKey{Class: 5, Proto: 6, Port: 1}, PolicyEntry{Rule: 1})
		onlyC(n)
	}, steps: []step{
		{hook: "from a", in: ip(podA, far, tcp(1000, 80, "S")), want: ReasonTunnelled, out: ip(podA, podC, tcp(1000, 8080, "S"))},
		{hook: "from a", in: ip(podA, near, tcp(1000, 80, "S")), want: ReasonPolicyDenied, check: func(n *node, s sent) {
			through(near, podA, podB)(n, s)
			if s.event.DstIdentity != idB {
				n.Errorf("event %+v", *s.event)
			}
		}},
	}},
	{name: "events name the service and its backend", state: func(n *node) {
		onlyC(n)
		n.change(func(s *Settings) { s.Trace = 1 })
	}, steps: []step{
		{hook: "from a", in: ip(podA, far, tcp(1000, 80, "S")), want: ReasonTunnelled, out: ip(podA, podC, tcp(1000, 8080, "S")), check: through(far, podA, podC)},
		{change: deny(Egress), hook: "from a", in: ip(podA, far, tcp(1000, 80, "A")), want: ReasonPolicyDenied, check: through(far, podA, podC)},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(8080, 1000, "A")), want: ReasonPolicyDenied, check: through(far, podC, podA)},
		{hook: "from b", in: ip(podB, near, tcp(1000, 80, "S")), want: ReasonDelivered, out: ip(near, podB, tcp(1000, 8080, "S")), check: through(near, podB, near)},
	}},
	{name: "an event of a reset names them too", state: onlyC, steps: []step{
		{hook: "from a", in: ip(podA, far, tcp(1000, 80, "S")), want: ReasonTunnelled, out: ip(podA, podC, tcp(1000, 8080, "S"))},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(8080, 1000, "SA")), want: ReasonDelivered, out: ip(far, podA, tcp(80, 1000, "SA"))},
		{change: clusterDies, hook: "from a", in: ip(podA, far, tcp(1000, 80, "A").at(7, 9)), want: ReasonResetSent,
			out: ip(far, podA, tcp(80, 1000, "R").at(9, 0)), check: through(far, podA, podC)},
	}},
	{name: "an address of services that none has goes nowhere", state: func(n *node) {
		set(n, n.m.Prefixes, prefix("10.101.0.0/16"), IPInfo{Identity: 2, Flags: IPService})
	}, steps: []step{
		{hook: "from a", in: ip(podA, "10.101.0.200", udp(1000, 80)), want: ReasonNoBackend, check: flowsAre(0)},
		{hook: "from a", in: ip(podA, "10.101.0.200", tcp(1000, 80, "S")), want: ReasonNoBackend},
		{hook: "from a", in: ip(podA, near, tcp(1000, 81, "S")), want: ReasonNoBackend},
		{hook: "from a", in: ip(podA, near, echo(7)), want: ReasonNoBackend, check: flowsAre(0)},
		{change: func(n *node) {
			row, _, _ := n.m.Services.Lookup(front(near, 17))
			set(n, n.m.Services, ServiceKey{Addr: addr("10.101.0.200"), Port: PortOf(80), Proto: 17}, row)
			nodeDies(3)(n)
			nodeDies(4)(n)
		}, hook: "from a", in: ip(podA, "10.101.0.200", udp(1000, 80)), want: ReasonDelivered, out: ip(podA, podB, udp(1000, 8080))},
	}},
	{name: "no backends", steps: []step{
		{hook: "from a", in: ip(podA, empty, tcp(1000, 80, "S")), want: ReasonNoBackend},
	}},
	{name: "the next tier when the first is empty", state: func(n *node) {
		row, _, _ := n.m.Services.Lookup(front(near, 6))
		row.Group[0].Count = 0
		set(n, n.m.Services, front(near, 6), row)
		onlyC(n)
	}, steps: []step{
		{hook: "from a", in: ip(podA, near, tcp(1000, 80, "S")), want: ReasonTunnelled, out: ip(podA, podC, tcp(1000, 8080, "S"))},
	}},
	{name: "the next tier when no slot of the first lives", state: func(n *node) {
		set(n, n.m.Backends, SlotKey{Service: 80, Cluster: 1}, Backend{Addr: addr(podE), Port: PortOf(8080), Node: 2})
		nodeDies(2)(n)
		onlyC(n)
	}, steps: []step{
		{hook: "from a", in: ip(podA, near, tcp(1000, 80, "S")), want: ReasonTunnelled, out: ip(podA, podC, tcp(1000, 8080, "S"))},
	}},
	{name: "no tier left", state: func(n *node) { clusterDies(n) }, steps: []step{
		{hook: "from a", in: ip(podA, far, tcp(1000, 80, "S")), want: ReasonNoBackend},
		{hook: "from a", in: ip(podA, near, tcp(1000, 80, "S")), want: ReasonDelivered, out: ip(podA, podB, tcp(1000, 8080, "S"))},
	}},
	{name: "weight 0 takes no new connections", state: func(n *node) {
		row, _, _ := n.m.Services.Lookup(front(far, 6))
		row.Group[0].Weight = 0
		set(n, n.m.Services, front(far, 6), row)
	}, steps: []step{
		{hook: "from a", in: ip(podA, far, tcp(1000, 80, "S")), want: ReasonNoBackend},
	}},
	{name: "a pod that reaches itself", steps: []step{
		{hook: "from b", in: ip(podB, near, tcp(1000, 80, "S")), want: ReasonDelivered, out: ip(near, podB, tcp(1000, 8080, "S"))},
		{hook: "from b", in: ip(podB, near, tcp(8080, 1000, "SA")), want: ReasonDelivered, out: ip(near, podB, tcp(80, 1000, "SA"))},
		{change: revisionMoves, hook: "from b", in: ip(podB, near, tcp(1000, 80, "A")), want: ReasonDelivered, out: ip(near, podB, tcp(1000, 8080, "A")),
			check: func(n *node, _ sent) {
				client, _ := n.flow(podB, 1000, near, 80, 6)
				server, _ := n.flow(podB, 8080, near, 1000, 6)
				if client.Flags&FlowReplied == 0 || server.Flags&FlowReplied == 0 {
					n.Errorf("client %+v\nserver %+v", client, server)
				}
			}},
	}},
	{name: "a flow that ended leaves answers to who has them since", state: onlyC, steps: []step{
		{hook: "from a", in: ip(podA, far, tcp(1000, 80, "S")), want: ReasonTunnelled, out: ip(podA, podC, tcp(1000, 8080, "S"))},
		{change: func(n *node) {
			unset(n, n.m.Backends, SlotKey{Service: 80, Cluster: 1})
			n.age(TCPOpening + time.Second)
		},
			hook: "from a", in: ip(podA, near, tcp(1000, 80, "S")), want: ReasonTunnelled, out: ip(podA, podC, tcp(1000, 8080, "S"))},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(8080, 1000, "SA")), want: ReasonDelivered, out: ip(near, podA, tcp(80, 1000, "SA"))},
	}},
	{name: "a flow that closes gives its answers away", state: onlyC, steps: []step{
		{hook: "from a", in: ip(podA, far, tcp(1000, 80, "S")), want: ReasonTunnelled, out: ip(podA, podC, tcp(1000, 8080, "S"))},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(8080, 1000, "FA")), want: ReasonDelivered, out: ip(far, podA, tcp(80, 1000, "FA"))},
		{hook: "from a", in: ip(podA, far, tcp(1000, 80, "FA")), want: ReasonTunnelled, out: ip(podA, podC, tcp(1000, 8080, "FA"))},
		{hook: "from a", in: ip(podA, podC, tcp(1000, 8080, "S")), want: ReasonTunnelled, check: flowsAre(1)},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(8080, 1000, "RA")), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, far, tcp(1000, 80, "S")), want: ReasonTunnelled, out: ip(podA, podC, tcp(1000, 8080, "S")), check: flowsAre(1)},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(8080, 1000, "SA")), want: ReasonDelivered, out: ip(far, podA, tcp(80, 1000, "SA"))},
	}},
	{name: "an answer that comes late does not lock the pod out", state: onlyC, steps: []step{
		{hook: "from a", in: ip(podA, far, udp(1000, 80)), want: ReasonTunnelled, out: ip(podA, podC, udp(1000, 8080))},
		{change: func(n *node) {
			unset(n, n.m.Flows, FlowKey{Local: addr(podA), Remote: addr(far), Lport: PortOf(1000), Rport: PortOf(80), Proto: 17})
		}, hook: "out of tunnel", in: ip(podC, podA, udp(8080, 1000)), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, far, udp(1000, 80)), want: ReasonTunnelled, out: ip(podA, podC, udp(1000, 8080)), check: flowsAre(1)},
		{hook: "out of tunnel", in: ip(podC, podA, udp(8080, 1000)), want: ReasonDelivered, out: ip(far, podA, udp(80, 1000))},
	}},
	{name: "SCTP keeps its port or is refused", state: func(n *node) {
		onlyC(n)
		set(n, n.m.Services, ServiceKey{Addr: addr("10.101.0.82"), Port: PortOf(8080), Proto: 132},
			Service{ID: 81, Groups: 1, Group: [MaxGroups]Group{{Cluster: 2, Weight: 1, Count: 2}}})
	}, steps: []step{
		{hook: "from a", in: ip(podA, "10.101.0.82", &sctpLayer{1000, 8080}), want: ReasonTunnelled, out: ip(podA, podC, &sctpLayer{1000, 8080})},
		{hook: "from a", in: ip(podA, far, &sctpLayer{1001, 80}), want: ReasonNotSupported},
	}},
	{name: "a backend taken out: open TCP goes on until the pod is gone", state: onlyC, steps: []step{
		{hook: "from a", in: ip(podA, far, tcp(1000, 80, "S")), want: ReasonTunnelled, out: ip(podA, podC, tcp(1000, 8080, "S"))},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(8080, 1000, "SA")), want: ReasonDelivered, out: ip(far, podA, tcp(80, 1000, "SA"))},
		{change: revisionMoves, hook: "from a", in: ip(podA, far, tcp(1000, 80, "A")), want: ReasonTunnelled, out: ip(podA, podC, tcp(1000, 8080, "A"))},
		{change: takeOutC, hook: "from a", in: ip(podA, far, tcp(1000, 80, "A")), want: ReasonTunnelled, out: ip(podA, podC, tcp(1000, 8080, "A"))},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(8080, 1000, "A")), want: ReasonDelivered, out: ip(far, podA, tcp(80, 1000, "A"))},
		{change: func(n *node) { unset(n, n.m.IPs, addr(podC)); n.change(nil) },
			hook: "from a", in: ip(podA, far, tcp(1000, 80, "A").at(7, 9)), want: ReasonResetSent,
			out: ip(far, podA, tcp(80, 1000, "R").at(9, 0)), check: flowsAre(0)},
	}},
	{name: "a backend taken out before it answered: another one is asked", state: onlyC, steps: []step{
		{hook: "from a", in: ip(podA, far, tcp(1000, 80, "S")), want: ReasonTunnelled, out: ip(podA, podC, tcp(1000, 8080, "S"))},
		{change: func(n *node) { takeOutC(n); set(n, n.m.Nodes, 4, Node{Path: PathAlive, Keyed: 1, Cluster: 2}) },
			hook: "from a", in: ip(podA, far, tcp(1000, 80, "S")), want: ReasonTunnelled, out: ip(podA, podD, tcp(1000, 8080, "S"))},
	}},
	{name: "a backend on an unknown node is not chosen while another lives", state: backendAt("10.2.9.9"), steps: reachC(20)},
	{name: "nor is a pod of this node that is gone", state: backendAt("10.1.1.99"), steps: reachC(20)},
	{name: "a backend on a node that is known only by its CIDR is reached", state: func(n *node) {
		backendAt(podD)(n)
		nodeDies(3)(n)
	}, steps: []step{
		{hook: "from a", in: ip(podA, far, udp(1000, 80)), want: ReasonTunnelled, out: ip(podA, podD, udp(1000, 8080))},
		{change: nodeDies(4), hook: "from a", in: ip(podA, far, udp(1001, 80)), want: ReasonNoBackend},
	}},
	{name: "all backends are on unknown nodes", state: func(n *node) {
		backendAt("10.2.9.9")(n)
		nodeDies(3)(n)
	}, steps: []step{
		{hook: "from a", in: ip(podA, far, tcp(1000, 80, "S")), want: ReasonNoBackend, check: flowsAre(0)},
	}},
	{name: "a backend taken out: UDP goes to another", state: onlyC, steps: []step{
		{hook: "from a", in: ip(podA, far, udp(1000, 80)), want: ReasonTunnelled, out: ip(podA, podC, udp(1000, 8080))},
		{change: func(n *node) { takeOutC(n); set(n, n.m.Nodes, 4, Node{Path: PathAlive, Keyed: 1, Cluster: 2}) },
			hook: "from a", in: ip(podA, far, udp(1000, 80)), want: ReasonTunnelled, out: ip(podA, podD, udp(1000, 8080))},
		{hook: "out of tunnel", in: ip(podD, podA, udp(8080, 1000)), want: ReasonDelivered, out: ip(far, podA, udp(80, 1000))},
	}},
}

// backendAt makes an address that belongs to no known node the backend in slot 1 of
// service 81, beside c.
func backendAt(address string) func(*node) {
	return func(n *node) {
		set(n, n.m.Backends, SlotKey{Service: 81, Slot: 1, Cluster: 2}, Backend{Addr: addr(address), Port: PortOf(8080)})
	}
}

// reachC has a open flows to service 81 that must all go to c.
func reachC(flows int) (list []step) {
	for i := range flows {
		list = append(list, step{hook: "from a", in: ip(podA, far, udp(uint16(1000+i), 80)), want: ReasonTunnelled, out: ip(podA, podC, udp(uint16(1000+i), 8080))})
	}
	return list
}

// takeOutC removes backend c from service 81.
func takeOutC(n *node) {
	unset(n, n.m.Backends, SlotKey{Service: 81, Slot: 0, Cluster: 2})
	unset(n, n.m.Members, MemberKey{Service: 81, Addr: addr(podC), Port: PortOf(8080)})
	n.change(nil)
}

var failureCases = []packetCase{
	{name: "node lost: established TCP is reset", steps: []step{
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "S")), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(80, 1000, "SA")), want: ReasonDelivered},
		{change: nodeDies(3), hook: "from a", in: ip(podA, podC, tcp(1000, 80, "PA").at(100, 200).says("are you there?")), want: ReasonResetSent,
			out: ip(podC, podA, tcp(80, 1000, "R").at(200, 0)), check: func(n *node, s sent) {
				if s.event == nil || s.event.Type != EventReset || s.event.Reason != ReasonPathDown {
					n.Errorf("event %+v", s.event)
				}
				flowsAre(0)(n, s)
			}},
	}},
	{name: "a reset without ACK to go by acknowledges", steps: []step{
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "S")), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(80, 1000, "SA")), want: ReasonDelivered},
		{change: nodeDies(3), hook: "from a", in: ip(podA, podC, tcp(1000, 80, "F").at(100, 0).says("abc")), want: ReasonResetSent,
			out: ip(podC, podA, tcp(80, 1000, "RA").at(0, 104))},
	}},
	{name: "cluster lost: a service's TCP is reset, the next connection goes nearer", state: func(n *node) {
		row, _, _ := n.m.Services.Lookup(front(near, 6))
		row.Group[0].Tier, row.Group[1].Tier = 1, 0
		set(n, n.m.Services, front(near, 6), row)
		onlyC(n)
	}, steps: []step{
		{hook: "from a", in: ip(podA, near, tcp(1000, 80, "S")), want: ReasonTunnelled, out: ip(podA, podC, tcp(1000, 8080, "S"))},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(8080, 1000, "SA")), want: ReasonDelivered, out: ip(near, podA, tcp(80, 1000, "SA"))},
		{change: clusterDies, hook: "from a", in: ip(podA, near, tcp(1000, 80, "A").at(1, 5)), want: ReasonResetSent, out: ip(near, podA, tcp(80, 1000, "R").at(5, 0))},
		{hook: "from a", in: ip(podA, near, tcp(1001, 80, "S")), want: ReasonDelivered, out: ip(podA, podB, tcp(1001, 8080, "S"))},
	}},
	{name: "cluster lost: a SYN sent again goes elsewhere", state: func(n *node) {
		row, _, _ := n.m.Services.Lookup(front(near, 6))
		row.Group[0].Tier, row.Group[1].Tier = 1, 0
		set(n, n.m.Services, front(near, 6), row)
		onlyC(n)
	}, steps: []step{
		{hook: "from a", in: ip(podA, near, tcp(1000, 80, "S")), want: ReasonTunnelled, out: ip(podA, podC, tcp(1000, 8080, "S"))},
		{change: clusterDies, hook: "from a", in: ip(podA, near, tcp(1000, 80, "S")), want: ReasonDelivered, out: ip(podA, podB, tcp(1000, 8080, "S"))},
		{hook: "from b", in: ip(podB, podA, tcp(8080, 1000, "SA")), want: ReasonDelivered, out: ip(near, podA, tcp(80, 1000, "SA"))},
	}},
	{name: "node lost, or only slow: answers are not held back", steps: []step{
		{hook: "out of tunnel", in: ip(podC, podA, udp(1000, 53)), want: ReasonDelivered},
		{change: nodeDies(3), hook: "from a", in: ip(podA, podC, udp(53, 1000)), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(1000, 80, "S")), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, podC, tcp(80, 1000, "SA")), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, echo(7)), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, podC, echoReply(7)), want: ReasonTunnelled},
	}},
	{name: "a path dead in our eyes alone: who is heard is answered, and nobody else", steps: []step{
		{change: nodeDies(3), hook: "out of tunnel", in: ip(podC, podA, tcp(1000, 80, "S")), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, podC, tcp(80, 1000, "SA")), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(1000, 80, "PA")), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, podC, tcp(80, 1000, "A")), want: ReasonTunnelled},
		{change: func(n *node) { n.age(heardFor / 5) }, hook: "from a", in: ip(podA, podC, tcp(80, 1000, "PA")), want: ReasonTunnelled},
		{change: func(n *node) { n.age(heardFor * 9 / 10) }, hook: "from a", in: ip(podA, podC, tcp(80, 1000, "PA").at(7, 9)), want: ReasonResetSent,
			out: ip(podC, podA, tcp(1000, 80, "R").at(9, 0))},
	}},
	{name: "what a pod sends while a path is silent is not heard when it is dead", steps: []step{
		{hook: "out of tunnel", in: ip(podC, podA, tcp(1000, 80, "S")), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, podC, tcp(80, 1000, "SA")), want: ReasonTunnelled},
		{change: func(n *node) {
			set(n, n.m.Nodes, 3, Node{Path: PathSilent, Keyed: 1, Cluster: 2})
			n.age(heardFor * 9 / 10)
		}, hook: "from a", in: ip(podA, podC, tcp(80, 1000, "PA")), want: ReasonTunnelled},
		{change: func(n *node) {
			set(n, n.m.Nodes, 3, Node{Path: PathDead, Keyed: 1, Cluster: 2})
			n.age(heardFor / 5)
		}, hook: "from a", in: ip(podA, podC, tcp(80, 1000, "PA").at(7, 9)), want: ReasonResetSent,
			out: ip(podC, podA, tcp(1000, 80, "R").at(9, 0))},
	}},
	{name: "a flow over a dead path lives as long as its pod answers", steps: []step{
		{hook: "out of tunnel", in: ip(podC, podA, udp(1000, 53)), want: ReasonDelivered},
		{change: func(n *node) {
			nodeDies(3)(n)
			n.age(NotTCP * 2 / 3)
		}, hook: "from a", in: ip(podA, podC, udp(53, 1000)), want: ReasonTunnelled},
		{change: ages(NotTCP * 2 / 3), hook: "from a", in: ip(podA, podC, udp(53, 1000)), want: ReasonTunnelled, check: flowsAre(1)},
	}},
	{name: "node lost: a service's UDP goes elsewhere", state: onlyC, steps: []step{
		{hook: "from a", in: ip(podA, far, udp(1000, 80)), want: ReasonTunnelled, out: ip(podA, podC, udp(1000, 8080))},
		{change: func(n *node) {
			set(n, n.m.Nodes, 4, Node{Path: PathAlive, Keyed: 1, Cluster: 2})
			nodeDies(3)(n)
		}, hook: "from a", in: ip(podA, far, udp(1000, 80)), want: ReasonTunnelled, out: ip(podA, podD, udp(1000, 8080)), check: flowsAre(1)},
	}},
	{name: "a flow over a dead path runs out although its pod asks", steps: []step{
		{hook: "from a", in: ip(podA, podC, udp(1000, 80)), want: ReasonTunnelled},
		{change: func(n *node) {
			nodeDies(3)(n)
			n.age(NotTCP * 2 / 3)
		}, hook: "from a", in: ip(podA, podC, udp(1000, 80)), want: ReasonPathDown, check: flowsAre(1)},
		{change: ages(NotTCP * 2 / 3), hook: "from a", in: ip(podA, podC, udp(1000, 80)), want: ReasonPathDown, check: flowsAre(0)},
	}},
	{name: "node lost: other traffic is dropped, the flow waits", steps: []step{
		{hook: "from a", in: ip(podA, podC, udp(1000, 80)), want: ReasonTunnelled},
		{change: nodeDies(3), hook: "from a", in: ip(podA, podC, udp(1000, 80)), want: ReasonPathDown, check: flowsAre(1)},
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "S")), want: ReasonPathDown, check: flowsAre(1)},
		{change: func(n *node) { set(n, n.m.Nodes, 3, Node{Path: PathAlive, Keyed: 1, Cluster: 2}) },
			hook: "from a", in: ip(podA, podC, udp(1000, 80)), want: ReasonTunnelled},
	}},
	{name: "a node without key, a lane without device", steps: []step{
		{hook: "from a", in: ip(podA, podC, udp(1000, 80)), want: ReasonTunnelled},
		{change: func(n *node) { set(n, n.m.Nodes, 3, Node{Path: PathAlive, Cluster: 2}) }, hook: "from a", in: ip(podA, podC, udp(1000, 80)), want: ReasonNoTunnel, silent: true},
		{change: func(n *node) {
			set(n, n.m.Nodes, 3, Node{Path: PathAlive, Keyed: 1, Cluster: 2, Lane: 1})
			n.change(func(s *Settings) { s.TunnelIfindex[1] = 0 })
		}, hook: "from a", in: ip(podA, podC, udp(1000, 80)), want: ReasonNoTunnel, silent: true},
		{hook: "from a", in: ip(podA, podC, udp(1001, 80)), want: ReasonNoTunnel},
		{hook: "from a", in: ip(podA, podC, tcp(1001, 80, "S").at(7, 0)), want: ReasonNoTunnel, check: flowsAre(1)},
		{change: func(n *node) { set(n, n.m.Nodes, 3, Node{Path: PathAlive, Keyed: 1, Cluster: 2}) }, hook: "from a", in: ip(podA, podC, udp(1000, 80)), want: ReasonTunnelled},
	}},
	{name: "a silent path: what is open waits, what has a choice goes elsewhere", state: onlyC, steps: []step{
		{hook: "from a", in: ip(podA, far, tcp(1000, 80, "S")), want: ReasonTunnelled, out: ip(podA, podC, tcp(1000, 8080, "S"))},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(8080, 1000, "SA")), want: ReasonDelivered, out: ip(far, podA, tcp(80, 1000, "SA"))},
		{hook: "from a", in: ip(podA, far, tcp(1001, 80, "S")), want: ReasonTunnelled, out: ip(podA, podC, tcp(1001, 8080, "S"))},
		{hook: "from a", in: ip(podA, far, udp(1000, 80)), want: ReasonTunnelled, out: ip(podA, podC, udp(1000, 8080))},
		{hook: "from a", in: ip(podA, far, udp(1001, 80)), want: ReasonTunnelled, out: ip(podA, podC, udp(1001, 8080))},
		{hook: "out of tunnel", in: ip(podC, podA, udp(8080, 1001)), want: ReasonDelivered, out: ip(far, podA, udp(80, 1001))},
		{change: func(n *node) {
			set(n, n.m.Nodes, 3, Node{Path: PathSilent, Keyed: 1, Cluster: 2})
			set(n, n.m.Nodes, 4, Node{Path: PathAlive, Keyed: 1, Cluster: 2})
		}, hook: "from a", in: ip(podA, far, tcp(1000, 80, "A")), want: ReasonTunnelled, out: ip(podA, podC, tcp(1000, 8080, "A"))},
		{hook: "from a", in: ip(podA, far, tcp(1001, 80, "S")), want: ReasonTunnelled, out: ip(podA, podD, tcp(1001, 8080, "S"))},
		{hook: "from a", in: ip(podA, far, udp(1000, 80)), want: ReasonTunnelled, out: ip(podA, podD, udp(1000, 8080))},
		{hook: "from a", in: ip(podA, far, udp(1001, 80)), want: ReasonTunnelled, out: ip(podA, podC, udp(1001, 8080))},
		{hook: "out of tunnel", in: ip(podC, podA, udp(8080, 1001)), want: ReasonDelivered, out: ip(far, podA, udp(80, 1001))},
		{change: nodeDies(3), hook: "from a", in: ip(podA, far, udp(1001, 80)), want: ReasonTunnelled, out: ip(podA, podD, udp(1001, 8080))},
		{change: func(n *node) { set(n, n.m.Nodes, 3, Node{Path: PathSilent, Keyed: 1, Cluster: 2}) },
			hook: "from a", in: ip(podA, podC, tcp(1002, 80, "S")), want: ReasonTunnelled},
		{change: clusterFallsSilent, hook: "from a", in: ip(podA, far, tcp(1000, 80, "A")), want: ReasonTunnelled, out: ip(podA, podC, tcp(1000, 8080, "A"))},
		{change: nodeDies(4), hook: "from a", in: ip(podA, far, tcp(1003, 80, "S")), want: ReasonTunnelled, out: ip(podA, podC, tcp(1003, 8080, "S"))},
		{change: clusterDies, hook: "from a", in: ip(podA, far, tcp(1000, 80, "A").at(7, 9)), want: ReasonResetSent,
			out: ip(far, podA, tcp(80, 1000, "R").at(9, 0))},
	}},
	{name: "a silent path serves where the nearer backends are dead", state: func(n *node) {
		set(n, n.m.Backends, SlotKey{Service: 80, Cluster: 1}, Backend{Addr: addr(podE), Port: PortOf(8080), Node: 2})
		for _, proto := range []uint8{6, 17} {
			row, _, _ := n.m.Services.Lookup(front(near, proto))
			row.Group[1].Tier = 1
			set(n, n.m.Services, front(near, proto), row)
		}
		onlyC(n)
	}, steps: []step{
		{change: func(n *node) {
			nodeDies(2)(n)
			clusterFallsSilent(n)
		}, hook: "from a", in: ip(podA, near, tcp(1000, 80, "S")), want: ReasonTunnelled, out: ip(podA, podC, tcp(1000, 8080, "S"))},
		{change: clusterDies, hook: "from a", in: ip(podA, near, tcp(1001, 80, "S")), want: ReasonNoBackend},
	}},
	{name: "over silent paths alone UDP stays with its backend", steps: []step{
		{hook: "from a", in: ip(podA, far, udp(1000, 80)), want: ReasonTunnelled, out: ip(podA, podC, udp(1000, 8080)), change: onlyC},
		{change: func(n *node) {
			set(n, n.m.Nodes, 4, Node{Path: PathAlive, Keyed: 1, Cluster: 2})
			clusterFallsSilent(n)
		}, hook: "from a", in: ip(podA, far, udp(1000, 80)), want: ReasonTunnelled, out: ip(podA, podC, udp(1000, 8080))},
		{hook: "from a", in: ip(podA, far, udp(1000, 80)), want: ReasonTunnelled, out: ip(podA, podC, udp(1000, 8080))},
		{hook: "from a", in: ip(podA, far, udp(1000, 80)), want: ReasonTunnelled, out: ip(podA, podC, udp(1000, 8080))},
		{hook: "from a", in: ip(podA, far, udp(1000, 80)), want: ReasonTunnelled, out: ip(podA, podC, udp(1000, 8080))},
		{hook: "from a", in: ip(podA, far, udp(1000, 80)), want: ReasonTunnelled, out: ip(podA, podC, udp(1000, 8080)), check: flowsAre(1)},
		{change: clusterDies, hook: "from a", in: ip(podA, far, udp(1000, 80)), want: ReasonNoBackend},
	}},
	{name: "a pod that moved to another node", steps: []step{
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "S")), want: ReasonTunnelled},
		{change: func(n *node) {
			set(n, n.m.IPs, addr(podC), IPInfo{Identity: idC, Cluster: 2, Node: 4, Flags: IPMember})
			n.change(nil)
		}, hook: "from a", in: ip(podA, podC, tcp(1000, 80, "A")), want: ReasonTunnelled, check: func(n *node, _ sent) {
			if f, _ := n.flow(podA, 1000, podC, 80, 6); f.Node != 4 {
				n.Errorf("flow %+v", f)
			}
		}},
	}},
}

var stateCases = []packetCase{
	{name: "full table refuses the new and keeps the live", state: func(n *node) {
		for i := range n.m.Flows.MaxEntries() - 1 {
			set(n, n.m.Flows, FlowKey{Local: addr(podB), Remote: addr(world), Lport: PortOf(uint16(i)), Proto: 6}, Flow{Seen: Now()})
		}
	}, steps: []step{
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "S")), want: ReasonTunnelled},
		{hook: "from a", in: ip(podA, podC, tcp(1001, 80, "S")), want: ReasonFlowTableFull},
		{change: onlyC, hook: "from a", in: ip(podA, far, tcp(1002, 80, "S")), want: ReasonFlowTableFull, check: func(n *node, s sent) {
			through(far, podA, podC)(n, s)
			if left := n.answers(); left != 0 {
				n.Errorf("%d rows for answers left behind", left)
			}
		}},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(9, 80, "S")), want: ReasonFlowTableFull},
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "A")), want: ReasonTunnelled},
	}},
	{name: "an opening that nobody answers ends after a minute", steps: []step{
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "S")), want: ReasonTunnelled},
		{change: ages(50 * time.Second), hook: "out of tunnel", in: ip(podC, podA, tcp(80, 1000, "SA")), want: ReasonDelivered},
		{change: ages(20 * time.Minute), hook: "from a", in: ip(podA, podC, tcp(1000, 80, "A")), want: ReasonTunnelled, check: func(n *node, _ sent) {
			if f, _ := n.flow(podA, 1000, podC, 80, 6); f.Flags&FlowReplied == 0 {
				n.Errorf("established flow was forgotten: %+v", f)
			}
		}},
	}},
	{name: "an expired flow does not let an answer in", state: deny(Ingress), steps: []step{
		{hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, udp(53, 1000)), want: ReasonDelivered},
		{change: ages(61 * time.Second), hook: "out of tunnel", in: ip(podC, podA, udp(53, 1000)), want: ReasonPolicyDenied, check: flowsAre(0)},
	}},
	{name: "after both have finished a flow ends soon", state: deny(Ingress), steps: []step{
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "S")), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(80, 1000, "SA")), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "FA")), want: ReasonTunnelled},
		{change: ages(time.Minute), hook: "out of tunnel", in: ip(podC, podA, tcp(80, 1000, "FA")), want: ReasonDelivered},
		{change: ages(5 * time.Second), hook: "from a", in: ip(podA, podC, tcp(1000, 80, "A")), want: ReasonTunnelled},
		{change: ages(11 * time.Second), hook: "out of tunnel", in: ip(podC, podA, tcp(80, 1000, "A")), want: ReasonPolicyDenied},
	}},
	{name: "a reset ends a flow soon", state: deny(Ingress), steps: []step{
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "S")), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(80, 1000, "RA")), want: ReasonDelivered},
		{change: ages(11 * time.Second), hook: "out of tunnel", in: ip(podC, podA, tcp(80, 1000, "A")), want: ReasonPolicyDenied},
	}},
	{name: "a port used again begins anew, with a backend of its own", state: onlyC, steps: []step{
		{hook: "from a", in: ip(podA, far, tcp(1000, 80, "S")), want: ReasonTunnelled, out: ip(podA, podC, tcp(1000, 8080, "S"))},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(8080, 1000, "RA")), want: ReasonDelivered, out: ip(far, podA, tcp(80, 1000, "RA"))},
		{change: func(n *node) {
			set(n, n.m.Nodes, 4, Node{Path: PathAlive, Keyed: 1, Cluster: 2})
			unset(n, n.m.Backends, SlotKey{Service: 81, Slot: 0, Cluster: 2})
		}, hook: "from a", in: ip(podA, far, tcp(1000, 80, "S")), want: ReasonTunnelled, out: ip(podA, podD, tcp(1000, 8080, "S"))},
	}},
	{name: "a reset to nobody", steps: []step{
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "R")), want: ReasonInvalid},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(1000, 80, "R")), want: ReasonInvalid},
	}},
}

// New flows spread over the groups of a tier by count × weight, and within a
// group evenly.
func TestSpread(t *testing.T) {
	n := newNode(t)
	const flows = 1000
	set(n, n.m.Services, front(far, 17), Service{ID: 81, Groups: 3, Group: [MaxGroups]Group{
		{Cluster: 1, Count: 1, Weight: 2},
		{Cluster: 2, Count: 2, Weight: 3},
		{Cluster: 3, Count: 100, Weight: 255}, // not alive
	}})
	set(n, n.m.Backends, SlotKey{Service: 81, Slot: 0, Cluster: 1}, Backend{Addr: addr(podB), Port: PortOf(8080)})
	got := map[string]int{}
	for port := range uint16(flows / 2) { // to a pod of this node each takes two flows
		n.send("from_pod", n.a, 0, packet(ip(podA, far, udp(port+1, 80))))
		f, ok := n.flow(podA, port+1, far, 80, 17)
		if !ok {
			t.Fatalf("no flow from port %d", port+1)
		}
		got[f.Backend.String()]++
	}
	for pod, share := range map[string]int{podB: 2, podC: 3, podD: 3} {
		want := flows / 2 * share / 8
		if d := got[pod] - want; d < -60 || d > 60 { // six standard deviations
			t.Errorf("%s has %d flows, want about %d", pod, got[pod], want)
		}
	}
}

// A dead node with many neighbouring slots of a group hides none of the others.
func TestSpreadPastDeadNode(t *testing.T) {
	n := newNode(t)
	const slots, flows = 40, 100
	nodeDies(2)(n)
	set(n, n.m.Services, front(far, 17), Service{ID: 81, Groups: 1, Group: [MaxGroups]Group{{Cluster: 2, Count: slots, Weight: 1}}})
	for i := range uint32(slots) {
		b := Backend{Addr: addr(podE), Port: PortOf(8080), Node: 2}
		if i >= slots/2 {
			b = Backend{Addr: addr(podC), Port: PortOf(8080), Node: 3}
		}
		set(n, n.m.Backends, SlotKey{Service: 81, Slot: i, Cluster: 2}, b)
	}
	for port := range uint16(flows) {
		n.send("from_pod", n.a, 0, packet(ip(podA, far, udp(port+1, 80))))
		if f, ok := n.flow(podA, port+1, far, 80, 17); !ok || f.Backend != addr(podC) {
			t.Errorf("from port %d: flow %v, %+v", port+1, ok, f)
		}
	}
}
