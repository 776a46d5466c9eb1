package bpf

import (
	"fmt"
	"slices"
	"testing"
)

// dialogue is what a pod says from one port to an address, and hears from there.
type dialogue struct {
	*node
	pod, at   string // the pod, and "a" or "b"
	proto     uint8
	sport     uint16
	to        string
	port      uint16
	backend   string // that answers, at port 8080; "" in front of it means the pod itself
	as        uint16 // the source port by which the backend knows the pod
	goes      Reason
	answersAt string // hook
}

func (k *dialogue) String() string {
	return fmt.Sprintf("%s:%d → %s:%d, known as %d", k.pod, k.sport, k.to, k.port, k.as)
}

func (k *dialogue) l4(sport, dport uint16, flags, text string) layer {
	if k.proto == 17 {
		return udp(sport, dport).says(text)
	}
	return tcp(sport, dport, flags).says(text)
}

// key is that of the dialogue's flow.
func (k *dialogue) key() (key FlowKey, f Flow) {
	k.Helper()
	key = FlowKey{Local: addr(k.pod), Remote: addr(k.to), Lport: PortOf(k.sport), Rport: PortOf(k.port), Proto: k.proto}
	for _, key.Beside = range []uint8{1, 0} {
		if f, ok, err := k.m.Flows.Lookup(key); err == nil && ok && f.Flags&FlowAnswers == 0 {
			return key, f
		}
	}
	k.Fatalf("%v: no flow", k)
	return
}

// outside is a packet's source and destination as the backend has them.
func (k *dialogue) outside() (pod, backend string) {
	if k.backend == k.pod {
		return k.to, k.pod
	}
	return k.pod, k.backend
}

// opens sends the first packet.
func (k *dialogue) opens() {
	k.Helper()
	k.step(0, step{hook: "from " + k.at, in: ip(k.pod, k.to, k.l4(k.sport, k.port, "S", "")), want: k.goes, outs: func(*node) layer {
		k.as = k.sport
		if _, f := k.key(); f.Flags.Other() != (Port{}) {
			k.as = f.Flags.Other().Number()
		}
		src, dst := k.outside()
		return ip(src, dst, k.l4(k.as, 8080, "S", ""))
	}})
}

// goesOn says something and hears an answer.
func (k *dialogue) goesOn(text string) {
	k.Helper()
	src, dst := k.outside()
	k.step(1, step{hook: "from " + k.at, in: ip(k.pod, k.to, k.l4(k.sport, k.port, "PA", text)), want: k.goes, out: ip(src, dst, k.l4(k.as, 8080, "PA", text))})
	k.step(2, step{hook: k.answersAt, in: ip(dst, src, k.l4(8080, k.as, "PA", text+"!")), want: ReasonDelivered, out: ip(k.to, k.pod, k.l4(k.port, k.sport, "PA", text+"!"))})
}

// fails hears from somebody on the way, and from the backend itself, that a packet got lost.
func (k *dialogue) fails() {
	k.Helper()
	seen, said := ip(k.pod, k.backend, k.l4(k.as, 8080, "PA", "lost")), ip(k.pod, k.to, k.l4(k.sport, k.port, "PA", "lost"))
	k.step(3, step{hook: k.answersAt, in: ip(k.backend, k.pod, portUnreachable().quoting(seen)), want: ReasonDelivered, out: ip(k.to, k.pod, portUnreachable().quoting(said))})
	if k.answersAt == "out of tunnel" {
		k.step(4, step{hook: k.answersAt, in: ip("10.2.1.9", k.pod, portUnreachable().quoting(seen)), want: ReasonDelivered, out: ip("10.2.1.9", k.pod, portUnreachable().quoting(said))})
	}
}

// complains sends an error about what the backend answered.
func (k *dialogue) complains() {
	k.Helper()
	heard, told := ip(k.backend, k.pod, k.l4(8080, k.sport, "PA", "?")), ip(k.backend, k.pod, k.l4(8080, k.as, "PA", "?"))
	out := ip(k.pod, k.backend, portUnreachable().quoting(told))
	k.step(5, step{hook: "from " + k.at, in: ip(k.pod, k.to, portUnreachable().quoting(heard)), want: k.goes, out: out})
}

