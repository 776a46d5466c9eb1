package bpf

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf/asm"
)

// raise raises the revisions of these addresses or identities.
func (n *node) raise(rows ...uint32) {
	n.Helper()
	for _, i := range rows {
		raise(n, n.m.Revisions, i)
	}
}

func (n *node) judgedAgain() uint64 {
	n.Helper()
	count, err := n.JudgedAgain()
	if err != nil {
		n.Fatal(err)
	}
	return count
}

// onlyEgressTo puts pod a under a policy that allows it to send to these identities.
func onlyEgressTo(identities ...uint32) func(*node) {
	return func(n *node) {
		n.policy(podA, Egress)
		n.class(1, identities...)
		n.rule(PolicyKey{Class: 1, Dir: Egress}, PolicyEntry{Rule: 5})
	}
}

func onlyIngressFrom(identities ...uint32) func(*node) {
	return func(n *node) {
		n.policy(podA, Ingress)
		n.class(1, identities...)
		n.rule(PolicyKey{Class: 1, Dir: Ingress}, PolicyEntry{Rule: 5})
	}
}

// narrowChanges withdraw a right by one row and raise the revision of what it is about.
// first opens a flow; then is the next packet after the change. bystander is a packet
// of another flow of the same pod, which the change does not concern.
var narrowChanges = []struct {
	name      string
	state     func(*node)
	first     step
	change    func(*node)
	then      step
	bystander step
}{
	{
		name: "an address gets another identity", state: onlyEgressTo(idC, idE),
		first: toC(ReasonTunnelled), then: toC(ReasonPolicyDenied), bystander: toE,
		change: func(n *node) {
			set(n, n.m.IPs, addr(podC), IPInfo{Identity: 131299, Cluster: 2, Node: 3, Flags: IPMember})
			n.raise(RevisionOf(addr(podC)))
		},
	},
	{
		name: "an address is no longer known", state: onlyEgressTo(idC, idE),
		first: toC(ReasonTunnelled), then: toC(ReasonUnknownMember), bystander: toE,
		change: func(n *node) {
			unset(n, n.m.IPs, addr(podC))
			n.raise(RevisionOf(addr(podC)))
		},
	},
	{
		name: "an address moves to another node", state: onlyEgressTo(idC, idE),
		first: toC(ReasonTunnelled), bystander: toE,
		change: func(n *node) {
			set(n, n.m.IPs, addr(podC), IPInfo{Identity: idC, Cluster: 2, Node: 4, Flags: IPMember})
			n.raise(RevisionOf(addr(podC)))
		},
		then: step{hook: fromA, in: ip(podA, podC, tcp(1000, 80, "A")), want: ReasonTunnelled, check: func(n *node, _ sent) {
			if f, _ := n.flow(podA, 1000, podC, 80, 6); f.Node != 4 {
				n.Errorf("flow goes to node %d", f.Node)
			}
		}},
	},
	{
		name: "a single address moves into a class that is denied", state: func(n *node) {
			onlyEgressTo(idC, idE)(n)
			n.rule(PolicyKey{Class: 2, Dir: Egress}, PolicyEntry{Rule: 6, Deny: 1})
		},
		first: toC(ReasonTunnelled), bystander: toE,
		change: func(n *node) {
			n.class(2, idC)
			n.raise(RevisionOfIdentity(idC))
		},
		then: step{hook: fromA, in: ip(podA, podC, tcp(1000, 80, "A")), want: ReasonPolicyDenied, rule: 6},
	},
	{
		name: "an identity has no class any more", state: onlyEgressTo(idC, idE),
		first: toC(ReasonTunnelled), then: toC(ReasonPolicyDenied), bystander: toE,
		change: func(n *node) {
			unset(n, n.m.Classes, ClassKey{Gen: 1, Identity: idC})
			n.raise(RevisionOfIdentity(idC))
		},
	},
	{
		name: "an answer comes from an address that is another's now", state: onlyEgressTo(idC, idE),
		first: toC(ReasonTunnelled), bystander: toE,
		change: func(n *node) {
			set(n, n.m.IPs, addr(podC), IPInfo{Identity: 131299, Cluster: 2, Node: 3, Flags: IPMember})
			n.raise(RevisionOf(addr(podC)))
		},
		then: step{hook: fromC, in: ip(podC, podA, tcp(80, 1000, "SA")), want: ReasonPolicyDenied},
	},
	{
		name: "an error is about a flow with an address that is another's now", state: onlyEgressTo(idC, idE),
		first: toC(ReasonTunnelled), bystander: toE,
		change: func(n *node) {
			set(n, n.m.IPs, addr(podC), IPInfo{Identity: 131299, Cluster: 2, Node: 3, Flags: IPMember})
			n.raise(RevisionOf(addr(podC)))
		},
		then: step{hook: fromC, in: ip(podC, podA, &icmpLayer{kind: 3, code: 3, quote: ip(podA, podC, tcp(1000, 80, "S")), quoted: 128}),
			want: ReasonPolicyDenied},
	},
	{
		name: "whoever spoke first has another identity", state: onlyIngressFrom(idC, idD),
		first: step{hook: fromC, in: ip(podC, podA, tcp(5000, 80, "S")), want: ReasonDelivered},
		change: func(n *node) {
			set(n, n.m.IPs, addr(podC), IPInfo{Identity: 131299, Cluster: 2, Node: 3, Flags: IPMember})
			n.raise(RevisionOf(addr(podC)))
		},
		then:      step{hook: fromC, in: ip(podC, podA, tcp(5000, 80, "A")), want: ReasonPolicyDenied},
		bystander: step{hook: fromC, in: ip(podD, podA, tcp(5000, 80, "S")), want: ReasonDelivered},
	},
	{
		name: "whoever spoke first is in another class", state: onlyIngressFrom(idC, idD),
		first: step{hook: fromC, in: ip(podC, podA, tcp(5000, 80, "S")), want: ReasonDelivered},
		change: func(n *node) {
			unset(n, n.m.Classes, ClassKey{Gen: 1, Identity: idC})
			n.raise(RevisionOfIdentity(idC))
		},
		then:      step{hook: fromA, in: ip(podA, podC, tcp(80, 5000, "SA")), want: ReasonPolicyDenied},
		bystander: step{hook: fromC, in: ip(podD, podA, tcp(5000, 80, "S")), want: ReasonDelivered},
	},
	{
		name: "the pod gets another policy set", first: toC(ReasonTunnelled), then: toC(ReasonPolicyDenied),
		change: func(n *node) {
			set(n, n.m.Sets, SetKey{Gen: 1, Set: 8}, SetInfo{Enforced: [2]uint8{1, 1}})
			ep, _, _ := n.m.Endpoints.Lookup(addr(podA))
			ep.Set = 8
			set(n, n.m.Endpoints, addr(podA), ep)
			n.raise(RevisionOf(addr(podA)))
		},
		bystander: step{hook: "from b", in: ip(podB, podC, tcp(1000, 80, "S")), want: ReasonTunnelled},
	},
	{
		name: "the pod is held", first: toC(ReasonTunnelled), then: toC(ReasonHeld),
		change: func(n *node) {
			ep, _, _ := n.m.Endpoints.Lookup(addr(podA))
			ep.Held = 1
			set(n, n.m.Endpoints, addr(podA), ep)
			n.raise(RevisionOf(addr(podA)))
		},
		bystander: step{hook: "from b", in: ip(podB, podC, tcp(1000, 80, "S")), want: ReasonTunnelled},
	},
	{
		name: "the pod next door has another identity", state: onlyEgressTo(idB, idE),
		first: step{hook: fromA, in: ip(podA, podB, tcp(1000, 80, "S")), want: ReasonDelivered},
		change: func(n *node) {
			ep, _, _ := n.m.Endpoints.Lookup(addr(podB))
			ep.Identity = 65699
			set(n, n.m.Endpoints, addr(podB), ep)
			n.raise(RevisionOf(addr(podB)))
		},
		then:      step{hook: fromA, in: ip(podA, podB, tcp(1000, 80, "A")), want: ReasonPolicyDenied},
		bystander: toE,
	},
	{
		name: "a backend leaves its service", state: func(n *node) {
			set(n, n.m.Nodes, 4, Node{Keyed: 1, Cluster: 2}) // dead, so that c is chosen
		},
		first: step{hook: fromA, in: ip(podA, far, udp(1000, 80)), want: ReasonTunnelled, out: ip(podA, podC, udp(1000, 8080))},
		change: func(n *node) {
			set(n, n.m.Nodes, 4, Node{Path: PathAlive, Keyed: 1, Cluster: 2})
			set(n, n.m.Backends, SlotKey{Service: 81, Slot: 0, Cluster: 2}, Backend{Addr: addr(podD), Port: PortOf(8080), Node: 4})
			unset(n, n.m.Members, MemberKey{Service: 81, Addr: addr(podC), Port: PortOf(8080)})
			n.raise(RevisionOf(addr(podC)))
		},
		then:      step{hook: fromA, in: ip(podA, far, udp(1000, 80)), want: ReasonTunnelled, out: ip(podA, podD, udp(1000, 8080))},
		bystander: toE,
	},
	{
		name: "a node's prefix leads elsewhere", state: func(n *node) {
			unset(n, n.m.IPs, addr(podC)) // so that the prefix decides
		},
		first: toC(ReasonTunnelled), bystander: toE,
		change: func(n *node) {
			set(n, n.m.Prefixes, prefix("10.2.1.0/24"), IPInfo{Cluster: 2, Flags: IPMember})
			rows, ok := RevisionsOf(prefix("10.2.1.0/24"))
			if !ok {
				n.Fatal("10.2.1.0/24 has no revisions")
			}
			n.raise(slices.Collect(rows)...)
		},
		then: step{hook: fromA, in: ip(podA, podC, tcp(1000, 80, "A")), want: ReasonNoTunnel},
	},
}

