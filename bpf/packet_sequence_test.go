package bpf

import (
	"testing"
	"time"
)

// flags checks that the flow of pod a from port 1000 to c has these flags and
// FlowReplied.
func flags(want FlowFlags) func(*node, sent) {
	return func(n *node, _ sent) {
		n.Helper()
		if f, ok := n.flow(podA, 1000, podC, 80, 6); !ok || f.Flags != want {
			n.Errorf("flow is there: %v, flags %b, want %b", ok, f.Flags, want)
		}
	}
}

const (
	fromA, fromC = "from a", "out of tunnel"
	replied      = FlowReplied
)

// says is a packet of a connection from pod a to c, and the flow's flags after it.
func says(hook, tcpFlags string, seq, ack uint32, data string, want FlowFlags) step {
	if hook == fromA {
		return step{hook: hook, in: ip(podA, podC, tcp(1000, 80, tcpFlags).at(seq, ack).says(data)), want: ReasonTunnelled, check: flags(want)}
	}
	return step{hook: hook, in: ip(podC, podA, tcp(80, 1000, tcpFlags).at(seq, ack).says(data)), want: ReasonDelivered, check: flags(want)}
}

// handshake opens a connection with these numbers.
func handshake(a, c uint32) []step {
	return []step{
		says(fromA, "S", a, 0, "", 0),
		says(fromC, "SA", c, a+1, "", replied),
		says(fromA, "A", a+1, c+1, "", replied),
	}
}

// bulk is what c sends, in segments of 60,000 bytes, each acknowledged.
func bulk(a, c uint32, segments int) (list []step) {
	for range segments {
		list = append(list, says(fromC, "A", c, a, "data", replied))
		c += 60000
		list = append(list, says(fromA, "A", a, c, "", replied))
	}
	return list
}

// later checks that the flow still exists after being idle for so long.
func later(s step) step {
	s.change = ages(11 * time.Second)
	return s
}

func gone() step {
	return step{change: ages(11 * time.Second), hook: fromC, in: ip(podC, podA, tcp(80, 1000, "A")), want: ReasonPolicyDenied}
}

