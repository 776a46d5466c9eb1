package bpf

import (
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
)

// told are the reasons that a pod is told at once: lib/refuse.h says why.
var told = map[Reason]bool{
	ReasonNoBackend: true, ReasonNoEndpoint: true, ReasonNoTunnel: true, ReasonPathDown: true,
	ReasonFlowClash: true, ReasonNotSupported: true, ReasonFormerMember: true, ReasonNodeAddress: true, ReasonTTLExceeded: true,
}

// answerTo is what the sender of a dropped packet gets instead; nil: nothing.
func answerTo(s step) layer {
	in, ok := s.in.(*ipLayer)
	if !ok || !told[s.want] || !strings.HasPrefix(s.hook, "from ") || in.frag&0x1fff != 0 || in.dst.As4()[0] >= 224 {
		return nil
	}
	src, dst := in.src.String(), in.dst.String()
	unreachable := &icmpLayer{kind: 3, code: 3, quote: in, quoted: 128}
	switch t := in.inner.(type) {
	case *tcpLayer:
		if t.flags&4 != 0 {
			return nil
		}
		if in.options > 0 || s.want == ReasonTTLExceeded {
			break
		}
		if t.flags&16 != 0 {
			return ip(dst, src, tcp(t.dport, t.sport, "R").at(t.ack, 0))
		}
		taken := uint32(t.flags>>1&1) + uint32(t.flags&1) + uint32(len(t.data))
		return ip(dst, src, tcp(t.dport, t.sport, "RA").at(0, t.seq+taken))
	case *icmpLayer:
		if t.kind != 8 && t.kind != 13 {
			return nil
		}
		unreachable.code = 1
	case *udpLayer:
		if s.want == ReasonNotSupported {
			return nil
		}
	default:
		unreachable.code = 2
	}
	if s.want == ReasonTTLExceeded {
		unreachable.kind, unreachable.code, dst = 11, 0, nodeInternal
	}
	return ip(dst, src, unreachable)
}

// resetOf is the answer to a SYN.
func resetOf(in *ipLayer) layer {
	t := in.inner.(*tcpLayer)
	return ip(in.dst.String(), in.src.String(), tcp(t.dport, t.sport, "RA").at(0, t.seq+1))
}

func broadcast(frame []byte) []byte {
	return append(slices.Repeat([]byte{0xff}, 6), frame[6:]...)
}