// ends lets the flow expire and the agent find that.
func (k *dialogue) ends() {
	k.Helper()
	key, f := k.key()
	f.Seen = 1
	if k.proto == 6 { // nothing is as old as an idle connection when the machine has just started
		f.Flags |= FlowReset
	}
	set(k, k.m.Flows, key, f)
	if gone, err := k.forget([]FlowKey{key}, Now()); gone != 1 || err != nil {
		k.Fatalf("%v: %d flows forgotten, %v", k, gone, err)
	}
}

// again80 is one more service, whose only backend is pod b.
const again80 = "10.101.0.82"

func alsoB(n *node) {
	for _, proto := range []uint8{6, 17} {
		row := Service{ID: 82, Groups: 1, Group: [MaxGroups]Group{{Cluster: 1, Weight: 1, Count: 1}}}
		set(n, n.m.Services, front(again80, proto), row)
		for _, port := range []uint16{81, 8080} {
			set(n, n.m.Services, ServiceKey{Addr: addr(near), Port: PortOf(port), Proto: proto}, row)
		}
	}
	set(n, n.m.Backends, SlotKey{Service: 82, Cluster: 1}, Backend{Addr: addr(podB), Port: PortOf(8080)})
	set(n, n.m.Members, MemberKey{Service: 82, Addr: addr(podB), Port: PortOf(8080)}, Member{})
}

// nearIsC leaves c as the only backend of both services.
func nearIsC(n *node) {
	onlyC(n)
	unset(n, n.m.Backends, SlotKey{Service: 80, Cluster: 1})
}

// orders are all orders of three.
var orders = [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}}

// From one port a pod reaches two services with one backend, and that itself, at once, in
// whatever order they begin and end.
func TestOnePortManyServices(t *testing.T) {
	shared := newNode(t)
	places := []struct {
		name    string
		state   func(*node)
		backend string
		to      [2]string
		goes    Reason
		answers string
	}{
		{"elsewhere", nearIsC, podC, [2]string{near, far}, ReasonTunnelled, "out of tunnel"},
		{"next door", alsoB, podB, [2]string{near, again80}, ReasonDelivered, "from b"},
	}
	families(t, func(t *testing.T) {
		for _, place := range places {
			for _, proto := range []uint8{6, 17} {
				for i, begin := range orders {
					t.Run(fmt.Sprint(place.name, proto, begin), func(t *testing.T) {
						n := shared.again(t)
						place.state(n)
						open := func(to string, port uint16) *dialogue {
							return &dialogue{node: n, pod: podA, at: "a", proto: proto, sport: 1000, to: to, port: port,
								backend: place.backend, goes: place.goes, answersAt: place.answers}
						}
						talks := []*dialogue{open(place.to[0], 80), open(place.to[1], 80), open(place.backend, 8080)}
						for _, j := range begin {
							talks[j].opens()
						}
						ports := []uint16{talks[0].as, talks[1].as, talks[2].as}
						if talks[begin[0]].as != 1000 {
							t.Errorf("%v, although it was first", talks[begin[0]])
						}
						if slices.Sort(ports); len(slices.Compact(ports)) != 3 {
							t.Fatalf("ports %v", ports)
						}
						all := func(text string) {
							t.Helper()
							for _, k := range talks {
								if k != nil {
									k.goesOn(text)
								}
							}
						}
						all("odd")
						revisionMoves(n)
						all("even")
						for _, k := range talks {
							k.fails()
						}
						talks[2].complains()
						if s, err := SweepMaps(n.m, Now(), n.forget); s.Orphans != 0 || s.Deleted != 0 || err != nil {
							t.Errorf("a sweep deleted rows of live flows: %+v, %v", s, err)
						}
						for _, j := range orders[(i+proto2(proto))%len(orders)] {
							talks[j].ends()
							talks[j] = nil
							all("go on")
						}
						rows, failed := n.m.Flows.All()
						for k, f := range rows {
							if k.Local == addr(podA) {
								t.Errorf("left: %+v %+v", k, f)
							}
						}
						if err := failed(); err != nil {
							t.Fatal(err)
						}
					})
				}
			}
		}
	})
}