var sequenceCases = []packetCase{
	{name: "a stray reset from outside leaves the flow as it is, the right one ends it", state: deny(Ingress), steps: steps(
		handshake(1000, 5000),
		says(fromC, "R", 900_000_000, 0, "", replied),
		says(fromC, "RA", 4_000_000_000, 1001, "", replied),
		says(fromC, "R", 1<<32-1<<18+5001-2, 0, "", replied),
		says(fromC, "R", 5001+(1<<18)+2, 0, "", replied),
		later(says(fromC, "A", 5001, 1001, "data", replied)),
		says(fromC, "R", 5005, 0, "", replied|FlowReset),
		gone(),
	)},
	{name: "a stray reset from the pod leaves the flow as it is, the right one ends it", state: deny(Ingress), steps: steps(
		handshake(1000, 5000),
		says(fromA, "R", 900_000_000, 0, "", replied),
		says(fromA, "RA", 3_000_000_000, 5001, "", replied),
		later(says(fromC, "A", 5001, 1001, "data", replied)),
		says(fromA, "R", 1001, 0, "", replied|FlowReset),
		gone(),
	)},
	{name: "stray FINs leave the flow as it is, the right ones end it", state: deny(Ingress), steps: steps(
		handshake(1000, 5000),
		says(fromC, "FA", 900_000_000, 1001, "", replied),
		says(fromA, "FA", 2_000_000_000, 5001, "", replied),
		later(says(fromC, "A", 5001, 1001, "data", replied)),
		says(fromA, "FA", 1001, 5005, "", replied|FlowFinLocal),
		says(fromC, "FA", 77_000_000, 1002, "", replied|FlowFinLocal),
		says(fromC, "FA", 5005, 1002, "", replied|FlowFinLocal|FlowFinRemote),
		gone(),
	)},
	{name: "numbers wrap around", state: deny(Ingress), steps: steps(
		handshake(0xffff_fff0, 0xffff_ff00),
		says(fromA, "A", 0xffff_fff1, 0xffff_ff01, "sixteen or more bytes", replied),
		bulk(6, 0xffff_ff01, 5),
		says(fromC, "R", 0x8000_0000, 0, "", replied),
		says(fromA, "R", 0x8000_0000, 0, "", replied),
		says(fromC, "FA", 300_000-255, 6, "", replied|FlowFinRemote),
		says(fromA, "R", 6, 0, "", replied|FlowFinRemote|FlowReset),
	)},
	{name: "numbers wrap around backwards", steps: steps(
		handshake(5, 5),
		says(fromC, "R", 0xffff_fffe, 0, "", replied|FlowReset), // an old one, and near enough
	)},
	{name: "the window moves with the connection", steps: steps(
		handshake(1000, 5000),
		bulk(1001, 5001, 20),
		says(fromC, "R", 5001, 0, "", replied), // of a million bytes ago
		says(fromA, "A", 1001, 5001+20*60000, "", replied),
		says(fromC, "RA", 5001+20*60000, 1001, "", replied|FlowReset),
	)},
	{name: "what is sent again does not move it back", steps: steps(
		handshake(1000, 5000),
		bulk(1001, 5001, 20),
		says(fromC, "A", 5001+19*60000, 1001, "data", replied),
		says(fromC, "A", 5001+16*60000, 1001, "data", replied),
		says(fromC, "FA", 5001+20*60000, 1001, "", replied|FlowFinRemote),
	)},
	{name: "a gap of lost packets does not end it", steps: steps(
		handshake(1000, 5000),
		says(fromC, "A", 5001+4_000_000, 1001, "data", replied),
		says(fromC, "A", 5001, 1001, "data", replied),
		says(fromA, "A", 1001, 5001+60000, "", replied),
		says(fromC, "FA", 5001+4_000_000+1000, 1001, "", replied|FlowFinRemote),
	)},
	{name: "an opening that is refused ends, but not by a stray reset", steps: steps(
		says(fromA, "S", 1000, 0, "", 0),
		says(fromC, "RA", 0, 70_000_000, "", 0),
		says(fromC, "SA", 7000, 80_000_000, "", 0), // half of a connection of before
		says(fromC, "RA", 0, 1001, "", replied|FlowReset),
	)},
	{name: "who opens may give up", steps: steps(
		says(fromA, "S", 1000, 0, "", 0),
		says(fromA, "R", 1001, 0, "", FlowReset),
	)},
	{name: "a flow that was met amid its connection", state: deny(Ingress), steps: steps(
		says(fromA, "A", 100_000_000, 200_000_000, "data", 0),
		says(fromC, "R", 700_000_000, 0, "", 0),
		says(fromC, "A", 202_000_000, 100_000_004, "data", replied),
		says(fromC, "R", 100_000_000, 0, "", replied),
		says(fromC, "R", 202_000_004, 0, "", replied|FlowReset),
	)},
	{name: "a host that knows nothing of the connection ends it", steps: steps(
		says(fromA, "A", 100_000_000, 200_000_000, "data", 0),
		says(fromC, "R", 200_000_000, 0, "", replied|FlowReset),
	)},
	{name: "ports used again, after an end that nobody saw", steps: steps(
		handshake(1000, 5000),
		says(fromA, "S", 3_000_000_000, 0, "", replied),
		says(fromC, "SA", 2_000_000_000, 3_000_000_001, "", replied),
		says(fromA, "A", 3_000_000_001, 2_000_000_001, "", replied),
		says(fromC, "R", 5001, 0, "", replied),
		says(fromA, "R", 1001, 0, "", replied),
		says(fromA, "FA", 3_000_000_001, 2_000_000_001, "", replied|FlowFinLocal),
		says(fromC, "R", 2_000_000_001, 0, "", replied|FlowFinLocal|FlowReset),
	)},
	{name: "a forged SYN does not let a forged reset in", steps: steps(
		handshake(1000, 5000),
		says(fromC, "S", 3_000_000_000, 0, "", replied),
		says(fromA, "A", 1001, 5001, "", replied), // a challenge
		says(fromC, "R", 3_000_000_001, 0, "", replied),
		says(fromC, "SA", 3_000_000_000, 1, "", replied),
		says(fromC, "R", 3_000_000_001, 0, "", replied),
		says(fromC, "A", 5001, 1001, "data", replied),
		says(fromC, "R", 5005, 0, "", replied|FlowReset),
	)},
	{name: "a connection into a pod", state: deny(Egress), steps: []step{
		{hook: fromC, in: ip(podC, podA, tcp(7, 80, "S").at(1000, 0)), want: ReasonDelivered},
		{hook: fromA, in: ip(podA, podC, tcp(80, 7, "SA").at(5000, 1001)), want: ReasonTunnelled},
		{hook: fromC, in: ip(podC, podA, tcp(7, 80, "R").at(70_000_000, 0)), want: ReasonDelivered},
		{hook: fromA, in: ip(podA, podC, tcp(80, 7, "RA").at(70_000_000, 1001)), want: ReasonTunnelled},
		{change: ages(11 * time.Second), hook: fromA, in: ip(podA, podC, tcp(80, 7, "A").at(5001, 1001)), want: ReasonTunnelled},
		{hook: fromC, in: ip(podC, podA, tcp(7, 80, "R").at(1001, 0)), want: ReasonDelivered},
		{change: ages(11 * time.Second), hook: fromA, in: ip(podA, podC, tcp(80, 7, "A").at(5001, 1001)), want: ReasonPolicyDenied},
	}},
	{name: "a connection into a pod that was met at its end", state: deny(Egress), steps: []step{
		{hook: fromC, in: ip(podC, podA, tcp(7, 80, "FA").at(1000, 5000)), want: ReasonDelivered},
		{hook: fromA, in: ip(podA, podC, tcp(80, 7, "FA").at(5000, 1001)), want: ReasonTunnelled},
		{change: ages(11 * time.Second), hook: fromA, in: ip(podA, podC, tcp(80, 7, "A").at(5001, 1001)), want: ReasonPolicyDenied},
	}},
	{name: "a connection through a service", state: onlyC, steps: []step{
		{hook: fromA, in: ip(podA, far, tcp(1000, 80, "S").at(1000, 0)), want: ReasonTunnelled, out: ip(podA, podC, tcp(1000, 8080, "S").at(1000, 0))},
		{hook: fromC, in: ip(podC, podA, tcp(8080, 1000, "SA").at(5000, 1001)), want: ReasonDelivered, out: ip(far, podA, tcp(80, 1000, "SA").at(5000, 1001))},
		{hook: fromC, in: ip(podC, podA, tcp(8080, 1000, "R").at(70_000_000, 0)), want: ReasonDelivered, out: ip(far, podA, tcp(80, 1000, "R").at(70_000_000, 0))},
		{change: ages(11 * time.Second), hook: fromC, in: ip(podC, podA, tcp(8080, 1000, "A").at(5001, 1001)), want: ReasonDelivered, out: ip(far, podA, tcp(80, 1000, "A").at(5001, 1001))},
	}},
	{name: "both flows of pods next door", steps: []step{
		{hook: fromA, in: ip(podA, podB, tcp(1000, 80, "S").at(1000, 0)), want: ReasonDelivered},
		{hook: "from b", in: ip(podB, podA, tcp(80, 1000, "SA").at(5000, 1001)), want: ReasonDelivered},
		{hook: "from b", in: ip(podB, podA, tcp(80, 1000, "R").at(70_000_000, 0)), want: ReasonDelivered, check: nextDoor(replied, FlowRemoteInitiated|replied)},
		{hook: fromA, in: ip(podA, podB, tcp(1000, 80, "FA").at(1001, 5001)), want: ReasonDelivered, check: nextDoor(replied|FlowFinLocal, FlowRemoteInitiated|replied|FlowFinRemote)},
		{hook: "from b", in: ip(podB, podA, tcp(80, 1000, "R").at(5001, 0)), want: ReasonDelivered,
			check: nextDoor(replied|FlowFinLocal|FlowReset, FlowRemoteInitiated|replied|FlowFinRemote|FlowReset)},
	}},
}