var refusalCases = []packetCase{
	{name: "a service without backends is refused, under default deny too", state: deny(Egress), steps: []step{
		{hook: "from a", in: ip(podA, empty, tcp(1000, 80, "S").at(7, 0)), want: ReasonNoBackend, out: resetOf(ip(podA, empty, tcp(1000, 80, "S").at(7, 0)))},
		{hook: "from a", in: ip(podA, empty, udp(1000, 80).says("odd")), want: ReasonNoBackend,
			out: ip(empty, podA, (&icmpLayer{kind: 3, code: 3, quoted: 128}).quoting(ip(podA, empty, udp(1000, 80).says("odd"))))},
		{hook: "from a", in: ip(podA, empty, &sctpLayer{1000, 80}), want: ReasonNoBackend,
			out: ip(empty, podA, (&icmpLayer{kind: 3, code: 2, quoted: 128}).quoting(ip(podA, empty, &sctpLayer{1000, 80}))), check: flowsAre(0)},
	}},
	{name: "in the middle of a connection that nobody knows", steps: []step{
		{hook: "from a", in: ip(podA, empty, tcp(1000, 80, "PA").at(7, 9).says("more")), want: ReasonNoBackend,
			out: ip(empty, podA, tcp(80, 1000, "R").at(9, 0))},
		{hook: "from a", in: ip(podA, empty, tcp(1000, 80, "S").at(7, 0).says("fast open")), want: ReasonNoBackend,
			out: ip(empty, podA, tcp(80, 1000, "RA").at(0, 7+1+9))},
		{hook: "from a", in: ip(podA, empty, tcp(1000, 80, "R")), want: ReasonInvalid},
	}},
	{name: "a ping of a service", state: func(n *node) {
		set(n, n.m.Prefixes, prefix("10.101.0.0/16"), IPInfo{Identity: 2, Flags: IPService})
	}, steps: []step{
		{hook: "from a", in: ip(podA, near, echo(7)), want: ReasonNoBackend,
			out: ip(near, podA, (&icmpLayer{kind: 3, code: 1, quoted: 128}).quoting(ip(podA, near, echo(7))))},
	}},
	{name: "what policy denies is not answered, hopeless or not", state: deny(Egress), steps: []step{
		{change: nodeDies(3), hook: "from a", in: ip(podA, podC, tcp(1000, 80, "S")), want: ReasonPolicyDenied},
		{hook: "from a", in: ip(podA, "10.1.1.200", tcp(1000, 80, "S")), want: ReasonUnknownMember},
		{hook: "from a", in: ip(podA, "10.2.9.9", tcp(1000, 80, "S")), want: ReasonUnknownMember},
	}},
	{name: "a long packet is quoted in part, one with IP options behind them", steps: []step{
		{hook: "from a", in: ip(podA, empty, udp(1000, 80).says(strings.Repeat("long", 100))), want: ReasonNoBackend},
		{hook: "from a", in: ip(podA, empty, udp(1000, 80).says("word")).withOptions(40), want: ReasonNoBackend},
		{hook: "from a", in: ip(podA, empty, tcp(1000, 80, "S")).withOptions(8), want: ReasonNoBackend},
		{hook: "from a", in: ip(podA, empty, udp(1000, 80).unchecked()), want: ReasonNoBackend},
	}},
	{name: "of pieces the first is answered and no other", steps: []step{
		{hook: "from a", in: ip(podA, empty, udp(1000, 80).says("eight by")).piece(5, 0, true), want: ReasonNoBackend},
		{hook: "from a", in: rest(podA, empty, 5), want: ReasonNoBackend},
	}},
	{name: "protocols that are not carried", only: "IPv4", steps: []step{
		{hook: "from a", in: ip(podA, podC, raw(make([]byte, 8))), want: ReasonNotSupported,
			out: ip(podC, podA, (&icmpLayer{kind: 3, code: 2, quoted: 128}).quoting(ip(podA, podC, raw(make([]byte, 8)))))},
		{hook: "from a", in: ip(podA, "224.0.0.22", raw(make([]byte, 8))), want: ReasonNotSupported},
		{hook: "from a", in: ip(podB, podC, raw(make([]byte, 8))), want: ReasonNotSupported, silent: true},
		{hook: "from a", frame: broadcast(packet(ip(podA, "10.1.1.255", udp(1, 2)))), want: ReasonNoEndpoint},
		{hook: "from a", in: ip(podA, "10.1.1.255", udp(1, 2)), want: ReasonNoEndpoint},
	}},
	{name: "a backend of this node that is gone", steps: []step{
		{hook: "from a", in: ip(podA, near, udp(1000, 80)), want: ReasonDelivered, out: ip(podA, podB, udp(1000, 8080))},
		{change: func(n *node) { unset(n, n.m.Endpoints, addr(podB)) }, hook: "from a", in: ip(podA, near, udp(1000, 80)), want: ReasonNoEndpoint,
			check: through(near, podA, podB)},
	}},
}

