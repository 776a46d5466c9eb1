package bpf_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/model"
)

// sent is a frame that a program let through, from which the next ones follow.
type sent struct {
	at  hook
	in  []byte
	out model.Outcome
}

// step is one event: frames for hooks, in order, or a change, or time that passes.
type step struct {
	what   string
	at     hook
	frames [][]byte
	change func(*world, *rand.Rand)
	pause  time.Duration
}

// numbers that are far from each other, and from those of honest connections.
func wild(rng *rand.Rand) uint32 { return 0x80000000 + uint32(rng.IntN(12))*0x08000000 }

func honest(rng *rand.Rand) uint32 {
	return draw(rng, uint32(0x10000000), 0x20000000, 0x30000000, 0xfffffff0)
}

// next draws an event.
func (w *world) next(rng *rand.Rand, story []sent) step {
	for {
		var s step
		switch n := rng.IntN(100); {
		case n < 28:
			s = w.answers(rng, story)
		case n < 42:
			s = w.goesOn(rng, story)
		case n < 58:
			s = w.opens(rng)
		case n < 68:
			s = w.complains(rng, story)
		case n < 84:
			s = w.onward(rng, story)
		case n < 87:
			s = w.junk(rng)
		case n < 94 && (w.about != clinging || n < 89):
			s.pause = draw(rng, 300*time.Millisecond, 300*time.Millisecond, 3300*time.Millisecond, 13700*time.Millisecond, 71900*time.Millisecond, 9000500*time.Millisecond)
			s.what = fmt.Sprintf("%v pass", s.pause)
		default:
			s = w.changes(rng)
		}
		if s.what != "" {
			return s
		}
	}
}

// one is a recent frame, mostly the last.
func one(rng *rand.Rand, story []sent) (sent, packet, bool) {
	if len(story) == 0 {
		return sent{}, packet{}, false
	}
	back := min(rng.IntN(len(story)), rng.IntN(len(story)))
	s := story[len(story)-1-back]
	p, ok := dissect(s.out.Frame)
	return s, p, ok
}

// receiver is where whoever got a frame speaks.
func (w *world) receiver(rng *rand.Rand, s sent, p packet) (hook, bool) {
	switch {
	case s.out.Verdict == model.Into:
		return hook{program: "from_pod", device: s.out.Device}, true
	case s.out.Verdict == model.Redirect && s.out.Device == w.device:
		return s.at, true // a client that was told something
	case s.out.Verdict == model.Redirect, s.out.Reason == bpf.ReasonEnteredTunnel:
		return hook{program: "from_tunnel", device: draw(rng, w.lanes[0], w.lanes[1])}, true
	case s.at.program == "to_pod":
		return hook{program: "from_pod", device: s.at.device}, true
	case s.at.program == "to_device":
		return hook{program: "from_device", device: w.device}, true
	case s.at.program == "from_tunnel":
		return hook{program: "to_tunnel", device: w.lanes[0]}, true
	case s.at.program == "from_pod":
		if pod := w.n.Pods[p.src]; pod != nil && (p.dst == w.n.Internal[0] || p.dst == w.n.Internal[1] || rng.IntN(4) == 0) {
			return hook{program: "to_pod", device: pod.Device, forwarded: rng.IntN(4) == 0}, true
		}
		return hook{program: "from_device", device: w.device}, true
	}
	return hook{}, false
}

// length is what a packet takes of its sender's numbers.
func (p packet) length() uint32 {
	n := uint32(len(p.data))
	for _, f := range []uint8{1, 2} {
		if p.flags&f != 0 {
			n++
		}
	}
	return n
}

// heard draws something that got through, and where its receiver speaks.
func (w *world) heard(rng *rand.Rand, story []sent) (o sent, p packet, at hook, ok bool) {
	if o, p, ok = one(rng, story); ok {
		at, ok = w.receiver(rng, o, p)
	}
	return o, p, at, ok
}

func say(rng *rand.Rand) []byte { return []byte("weft datapath")[:rng.IntN(13)] }