func toC(want Reason) step {
	return step{hook: fromA, in: ip(podA, podC, tcp(1000, 80, map[bool]string{true: "A", false: "S"}[want.Drop()])), want: want}
}

var toE = step{hook: fromA, in: ip(podA, podE, tcp(1000, 80, "S")), want: ReasonTunnelled}

// A change withdraws a right from the next packet on, and no other flow is judged again.
func TestChangeDisturbsOnlyWhatItConcerns(t *testing.T) {
	shared := newNode(t)
	for _, c := range narrowChanges {
		t.Run(c.name, func(t *testing.T) {
			n := shared.again(t)
			if c.state != nil {
				c.state(n)
			}
			again := func(s step) uint64 {
				before := n.judgedAgain()
				n.step(0, s)
				return n.judgedAgain() - before
			}
			if again(c.first) != 0 || again(c.bystander) != 0 {
				t.Error("a new flow counts as judged again")
			}
			quiet := c.bystander
			quiet.in = retry(quiet.in)
			if again(quiet) != 0 {
				t.Error("a flow is judged again although nothing changed")
			}
			c.change(n)
			if again(quiet) != 0 {
				t.Error("a flow is judged again that the change does not concern")
			}
			if again(c.then) != 1 {
				t.Error("the flow that the change concerns is not judged again")
			}
			if again(quiet) != 0 {
				t.Error("a flow is judged again after another one was")
			}
		})
	}
}

