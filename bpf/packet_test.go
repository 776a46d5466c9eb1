package bpf

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// packetCase is one behaviour: a state of the maps, then packets in order.
type packetCase struct {
	name  string
	only  string // the family that it is about: IPv4 or IPv6
	state func(*node)
	steps []step
}

// applies tells whether the case is about the family that tests run over.
func (c packetCase) applies() bool { return c.only == "" || (c.only == "IPv6") == overIPv6 }

// step is one packet.
type step struct {
	change func(*node) // before it
	hook   string      // where it shows up, see hookOf
	in     layer
	frame  []byte // instead of in: not an IP packet
	ends   bool   // dropped, although the reason is not one to drop
	waited uint32 // how often it has waited for the first fragment
	want   Reason
	out    layer             // nil: as it came
	outs   func(*node) layer // instead of out: it depends on what the packet did
	rule   uint32
	silent bool              // dropped, and nobody is told although the reason is certain
	check  func(*node, sent) // after it
}

// hookOf returns program and device. "from a" is sent by pod a, "to a" by the host to
// it, "forwarded to a" by the stack for someone else.
func (n *node) hookOf(name string) (program string, device, from int) {
	switch name {
	case "from a":
		return "from_pod", n.a, 0
	case "from b":
		return "from_pod", n.b, 0
	case "to a":
		return "to_pod", n.a, 0
	case "to b":
		return "to_pod", n.b, 0
	case "forwarded to a":
		return "to_pod", n.a, n.b
	case "out of tunnel":
		return "from_tunnel", n.b, 0
	case "into tunnel":
		return "to_tunnel", n.b, 0
	case "into node":
		return "from_device", n.b, 0
	case "out of node":
		return "to_device", n.b, 0
	}
	n.Fatalf("no hook %q", name)
	return
}

func (n *node) step(i int, s step) {
	n.Helper()
	if s.change != nil {
		s.change(n)
	}
	in := s.frame
	if s.in != nil {
		in = packet(s.in)
	}
	program, device, from := n.hookOf(s.hook)
	n.mark = 0
	if s.waited > 0 {
		n.mark = earlyMark(s.waited, device)
	}
	got := n.send(program, device, from, in)
	if want := map[bool]uint32{true: earlyMark(s.waited+1, device)}[s.want == ReasonEarlyFragment]; got.mark != want {
		n.Errorf("packet %d, %s: mark %#x, want %#x", i, s.hook, got.mark, want)
	}
	if s.outs != nil {
		s.out = s.outs(n)
	}
	if got.reason != s.want {
		n.Fatalf("packet %d, %s: %s, want %s\n%s", i, s.hook, got.reason, s.want, describe(in))
	}
	wantAction, wantEvent, out := actionOf(s.hook, s.want), EventDrop, s.out
	if s.want.Drop() && out == nil && !s.silent {
		out = answerTo(s)
	}
	if s.want.Drop() && out != nil {
		wantAction, wantEvent = redirect, EventRefused
	}
	if s.ends {
		wantAction = dropped
	}
	if got.action != wantAction {
		n.Errorf("packet %d, %s: action %d, want %d", i, s.hook, got.action, wantAction)
	}
	if s.want.Drop() {
		switch {
		case got.event == nil:
			n.Errorf("packet %d, %s: dropped without an event", i, s.hook)
		case got.event.Type != wantEvent || got.event.Reason != s.want || got.event.Rule != s.rule:
			n.Errorf("packet %d, %s: event %+v", i, s.hook, *got.event)
		}
	}
	if s.in != nil && (!s.want.Drop() || out != nil) {
		if out == nil {
			out = s.in
		}
		if s.want == ReasonDelivered && got.action == redirect {
			out = out.(*ipLayer).hop()
		}
		if diff := cmp.Diff(describeIP(out.encode(nil), true), describeIP(got.out[14:], true)); diff != "" {
			n.Errorf("packet %d, %s (- want, + got):\n%s", i, s.hook, diff)
		}
		if s.want == ReasonDelivered && got.action == redirect {
			to, _ := netip.AddrFromSlice(got.out[30:34])
			if overIPv6 {
				to, _ = netip.AddrFromSlice(got.out[38:54])
			}
			ep, _, _ := n.m.Endpoints.Lookup(AddrOf(to))
			if !bytes.Equal(got.out[:12], append(ep.MAC[:], ep.HostMAC[:]...)) {
				n.Errorf("packet %d, %s: Ethernet addresses %x", i, s.hook, got.out[:12])
			}
		}
	}
	if s.check != nil {
		s.check(n, got)
	}
}