func (w *world) answers(rng *rand.Rand, story []sent) (s step) {
	_, p, at, ok := w.heard(rng, story)
	if !ok {
		return s
	}
	a := packet{src: p.dst, dst: p.src, proto: p.proto, sport: p.dport, dport: p.sport, data: say(rng)}
	switch p.proto {
	case 1, 58:
		a.sport, a.kind = p.sport, p.kind
		for request, answer := range map[uint8]uint8{8: 0, 13: 14, 128: 129} {
			if p.kind == request && (p.proto == 58) == (request == 128) {
				a.kind = answer
			}
		}
	case 6:
		a.seq, a.ack, a.flags = p.ack, p.seq+p.length(), draw(rng, uint8(16), 16, 24, 17, 17, 20, 4)
		if a.seq == 0 {
			a.seq = honest(rng)
		}
		if p.flags&(2|16) == 2 {
			a.flags = draw(rng, uint8(18), 18, 18, 18, 20)
		}
		w.oddly(rng, &a)
	case 17:
		a.unchecked = rng.IntN(6) == 0 && a.src.Is4()
	}
	return step{what: fmt.Sprintf("%v: answer %v", at, a), at: at, frames: [][]byte{a.frame()}}
}

// oddly gives a packet numbers that do not belong to its connection, now and then.
func (w *world) oddly(rng *rand.Rand, p *packet) {
	if rng.IntN(10) == 0 {
		p.seq = wild(rng)
	}
	if rng.IntN(14) == 0 {
		p.ack = wild(rng)
	}
}

func (w *world) goesOn(rng *rand.Rand, story []sent) (s step) {
	o, _, ok := one(rng, story)
	if !ok {
		return s
	}
	p, ok := dissect(o.in)
	if !ok {
		return s
	}
	switch p.proto {
	case 6:
		if rng.IntN(5) > 0 {
			p.seq += p.length()
			p.flags = draw(rng, uint8(16), 24, 24, 17, 4, 20)
			for _, heard := range slices.Backward(story) { // what it was sent last
				h, ok := dissect(heard.out.Frame)
				if ok && h.proto == 6 && h.src == p.dst && h.dst == p.src && h.sport == p.dport && h.dport == p.sport {
					p.ack = h.seq + h.length()
					break
				}
			}
			w.oddly(rng, &p)
		} else if rng.IntN(2) == 0 {
			p.seq, p.ack, p.flags = honest(rng), 0, 2
		}
		p.data = say(rng)
	case 17, 132:
		p.data = say(rng)
	}
	p.ttl = draw(rng, uint8(64), 64, 64, 64, 64, 64, 2, 1)
	if p.proto == 17 && rng.IntN(5) == 0 || p.proto == 1 && rng.IntN(5) == 0 {
		return w.pieces(rng, o.at, p)
	}
	return step{what: fmt.Sprintf("%v: go on %v", o.at, p), at: o.at, frames: [][]byte{p.frame()}}
}

// pieces sends a datagram in fragments. The memory of fragments has a few slots for each
// sender: the number is one that nobody else's has.
func (w *world) pieces(rng *rand.Rand, at hook, p packet) step {
	w.datagrams++
	last := p.dst.As16()[15]
	p.fragment = w.datagrams<<5 | (w.datagrams-uint32(last)-uint32(p.proto))&31
	p.data, p.rest, p.more = []byte("sixteen bytes!!!"), []byte("and some more of it"), true
	p.ttl = 64
	first := p
	p.offset, p.more, p.rest = 24, false, nil
	p.data = []byte("and some more of it")
	return step{what: fmt.Sprintf("%v: in pieces %v", at, first), at: at, frames: [][]byte{first.frame(), p.frame()}}
}

// somewhere is an address that a pod may speak to.
func (w *world) somewhere(rng *rand.Rand, f int) netip.Addr {
	node := draw(rng, uint16(2), 3, 3, 4)
	pods := byte(10 + rng.IntN(4))
	return draw(rng, podAt(f, own, here, pods), podAt(f, own, here, pods), podAt(f, nodeOf[node], byte(node), pods), podAt(f, nodeOf[node], byte(node), pods),
		podAt(f, nodeOf[node], byte(node), pods), elsewhere(f, 0, 7), elsewhere(f, 0, 8), elsewhere(f, 1, 7), elsewhere(f, 2, 1), elsewhere(f, 2, 2), elsewhere(f, 2, 2), elsewhere(f, 2, 3),
		podAt(f, own, here, 1), podAt(f, own, here, 0), podAt(f, nodeOf[node], byte(node), 0), podAt(f, nodeOf[node], byte(node), 1), podAt(f, peer, 9, 9), podAt(f, former, 1, 9), serviceAt(f, 77))
}

