package bpf

import "time"

const (
	otherNode   = "172.16.1.2" // node 2's own address, outside of the mesh
	ownAddress  = "172.16.1.1" // this node's
	peerService = "10.102.0.80"

	nodeGrace = time.Second
)

// peerRemoved does what the agent does when an operator removes cluster 2: its CIDR
// becomes a former member's, and everything narrower is deleted.
func peerRemoved(n *node) {
	n.Helper()
	set(n, n.m.Prefixes, prefix("10.2.0.0/16"), IPInfo{Flags: IPMember | IPFormer})
	for _, p := range []string{"10.2.1.0/24", "10.2.2.0/24"} {
		unset(n, n.m.Prefixes, prefix(p))
	}
	unset(n, n.m.IPs, addr(podC))
	unset(n, n.m.IPs, addr(podD))
	for _, m := range []MemberKey{
		{Service: 80, Addr: addr(podC), Port: PortOf(8080)}, {Service: 80, Addr: addr(podD), Port: PortOf(8080)},
		{Service: 81, Addr: addr(podC), Port: PortOf(8080)}, {Service: 81, Addr: addr(podD), Port: PortOf(8080)},
	} {
		unset(n, n.m.Members, m)
	}
	for _, proto := range []uint8{6, 17, 132} {
		set(n, n.m.Services, front(near, proto), Service{ID: 80, Groups: 1, Group: [MaxGroups]Group{{Cluster: 1, Weight: 1, Count: 1}}})
		set(n, n.m.Services, front(far, proto), Service{ID: 81})
	}
	unset(n, n.m.Nodes, 3)
	unset(n, n.m.Nodes, 4)
	unset(n, n.m.Clusters, 2)
	n.change(nil)
}

// nodeUnknown does what the agent does when the entry of node 3 is gone from the store:
// the addresses of its pods are known, but not where they are.
func nodeUnknown(n *node) {
	n.Helper()
	unset(n, n.m.Prefixes, prefix("10.2.1.0/24"))
	set(n, n.m.IPs, addr(podC), IPInfo{Identity: idC, Cluster: 2, Flags: IPMember})
	for _, service := range []uint32{80, 81} {
		unset(n, n.m.Members, MemberKey{Service: service, Addr: addr(podC), Port: PortOf(8080)})
	}
	n.change(nil)
	unset(n, n.m.Nodes, 3)
}

// peerForgotten does what the agent does after `weft peer forget`.
func peerForgotten(n *node) {
	n.Helper()
	unset(n, n.m.Prefixes, prefix("10.2.0.0/16"))
	n.change(nil)
}

// peerBack adds the removed peer again.
func peerBack(n *node) {
	n.Helper()
	fillMesh(n, n.m, n.a, n.b)
	n.change(func(s *Settings) { s.Revision += 10 })
}

// addressesOfNodes are the rows of nodes' own addresses.
func addressesOfNodes(n *node) {
	n.Helper()
	set(n, n.m.IPs, addr(otherNode), IPInfo{Identity: 6, Flags: IPNode})
	set(n, n.m.IPs, addr(ownAddress), IPInfo{Identity: 1})
	set(n, n.m.Prefixes, prefix("10.102.0.0/16"), IPInfo{Identity: 2, Flags: IPService})
}

// ended checks that the pod got a reset for its packet, and that the event says
// why.
func ended(why Reason) func(*node, sent) {
	return func(n *node, s sent) {
		n.Helper()
		if e := s.event; e == nil || e.Type != EventReset || e.Reason != why {
			n.Errorf("event %+v, want a reset because of %s", e, why)
		}
	}
}

