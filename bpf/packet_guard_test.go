package bpf

var guardCases = []packetCase{
	{name: "a pod may only use its own address", steps: []step{
		{hook: "from a", in: ip(podB, podC, udp(1, 2)), want: ReasonSpoofedSource},
		{hook: "from a", in: ip(world, podC, udp(1, 2)), want: ReasonSpoofedSource},
		{hook: "from b", in: ip(podB, podC, udp(1, 2)), want: ReasonTunnelled},
		{hook: "from a", in: ip(podB, podC, udp(1, 2)), want: ReasonSpoofedSource, check: flowsAre(1)},
	}},
	{name: "an address inherited by another pod does not inherit flows", state: deny(Egress), steps: []step{
		{hook: "out of tunnel", in: ip(podC, podA, udp(9, 80)), want: ReasonDelivered},
		{change: func(n *node) {
			ep, _, _ := n.m.Endpoints.Lookup(addr(podA))
			ep.Ifindex = uint32(n.b)
			set(n, n.m.Endpoints, addr(podA), ep)
		}, hook: "from a", in: ip(podA, podC, udp(80, 9)), want: ReasonTunnelled},
		{hook: "from b", in: ip(podA, podC, udp(80, 9)), want: ReasonPolicyDenied, check: flowsAre(0)},
	}},
	{name: "a held pod neither sends nor receives", steps: []step{
		{hook: "from b", in: ip(podHeld, podC, udp(1, 2)), want: ReasonHeld},
		{hook: "from a", in: ip(podA, podHeld, udp(1, 2)), want: ReasonHeld},
		{hook: "out of tunnel", in: ip(podC, podHeld, udp(1, 2)), want: ReasonHeld},
		{hook: "to b", in: ip(nodeInternal, podHeld, udp(1, 2)), want: ReasonHeld},
		{hook: "into node", in: ip(world, podHeld, udp(1, 2)), want: ReasonHeld},
		{hook: "from a", in: ip(podA, podHeld, portUnreachable().quoting(ip(podHeld, podA, udp(1, 2)))), want: ReasonInvalid},
	}},
	{name: "an own address that no pod has", steps: []step{
		{hook: "from a", in: ip(podA, "10.1.1.200", udp(1, 2)), want: ReasonNoEndpoint},
		{hook: "out of tunnel", in: ip(podC, "10.1.1.200", udp(1, 2)), want: ReasonNoEndpoint},
		{hook: "into node", in: ip(world, "10.1.1.200", udp(1, 2)), want: ReasonNoEndpoint},
		{hook: "to a", in: ip(nodeInternal, "10.1.1.200", udp(1, 2)), want: ReasonNoEndpoint},
		{hook: "to a", in: ip(nodeInternal, podB, udp(1, 2)), want: ReasonNoEndpoint},
	}},
	{name: "a pod that went away", steps: []step{
		{hook: "from a", in: ip(podA, podB, udp(1, 2)), want: ReasonDelivered},
		{change: func(n *node) { unset(n, n.m.Endpoints, addr(podB)) }, hook: "from a", in: ip(podA, podB, udp(1, 2)), want: ReasonNoEndpoint},
	}},
	{name: "a member whose node nobody knows", steps: []step{
		{hook: "from a", in: ip(podA, "10.2.9.9", udp(1, 2)), want: ReasonNoTunnel},
		{hook: "from a", in: ip(podA, "10.1.9.9", udp(1, 2)), want: ReasonNoTunnel, check: flowsAre(0)},
	}},
	{name: "a member without identity may be spoken to where no policy is", steps: []step{
		{hook: "from a", in: ip(podA, "10.2.1.99", udp(1, 2)), want: ReasonTunnelled, check: func(n *node, _ sent) {
			if f, _ := n.flow(podA, 1, "10.2.1.99", 2, 17); f.Identity != 127 {
				n.Errorf("flow %+v", f)
			}
		}},
		{hook: "out of tunnel", in: ip("10.2.1.98", podA, udp(1, 2)), want: ReasonDelivered},
	}},
	{name: "no plaintext of members in", steps: []step{
		{hook: "into node", in: ip(podC, podA, udp(1, 2)), want: ReasonPlaintext},
		{hook: "into node", in: ip("10.2.9.9", world, udp(1, 2)), want: ReasonPlaintext},
		{hook: "into node", in: ip(world, podC, udp(1, 2)), want: ReasonPlaintext},
		{hook: "into node", in: ip(podA, world, udp(1, 2)), want: ReasonPlaintext},
		{hook: "forwarded to a", in: ip(podC, podA, udp(1, 2)), want: ReasonPlaintext},
		{hook: "into node", in: ip(world, "192.0.2.1", udp(1, 51871)), want: ReasonNotOurs},
	}},
	{name: "no plaintext of members out", steps: []step{
		{hook: "out of node", in: ip(podA, podC, udp(1, 2)), want: ReasonPlaintext},
		{hook: "out of node", in: ip(nodeInternal, podC, udp(1, 2)), want: ReasonPlaintext},
		{hook: "out of node", in: ip(podC, world, udp(1, 2)), want: ReasonPlaintext},
		{hook: "out of node", in: ip(podA, podE, udp(1, 2)), want: ReasonPlaintext},
		{hook: "out of node", in: ip(podA, podC, udp(1, 2)).piece(5, 64, true), want: ReasonPlaintext},
		{hook: "out of node", in: ip(podA, podC, raw(make([]byte, 8))), want: ReasonPlaintext},
		{hook: "out of node", in: ip(podA, world, udp(1, 2)), want: ReasonNotOurs},
		{hook: "out of node", in: ip("192.0.2.1", "192.0.2.2", udp(51871, 51871)), want: ReasonNotOurs},
	}},
	{name: "an answer must come from where the flow goes", steps: []step{
		{hook: "from a", in: ip(podA, podC, udp(1, 2)), want: ReasonTunnelled},
		{hook: "to a", in: ip(podC, podA, udp(2, 1)), want: ReasonSpoofedSource},
		{hook: "from a", in: ip(podA, world, udp(1, 2)), want: ReasonToStack},
		{hook: "out of tunnel", in: ip(world, podA, udp(2, 1)), want: ReasonSpoofedSource},
		{hook: "out of tunnel", in: ip(world, podA, udp(2, 7)), want: ReasonSpoofedSource},
	}},
}