func flowsAre(want int) func(*node, sent) {
	return func(n *node, _ sent) {
		n.Helper()
		if got := n.flows(); got != want {
			n.Errorf("%d flows, want %d", got, want)
		}
	}
}

// talk is the event of a packet from one identity to another.
func talk(from, to uint32) func(*node, sent) {
	return func(n *node, s sent) {
		n.Helper()
		if e := s.event; e.SrcIdentity != from || e.DstIdentity != to {
			n.Errorf("event %+v, want identity %d to %d", *e, from, to)
		}
	}
}

// through is the event of a packet from src to dst in a flow through service.
func through(service, src, dst string) func(*node, sent) {
	return func(n *node, s sent) {
		n.Helper()
		if e := s.event; e == nil || e.Service != addr(service) || e.ServicePort.Number() != 80 || e.Src != addr(src) || e.Dst != addr(dst) {
			n.Errorf("event %+v, want %s → %s through %s", e, src, dst, service)
		}
	}
}

// under is an event with the direction whose policy decided.
func under(dir Direction) func(*node, sent) {
	return func(n *node, s sent) {
		n.Helper()
		if s.event.Dir != dir || s.dir != dir {
			n.Errorf("event says %v, counter %v, want %v", s.event.Dir, s.dir, dir)
		}
	}
}

func nodeDies(id uint32) func(*node) {
	return func(n *node) {
		row, _, _ := n.m.Nodes.Lookup(id)
		row.Path = PathDead
		set(n, n.m.Nodes, id, row)
		n.age(heardFor)
	}
}

// heardFor is how long after the other side's last packet a flow over a dead path goes
// on.
const heardFor = 500 * time.Millisecond

func clusterFallsSilent(n *node) { set(n, n.m.Clusters, 2, Cluster{Path: PathSilent}) }
func clusterDies(n *node) {
	set(n, n.m.Clusters, 2, Cluster{})
	n.age(heardFor)
}
func revisionMoves(n *node) { n.change(nil) }
func deny(dir Direction) func(*node) {
	return func(n *node) { n.policy(podA, dir) }
}
func ages(d time.Duration) func(*node) { return func(n *node) { n.age(d) } }

// onlyC leaves c as the only backend of service 81, so that cases know who answers.
func onlyC(n *node) { nodeDies(4)(n) }

// onLane makes the device of the tunnel hooks the device of that lane.
func onLane(lane int) func(*node) {
	return func(n *node) {
		n.change(func(s *Settings) { s.TunnelIfindex[lane] = uint32(n.b) })
	}
}

// packetTable is every case. TestPackets checks it, BenchmarkCases measures it.
var packetTable = slices.Concat(pathCases, policyCases, serviceCases, failureCases, guardCases, icmpCases, fragmentCases, stateCases, shareCases, refusalCases, hopCases, sequenceCases, sealedCases, processCases, ipv6Cases, masqueradeCases, nodePortCases, externalCases)

func TestPackets(t *testing.T) {
	shared := newNode(t)
	families(t, func(t *testing.T) {
		for _, c := range packetTable {
			if c.applies() {
				t.Run(c.name, func(t *testing.T) { shared.again(t).play(c) })
			}
		}
	})
}

// play brings the node into the state after a case's last packet.
func (n *node) play(c packetCase) {
	n.Helper()
	if c.state != nil {
		c.state(n)
	}
	for i, s := range c.steps {
		n.step(i+1, s)
	}
}