// proto2 makes TCP and UDP end in different orders.
func proto2(proto uint8) int { return 1 + 2*int(proto/17) }

// A pod reaches itself from one port through several services and ports of one, and from the
// very port at which it serves.
func TestOnePortManyLoops(t *testing.T) {
	shared := newNode(t)
	families(t, func(t *testing.T) {
		for _, proto := range []uint8{6, 17} {
			t.Run(fmt.Sprint(proto), func(t *testing.T) {
				n := shared.again(t)
				alsoB(n)
				var talks []*dialogue
				for _, to := range []struct {
					addr        string
					sport, port uint16
				}{{near, 1000, 80}, {near, 1000, 81}, {again80, 1000, 80}, {near, 8080, 8080}} {
					k := &dialogue{node: n, pod: podB, at: "b", proto: proto, sport: to.sport, to: to.addr, port: to.port,
						backend: podB, goes: ReasonDelivered, answersAt: "from b"}
					k.opens()
					talks = append(talks, k)
				}
				if talks[0].as != 1000 || talks[1].as == 1000 || talks[3].as == 8080 {
					t.Errorf("ports %v", talks)
				}
				for _, text := range []string{"odd", "even"} {
					for _, k := range talks {
						k.goesOn(text)
					}
					revisionMoves(n)
				}
				if got := n.flows(); got != 8 {
					t.Errorf("%d flows, want 8", got)
				}
			})
		}
	})
}

// Policy and events know the pod's own port alone, and what is refused after translation goes
// back to it.
func TestEventsNameThePodsOwnPort(t *testing.T) {
	n := newNode(t)
	families(t, func(t *testing.T) {
		n := n.again(t)
		nearIsC(n)
		n.policy(podA, Egress)
		n.class(5, idC)
		n.portClass(1, 6, 8080)
		n.rule(PolicyKey{Class: 5, Proto: 6, Port: 1}, PolicyEntry{Rule: 9})
		n.change(func(s *Settings) { s.Trace = 1 })
		first := &dialogue{node: n, pod: podA, at: "a", proto: 6, sport: 1000, to: far, port: 80, backend: podC, goes: ReasonTunnelled, answersAt: "out of tunnel"}
		first.opens()
		n.step(5, step{hook: "from a", in: ip(podA, near, tcp(1000, 80, "S")), want: ReasonTunnelled, outs: func(n *node) layer {
			f, _ := n.flow(podA, 1000, near, 80, 6)
			return ip(podA, podC, tcp(f.Flags.Other().Number(), 8080, "S"))
		}, check: func(n *node, s sent) {
			if e := s.event; e == nil || e.Type != EventNewFlow || e.Sport.Number() != 1000 || e.Rule != 9 {
				n.Errorf("event %+v", e)
			}
		}})
		first.goesOn("odd")
		n.step(6, step{change: deny(Egress), hook: "from a", in: ip(podA, near, tcp(1000, 80, "A")), want: ReasonTunnelled, outs: func(n *node) layer {
			f, _ := n.flow(podA, 1000, near, 80, 6)
			return ip(podA, podC, tcp(f.Flags.Other().Number(), 8080, "A"))
		}})
		n.step(7, step{change: func(n *node) {
			unset(n, n.m.Policy, PolicyKey{Gen: 1, Set: 7, Class: 5, Proto: 6, Port: 1})
			revisionMoves(n)
		}, hook: "from a", in: ip(podA, near, tcp(1000, 80, "A")), want: ReasonPolicyDenied, check: func(n *node, s sent) {
			if s.event.Sport.Number() != 1000 {
				n.Errorf("event %+v", s.event)
			}
		}})
	})
}

