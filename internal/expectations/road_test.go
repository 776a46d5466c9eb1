package expectations

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/model"
)

// kind is what a client is.
type kind string

// Pods are in the mesh, processes are a node's own, and the world knows only the nodes.
const (
	ofPod     kind = "pod"
	ofNode    kind = "node"
	ofOutside kind = "outside"
)

// client is who connects.
type client struct {
	kind kind
	on   *station   // a pod's and a process's node, or the one that the world's packets reach
	addr netip.Addr // of a pod or outside
	port uint16
}

// end is where a packet came to.
type end struct {
	on     *station
	device int // of a pod; 0: none
	packet packet
	// what says why it came to nothing, or to nobody of ours.
	what string
}

// Ends of packets that reach no pod. Refused is told at once, Dropped not at all; Left is for
// whoever has the address.
const (
	Refused = "refused"
	Dropped = "dropped"
	Left    = "left to the stack"
)

// carry takes a frame through the mesh from what a program of a node did with it.
func (w *world) carry(on *station, o model.Outcome) end {
	for range 8 {
		switch o.Verdict {
		case model.Drop:
			return end{on: on, what: fmt.Sprintf("%s (%v)", Dropped, o.Reason)}
		case model.Into:
			if o.Event == bpf.EventRefused || o.Event == bpf.EventReset {
				return end{on: on, what: Refused}
			}
			return end{on: on, device: o.Device, packet: read(o.Frame)}
		case model.Redirect:
			if o.Event == bpf.EventRefused || o.Event == bpf.EventReset { // out of the device that it came from
				return end{on: on, what: Refused}
			}
			dst := read(o.Frame).dst.Addr()
			next := w.home(dst)
			for _, s := range w.stations {
				if s.has(dst) {
					next = s
				}
			}
			if next == nil || next == on {
				return end{on: on, what: fmt.Sprintf("in a tunnel to nobody (%v)", dst)}
			}
			on, o = next, next.FromTunnel(o.Frame)
			continue
		}
		var done *end
		if on, o, done = w.stack(on, o.Frame, o.Reason); done != nil {
			return *done
		}
	}
	w.t.Fatal("a packet goes round in circles")
	return end{}
}

// stack is what a node's stack does with a packet that no program took.
func (w *world) stack(on *station, frame []byte, why bpf.Reason) (*station, model.Outcome, *end) {
	p := read(frame)
	dst := p.dst.Addr()
	switch pod := on.Pods[dst]; {
	case pod != nil && why == bpf.ReasonDelivered:
		return on, model.Outcome{}, &end{on: on, device: pod.Device, packet: p}
	case pod != nil:
		return on, on.ToPod(pod.Device, true, frame), nil
	case slices.Contains(on.Internal[:], dst), on.has(dst):
		return on, model.Outcome{}, &end{on: on, packet: p, what: Left}
	}
	out := on.ToDevice(frame)
	if out.Verdict != model.Pass {
		return on, out, nil
	}
	p = read(out.Frame)
	for _, s := range w.stations {
		if s.has(p.dst.Addr()) {
			return s, s.FromDevice(device, out.Frame), nil
		}
	}
	return on, out, &end{on: on, packet: p, what: Left}
}

// has tells whether an address is the node's own.
func (s *station) has(a netip.Addr) bool { return slices.Contains(s.public, a) }

// abroad tells whether an address is another node's own.
func (s *station) abroad(a netip.Addr) bool { return s.Hosts[a].Flags&bpf.IPNode != 0 }

// publicOf is the node's own address of the family of another.
func (s *station) publicOf(a netip.Addr) netip.Addr {
	i := slices.IndexFunc(s.public, func(own netip.Addr) bool { return own.Is4() == a.Is4() })
	return s.public[max(i, 0)]
}

// home is the node that has a pod's address.
func (w *world) home(a netip.Addr) *station {
	for _, s := range w.stations {
		if slices.ContainsFunc(s.cidrs, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return s
		}
	}
	return nil
}