func (w *world) opens(rng *rand.Rand) step {
	f := rng.IntN(2)
	pod := rng.IntN(3)
	p := packet{src: podAt(f, own, here, byte(10+pod)), dst: w.somewhere(rng, f), sport: draw(rng, uint16(1000), 1000, 2000, 8080, 80), dport: draw(rng, uint16(80), 80, 8080, 22, 53)}
	at := hook{program: "from_pod", device: w.pods[pod]}
	kind := rng.IntN(24)
	if w.about == nodePorts && rng.IntN(2) == 0 {
		kind = 5
	}
	switch kind {
	case 0: // spoofed
		at.device = w.pods[rng.IntN(3)]
	case 1, 2, 3: // from another node
		p.src, p.dst = p.dst, p.src
		if at = (hook{program: "from_tunnel", device: w.lanes[rng.IntN(2)]}); rng.IntN(4) == 0 { // to a process of this one
			p.dst = elsewhere(f, 2, 1)
		}
	case 4: // from outside
		p.src, p.dst = draw(rng, elsewhere(f, 0, 7), elsewhere(f, 1, 7), w.somewhere(rng, f)), p.src
		at = draw(rng, hook{program: "from_device", device: w.device}, hook{program: "to_pod", device: w.pods[pod], forwarded: true})
	case 5: // the same, to a node port
		front := draw(rng, exposed(f)...)
		p.src, p.dst, p.dport = draw(rng, elsewhere(f, 0, 7), elsewhere(f, 0, 7), elsewhere(f, 1, 7)), front.Addr(), front.Port()
		p.sport = draw(rng, uint16(7000), 7000, 7001)
		at = hook{program: "from_device", device: w.device}
	case 6: // the node's own
		p.src, p.dst = podAt(f, own, here, 1), p.src
		at = hook{program: "to_pod", device: w.pods[pod]}
	case 7:
		p.src = draw(rng, podAt(f, own, here, 1), p.src, elsewhere(f, 2, 1))
		if p.src == elsewhere(f, 2, 1) { // a process answers
			p.sport = draw(rng, uint16(80), 8080, 1000)
		}
		at = hook{program: "to_tunnel", device: w.lanes[0]}
	case 8: // the node's own towards the world, mostly with an identifier that pods may have
		p.src, p.dst, p.sport = draw(rng, elsewhere(f, 2, 1), elsewhere(f, 2, 1), p.src), draw(rng, elsewhere(f, 0, 7), elsewhere(f, 0, 7), p.dst), uint16(5000+rng.IntN(3))
		if f == 1 && rng.IntN(4) == 0 { // what a link needs
			p.src, p.dst = draw(rng, p.src, podAt(1, own, here, 10)), netip.MustParseAddr("ff02::1")
		}
		at = hook{program: "to_device", device: w.device}
	default:
		switch front := draw(rng, draw(rng, w.services...).fronts...); {
		case w.about == masquerading && rng.IntN(2) == 0:
			p.dst = draw(rng, elsewhere(f, 0, 7), elsewhere(f, 0, 7), elsewhere(f, 1, 7))
		case w.about == clinging && rng.IntN(3) > 0:
			p.dst, p.dport = serviceAt(f, 2), 80
		case w.about == sharing:
			p.sport = 1000
			if p.dst = podAt(f, own, here, 10); rng.IntN(3) > 0 {
				p.dst, p.dport = serviceAt(f, byte(1+rng.IntN(3))), 80
			} else if p.dport = 8080; rng.IntN(2) == 0 {
				p.dst = podAt(f, peer, byte(3+rng.IntN(2)), 10)
			}
		case front.At.Addr().Is4() == p.src.Is4() && rng.IntN(5) < 3:
			p.dst, p.dport = front.At.Addr(), front.At.Port()
			if p.dst == elsewhere(f, 2, 1) { // a node port, often of another node
				p.dst = elsewhere(f, 2, byte(1+rng.IntN(3)))
			}
		}
	}
	p.proto = draw(rng, uint8(6), 6, 6, 6, 17, 17, 17, 132, 1, 1, 47)
	p.ttl = draw(rng, uint8(64), 64, 64, 64, 64, 64, 64, 64, 64, 2, 1)
	p.options = draw(rng, 0, 0, 0, 0, 0, 0, 0, 0, 8)
	p.data = say(rng)
	switch p.proto {
	case 6:
		p.flags, p.seq = draw(rng, uint8(2), 2, 2, 2, 2, 2, 2, 16, 17, 4, 18), honest(rng)
		if p.flags&16 != 0 {
			p.ack = honest(rng)
		}
	case 17:
		p.unchecked = rng.IntN(6) == 0 && f == 0
	case 1:
		p.kind = draw(rng, uint8(8), 8, 8, 13, 0, 40)
		if f == 1 {
			p.proto, p.kind = 58, draw(rng, uint8(128), 128, 128, 129, 135, 139)
		}
	}
	if rng.IntN(30) == 0 {
		p.to = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	}
	return step{what: fmt.Sprintf("%v: open %v ttl %d", at, p, p.ttl), at: at, frames: [][]byte{p.frame()}}
}