// nextDoor checks that the flows of pods a and b have these flags.
func nextDoor(a, b FlowFlags) func(*node, sent) {
	return func(n *node, _ sent) {
		n.Helper()
		if f, _ := n.flow(podA, 1000, podB, 80, 6); f.Flags != a {
			n.Errorf("flow of a has flags %b, want %b", f.Flags, a)
		}
		if f, _ := n.flow(podB, 80, podA, 1000, 6); f.Flags != b {
			n.Errorf("flow of b has flags %b, want %b", f.Flags, b)
		}
	}
}

// The numbers noted are never far behind those sent, wherever the numbers wrap.
func TestSequenceIsNoted(t *testing.T) {
	shared := newNode(t)
	for _, start := range []uint32{1, 1 << 31, 1<<32 - 100_000} {
		n := shared.again(t)
		seq := start
		n.step(0, step{hook: fromA, in: ip(podA, podC, tcp(1000, 80, "S").at(seq, 0)), want: ReasonTunnelled})
		for i := range 200 {
			seq += uint32(1 + i*37%1500)
			n.step(i, step{hook: fromA, in: ip(podA, podC, tcp(1000, 80, "A").at(seq, 9)), want: ReasonTunnelled})
			f, _ := n.flow(podA, 1000, podC, 80, 6)
			if behind := seq - f.Said[Egress].Seq; behind >= 1<<16 {
				t.Fatalf("from %d: %d behind after %d packets", start, behind, i)
			}
		}
	}
}