var icmpCases = []packetCase{
	{name: "echo both ways at once", state: deny(Ingress), steps: []step{
		{hook: "from a", in: ip(podA, podC, echo(7)), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, echoReply(7)), want: ReasonDelivered},
		{hook: "out of tunnel", in: ip(podC, podA, echo(7)), want: ReasonPolicyDenied},
		{hook: "out of tunnel", in: ip(podC, podA, echoReply(8)), want: ReasonInvalid},
		{hook: "from a", in: ip(podA, podC, echoReply(7)), want: ReasonInvalid, check: flowsAre(1)},
	}},
	{name: "echo within the node", steps: []step{
		{hook: "from a", in: ip(podA, podB, echo(7)), want: ReasonDelivered},
		{hook: "from b", in: ip(podB, podA, echoReply(7)), want: ReasonDelivered, check: flowsAre(2)},
	}},
	{name: "redirects", only: "IPv4", steps: []step{
		{hook: "from a", in: ip(podA, podC, echo(7).of(5)), want: ReasonNotSupported},
		{hook: "out of tunnel", in: ip(podC, podA, echo(7).of(5)), want: ReasonNotSupported},
		{hook: "into node", in: ip("169.254.1.1", podA, echo(7).of(5)), want: ReasonNotSupported},
	}},
	{name: "each kind of request has its answer", only: "IPv4", state: deny(Ingress), steps: []step{
		{hook: "from a", in: ip(podA, podC, echo(7).of(13)), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, echo(7).of(14)), want: ReasonDelivered},
		{hook: "out of tunnel", in: ip(podC, podA, echo(8).of(14)), want: ReasonInvalid},
		{hook: "out of tunnel", in: ip(podC, podA, echoReply(7)), want: ReasonInvalid},
		{hook: "out of tunnel", in: ip(podC, podA, echo(7).of(16)), want: ReasonInvalid},
		{hook: "out of tunnel", in: ip(podC, podA, echo(7).of(13)), want: ReasonPolicyDenied},
		{hook: "from a", in: ip(podA, podC, echo(7).of(15)), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, echo(7).of(16)), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, podC, echo(7).of(17)), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, echo(7).of(18)), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, podC, echo(7).of(42)), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, echo(7).of(43)), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, podC, echo(7).of(14)), want: ReasonInvalid, check: flowsAre(4)},
	}},
	{name: "a request in pieces", only: "IPv4", steps: []step{
		{hook: "from a", in: ip(podA, podC, echo(7).of(13)).piece(5, 0, true), want: ReasonTunnelled},
		{hook: "from a", in: ip(podA, podC, raw("later")).icmp().piece(5, 1480, false), want: ReasonTunnelled, check: flowsAre(1)},
	}},
	{name: "a kind without answer is a flow of one way", only: "IPv4", state: deny(Ingress), steps: []step{
		{hook: "from a", in: ip(podA, podC, echo(7).of(40)), want: ReasonTunnelled},
		{hook: "from a", in: ip(podA, podC, echo(8).of(40)), want: ReasonTunnelled, check: flowsAre(1)},
		{hook: "out of tunnel", in: ip(podC, podA, echo(7).of(40)), want: ReasonPolicyDenied},
		{hook: "out of tunnel", in: ip(podC, podA, echo(7).of(41)), want: ReasonPolicyDenied},
		{hook: "from a", in: ip(podA, podC, echo(7).of(255)), want: ReasonTunnelled},
		{hook: "from a", in: ip(podA, podB, echo(7).of(4)), want: ReasonDelivered, check: flowsAre(4)},
	}},
	{name: "an error about a kind", only: "IPv4", steps: []step{
		{hook: "from a", in: ip(podA, world, echo(7).of(13)), want: ReasonToStack},
		{hook: "from a", in: ip(podA, world, echo(7).of(40)), want: ReasonToStack},
		{hook: "into node", in: ip("192.0.2.254", podA, portUnreachable().quoting(ip(podA, world, echo(7).of(13)))), want: ReasonDelivered},
		{hook: "into node", in: ip("192.0.2.254", podA, portUnreachable().quoting(ip(podA, world, echo(9).of(40)))), want: ReasonDelivered},
		{hook: "into node", in: ip("192.0.2.254", podA, portUnreachable().quoting(ip(podA, world, echo(7)))), want: ReasonInvalid},
		{hook: "into node", in: ip("192.0.2.254", podA, portUnreachable().quoting(ip(podA, world, portUnreachable()))), want: ReasonInvalid},
		{hook: "out of tunnel", in: ip(podC, podA, echo(7).of(13)), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, podC, portUnreachable().quoting(ip(podC, podA, echo(7).of(13)))), want: ReasonTunnelled},
	}},
	{name: "only a request is told that it goes nowhere", only: "IPv4", steps: []step{
		{hook: "from a", in: ip(podA, "10.2.9.9", echo(7).of(13)), want: ReasonNoTunnel},
		{hook: "from a", in: ip(podA, "10.2.9.9", echo(7).of(40)), want: ReasonNoTunnel, silent: true},
	}},
	{name: "an error about a flow reaches the pod", state: deny(Ingress), steps: []step{
		{hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, portUnreachable().quoting(ip(podA, podC, udp(1000, 53)))), want: ReasonDelivered},
		{hook: "out of tunnel", in: ip(podC, podA, portUnreachable().quoting(ip(podA, podC, udp(1001, 53)))), want: ReasonInvalid},
		{hook: "out of tunnel", in: ip(podC, podA, portUnreachable().quoting(ip(podB, podC, udp(1000, 53)))), want: ReasonInvalid},
		{hook: "out of tunnel", in: ip(podC, podA, portUnreachable()), want: ReasonInvalid},
	}},
	{name: "an error about a flow that policy now denies", steps: []step{
		{hook: "out of tunnel", in: ip(podC, podA, udp(9, 53)), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonTunnelled},
		{change: revisionMoves, hook: "from a", in: ip(podA, podC, portUnreachable().quoting(ip(podC, podA, udp(9, 53)))), want: ReasonTunnelled},
		{change: func(n *node) {
			n.policy(podA, Egress)
			n.policy(podA, Ingress)
			n.change(nil)
		}, hook: "from a", in: ip(podA, podC, portUnreachable().quoting(ip(podC, podA, udp(9, 53)))), want: ReasonPolicyDenied},
		{hook: "out of tunnel", in: ip(podC, podA, portUnreachable().quoting(ip(podA, podC, udp(1000, 53)))), want: ReasonPolicyDenied},
		{hook: "from a", in: ip(podA, podC, portUnreachable().quoting(ip(podC, podA, udp(9, 53)))), want: ReasonPolicyDenied},
	}},
	{name: "an error about a flow that policy allows by its own protocol", state: func(n *node) {
		n.policy(podA, Egress)
		n.policy(podA, Ingress)
		n.class(5, idC)
		n.rule(PolicyKey{Gen: 1, Set: 7, Class: 5, Proto: 17, Dir: Egress}, PolicyEntry{Rule: 1})
		n.rule(PolicyKey{Gen: 1, Set: 7, Class: 5, Proto: 17, Dir: Ingress}, PolicyEntry{Rule: 2})
	}, steps: []step{
		{hook: "out of tunnel", in: ip(podC, podA, udp(9, 53)), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonTunnelled},
		{change: revisionMoves, hook: "from a", in: ip(podA, podC, portUnreachable().quoting(ip(podC, podA, udp(9, 53)))), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, portUnreachable().quoting(ip(podA, podC, udp(1000, 53)))), want: ReasonDelivered},
	}},
	{name: "an error about a service's flow whose backend policy now denies", state: onlyC, steps: []step{
		{hook: "from a", in: ip(podA, far, udp(1000, 80)), want: ReasonTunnelled, out: ip(podA, podC, udp(1000, 8080))},
		{change: func(n *node) {
			n.policy(podA, Egress)
			n.change(nil)
		}, hook: "out of tunnel", in: ip(podC, podA, portUnreachable().quoting(ip(podA, podC, udp(1000, 8080).unchecked()))), want: ReasonPolicyDenied},
	}},
	{name: "an error from a router about a flow to the world", steps: []step{
		{hook: "from a", in: ip(podA, world, udp(1000, 53)), want: ReasonToStack},
		{hook: "into node", in: ip("192.0.2.254", podA, portUnreachable().of(11).quoting(ip(podA, world, udp(1000, 53)))), want: ReasonDelivered},
		{hook: "to a", in: ip(nodeInternal, podA, portUnreachable().quoting(ip(podA, world, udp(1000, 53)))), want: ReasonDelivered},
	}},
	{name: "an error about an echo", steps: []step{
		{hook: "from a", in: ip(podA, world, echo(7)), want: ReasonToStack},
		{hook: "into node", in: ip("192.0.2.254", podA, portUnreachable().quoting(ip(podA, world, echo(7)))), want: ReasonDelivered},
		{hook: "into node", in: ip("192.0.2.254", podA, portUnreachable().quoting(ip(podA, world, echoReply(7)))), want: ReasonInvalid},
	}},
	{name: "an error of a backend is the service's", state: onlyC, steps: []step{
		{hook: "from a", in: ip(podA, far, udp(1000, 80).says("hi")), want: ReasonTunnelled, out: ip(podA, podC, udp(1000, 8080).says("hi"))},
		{hook: "out of tunnel", in: ip(podC, podA, portUnreachable().quoting(ip(podA, podC, udp(1000, 8080).unchecked()))), want: ReasonDelivered,
			out: ip(far, podA, portUnreachable().quoting(ip(podA, far, udp(1000, 80).unchecked())))},
		{hook: "out of tunnel", in: ip(podD, podA, portUnreachable().quoting(ip(podA, podC, udp(1000, 8080).unchecked()).withOptions(4))), want: ReasonDelivered,
			out: ip(podD, podA, portUnreachable().quoting(ip(podA, far, udp(1000, 80).unchecked()).withOptions(4)))},
	}},
	{name: "an error from somewhere the flow never was", state: onlyC, steps: []step{
		{hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonTunnelled},
		{hook: "from a", in: ip(podA, far, udp(1001, 80)), want: ReasonTunnelled, out: ip(podA, podC, udp(1001, 8080))},
		{hook: "into node", in: ip(world, podA, portUnreachable().quoting(ip(podA, podC, udp(1000, 53)))), want: ReasonSpoofedSource},
		{hook: "into node", in: ip(world, podA, portUnreachable().quoting(ip(podA, podC, udp(1001, 8080)))), want: ReasonSpoofedSource},
		{hook: "from b", in: ip(podB, podA, portUnreachable().quoting(ip(podA, podC, udp(1000, 53)))), want: ReasonInvalid},
		{hook: "out of tunnel", in: ip(podE, podA, portUnreachable().quoting(ip(podA, podC, udp(1000, 53)))), want: ReasonSpoofedSource},
		{hook: "out of tunnel", in: ip(podE, podA, portUnreachable().quoting(ip(podA, podC, udp(1001, 8080)))), want: ReasonSpoofedSource},
		{hook: "out of tunnel", in: ip(podD, podA, portUnreachable().quoting(ip(podA, podC, udp(1000, 53)))), want: ReasonDelivered},
		{hook: "to a", in: ip(nodeInternal, podA, portUnreachable().quoting(ip(podA, podC, udp(1000, 53)))), want: ReasonDelivered},
	}},
	{name: "a pod's error about what it was sent", steps: []step{
		{hook: "out of tunnel", in: ip(podC, podA, udp(9, 53)), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, podC, portUnreachable().quoting(ip(podC, podA, udp(9, 53)))), want: ReasonTunnelled},
		{hook: "from a", in: ip(podA, podC, portUnreachable().quoting(ip(podC, podA, udp(9, 54)))), want: ReasonInvalid},
		{hook: "from a", in: ip(podA, podD, portUnreachable().quoting(ip(podC, podA, udp(9, 53)))), want: ReasonInvalid},
		{hook: "from b", in: ip(podA, podC, portUnreachable().quoting(ip(podC, podA, udp(9, 53)))), want: ReasonSpoofedSource},
		{change: nodeDies(3), hook: "from a", in: ip(podA, podC, portUnreachable().quoting(ip(podC, podA, udp(9, 53)))), want: ReasonPathDown},
	}},
	{name: "a pod's error to a pod of the same node", steps: []step{
		{hook: "from a", in: ip(podA, near, udp(1000, 80)), want: ReasonDelivered, out: ip(podA, podB, udp(1000, 8080))},
		{hook: "from b", in: ip(podB, podA, portUnreachable().quoting(ip(podA, podB, udp(1000, 8080).unchecked()))), want: ReasonDelivered,
			out: ip(near, podA, portUnreachable().quoting(ip(podA, near, udp(1000, 80).unchecked())))},
		{hook: "from a", in: ip(podA, near, portUnreachable().quoting(ip(near, podA, udp(80, 1000)))), want: ReasonNotSupported},
	}},
}