// Few of a pod's flood of hopeless datagrams are answered; another pod's are, and
// resets are not limited.
func TestErrorsAreLimited(t *testing.T) {
	n := newNode(t)
	const sent = 5000
	in := packet(ip(podA, empty, udp(1000, 80)))
	answered := 0
	for range sent {
		action, err := n.progs["from_pod"].Run(&ebpf.RunOptions{Data: in, Context: skb{Ifindex: uint32(n.a)}, Repeat: 1})
		if err != nil {
			t.Fatal(err)
		}
		if action == redirect {
			answered++
		}
	}
	if answered < 100 || answered > sent/2 {
		t.Errorf("%d of %d answered, want 100 and one more every 10 ms", answered, sent)
	}
	n.step(1, step{hook: "from b", in: ip(podB, empty, udp(1000, 80)), want: ReasonNoBackend})
	n.step(2, step{hook: "from a", in: ip(podA, empty, tcp(1000, 80, "S")), want: ReasonNoBackend})
}

// With Config.Unreachable "drop", nobody is told anything and nothing else changes.
func TestUnreachableDrop(t *testing.T) {
	shared := newNodeWith(t, func(c *Config) { c.Unreachable = UnreachableDrop })
	for _, c := range packetTable {
		if !c.applies() {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			c.steps = slices.Clone(c.steps)
			for i := range c.steps {
				s := &c.steps[i]
				if s.want.Drop() {
					s.silent, s.out = true, nil
				}
			}
			shared.again(t).play(c)
		})
	}
}

var hopCases = []packetCase{
	{name: "time to live: what has none left is not forwarded, and the pod is told by the node", steps: []step{
		{hook: "from a", in: ip(podA, podC, udp(1000, 33434)).withTTL(1), want: ReasonTTLExceeded, check: flowsAre(0),
			out: ip(nodeInternal, podA, (&icmpLayer{kind: 11, quoted: 128}).quoting(ip(podA, podC, udp(1000, 33434)).withTTL(1)))},
		{hook: "from a", in: ip(podA, podC, udp(1000, 33434)).withTTL(0), want: ReasonTTLExceeded},
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "S")).withTTL(1), want: ReasonTTLExceeded},
		{hook: "from a", in: ip(podA, podC, echo(7)).withTTL(1), want: ReasonTTLExceeded},
		{hook: "from a", in: ip(podA, podB, udp(1000, 80)).withTTL(1), want: ReasonTTLExceeded},
		{hook: "from a", in: ip(podA, near, tcp(1000, 80, "S")).withTTL(1), want: ReasonTTLExceeded, check: through(near, podA, podB)},
		{hook: "from b", in: ip(podB, near, tcp(1000, 80, "S")).withTTL(1), want: ReasonTTLExceeded},
	}},
	{name: "time to live: within a flow", steps: []step{
		{hook: "from a", in: ip(podA, podC, udp(1000, 80)).withTTL(2), want: ReasonTunnelled},
		{hook: "from a", in: ip(podA, podC, udp(1000, 80)).withTTL(1), want: ReasonTTLExceeded},
		{hook: "out of tunnel", in: ip(podC, podA, udp(80, 1000)).withTTL(2), want: ReasonDelivered},
		{hook: "out of tunnel", in: ip(podC, podA, udp(80, 1000)).withTTL(1), want: ReasonTTLExceeded},
		{hook: "out of tunnel", in: ip(podC, podA, echo(7)).withTTL(0), want: ReasonTTLExceeded},
		{hook: "into node", in: ip(world, podA, udp(80, 1000)).withTTL(1), want: ReasonTTLExceeded},
		{hook: "from a", in: ip(podA, podC, portUnreachable().quoting(ip(podC, podA, udp(80, 1000)))).withTTL(1), want: ReasonTTLExceeded},
	}},
	{name: "time to live: the stack counts for itself", steps: []step{
		{hook: "from a", in: ip(podA, world, udp(1000, 53)).withTTL(1), want: ReasonToStack},
		{hook: "from a", in: ip(podA, nodeInternal, udp(1000, 53)).withTTL(1), want: ReasonToStack},
		{hook: "to a", in: ip(nodeInternal, podA, udp(53, 1000)).withTTL(1), want: ReasonDelivered},
		{hook: "forwarded to a", in: ip(world, podA, udp(53, 1000)).withTTL(1), want: ReasonDelivered},
	}},
}