// complains is an ICMP error about something that got through, from its receiver or from a
// router on the way.
func (w *world) complains(rng *rand.Rand, story []sent) (s step) {
	o, p, at, ok := w.heard(rng, story)
	if !ok {
		return s
	}
	e := packet{src: p.dst, dst: p.src, proto: 1, kind: draw(rng, uint8(3), 3, 11), code: 3}
	if p.src.Is6() {
		e.proto, e.kind = 58, draw(rng, uint8(1), 2, 3)
	}
	if rng.IntN(3) == 0 && at.program != "from_pod" {
		e.src = w.somewhere(rng, bit(p.src.Is6()))
	}
	whole := o.out.Frame[14:]
	if rng.IntN(12) == 0 {
		whole = o.in[14:]
	}
	e.data = whole[:min(len(whole), draw(rng, 28, 48, 60, 200))]
	e.ttl = draw(rng, uint8(64), 64, 64, 1)
	return step{what: fmt.Sprintf("%v: error %v about %v", at, e, p), at: at, frames: [][]byte{e.frame()}}
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

// onward takes a frame to the next hook of this node.
func (w *world) onward(rng *rand.Rand, story []sent) (s step) {
	o, p, _ := one(rng, story)
	switch {
	case len(story) == 0:
		return s
	case o.out.Verdict == model.Redirect && o.out.Device != w.device:
		s.at = hook{program: "to_tunnel", device: o.out.Device}
	case o.out.Reason == bpf.ReasonToStack:
		s.at = hook{program: "to_device", device: w.device}
	default:
		return s
	}
	s.what, s.frames = fmt.Sprintf("%v: onward %v", s.at, p), [][]byte{o.out.Frame}
	return s
}

// junk is frames with which something is wrong.
func (w *world) junk(rng *rand.Rand) step {
	s := w.opens(rng)
	b := slices.Clone(s.frames[0])
	switch rng.IntN(5) {
	case 0:
		b = b[:max(34, len(b)-rng.IntN(30))]
		if b[12] == 0x86 {
			b = slices.Concat(b, make([]byte, max(0, 54-len(b))))
		}
	case 1:
		b[12], b[13] = 8, 6
	case 2:
		b[12], b[13] = 0x88, 0xcc
	case 3:
		b[14] = byte(rng.Uint32())
	case 4:
		b[14+rng.IntN(len(b)-14)] = byte(rng.Uint32())
	}
	s.what, s.frames[0] = "junk of "+s.what, b
	return s
}

// changes is something that the agent writes.
func (w *world) changes(rng *rand.Rand) step {
	f := rng.IntN(2)
	node := draw(rng, uint16(2), 3, 4)
	pod := byte(10 + rng.IntN(3))
	mine, remote := podAt(f, own, here, pod), podAt(f, nodeOf[node], byte(node), pod)
	pathOf := draw(rng, bpf.PathAlive, bpf.PathAlive, bpf.PathSilent, bpf.PathDead)
	d := rng.IntN(len(w.services))
	if w.about == clinging {
		d = slices.IndexFunc(w.services, func(d *drawn) bool { return d.fronts[0].At.Addr() == serviceAt(f, 2) })
	}
	backends := step{what: fmt.Sprintf("service %d loses or gets a backend", w.services[d].ID), change: func(w *world, rng *rand.Rand) { w.changeBackends(rng, w.services[d]) }}
	if w.about == clinging && rng.IntN(3) > 0 {
		return backends
	}
	return draw(rng,
		step{what: fmt.Sprintf("path of node %d: %d", node, pathOf), change: func(w *world, rng *rand.Rand) {
			p := w.n.Peers[node]
			p.Path = pathOf
			w.peer(node, p)
		}},
		step{what: fmt.Sprintf("path of the peer: %d", pathOf), change: func(w *world, rng *rand.Rand) { w.cluster(peer, pathOf) }},
		step{what: fmt.Sprintf("other lane or key of node %d", node), change: func(w *world, rng *rand.Rand) {
			p := w.n.Peers[node]
			p.Keyed, p.Lane = !p.Keyed || rng.IntN(3) > 0, rng.IntN(2)
			w.peer(node, p)
		}},
		step{what: fmt.Sprintf("pod %v changes or goes", mine), change: func(w *world, rng *rand.Rand) {
			p := w.n.Pods[mine]
			switch {
			case p == nil:
				w.pod(mine, &model.Pod{Device: w.pods[pod-10], Identity: own<<16 + uint32(pod), ID: uint16(pod)})
			case rng.IntN(4) == 0:
				w.unpod(mine)
			default:
				next := *p
				next.Set, next.Held = uint32(rng.IntN(4)), rng.IntN(10) == 0
				if rng.IntN(6) == 0 {
					next.Device = w.pods[rng.IntN(3)]
				}
				w.pod(mine, &next)
			}
			w.changed(mine)
		}},
		step{what: fmt.Sprintf("address %v changes or goes", remote), change: func(w *world, rng *rand.Rand) {
			if _, ok := w.n.Hosts[remote]; ok && rng.IntN(3) == 0 {
				w.unhost(remote)
			} else {
				w.host(remote, model.Owner{Cluster: uint16(nodeOf[node]), Node: node, Flags: bpf.IPMember, Identity: uint32(nodeOf[node])<<16 + uint32(pod) + 50*uint32(rng.IntN(2))})
			}
			w.changed(remote)
		}},
		step{what: fmt.Sprintf("class of %v changes", remote), change: func(w *world, rng *rand.Rand) {
			id := draw(rng, w.n.Hosts[remote].Identity, own<<16+uint32(pod), 2, worldCIDR)
			w.class(id, uint32(rng.IntN(4)))
			w.changed(id)
		}},
		step{what: "a policy set changes", change: func(w *world, rng *rand.Rand) {
			id := uint32(1 + rng.IntN(3))
			w.set(id, w.drawSet(rng, id))
			w.changed(nil)
		}},
		step{what: "revision", change: func(w *world, _ *rand.Rand) { w.changed(nil) }},
		step{what: fmt.Sprintf("node of %v becomes unknown, or known", podCIDR(f, nodeOf[node], byte(node))), change: func(w *world, rng *rand.Rand) {
			p := podCIDR(f, nodeOf[node], byte(node))
			o := w.n.Prefixes[p]
			if o.Node == 0 {
				o.Node = node
			} else {
				o.Node = 0
			}
			w.prefix(p, o)
			w.changed(nil)
		}},
		step{what: "a process of a node comes behind a service, or leaves it", change: func(w *world, rng *rand.Rand) {
			front := model.Front{At: draw(rng, processes(f)...), Proto: draw(rng, uint8(6), 17, 132)}
			w.offer(front, !w.n.Offered[front])
			w.changed(front.At.Addr())
		}},
		backends,
	)
}

// changeBackends removes the last backend of a group, or adds one.
func (w *world) changeBackends(rng *rand.Rand, d *drawn) {
	if len(d.Groups) == 0 {
		return
	}
	g := &d.Groups[rng.IntN(len(d.Groups))]
	cluster := g.Cluster
	family := bit(d.fronts[0].At.Addr().Is6())
	if len(g.Backends) == 0 || rng.IntN(3) == 0 {
		port := uint16(8080)
		if d.fronts[0].At.Addr() == serviceAt(family, 3) {
			port = 80
		}
		b := w.drawBackend(rng, family, cluster, port)
		g.Backends = append(g.Backends, b)
		w.member(model.Member{Service: d.ID, At: b.At}, false)
		w.writeService(d)
		return
	}
	b := g.Backends[len(g.Backends)-1]
	g.Backends = g.Backends[:len(g.Backends)-1]
	w.writeService(d)
	m := model.Member{Service: d.ID, At: b.At}
	if _, ok := w.n.Members[m]; ok && rng.IntN(2) == 0 {
		w.member(m, true) // it is about to go
		return
	}
	w.unmember(m)
	w.changed(b.At.Addr())
}