var pathCases = []packetCase{
	{name: "pod to pod of the same node and back", steps: []step{
		{hook: "from a", in: ip(podA, podB, tcp(1000, 80, "S")), want: ReasonDelivered, check: func(n *node, _ sent) {
			f, ok := n.flow(podA, 1000, podB, 80, 6)
			if !ok || f.Identity != idB || f.Via != ViaPod || f.Flags != 0 || f.Ifindex != uint32(n.a) {
				n.Errorf("sender's flow %+v", f)
			}
			f, ok = n.flow(podB, 80, podA, 1000, 6)
			if !ok || f.Identity != idA || f.Flags != FlowRemoteInitiated || f.Ifindex != uint32(n.b) {
				n.Errorf("receiver's flow %+v", f)
			}
		}},
		{hook: "from b", in: ip(podB, podA, tcp(80, 1000, "SA")), want: ReasonDelivered, check: func(n *node, _ sent) {
			for _, f := range []FlowKey{
				{Local: addr(podA), Remote: addr(podB), Lport: PortOf(1000), Rport: PortOf(80), Proto: 6},
				{Local: addr(podB), Remote: addr(podA), Lport: PortOf(80), Rport: PortOf(1000), Proto: 6},
			} {
				if row, ok, _ := n.m.Flows.Lookup(f); !ok || row.Flags&FlowReplied == 0 {
					n.Errorf("flow %v after the answer: %+v", f, row)
				}
			}
		}},
		{hook: "from a", in: ip(podA, podB, tcp(1000, 80, "A")), want: ReasonDelivered, check: flowsAre(2)},
	}},
	{name: "pod to pod of a remote cluster and back", steps: []step{
		{hook: "from a", in: ip(podA, podC, udp(1000, 53).says("who")), want: ReasonTunnelled, check: func(n *node, _ sent) {
			if f, _ := n.flow(podA, 1000, podC, 53, 17); f.Identity != idC || f.Node != 3 || f.Cluster != 2 || f.Via != ViaTunnel {
				n.Errorf("flow %+v", f)
			}
		}},
		{hook: "out of tunnel", in: ip(podC, podA, udp(53, 1000).says("me")), want: ReasonDelivered, check: flowsAre(1)},
	}},
	{name: "pod of another node of the own cluster", steps: []step{
		{hook: "from a", in: ip(podA, podE, tcp(1000, 80, "S")), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podE, podA, tcp(80, 1000, "SA")), want: ReasonDelivered},
	}},
	{name: "remote pod speaks first", steps: []step{
		{hook: "out of tunnel", in: ip(podC, podA, tcp(5000, 80, "S")), want: ReasonDelivered, check: func(n *node, _ sent) {
			if f, _ := n.flow(podA, 80, podC, 5000, 6); f.Identity != idC || f.Node != 3 || f.Flags != FlowRemoteInitiated {
				n.Errorf("flow %+v", f)
			}
		}},
		{hook: "from a", in: ip(podA, podC, tcp(80, 5000, "SA")), want: ReasonTunnelled, check: flowsAre(1)},
	}},
	{name: "pod to the world and back", steps: []step{
		{hook: "from a", in: ip(podA, world, tcp(1000, 443, "S")), want: ReasonToStack},
		{hook: "into node", in: ip(world, podA, tcp(443, 1000, "SA")), want: ReasonDelivered, check: flowsAre(1)},
	}},
	{name: "the world to a pod", steps: []step{
		{hook: "into node", in: ip(world, podA, tcp(7000, 80, "S")), want: ReasonDelivered, check: func(n *node, _ sent) {
			if f, _ := n.flow(podA, 80, world, 7000, 6); f.Identity != 2 || f.Via != ViaStack {
				n.Errorf("flow %+v", f)
			}
		}},
		{hook: "from a", in: ip(podA, world, tcp(80, 7000, "SA")), want: ReasonToStack},
	}},
	{name: "the node reaches its pods whatever their policy", state: deny(Ingress), steps: []step{
		{hook: "to a", in: ip(nodeInternal, podA, tcp(4000, 80, "S")), want: ReasonDelivered},
		{change: revisionMoves, hook: "from a", in: ip(podA, nodeInternal, tcp(80, 4000, "SA")), want: ReasonToStack},
		{hook: "to a", in: ip(nodeInternal, podA, tcp(4000, 80, "A")), want: ReasonDelivered, check: flowsAre(1)},
	}},
	{name: "pod to its node", steps: []step{
		{hook: "from a", in: ip(podA, nodeInternal, tcp(1000, 22, "S")), want: ReasonToStack, check: func(n *node, _ sent) {
			if f, _ := n.flow(podA, 1000, nodeInternal, 22, 6); f.Identity != 1 {
				n.Errorf("flow %+v", f)
			}
		}},
	}},
	{name: "forwarded by the stack from the world", state: deny(Ingress), steps: []step{
		{hook: "forwarded to a", in: ip(world, podA, tcp(1, 80, "S")), want: ReasonPolicyDenied},
	}},
	{name: "into the tunnel go the node and its pods", steps: []step{
		{hook: "into tunnel", in: ip(nodeInternal, "10.2.0.9", tcp(1, 2, "S")), want: ReasonEnteredTunnel},
		{hook: "into tunnel", in: ip(podA, podC, tcp(1, 2, "S")), want: ReasonEnteredTunnel},
		{hook: "into tunnel", in: ip(world, podC, tcp(1, 2, "S")), want: ReasonSpoofedSource},
		{hook: "into tunnel", in: ip("10.1.1.77", podC, tcp(1, 2, "S")), want: ReasonSpoofedSource},
	}},
	{name: "the node's own packets take the lane its pods use", state: onLane(1), steps: []step{
		{hook: "into tunnel", in: ip(nodeInternal, podC, echo(7)), want: ReasonEnteredTunnel},
		{hook: "into tunnel", in: ip(nodeInternal, "10.2.1.1", echoReply(7)), want: ReasonEnteredTunnel},
		{hook: "into tunnel", in: ip(nodeInternal, podD, echo(7)), want: ReasonChangedTunnel},
		{hook: "into tunnel", in: ip(nodeInternal, "10.2.2.1", echoReply(7)), want: ReasonChangedTunnel},
		{hook: "into tunnel", in: ip(podA, podD, udp(1, 2)), want: ReasonEnteredTunnel},
		{hook: "into tunnel", in: ip(nodeInternal, podD, echo(7)), want: ReasonEnteredTunnel,
			change: func(n *node) { set(n, n.m.Nodes, 4, Node{Path: PathAlive, Keyed: 1, Cluster: 2, Lane: 1}) }},
		{hook: "into tunnel", in: ip(nodeInternal, podC, echo(7)), want: ReasonChangedTunnel,
			change: func(n *node) { set(n, n.m.Nodes, 3, Node{Keyed: 1, Cluster: 2}) }},
		{hook: "into tunnel", in: ip(nodeInternal, podC, echo(7)), want: ReasonEnteredTunnel,
			change: func(n *node) { set(n, n.m.Nodes, 3, Node{Path: PathAlive, Cluster: 2}) }},
	}},
	{name: "what is not IP", steps: []step{
		{hook: "from a", frame: ethernet(0x0806, make([]byte, 28)), want: ReasonNotOurs},
		{hook: "to a", frame: ethernet(0x0806, make([]byte, 28)), want: ReasonNotOurs},
		{hook: "from a", frame: ethernet(0x86dd, make([]byte, 40)), want: ReasonNotSupported}, // IP of version 0
		{hook: "to a", frame: ethernet(0x86dd, make([]byte, 40)), want: ReasonNotSupported},
		{hook: "from a", frame: ethernet(0x88cc, make([]byte, 40)), want: ReasonNotSupported},
		{hook: "into node", frame: ethernet(0x86dd, make([]byte, 40)), want: ReasonNotOurs},
		{hook: "out of node", frame: ethernet(0x86dd, make([]byte, 40)), want: ReasonNotOurs},
		{hook: "from a", in: ip(podA, podB, raw(make([]byte, 8))), want: ReasonNotSupported},
	}},
	{name: "malformed", steps: []step{
		{hook: "from a", frame: ethernet(0x0800, make([]byte, 30)), want: ReasonNotSupported},
		{hook: "from a", frame: packet(ip(podA, podB, tcp(1, 2, "S")))[:14+20+12], want: ReasonInvalid},
		{hook: "from a", frame: packet(ip(podA, podB, udp(1, 2)))[:14+20+6], want: ReasonInvalid},
	}},
	{name: "IP options", steps: []step{
		{hook: "from a", in: ip(podA, podB, tcp(1000, 80, "S")).withOptions(8), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, far, tcp(1000, 80, "S")).withOptions(8), change: onlyC, want: ReasonTunnelled,
			out: ip(podA, podC, tcp(1000, 8080, "S")).withOptions(8)},
	}},
	{name: "nothing passes before settings are there", state: func(n *node) { unset(n, n.m.Settings, 0) }, steps: []step{
		{hook: "from a", in: ip(podA, podB, udp(1, 2)), want: ReasonNotReady},
		{hook: "to a", in: ip(world, podA, udp(1, 2)), want: ReasonNotReady},
		{hook: "out of tunnel", in: ip(podC, podA, udp(1, 2)), want: ReasonNotReady},
		{hook: "into tunnel", in: ip(podA, podC, udp(1, 2)), want: ReasonNotReady},
		{hook: "into node", in: ip(world, podA, udp(1, 2)), want: ReasonNotReady},
		{hook: "into node", in: ip(world, "192.0.2.1", udp(1, 2)), want: ReasonNotOurs},
	}},
}

