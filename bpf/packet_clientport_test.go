package bpf

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// caller is a client outside that speaks from port 7000 to a node port, and what became of it.
type caller struct {
	*node
	proto     uint8
	to        string // address of the node
	port      uint16
	elsewhere bool
	as        uint16 // the client's port as rows with the backend have it
	ingress   uint16 // the port of the ingress address, of a backend elsewhere
}

func (c *caller) l4(sport, dport uint16, flags, text string) layer {
	return (&dialogue{proto: c.proto}).l4(sport, dport, flags, text)
}

// rows are the pair between node port and backend, by the key of each.
func (c *caller) rows() (front, inside FlowKey) {
	c.Helper()
	front = FlowKey{Local: addr(c.to), Remote: addr(world), Lport: PortOf(c.port), Rport: PortOf(7000), Proto: c.proto}
	row, ok, err := c.m.Masquerades.Lookup(front)
	if inside = row.otherOfPair(front); !ok || err != nil || row.Kind != MasqueradeExposed {
		c.Fatalf("%s:%d: row %+v, %v", c.to, c.port, row, err)
	}
	if back, ok, _ := c.m.Masquerades.Lookup(inside); !ok || back.otherOfPair(inside) != front {
		c.Fatalf("%s:%d: other row %+v", c.to, c.port, back)
	}
	return front, inside
}

// learn fills in the ports that the datapath chose.
func (c *caller) learn() {
	c.Helper()
	_, inside := c.rows()
	c.as = inside.Rport.Number()
	client := FlowKey{Local: inside.Remote, Remote: inside.Local, Lport: inside.Rport, Rport: inside.Lport, Proto: c.proto}
	if row, ok, _ := c.m.Masquerades.Lookup(client); ok != c.elsewhere {
		c.Fatalf("row of the client %+v", row)
	} else if ok {
		c.ingress = row.Port.Number()
	}
}

// inside is a packet of the client as the backend gets it.
func (c *caller) inside(flags, text string) *ipLayer {
	if c.elsewhere {
		return ip(ingress, podC, c.l4(c.ingress, 8080, flags, text))
	}
	return ip(world, podB, c.l4(c.as, 8080, flags, text))
}

func (c *caller) want() Reason {
	if c.elsewhere {
		return ReasonTunnelled
	}
	return ReasonDelivered
}

// says sends something in.
func (c *caller) says(flags, text string) {
	c.Helper()
	c.step(0, step{hook: "into node", in: ip(world, c.to, c.l4(7000, c.port, flags, text)), want: c.want(), outs: func(*node) layer {
		c.learn()
		return c.inside(flags, text)
	}})
}

// hears sends an answer out, and errors both ways.
func (c *caller) hears(text string) {
	c.Helper()
	answer, seen := ip(podB, world, c.l4(8080, c.as, "PA", text)), ip(world, podB, c.l4(c.as, 8080, "PA", text))
	own := portUnreachable().quoting(seen)
	if c.elsewhere {
		answer = ip(podC, world, c.l4(8080, c.as, "PA", text))
		c.step(1, step{hook: "out of tunnel", in: ip(podC, ingress, c.l4(8080, c.ingress, "PA", text)), want: ReasonToStack, out: answer})
		seen = ip(world, podC, c.l4(c.as, 8080, "PA", text))
		own = portUnreachable().quoting(seen)
		c.step(2, step{hook: "out of tunnel", in: ip(podC, ingress, portUnreachable().quoting(c.inside("PA", text))), want: ReasonToStack, out: ip(podC, world, own)})
	} else {
		c.step(1, step{hook: "from b", in: answer, want: ReasonToStack})
		c.step(2, step{hook: "from b", in: ip(podB, world, own), want: ReasonToStack})
	}
	left := ip(c.to, world, c.l4(c.port, 7000, "PA", text))
	c.step(3, step{hook: "out of node", in: answer, want: ReasonNotOurs, out: left})
	c.step(4, step{hook: "out of node", in: ip(answer.src.String(), world, own), want: ReasonNotOurs,
		out: ip(c.to, world, portUnreachable().quoting(ip(world, c.to, c.l4(7000, c.port, "PA", text))))})

	lost := ip(podB, world, c.l4(8080, c.as, "PA", text))
	to := podB
	if c.elsewhere {
		lost, to = ip(podC, ingress, c.l4(8080, c.ingress, "PA", text)), podC
	}
	about := ip("192.0.2.9", to, portUnreachable().quoting(lost))
	if c.elsewhere {
		about = ip(ingress, to, portUnreachable().quoting(lost))
	}
	c.step(5, step{hook: "into node", in: ip("192.0.2.9", c.to, portUnreachable().quoting(left)), want: c.want(), out: about})
}