// retry is the packet of a connection after its first.
func retry(l layer) layer {
	in := *l.(*ipLayer)
	in.inner = tcp(in.inner.(*tcpLayer).sport, in.inner.(*tcpLayer).dport, "A")
	return &in
}

// A raised Settings.Revision, and a wide prefix needs one, concerns every flow, once.
func TestWideChangeConcernsEveryFlow(t *testing.T) {
	n := newNode(t)
	flows := []step{toC(ReasonTunnelled), toE, {hook: "from b", in: ip(podB, podC, tcp(1000, 80, "S")), want: ReasonTunnelled}}
	round := func() uint64 {
		before := n.judgedAgain()
		for i, s := range flows {
			n.step(i, s)
		}
		return n.judgedAgain() - before
	}
	round()
	if _, ok := RevisionsOf(prefix("10.2.0.0/16")); ok {
		t.Error("10.2.0.0/16 has revisions of its own")
	}
	n.change(nil)
	for i := range flows {
		flows[i].in = retry(flows[i].in)
	}
	if first, second := round(), round(); first != 3 || second != 0 {
		t.Errorf("%d, then %d flows were judged again; want 3, then 0", first, second)
	}
}

// A backend that leaves while it is being chosen does not stay: its flow is judged again.
func TestBackendLeavesWhileChosen(t *testing.T) {
	n := newNode(t)
	unset(n, n.m.Members, MemberKey{Service: 81, Addr: addr(podC), Port: PortOf(8080)})
	onlyC(n)
	n.step(1, step{hook: fromA, in: ip(podA, far, udp(1000, 80)), want: ReasonTunnelled, out: ip(podA, podC, udp(1000, 8080))})
	set(n, n.m.Nodes, 4, Node{Path: PathAlive, Keyed: 1, Cluster: 2})
	set(n, n.m.Backends, SlotKey{Service: 81, Slot: 0, Cluster: 2}, Backend{Addr: addr(podD), Port: PortOf(8080), Node: 4})
	n.step(2, step{hook: fromA, in: ip(podA, far, udp(1000, 80)), want: ReasonTunnelled, out: ip(podA, podD, udp(1000, 8080))})
}