var policyCases = []packetCase{
	{name: "default deny of egress", state: deny(Egress), steps: []step{
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "S")), want: ReasonPolicyDenied, check: func(n *node, s sent) {
			e := s.event
			if e.SrcIdentity != idA || e.DstIdentity != idC || e.Set != 7 || e.Dir != Egress || e.Proto != 6 ||
				e.Src != addr(podA) || e.Dport.Number() != 80 || e.TCPFlags != 2 || e.PolicyGen != 1 {
				n.Errorf("event %+v", *e)
			}
			flowsAre(0)(n, s)
		}},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(9, 80, "S")), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, podC, tcp(80, 9, "SA")), want: ReasonTunnelled},
	}},
	{name: "default deny of ingress", state: deny(Ingress), steps: []step{
		{hook: "out of tunnel", in: ip(podC, podA, tcp(9, 80, "S")), want: ReasonPolicyDenied, check: func(n *node, s sent) {
			if e := s.event; e.SrcIdentity != idC || e.DstIdentity != idA || e.Dir != Ingress {
				n.Errorf("event %+v", *e)
			}
		}},
		{hook: "from b", in: ip(podB, podA, tcp(9, 80, "S")), want: ReasonPolicyDenied},
		{hook: "into node", in: ip(world, podA, tcp(9, 80, "S")), want: ReasonPolicyDenied},
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "S")), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(80, 1000, "SA")), want: ReasonDelivered},
	}},
	{name: "same node asks egress of one and ingress of the other", state: func(n *node) {
		n.policy(podB, Ingress)
	}, steps: []step{
		{hook: "from a", in: ip(podA, podB, tcp(1000, 80, "S")), want: ReasonPolicyDenied, check: func(n *node, s sent) {
			if s.event.Dir != Ingress {
				n.Errorf("event %+v", *s.event)
			}
		}},
	}},
	{name: "lookup order: port, protocol, class, then anyone", state: func(n *node) {
		n.policy(podA, Egress)
		n.class(5, idC)
		n.portClass(1, 6, 80)
		n.rule(PolicyKey{Class: 5, Proto: 6, Port: 1}, PolicyEntry{Rule: 11})
		n.rule(PolicyKey{Class: 5, Proto: 6}, PolicyEntry{Rule: 12, Deny: 1})
		n.rule(PolicyKey{Class: 5}, PolicyEntry{Rule: 13})
		n.rule(PolicyKey{Class: AnyClass, Proto: 6, Port: 1}, PolicyEntry{Rule: 14, Deny: 1})
		n.rule(PolicyKey{Class: AnyClass, Proto: 17}, PolicyEntry{Rule: 15})
	}, steps: []step{
		{hook: "from a", in: ip(podA, podC, tcp(1, 80, "S")), want: ReasonTunnelled, check: func(n *node, _ sent) {
			if f, _ := n.flow(podA, 1, podC, 80, 6); f.Rule != 11 {
				n.Errorf("flow %+v", f)
			}
		}},
		{hook: "from a", in: ip(podA, podC, tcp(1, 81, "S")), want: ReasonPolicyDenied, rule: 12},
		{hook: "from a", in: ip(podA, podC, udp(1, 81)), want: ReasonTunnelled},
		{hook: "from a", in: ip(podA, podD, tcp(1, 80, "S")), want: ReasonPolicyDenied, rule: 14},
		{hook: "from a", in: ip(podA, podD, udp(1, 80)), want: ReasonTunnelled},
		{hook: "from a", in: ip(podA, podD, tcp(1, 81, "S")), want: ReasonPolicyDenied},
	}},
	{name: "no entry is looked up of a shape that its set has not", state: func(n *node) {
		n.policy(podA, Egress)
		n.class(5, idC)
		n.portClass(1, 6, 80)
		n.rule(PolicyKey{Class: AnyClass, Proto: 6, Port: 1}, PolicyEntry{Rule: 1})
		n.rule(PolicyKey{Class: 5}, PolicyEntry{Rule: 2})
		// Not told to the set.
		set(n, n.m.Policy, PolicyKey{Gen: 1, Set: 7, Class: 5, Proto: protoInFamily(6)}, PolicyEntry{Rule: 3, Deny: 1})
	}, steps: []step{
		{hook: "from a", in: ip(podA, podC, tcp(1, 81, "S")), want: ReasonTunnelled},
		{hook: "from a", in: ip(podA, podD, tcp(1, 80, "S")), want: ReasonTunnelled},
		{hook: "from a", in: ip(podA, podD, tcp(1, 81, "S")), want: ReasonPolicyDenied},
		{change: func(n *node) { // an older agent's row, which says nothing of shapes
			set(n, n.m.Sets, SetKey{Gen: 1, Set: 7}, SetInfo{Enforced: [2]uint8{1, 0}})
			n.change(nil)
		}, hook: "from a", in: ip(podA, podC, tcp(2, 81, "S")), want: ReasonPolicyDenied, rule: 3},
		{hook: "from a", in: ip(podA, podD, tcp(2, 80, "S")), want: ReasonTunnelled},
	}},
	{name: "a rule for ICMP names the type", only: "IPv4", state: func(n *node) {
		n.policy(podA, Egress)
		n.portClass(3, 1, 8)
		n.rule(PolicyKey{Class: AnyClass, Proto: 1, Port: 3}, PolicyEntry{Rule: 4})
	}, steps: []step{
		{hook: "from a", in: ip(podA, podC, echo(77)), want: ReasonTunnelled},
		{hook: "from a", in: ip(podA, podC, udp(1, 8)), want: ReasonPolicyDenied},
		{hook: "from a", in: ip(podA, podC, echo(77).of(13)), want: ReasonPolicyDenied},
		{hook: "from a", in: ip(podA, podC, echo(77).of(40)), want: ReasonPolicyDenied},
	}},
	{name: "a rule for any type of ICMP", only: "IPv4", state: func(n *node) {
		n.policy(podA, Ingress)
		n.portClass(4, 1, 13)
		n.portClass(5, 1, 40)
		n.rule(PolicyKey{Class: AnyClass, Dir: Ingress, Proto: 1, Port: 4}, PolicyEntry{Rule: 5})
		n.rule(PolicyKey{Class: AnyClass, Dir: Ingress, Proto: 1, Port: 5}, PolicyEntry{Rule: 6})
	}, steps: []step{
		{hook: "out of tunnel", in: ip(podC, podA, echo(7).of(13)), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, podC, echo(7).of(14)), want: ReasonTunnelled, check: flowsAre(1)},
		{hook: "out of tunnel", in: ip(podC, podA, echo(7).of(40)), want: ReasonDelivered},
		{hook: "out of tunnel", in: ip(podC, podA, echo(7)), want: ReasonPolicyDenied},
		{hook: "out of tunnel", in: ip(podC, podA, echo(7).of(41)), want: ReasonPolicyDenied},
		{change: func(n *node) { n.change(nil) }, hook: "out of tunnel", in: ip(podC, podA, echo(7).of(13)), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, podC, echo(7).of(14)), want: ReasonTunnelled},
		{change: func(n *node) {
			unset(n, n.m.Policy, PolicyKey{Gen: 1, Set: 7, Class: AnyClass, Dir: Ingress, Proto: 1, Port: 4})
			n.change(nil)
		},
			hook: "from a", in: ip(podA, podC, echo(7).of(14)), want: ReasonPolicyDenied, check: under(Ingress)},
	}},
	{name: "a policy change ends an established flow at its next packet", steps: []step{
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "S")), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(80, 1000, "SA")), want: ReasonDelivered},
		{change: deny(Egress), hook: "out of tunnel", in: ip(podC, podA, tcp(80, 1000, "A")), want: ReasonPolicyDenied, check: under(Egress)},
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "A")), want: ReasonPolicyDenied},
	}},
	{name: "what the asked pod repeats does not open the ended flow again", steps: []step{
		{hook: "out of tunnel", in: ip(podC, podA, tcp(9, 80, "S")), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, podC, tcp(80, 9, "SA")), want: ReasonTunnelled},
		{change: deny(Ingress), hook: "out of tunnel", in: ip(podC, podA, tcp(9, 80, "A")), want: ReasonPolicyDenied},
		{hook: "from a", in: ip(podA, podC, tcp(80, 9, "A")), want: ReasonPolicyDenied, check: under(Ingress)},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(9, 80, "A")), want: ReasonPolicyDenied, check: under(Ingress)},
		{change: ages(time.Hour), hook: "from a", in: ip(podA, podC, tcp(80, 9, "A")), want: ReasonPolicyDenied},
	}},
	{name: "nor of a flow without connections, however long it goes on", steps: []step{
		{hook: "out of tunnel", in: ip(podC, podA, udp(9, 80)), want: ReasonDelivered},
		{change: deny(Ingress), hook: "from a", in: ip(podA, podC, udp(80, 9)), want: ReasonPolicyDenied},
		{change: ages(40 * time.Second), hook: "from a", in: ip(podA, podC, udp(80, 9)), want: ReasonPolicyDenied},
		{change: ages(40 * time.Second), hook: "from a", in: ip(podA, podC, udp(80, 9)), want: ReasonPolicyDenied, check: flowsAre(1)},
	}},
	{name: "a flow that may again goes on where it was", steps: []step{
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "S")), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(80, 1000, "SA")), want: ReasonDelivered},
		{change: deny(Egress), hook: "from a", in: ip(podA, podC, tcp(1000, 80, "A")), want: ReasonPolicyDenied},
		{change: func(n *node) { n.rule(PolicyKey{Class: AnyClass}, PolicyEntry{Rule: 3}); n.change(nil) },
			hook: "from a", in: ip(podA, podC, tcp(1000, 80, "A")), want: ReasonTunnelled, check: flowsAre(1)},
	}},
	{name: "who is who when a policy change ends a flow with an answer", steps: []step{
		{hook: "out of tunnel", in: ip(podC, podA, tcp(9, 80, "S")), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "S")), want: ReasonTunnelled},
		{change: deny(Ingress), hook: "from a", in: ip(podA, podC, tcp(80, 9, "SA")), want: ReasonPolicyDenied, check: talk(idA, idC)},
		{change: deny(Egress), hook: "out of tunnel", in: ip(podC, podA, tcp(80, 1000, "SA")), want: ReasonPolicyDenied, check: talk(idC, idA)},
	}},
	{name: "a policy change that does not concern a flow keeps it", steps: []step{
		{hook: "out of tunnel", in: ip(podC, podA, tcp(9, 80, "S")), want: ReasonDelivered},
		{change: deny(Egress), hook: "from a", in: ip(podA, podC, tcp(80, 9, "SA")), want: ReasonTunnelled, check: func(n *node, _ sent) {
			if f, _ := n.flow(podA, 80, podC, 9, 6); f.Revision != 2 {
				n.Errorf("flow %+v", f)
			}
		}},
	}},
	{name: "a change of identity is seen by an established flow", state: func(n *node) {
		n.policy(podA, Egress)
		n.class(5, idC)
		n.rule(PolicyKey{Class: 5}, PolicyEntry{Rule: 1})
	}, steps: []step{
		{hook: "from a", in: ip(podA, podC, udp(1, 80)), want: ReasonTunnelled},
		{change: func(n *node) {
			set(n, n.m.IPs, addr(podC), IPInfo{Identity: idD, Cluster: 2, Node: 3, Flags: IPMember})
			n.change(nil)
		}, hook: "from a", in: ip(podA, podC, udp(1, 80)), want: ReasonPolicyDenied},
	}},
	{name: "another generation of policy counts when settings say so", state: func(n *node) {
		n.policy(podA, Egress)
		set(n, n.m.Policy, PolicyKey{Gen: 2, Set: 7, Class: AnyClass}, PolicyEntry{Rule: 21})
		set(n, n.m.Sets, SetKey{Gen: 2, Set: 7}, SetInfo{Enforced: [2]uint8{1, 0}})
	}, steps: []step{
		{hook: "from a", in: ip(podA, podC, udp(1, 80)), want: ReasonPolicyDenied},
		{change: func(n *node) { n.change(func(s *Settings) { s.PolicyGen = 2 }) }, hook: "from a", in: ip(podA, podC, udp(1, 80)), want: ReasonTunnelled},
	}},
	{name: "a set that is not in the kernel denies", state: func(n *node) {
		ep, _, _ := n.m.Endpoints.Lookup(addr(podA))
		ep.Set = 8
		set(n, n.m.Endpoints, addr(podA), ep)
	}, steps: []step{
		{hook: "from a", in: ip(podA, podC, udp(1, 80)), want: ReasonNoPolicy},
	}},
	{name: "a member without identity is no part of the world", state: func(n *node) {
		n.policy(podA, Egress)
		n.class(9, 2) // world
		n.rule(PolicyKey{Class: 9}, PolicyEntry{Rule: 1})
	}, steps: []step{
		{hook: "from a", in: ip(podA, world, udp(1, 80)), want: ReasonToStack},
		{hook: "from a", in: ip(podA, "10.2.1.99", udp(1, 80)), want: ReasonUnknownMember},
		{change: func(n *node) { n.policy(podA, Ingress) }, hook: "out of tunnel", in: ip("10.2.1.99", podA, udp(1, 80)), want: ReasonUnknownMember},
	}},
	{name: "a traced flow is told about once", state: func(n *node) { n.change(func(s *Settings) { s.Trace = 1 }) }, steps: []step{
		{hook: "from a", in: ip(podA, podC, udp(1, 80)), want: ReasonTunnelled, check: func(n *node, s sent) {
			if s.event == nil || s.event.Type != EventNewFlow || s.event.DstIdentity != idC || s.event.Reason != ReasonTunnelled {
				n.Errorf("event %+v", s.event)
			}
		}},
		{hook: "from a", in: ip(podA, podC, udp(1, 80)), want: ReasonTunnelled, check: func(n *node, s sent) {
			if s.event != nil {
				n.Errorf("event %+v", *s.event)
			}
		}},
	}},
}