// send sends a client's first packet to an address, and says where it came to.
func (w *world) send(c client, to netip.AddrPort, proto uint8) end {
	w.t.Helper()
	p := packet{src: netip.AddrPortFrom(c.addr, c.port), dst: to, proto: proto}
	switch c.kind {
	case ofPod:
		return w.carry(c.on, c.on.FromPod(c.on.Pods[c.addr].Device, p.frame()))
	case ofOutside:
		return w.carry(c.on, c.on.FromDevice(device, p.frame()))
	}
	at, why := c.on.Connect(to, proto)
	switch {
	case why == bpf.ReasonSourceRange:
		return end{on: c.on, what: fmt.Sprintf("%s (%v)", Dropped, why)}
	case why != 0:
		return end{on: c.on, what: Refused}
	}
	p.dst = at
	if pod := c.on.Pods[at.Addr()]; pod != nil {
		return w.carry(c.on, c.on.ToPod(pod.Device, false, p.frame()))
	}
	if next := w.home(at.Addr()); next != nil {
		if o := c.on.ToTunnel(lanes[0], p.frame()); o.Verdict == model.Drop {
			return w.carry(c.on, o)
		}
		return w.carry(next, next.FromTunnel(p.frame()))
	}
	if c.on.abroad(at.Addr()) { // the way there is not a tunnel's, and neither is the source
		p.src = netip.AddrPortFrom(c.on.publicOf(at.Addr()), c.port)
	}
	o := c.on.ToDevice(p.frame())
	if o.Verdict != model.Pass {
		return w.carry(c.on, o)
	}
	for _, s := range w.stations {
		if s != c.on && s.has(at.Addr()) {
			return w.carry(s, s.FromDevice(device, p.frame()))
		}
	}
	return end{on: c.on, packet: p, what: Left}
}

// answers sends a packet of a node's process to a pod.
func (w *world) answers(on *station, p packet) end {
	if pod := on.Pods[p.dst.Addr()]; pod != nil {
		return w.carry(on, on.ToPod(pod.Device, false, p.frame()))
	}
	next := w.home(p.dst.Addr())
	if o := on.ToTunnel(lanes[0], p.frame()); o.Verdict == model.Drop || next == nil {
		return w.carry(on, o)
	}
	return w.carry(next, next.FromTunnel(p.frame()))
}

// reply sends what the pod or the node's process answers, and says what is wrong with how the
// client hears it.
func (w *world) reply(c client, to netip.AddrPort, got end) (wrong string) {
	back := got.packet.answer()
	var e end
	if got.device != 0 {
		e = w.carry(got.on, got.on.FromPod(got.device, back.frame()))
	} else {
		e = w.answers(got.on, back)
	}
	from := to
	if c.kind == ofNode { // its socket turns the backend back into the service
		from = got.packet.dst
	}
	switch heard := e.packet; {
	case e.what != "" && e.what != Left:
		return fmt.Sprintf("its answer is %s (%v)", e.what, back)
	case heard.src != from, heard.dst.Port() != c.port, c.kind != ofNode && heard.dst.Addr() != c.addr:
		return fmt.Sprintf("its answer arrives as %v", heard)
	case c.kind == ofPod && (e.on != c.on || e.device != c.on.Pods[c.addr].Device), c.kind != ofPod && e.on != c.on:
		return "its answer arrives elsewhere"
	}
	return ""
}

// name says where a packet came to: at which pod, by its name, and which of its ports.
func (w *world) name(e end) string {
	if e.what != "" {
		return e.what
	}
	return fmt.Sprintf("%s:%d", w.podAt(e.packet.dst.Addr()), e.packet.dst.Port())
}

// same tells whether a packet came to what is wanted. Of what is dropped, why need not be said.
func same(got, want string) bool {
	return got == want || want == Dropped && strings.HasPrefix(got, Dropped+" ")
}
