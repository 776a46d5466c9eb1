package bpf

import "testing"

// The external address of a service, at its own port 80.
const external = "203.0.113.9"

// offers makes service reachable at an external address. Of here, clients outside get the
// groups in outer, if there are any.
func offers(service uint32, flags ServiceFlags, inner []Group, outer ...Group) func(*node) {
	return func(n *node) {
		n.Helper()
		row := func(id uint32, flags ServiceFlags, groups []Group) Service {
			s := Service{ID: id, Groups: uint8(len(groups)), Timeout: Seconds{}.With(flags)}
			copy(s.Group[:], groups)
			return s
		}
		for _, proto := range []uint8{6, 17} {
			set(n, n.m.Services, front(external, proto), row(service, flags, inner))
			key := front(external, proto)
			if key.Scope = ScopeOutside; flags&ServiceSplit != 0 {
				set(n, n.m.Services, key, row(80, flags&^ServiceSplit, outer))
			}
		}
		onlyC(n)
	}
}

// admits lets clients in a prefix of IPv4, or the same of IPv6, use a service.
func admits(service uint32, bits int, client string) func(*node) {
	return func(n *node) {
		set(n, n.m.Sources, RangeKey{Bits: uint32(32 + 96 + bits), Service: service, Addr: addr(client)}, 1)
	}
}

var (
	groupHere  = []Group{{Cluster: 1, Weight: 1, Count: 1}}
	groupThere = []Group{{Cluster: 2, Weight: 1, Count: 2}}
)