// The whole range is used, ports of flows that are over are taken from them, and who finds
// none is counted.
func TestAllSourcePorts(t *testing.T) {
	n := newNodeWith(t, func(c *Config) { c.Limits.Flows = 1 << 17 })
	nearIsC(n)
	rows := map[FlowKey]Flow{}
	fill := func(dead func(port int) bool) {
		clear(rows)
		for port := 1024; port < 1<<16; port++ {
			f := Flow{Seen: Now(), Flags: FlowReplied, Ifindex: uint32(n.a), Owner: uint32(n.a), Via: ViaTunnel}
			if dead(port) {
				f.Seen = 1
			}
			rows[FlowKey{Local: addr(podA), Remote: addr(podC), Lport: PortOf(uint16(port)), Rport: PortOf(8080), Proto: 6}] = f
		}
		if err := n.m.Flows.UpdateBatch(rows); err != nil {
			t.Fatal(err)
		}
	}
	send := func(sport uint16) Reason {
		return n.send("from_pod", n.a, 0, packet(ip(podA, far, tcp(sport, 80, "S")))).reason
	}
	fill(func(int) bool { return false })
	if r := send(2000); r != ReasonNoPort {
		t.Errorf("all ports are in use: %v", r)
	}
	fill(func(port int) bool { return port%100 == 0 })
	for sport := uint16(3001); sport < 3020; sport++ {
		if r := send(sport); r != ReasonTunnelled {
			t.Errorf("from %d: %v", sport, r)
		}
		if f, ok := n.flow(podA, sport, far, 80, 6); !ok || f.Flags.Other().Number()%100 != 0 || f.Flags.Other() == (Port{}) {
			t.Errorf("flow %+v", f)
		}
	}
	if live, err := n.m.Flows.Len(); err != nil || live < 64512 {
		t.Errorf("%d rows: a live flow lost its own, %v", live, err)
	}
}

// The world is a backend too: what gets another source port here leaves as the node all the
// same, and comes back.
func TestOnePortThroughMasquerades(t *testing.T) {
	shared := newNode(t)
	families(t, func(t *testing.T) {
		n := shared.again(t)
		const svc = "10.101.0.83"
		set(n, n.m.Services, front(svc, 6), Service{ID: 83, Groups: 1, Group: [MaxGroups]Group{{Cluster: 1, Weight: 1, Count: 1}}})
		set(n, n.m.Backends, SlotKey{Service: 83, Cluster: 1}, Backend{Addr: addr(world), Port: PortOf(8080)})
		set(n, n.m.Members, MemberKey{Service: 83, Addr: addr(world), Port: PortOf(8080)}, Member{})
		var all []*dialogue
		for i, to := range []struct {
			addr string
			port uint16
		}{{svc, 80}, {world, 8080}} {
			masquerades(5000, uint16(5000+i))(n)
			k := &dialogue{node: n, pod: podA, at: "a", proto: 6, sport: 1000, to: to.addr, port: to.port, backend: world, goes: ReasonToStack}
			k.opens()
			n.step(1, step{hook: "out of node", in: ip(podA, world, tcp(k.as, 8080, "S")), want: ReasonNotOurs, out: ip(outside, world, tcp(uint16(5000+i), 8080, "S"))})
			all = append(all, k)
		}
		if all[1].as == 1000 {
			t.Error("the second has the first one's port")
		}
		for i, k := range all {
			unmasks(n)
			n.step(2, step{hook: "into node", in: ip(world, outside, tcp(8080, uint16(5000+i), "SA")), want: ReasonDelivered, out: ip(k.to, podA, tcp(k.port, 1000, "SA"))})
			n.step(3, step{hook: "into node", in: ip("192.0.2.9", outside, portUnreachable().quoting(ip(outside, world, tcp(uint16(5000+i), 8080, "S")))), want: ReasonDelivered,
				out: ip("192.0.2.9", podA, portUnreachable().quoting(ip(podA, k.to, tcp(1000, k.port, "S"))))})
		}
		rowsAre(4)(n, sent{})
	})
}