// Go and C agree on the rows, and addresses of a prefix spread over them.
func TestRevisionRows(t *testing.T) {
	n := newNode(t)
	for _, a := range []string{podC, podE} {
		n.step(0, step{hook: fromA, in: ip(podA, a, tcp(1000, 80, "S")), want: ReasonTunnelled})
		for i := range uint32(RevisionRows) {
			if i == RevisionOf(addr(a)) || i == RevisionOf(addr(podA)) || i == RevisionOfIdentity(idC) || i == RevisionOfIdentity(idE) {
				continue
			}
			set(t, n.m.Revisions, i, 7)
		}
		before := n.judgedAgain()
		n.step(0, step{hook: fromA, in: ip(podA, a, tcp(1000, 80, "A")), want: ReasonTunnelled})
		if n.judgedAgain() != before {
			t.Errorf("a flow to %s rests on other rows", a)
		}
	}
	rows, ok := RevisionsOf(PrefixOf(netip.MustParsePrefix("10.2.1.0/24")))
	if !ok {
		t.Fatal("a /24 has no rows")
	}
	seen := map[uint32]bool{}
	for i := range rows {
		seen[i] = true
	}
	if len(seen) != 256 || !seen[RevisionOf(addr("10.2.1.0"))] || !seen[RevisionOf(addr("10.2.1.255"))] {
		t.Errorf("the 256 addresses of a /24 have %d rows", len(seen))
	}
}

// Whoever judges reads the revisions before the rows: a verdict from an old row never
// has the new revision.
func TestRevisionsAreReadFirst(t *testing.T) {
	spec, err := loadDatapath()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		program, function string
		want              []string
	}{
		{"from_pod", "open_egress", []string{"revisions", "endpoints", "ask_socket", "service_at", "revisions", "is_member", "locate", "revisions", "judge"}},
		{"from_pod", "rejudge", []string{"revisions", "endpoints", "revisions", "locate", "revisions", "is_member", "judge"}},
		{"from_tunnel", "from_tunnel", []string{"revisions", "endpoints", "flows", "open_ingress"}},
		{"to_pod", "to_pod", []string{"revisions", "endpoints", "flows", "open_ingress"}},
		{"from_device", "from_device", []string{"revisions", "endpoints", "flows", "open_ingress"}},
		{"from_pod", "from_pod", []string{"revisions", "endpoints", "deliver_next_door"}},
		{"from_pod", "send_first", []string{"revisions", "endpoints", "deliver_next_door"}},
		{"from_tunnel", "open_ingress", []string{"revisions", "locate", "revisions", "judge"}},
		{"from_tunnel", "open_ingress", []string{"revisions", "ips", "prefixes", "revisions", "judge"}},
	} {
		var order []string
		var in string
		for _, i := range spec.Programs[c.program].Instructions {
			if s := i.Symbol(); s != "" {
				in = s
			}
			if in != c.function {
				continue
			}
			switch ref := i.Reference(); {
			case i.IsFunctionCall() || i.IsLoadFromMap() || i.OpCode.IsDWordLoad() && i.Src == asm.PseudoMapFD:
				order = append(order, ref)
			}
		}
		t.Log(c.function, order)
		rest := c.want
		for _, ref := range order {
			if len(rest) > 0 && ref == rest[0] {
				rest = rest[1:]
			}
		}
		if len(rest) > 0 {
			t.Errorf("%s looks at %v; want %v in this order", c.function, order, c.want)
		}
	}
}