var externalCases = []packetCase{
	{name: "an external address, and a backend on this node", state: offers(80, 0, groupHere), steps: []step{
		{hook: "into node", in: ip(world, external, tcp(7000, 80, "S")), want: ReasonDelivered, out: ip(world, podB, tcp(7000, 8080, "S"))},
		{hook: "from b", in: ip(podB, world, tcp(8080, 7000, "SA")), want: ReasonToStack},
		{hook: "out of node", in: ip(podB, world, tcp(8080, 7000, "SA")), want: ReasonNotOurs, out: ip(external, world, tcp(80, 7000, "SA"))},
		{hook: "from a", in: ip(podA, external, udp(7000, 80).says("?")), want: ReasonDelivered, out: ip(podA, podB, udp(7000, 8080).says("?"))},
		{hook: "from b", in: ip(podB, podA, udp(8080, 7000).says("!")), want: ReasonDelivered, out: ip(external, podA, udp(80, 7000).says("!"))},
	}},
	{name: "an external address, and a backend elsewhere", state: offers(81, 0, groupThere), steps: []step{
		{hook: "into node", in: ip(world, external, udp(7000, 80).says("?")), want: ReasonTunnelled, out: ip(ingress, podC, udp(7000, 8080).says("?"))},
		{hook: "out of tunnel", in: ip(podC, ingress, udp(8080, 7000).says("!")), want: ReasonToStack, out: ip(podC, world, udp(8080, 7000).says("!"))},
		{hook: "out of node", in: ip(podC, world, udp(8080, 7000).says("!")), want: ReasonNotOurs, out: ip(external, world, udp(80, 7000).says("!"))},
		{hook: "from a", in: ip(podA, external, tcp(7000, 80, "S")), want: ReasonTunnelled, out: ip(podA, podC, tcp(7000, 8080, "S"))},
	}},
	{name: "other ports of an external address are not the service's", state: offers(80, 0, groupHere), steps: []step{
		{hook: "into node", in: ip(world, external, tcp(7000, 81, "S")), want: ReasonNotOurs},
		{hook: "into node", in: ip(world, external, echo(1)), want: ReasonNotOurs, check: rowsAre(0)},
	}},
	{name: "what another machine is sent is left to it", state: offers(80, 0, groupHere), steps: []step{
		{change: func(n *node) {
			frame := packet(ip(world, external, tcp(7000, 80, "S")))
			frame[5]++
			if s := n.send("from_device", n.b, 0, frame); s.reason != ReasonNotOurs || s.action != pass {
				n.Errorf("%v, action %d", s.reason, s.action)
			}
		}, hook: "into node", in: ip(world, external, tcp(7000, 80, "S")), want: ReasonDelivered, out: ip(world, podB, tcp(7000, 8080, "S"))},
	}},
	{name: "clients outside stay on this node, pods need not", state: offers(81, ServiceSplit, groupThere, groupHere...), steps: []step{
		{hook: "into node", in: ip(world, external, tcp(7000, 80, "S")), want: ReasonDelivered, out: ip(world, podB, tcp(7000, 8080, "S"))},
		{hook: "from a", in: ip(podA, external, tcp(7000, 80, "S")), want: ReasonTunnelled, out: ip(podA, podC, tcp(7000, 8080, "S"))},
		{change: offers(81, ServiceSplit, groupThere), hook: "into node", in: ip(world, external, tcp(7001, 80, "S").at(4, 0)), want: ReasonNoBackend,
			out: ip(external, world, tcp(80, 7001, "RA").at(0, 5))},
		{hook: "from a", in: ip(podA, external, tcp(7001, 80, "S")), want: ReasonTunnelled, out: ip(podA, podC, tcp(7001, 8080, "S"))},
	}},
	{name: "only clients in the source ranges", state: func(n *node) { offers(80, ServiceRanged, groupHere)(n); admits(80, 30, "192.0.2.4")(n) }, steps: []step{
		{hook: "into node", in: ip("192.0.2.8", external, tcp(7000, 80, "S")), want: ReasonSourceRange, silent: true, check: func(n *node, s sent) {
			rowsAre(0)(n, s)
			if s.event.Src != addr("192.0.2.8") || s.event.Service != addr(external) {
				n.Errorf("event %+v", *s.event)
			}
		}},
		{hook: "into node", in: ip(world, external, tcp(7000, 80, "S")), want: ReasonDelivered, out: ip(world, podB, tcp(7000, 8080, "S"))},
		{hook: "from b", in: ip(podB, world, tcp(8080, 7000, "SA")), want: ReasonToStack},
		{hook: "from a", in: ip(podA, external, tcp(7000, 80, "S")), want: ReasonSourceRange, silent: true},
		{change: admits(80, 32, podA), hook: "from a", in: ip(podA, external, tcp(7000, 80, "S")), want: ReasonDelivered, out: ip(podA, podB, tcp(7000, 8080, "S"))},
		// What is open stays, what is new does not come in.
		{change: func(n *node) { clearer(n.m.Sources)(n) }, hook: "into node", in: ip(world, external, tcp(7000, 80, "PA")), want: ReasonDelivered, out: ip(world, podB, tcp(7000, 8080, "PA"))},
		{hook: "into node", in: ip(world, external, tcp(7001, 80, "S")), want: ReasonSourceRange, silent: true},
		// Nor through another service's ranges.
		{change: admits(81, 0, "0.0.0.0"), hook: "into node", in: ip(world, external, tcp(7002, 80, "S")), want: ReasonSourceRange, silent: true},
		{hook: "into node", in: ip(world, external, tcp(7002, 80, "A")), want: ReasonNotOurs},
	}},
	{name: "neither node ports nor cluster IPs have ranges", state: func(n *node) { here(n); offers(80, ServiceRanged, groupHere)(n) }, steps: []step{
		{hook: "into node", in: ip(world, outside, tcp(7000, nodePort, "S")), want: ReasonDelivered, out: ip(world, podB, tcp(7000, 8080, "S"))},
		{hook: "from a", in: ip(podA, near, tcp(7000, 80, "S")), want: ReasonDelivered, out: ip(podA, podB, tcp(7000, 8080, "S"))},
	}},
	{name: "source ranges and session affinity", state: func(n *node) {
		offers(80, ServiceRanged, groupHere)(n)
		row, _, _ := n.m.Services.Lookup(front(external, 6))
		row.Timeout = SecondsOf(1e11).With(ServiceRanged)
		set(n, n.m.Services, front(external, 6), row)
		admits(80, 32, world)(n)
	}, steps: []step{
		{hook: "into node", in: ip(world, external, tcp(7000, 80, "S")), want: ReasonDelivered, out: ip(world, podB, tcp(7000, 8080, "S"))},
		{change: func(n *node) {
			clearer(n.m.Sources)(n)
			if rows, err := n.m.Visitors.Len(); err != nil || rows != 1 {
				n.Errorf("%d clients, %v", rows, err)
			}
		}, hook: "into node", in: ip(world, external, tcp(7001, 80, "S")), want: ReasonSourceRange, silent: true},
	}},
}

// The flags of a service are beside its timeout.
func TestServiceFlags(t *testing.T) {
	longest := SecondsOf(86400e9)
	both := longest.With(ServiceSplit).With(ServiceRanged)
	if longest.Flags() != 0 || both.Flags() != ServiceSplit|ServiceRanged || both.String() != "24h0m0s,split,ranged" {
		t.Errorf("%v has flags %x, %v has %x", longest, longest.Flags(), both, both.Flags())
	}
}