// From one port a client reaches one backend at several node ports and addresses at once.
func TestOneClientPortManyNodePorts(t *testing.T) {
	shared := newNode(t)
	families(t, func(t *testing.T) {
		for _, elsewhere := range []bool{false, true} {
			for _, proto := range []uint8{6, 17} {
				t.Run(fmt.Sprint(elsewhere, proto), func(t *testing.T) {
					n := shared.again(t)
					here(n)
					if elsewhere {
						there(n)
					}
					row, _, _ := n.m.Services.Lookup(ServiceKey{Addr: addr(outside), Port: PortOf(nodePort), Proto: proto})
					set(n, n.m.Services, ServiceKey{Addr: addr("192.0.2.2"), Port: PortOf(nodePort), Proto: proto}, row)
					set(n, n.m.Services, ServiceKey{Addr: addr(outside), Port: PortOf(nodePort + 1), Proto: proto}, row)
					var all []*caller
					var ports []uint16
					for _, to := range []struct {
						addr string
						port uint16
					}{{outside, nodePort}, {"192.0.2.2", nodePort}, {outside, nodePort + 1}} {
						c := &caller{node: n, proto: proto, to: to.addr, port: to.port, elsewhere: elsewhere}
						c.says("S", "")
						all, ports = append(all, c), append(ports, c.as)
					}
					if ports[0] != 7000 {
						t.Errorf("the first has port %d", ports[0])
					}
					if slices.Sort(ports); len(slices.Compact(ports)) != 3 {
						t.Fatalf("ports %v", ports)
					}
					for _, text := range []string{"odd", "even"} {
						for _, c := range all {
							c.says("PA", text)
							c.hears(text)
						}
						unmasks(n)
						revisionMoves(n)
					}
					wantRows := 6
					if elsewhere {
						wantRows = 12
					}
					rowsAre(wantRows)(n, sent{})
					flowsAre(3)(n, sent{})
					// One that is over gives way, alone.
					n.age(3 * time.Hour)
					for _, c := range all[1:] {
						c.says("S", "")
					}
					unmasks(n)
					rowsAre(wantRows/3*2)(n, sent{})
					n.age(3 * time.Hour)
					unmasks(n)
					rowsAre(0)(n, sent{})
				})
			}
		}
	})
}

// The policy of a backend here judges the client's address, whatever its port has become.
func TestPolicyKnowsTheClientAtAnotherPort(t *testing.T) {
	n := newNode(t)
	here(n)
	row, _, _ := n.m.Services.Lookup(ServiceKey{Addr: addr(outside), Port: PortOf(nodePort), Proto: 6})
	set(n, n.m.Services, ServiceKey{Addr: addr("192.0.2.2"), Port: PortOf(nodePort), Proto: 6}, row)
	set(n, n.m.IPs, addr(world), IPInfo{Identity: 16777217})
	n.class(4, 16777217)
	n.rule(PolicyKey{Class: 4, Dir: Ingress}, PolicyEntry{Rule: 1})
	n.policy(podB, Ingress)
	n.change(func(s *Settings) { s.Trace = 1 })
	first, second := &caller{node: n, proto: 6, to: outside, port: nodePort}, &caller{node: n, proto: 6, to: "192.0.2.2", port: nodePort}
	first.says("S", "")
	n.step(6, step{hook: "into node", in: ip(world, "192.0.2.2", tcp(7000, nodePort, "S")), want: ReasonDelivered, outs: func(*node) layer {
		second.learn()
		return second.inside("S", "")
	}, check: func(n *node, s sent) {
		if e := s.event; e == nil || e.Sport.Number() != 7000 || e.SrcIdentity != 16777217 || e.Rule != 1 {
			n.Errorf("event %+v", e)
		}
	}})
	second.hears("even")
	n.step(7, step{change: func(n *node) {
		unset(n, n.m.Policy, PolicyKey{Gen: 1, Set: 7, Class: 4, Dir: Ingress})
		revisionMoves(n)
	}, hook: "into node", in: ip(world, "192.0.2.2", tcp(7000, nodePort, "A")), want: ReasonPolicyDenied, check: func(n *node, s sent) {
		if s.event.Sport.Number() != 7000 || s.event.Src != addr(world) {
			n.Errorf("event %+v", s.event)
		}
	}})
}