// sealedCases: nothing of pods or members leaves in the clear, and outside of
// tunnels an address proves nothing.
var sealedCases = []packetCase{
	{name: "open TCP to a removed peer is reset, in both directions and orders", steps: []step{
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "S")), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(80, 1000, "SA")), want: ReasonDelivered},
		{hook: "out of tunnel", in: ip(podC, podB, tcp(9, 80, "S")), want: ReasonDelivered},
		{hook: "from b", in: ip(podB, podC, tcp(80, 9, "SA")), want: ReasonTunnelled},
		{change: peerRemoved, hook: "from a", in: ip(podA, podC, tcp(1000, 80, "A").says("secret")), want: ReasonResetSent,
			out: ip(podC, podA, tcp(80, 1000, "R")), check: ended(ReasonFormerMember)},
		{hook: "from b", in: ip(podB, podC, tcp(80, 9, "A").says("secret")), want: ReasonResetSent,
			out: ip(podC, podB, tcp(9, 80, "R")), check: ended(ReasonFormerMember)},
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "R")), want: ReasonFormerMember},
		{change: ages(time.Minute), hook: "from a", in: ip(podA, podC, tcp(1000, 80, "A").says("secret")), want: ReasonFormerMember},
	}},
	{name: "a peer's packets still under way when it is removed", steps: []step{
		{hook: "out of tunnel", in: ip(podC, podA, tcp(9, 80, "S")), want: ReasonDelivered},
		{change: peerRemoved, hook: "out of tunnel", in: ip(podC, podA, tcp(9, 80, "A")), want: ReasonFormerMember},
		{hook: "into node", in: ip(podC, podA, tcp(9, 80, "A")), want: ReasonFormerMember},
		{hook: "forwarded to a", in: ip(podC, podA, tcp(9, 80, "A")), want: ReasonFormerMember},
		{hook: "from a", in: ip(podA, podC, tcp(80, 9, "A").says("secret")), want: ReasonResetSent,
			out: ip(podC, podA, tcp(9, 80, "R")), check: ended(ReasonFormerMember)},
	}},
	{name: "datagrams and echoes to a removed peer are dropped for as long as they come", steps: []step{
		{hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podD, podA, udp(9, 80)), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, podC, echo(7)), want: ReasonTunnelled},
		{change: peerRemoved, hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonFormerMember, check: talk(idA, idC)},
		{hook: "from a", in: ip(podA, podD, udp(80, 9)), want: ReasonFormerMember, silent: true},
		{hook: "from a", in: ip(podA, podC, echo(7)), want: ReasonFormerMember},
		{change: ages(40 * time.Second), hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonFormerMember},
		{change: ages(time.Hour), hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonFormerMember, check: flowsAre(2)},
	}},
	{name: "nothing new begins with a removed peer", state: peerRemoved, steps: []step{
		{hook: "from a", in: ip(podA, podC, tcp(1, 80, "S")), want: ReasonFormerMember},
		{hook: "from a", in: ip(podA, "10.2.200.1", udp(1, 2)), want: ReasonFormerMember},
		{hook: "from a", in: ip(podA, podC, udp(1, 80).says("part")).piece(5, 0, true), want: ReasonFormerMember},
		{hook: "into node", in: ip(podC, podA, udp(1, 2)), want: ReasonFormerMember},
		{hook: "into node", in: ip(world, podC, udp(1, 2)), want: ReasonFormerMember},
		{hook: "out of node", in: ip(ownAddress, podC, udp(1, 2)), want: ReasonFormerMember},
		{hook: "out of node", in: ip(podA, podC, udp(1, 2)), want: ReasonFormerMember},
		{hook: "out of node", in: ip(podC, world, udp(1, 2)), want: ReasonFormerMember},
		{hook: "from a", in: ip(podA, world, udp(1, 2)), want: ReasonToStack},
		{hook: "from a", in: ip(podA, podE, udp(1, 2)), want: ReasonTunnelled},
	}},
	{name: "what went through a tunnel never becomes traffic of the stack", steps: []step{
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "S")), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(80, 1000, "SA")), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonTunnelled},
		{change: func(n *node) { peerRemoved(n); peerForgotten(n) },
			hook: "from a", in: ip(podA, podC, tcp(1000, 80, "A").says("secret")), want: ReasonResetSent,
			out: ip(podC, podA, tcp(80, 1000, "R")), check: ended(ReasonFormerMember)},
		{hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonFormerMember},
		{change: ages(40 * time.Second), hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonFormerMember},
		{change: ages(40 * time.Second), hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonFormerMember},
		{hook: "into node", in: ip(podC, podA, udp(53, 1000)), want: ReasonFormerMember},
		{hook: "from a", in: ip(podA, podC, udp(1001, 53)), want: ReasonToStack}, // the operator's word
	}},
	{name: "a forgotten peer's ports may be used again", steps: []step{
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "S")), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(80, 1000, "SA")), want: ReasonDelivered},
		{change: func(n *node) { peerRemoved(n); peerForgotten(n) },
			hook: "from a", in: ip(podA, podC, tcp(1000, 80, "A")), want: ReasonResetSent, out: ip(podC, podA, tcp(80, 1000, "R"))},
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "S")), want: ReasonToStack, check: flowsAre(1)},
	}},
	{name: "a peer that is added again is spoken to as before", steps: []step{
		{hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonTunnelled},
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "S")), want: ReasonTunnelled},
		{change: peerRemoved, hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonFormerMember},
		{change: peerBack, hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, udp(53, 1000)), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, podC, tcp(1001, 80, "S")), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(80, 1001, "SA")), want: ReasonDelivered},
	}},
	{name: "a service goes on with the backends that are left", steps: []step{
		{change: func(n *node) {
			set(n, n.m.Backends, SlotKey{Service: 81, Slot: 1, Cluster: 2}, Backend{Addr: addr(podC), Port: PortOf(8080), Node: 3})
		},
			hook: "from a", in: ip(podA, far, tcp(1000, 80, "S")), want: ReasonTunnelled, out: ip(podA, podC, tcp(1000, 8080, "S"))},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(8080, 1000, "SA")), want: ReasonDelivered, out: ip(far, podA, tcp(80, 1000, "SA"))},
		{hook: "from a", in: ip(podA, far, udp(1000, 80)), want: ReasonTunnelled, out: ip(podA, podC, udp(1000, 8080))},
		{change: peerRemoved, hook: "from a", in: ip(podA, far, tcp(1000, 80, "A").says("secret")), want: ReasonResetSent,
			out: ip(far, podA, tcp(80, 1000, "R"))},
		{hook: "from a", in: ip(podA, far, udp(1000, 80)), want: ReasonNoBackend},
	}},
	{name: "the node of an open flow is removed from its cluster", steps: []step{
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "S")), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podB, udp(9, 80)), want: ReasonDelivered},
		{change: func(n *node) {
			unset(n, n.m.IPs, addr(podC))
			unset(n, n.m.Prefixes, prefix("10.2.1.0/24"))
			unset(n, n.m.Nodes, 3)
			n.change(nil)
		}, hook: "from a", in: ip(podA, podC, tcp(1000, 80, "A")), want: ReasonNoTunnel},
		{hook: "from b", in: ip(podB, podC, udp(80, 9)), want: ReasonNoTunnel, silent: true},
	}},
	{name: "an open connection waits a moment for its node", steps: []step{
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "S")), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(80, 1000, "SA")), want: ReasonDelivered},
		{hook: "out of tunnel", in: ip(podC, podB, tcp(9, 80, "S")), want: ReasonDelivered},
		{hook: "from b", in: ip(podB, podC, tcp(80, 9, "SA")), want: ReasonTunnelled},
		{hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, udp(53, 1000)), want: ReasonDelivered},
		{change: func(n *node) { n.age(20 * time.Second); nodeUnknown(n) },
			hook: "from a", in: ip(podA, podC, tcp(1000, 80, "A").says("secret")), want: ReasonNoTunnel, silent: true, check: talk(idA, idC)},
		{hook: "from b", in: ip(podB, podC, tcp(80, 9, "A").says("secret")), want: ReasonNoTunnel, silent: true},
		{hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonNoTunnel, silent: true},
		{hook: "from a", in: ip(podA, podC, tcp(1001, 80, "S")), want: ReasonNoTunnel}, // new: refused at once
		{change: ages(nodeGrace - 100*time.Millisecond), hook: "out of tunnel", in: ip(podC, podA, tcp(80, 1000, "A")), want: ReasonNoTunnel, silent: true},
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "A").says("secret")), want: ReasonNoTunnel, silent: true},
		{change: peerBack, hook: "from a", in: ip(podA, podC, tcp(1000, 80, "A").says("on")), want: ReasonTunnelled},
		{hook: "from b", in: ip(podB, podC, tcp(80, 9, "A").says("on")), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(80, 1000, "A")), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonTunnelled},
		{change: func(n *node) { n.age(20 * time.Second); nodeUnknown(n) }, // again: it waits again
			hook: "from a", in: ip(podA, podC, tcp(1000, 80, "A").says("secret")), want: ReasonNoTunnel, silent: true},
	}},
	{name: "and is reset when its node stays away", steps: []step{
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "S")), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(80, 1000, "SA")), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, udp(53, 1000)), want: ReasonDelivered},
		{change: nodeUnknown, hook: "from a", in: ip(podA, podC, tcp(1000, 80, "A").says("secret")), want: ReasonNoTunnel, silent: true},
		{hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonNoTunnel, silent: true},
		{change: ages(nodeGrace + 100*time.Millisecond), hook: "from a", in: ip(podA, podC, tcp(1000, 80, "A").says("secret")), want: ReasonResetSent,
			out: ip(podC, podA, tcp(80, 1000, "R")), check: ended(ReasonNoTunnel)},
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "A").says("secret")), want: ReasonResetSent,
			out: ip(podC, podA, tcp(80, 1000, "R")), check: ended(ReasonNoTunnel)},
		{hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonNoTunnel},
		{hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonNoTunnel},
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "S")), want: ReasonNoTunnel, check: flowsAre(1)},
	}},
	{name: "a connection through a service waits for the node of its backend", state: onlyC, steps: []step{
		{hook: "from a", in: ip(podA, far, tcp(1000, 80, "S")), want: ReasonTunnelled, out: ip(podA, podC, tcp(1000, 8080, "S"))},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(8080, 1000, "SA")), want: ReasonDelivered, out: ip(far, podA, tcp(80, 1000, "SA"))},
		{change: nodeUnknown, hook: "from a", in: ip(podA, far, tcp(1000, 80, "A").says("secret")), want: ReasonNoTunnel, silent: true},
		{change: peerBack, hook: "from a", in: ip(podA, far, tcp(1000, 80, "A").says("on")), want: ReasonTunnelled, out: ip(podA, podC, tcp(1000, 8080, "A").says("on"))},
		{change: nodeUnknown, hook: "from a", in: ip(podA, far, tcp(1000, 80, "A").says("secret")), want: ReasonNoTunnel, silent: true},
		{change: ages(nodeGrace + 100*time.Millisecond), hook: "from a", in: ip(podA, far, tcp(1000, 80, "A").says("secret")), want: ReasonResetSent,
			out: ip(far, podA, tcp(80, 1000, "R")), check: ended(ReasonNoTunnel)},
	}},
	{name: "the pod of an open flow is deleted, or its identity withdrawn", steps: []step{
		{hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonTunnelled},
		{change: func(n *node) { unset(n, n.m.IPs, addr(podC)); n.change(nil) },
			hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonTunnelled},
	}},
	{name: "an error about a removed peer", steps: []step{
		{hook: "out of tunnel", in: ip(podC, podA, udp(9, 53)), want: ReasonDelivered},
		{change: peerRemoved, hook: "from a", in: ip(podA, podC, portUnreachable().quoting(ip(podC, podA, udp(9, 53)))), want: ReasonFormerMember},
		{hook: "from a", in: ip(podA, podC, portUnreachable().quoting(ip(podC, podA, udp(9, 54)))), want: ReasonInvalid},
		{hook: "into node", in: ip(podC, podA, portUnreachable().quoting(ip(podA, podC, udp(53, 9)))), want: ReasonFormerMember},
	}},

	{name: "pods do not speak to other nodes' addresses", state: addressesOfNodes, steps: []step{
		{hook: "from a", in: ip(podA, otherNode, tcp(1000, 22, "S")), want: ReasonNodeAddress, check: talk(idA, 6)},
		{hook: "from a", in: ip(podA, otherNode, udp(1000, 53)), want: ReasonNodeAddress},
		{hook: "from a", in: ip(podA, otherNode, echo(7)), want: ReasonNodeAddress, check: flowsAre(0)},
		{hook: "out of node", in: ip(podA, otherNode, udp(1, 2)), want: ReasonNodeAddress},
		{hook: "out of node", in: ip(ownAddress, otherNode, udp(51871, 51871)), want: ReasonNotOurs},
		{hook: "from a", in: ip(podA, ownAddress, tcp(1000, 22, "S")), want: ReasonToStack},
	}},
	{name: "nor go on with one that turns out to be a node's", steps: []step{
		{hook: "from a", in: ip(podA, otherNode, udp(1000, 53)), want: ReasonToStack},
		{hook: "into node", in: ip(otherNode, podA, udp(9, 80)), want: ReasonDelivered},
		{change: func(n *node) { addressesOfNodes(n); n.change(nil) },
			hook: "from a", in: ip(podA, otherNode, udp(1000, 53)), want: ReasonNodeAddress},
		{hook: "from a", in: ip(podA, otherNode, udp(80, 9)), want: ReasonNodeAddress, silent: true},
	}},
	{name: "pods do not speak to a peer's service addresses", state: addressesOfNodes, steps: []step{
		{hook: "from a", in: ip(podA, peerService, tcp(1000, 80, "S")), want: ReasonNoBackend, check: flowsAre(0)},
		{hook: "out of node", in: ip(podA, peerService, tcp(1, 2, "S")), want: ReasonNoBackend},
	}},
	{name: "outside of tunnels a node's address proves nothing", state: func(n *node) {
		addressesOfNodes(n)
		n.policy(podA, Ingress)
		n.class(5, 1, 6) // host, remote-node
		n.rule(PolicyKey{Class: 5, Dir: Ingress}, PolicyEntry{Rule: 1})
	}, steps: []step{
		{hook: "into node", in: ip(otherNode, podA, tcp(9, 80, "S")), want: ReasonPlaintext},
		{hook: "into node", in: ip(ownAddress, podA, tcp(9, 80, "S")), want: ReasonSpoofedSource},
		{hook: "into node", in: ip(nodeInternal, podA, tcp(9, 80, "S")), want: ReasonPlaintext},
		{hook: "into node", in: ip(peerService, podA, tcp(9, 80, "S")), want: ReasonPlaintext},
		{hook: "forwarded to a", in: ip(otherNode, podA, tcp(9, 80, "S")), want: ReasonPlaintext},
		{hook: "forwarded to a", in: ip(ownAddress, podA, tcp(9, 80, "S")), want: ReasonSpoofedSource},
		{hook: "out of tunnel", in: ip(otherNode, podA, tcp(9, 80, "S")), want: ReasonSpoofedSource, check: flowsAre(0)},
		{hook: "to a", in: ip(ownAddress, podA, tcp(9, 80, "S")), want: ReasonDelivered},
	}},
	{name: "a forwarded error is not the node's own", steps: []step{
		{hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonTunnelled},
		{hook: "forwarded to a", in: ip(world, podA, portUnreachable().quoting(ip(podA, podC, udp(1000, 53)))), want: ReasonSpoofedSource},
		{hook: "to a", in: ip(nodeInternal, podA, portUnreachable().quoting(ip(podA, podC, udp(1000, 53)))), want: ReasonDelivered},
	}},

	{name: "from tunnels the node takes echoes and nothing else", only: "IPv4", steps: []step{
		{hook: "out of tunnel", in: ip(podC, nodeInternal, echo(7)), want: ReasonToStack},
		{hook: "out of tunnel", in: ip(podC, nodeInternal, echoReply(7)), want: ReasonToStack},
		{hook: "out of tunnel", in: ip(podC, nodeInternal, echo(7).of(13)), want: ReasonNodeClosed},
		{hook: "out of tunnel", in: ip(podC, nodeInternal, echo(7).of(14)), want: ReasonNodeClosed},
		{hook: "out of tunnel", in: ip(podC, nodeInternal, echo(7).of(40)), want: ReasonNodeClosed},
		{hook: "out of tunnel", in: ip(podC, nodeInternal, tcp(1, 2379, "S")), want: ReasonNodeClosed},
		{hook: "out of tunnel", in: ip(podE, nodeInternal, tcp(1, 9962, "S")), want: ReasonNodeClosed},
		{hook: "out of tunnel", in: ip(podC, nodeInternal, tcp(1, 2379, "A")), want: ReasonNodeClosed},
		{hook: "out of tunnel", in: ip(podC, nodeInternal, udp(53, 4000)), want: ReasonNodeClosed},
		{hook: "out of tunnel", in: ip(podC, nodeInternal, portUnreachable().quoting(ip(nodeInternal, podC, udp(1, 2)))), want: ReasonInvalid, check: flowsAre(0)},
	}},
	{name: "and answers to what it asked", only: "IPv4", state: onLane(1), steps: []step{
		{hook: "into tunnel", in: ip(nodeInternal, podC, tcp(4000, 80, "S")), want: ReasonEnteredTunnel},
		{hook: "out of tunnel", in: ip(podC, nodeInternal, tcp(80, 4000, "SA")), want: ReasonToStack},
		{hook: "out of tunnel", in: ip(podC, nodeInternal, tcp(81, 4000, "SA")), want: ReasonNodeClosed},
		{hook: "out of tunnel", in: ip(podD, nodeInternal, tcp(80, 4000, "SA")), want: ReasonNodeClosed},
		{hook: "into tunnel", in: ip(nodeInternal, podC, udp(4000, 53)), want: ReasonEnteredTunnel, check: flowsAre(2)},
		{hook: "into tunnel", in: ip(nodeInternal, podC, echo(7).of(14)), want: ReasonEnteredTunnel, check: flowsAre(2)},
		{hook: "into tunnel", in: ip(nodeInternal, podC, echo(7).of(13)), want: ReasonEnteredTunnel, check: flowsAre(3)},
		{hook: "out of tunnel", in: ip(podC, nodeInternal, echo(7).of(14)), want: ReasonToStack},
		{hook: "out of tunnel", in: ip(podC, nodeInternal, echo(7).of(13)), want: ReasonNodeClosed},
		{hook: "out of tunnel", in: ip(podC, nodeInternal, udp(53, 4000)), want: ReasonToStack},
		{hook: "out of tunnel", in: ip("10.2.1.1", nodeInternal, portUnreachable().quoting(ip(nodeInternal, podC, udp(4000, 53)))), want: ReasonToStack},
		{hook: "out of tunnel", in: ip("10.2.1.1", nodeInternal, portUnreachable().quoting(ip(nodeInternal, podC, echo(7)))), want: ReasonToStack},
		{hook: "out of tunnel", in: ip("10.2.1.1", nodeInternal, portUnreachable().quoting(ip(podA, podC, udp(4000, 53)))), want: ReasonInvalid},
		{change: ages(time.Hour), hook: "out of tunnel", in: ip(podC, nodeInternal, udp(53, 4000)), want: ReasonNodeClosed},
		{hook: "into tunnel", in: ip(nodeInternal, podC, udp(4000, 53)), want: ReasonEnteredTunnel, check: flowsAre(3)},
		{hook: "out of tunnel", in: ip(podC, nodeInternal, udp(53, 4000)), want: ReasonToStack},
	}},
}