var fragmentCases = []packetCase{
	{name: "later pieces follow the first", state: onlyC, steps: []step{
		{hook: "from a", in: ip(podA, far, udp(1000, 80).unchecked().says("firsthalf")).piece(5, 0, true), want: ReasonTunnelled,
			out: ip(podA, podC, udp(1000, 8080).unchecked().says("firsthalf")).piece(5, 0, true)},
		{hook: "from a", in: rest(podA, far, 5), want: ReasonTunnelled, out: rest(podA, podC, 5)},
		{hook: "out of tunnel", in: ip(podC, podA, udp(8080, 1000).unchecked().says("firsthalf")).piece(6, 0, true), want: ReasonDelivered,
			out: ip(far, podA, udp(80, 1000).unchecked().says("firsthalf")).piece(6, 0, true)},
		{hook: "out of tunnel", in: rest(podC, podA, 6), want: ReasonDelivered, out: rest(far, podA, 6), check: flowsAre(1)},
	}},
	{name: "a piece whose first is missing", steps: []step{
		{hook: "from a", in: rest(podA, podC, 5), want: ReasonEarlyFragment},
		{hook: "from a", in: rest(podA, podC, 5), waited: 30, want: ReasonEarlyFragment},
		{hook: "from a", in: rest(podA, podC, 5), waited: 31, want: ReasonFragment},
		{hook: "out of tunnel", in: rest(podC, podA, 5), waited: 31, want: ReasonFragment},
		{hook: "out of tunnel", in: rest(podC, nodeInternal, 5), waited: 31, want: ReasonFragment},
		{hook: "to a", in: rest(nodeInternal, podA, 5), want: ReasonFragment},
	}},
	{name: "a piece that waited for its first", state: onlyC, steps: []step{
		{hook: "from a", in: rest(podA, far, 5), want: ReasonEarlyFragment},
		{hook: "from a", in: ip(podA, far, udp(1000, 80).unchecked().says("firsthalf")).piece(5, 0, true), want: ReasonTunnelled,
			out: ip(podA, podC, udp(1000, 8080).unchecked().says("firsthalf")).piece(5, 0, true)},
		{hook: "from a", in: rest(podA, far, 5), waited: 1, want: ReasonTunnelled, out: rest(podA, podC, 5)},
		{hook: "out of tunnel", in: rest(podC, podA, 6), want: ReasonEarlyFragment},
		{hook: "out of tunnel", in: ip(podC, podA, udp(8080, 1000).unchecked().says("firsthalf")).piece(6, 0, true), want: ReasonDelivered,
			out: ip(far, podA, udp(80, 1000).unchecked().says("firsthalf")).piece(6, 0, true)},
		{hook: "out of tunnel", in: rest(podC, podA, 6), waited: 7, want: ReasonDelivered, out: rest(far, podA, 6), check: flowsAre(1)},
	}},
	{name: "a pod's pieces are not another's", steps: []step{
		{hook: "from a", in: ip(podA, podC, udp(1000, 80).unchecked().says("firsthalf")).piece(5, 0, true), want: ReasonTunnelled},
		{hook: "from b", in: ip(podA, podC, udp(9, 9).unchecked().says("firsthalf")).piece(5, 0, true), want: ReasonSpoofedSource},
		{hook: "from a", in: rest(podA, podC, 5), want: ReasonTunnelled, check: flowsAre(1)},
	}},
	{name: "a piece that rewrites the TCP header", steps: []step{
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "S")).piece(5, 0, true), want: ReasonTunnelled},
		{hook: "from a", in: ip(podA, podC, tcp(1000, 22, "S")).piece(5, 8, false), want: ReasonInvalid},
	}},
	{name: "pieces of an echo", steps: []step{
		{hook: "from a", in: ip(podA, podC, echo(9)).piece(5, 0, true), want: ReasonTunnelled},
		{hook: "from a", in: func() layer { l := rest(podA, podC, 5); l.proto = 1; return l }(), want: ReasonTunnelled},
	}},
	{name: "pieces pass where ports do not matter", steps: []step{
		{hook: "into tunnel", in: rest(podA, podC, 5), want: ReasonEnteredTunnel},
		{hook: "into node", in: rest(world, "192.0.2.1", 5), want: ReasonNotOurs},
		{hook: "out of node", in: rest("192.0.2.1", world, 5), want: ReasonNotOurs},
	}},
}

// rest is the last fragment of a UDP datagram.
func rest(src, dst string, id uint16) *ipLayer {
	l := ip(src, dst, nil)
	l.proto, l.payload = 17, []byte("and the second half")
	return l.piece(id, 24, false)
}
