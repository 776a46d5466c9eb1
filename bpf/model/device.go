package model

import (
	"net/netip"

	"github.com/weft-mesh/weft/bpf"
)

// clear is why a member's packet outside of tunnels is dropped.
func clear(flags bpf.IPFlags) bpf.Reason {
	if flags&bpf.IPFormer != 0 {
		return bpf.ReasonFormerMember
	}
	return bpf.ReasonPlaintext
}

// ofNode tells whether it is another node's own address.
func (n *Node) ofNode(a netip.Addr) bool { return n.Hosts[a].Flags&bpf.IPNode != 0 }

// ToDevice is what leaves towards the world.
func (n *Node) ToDevice(frame []byte) Outcome {
	p, why := n.read(frame, 0)
	if p.l3 == 0 {
		return pass(p, bpf.ReasonNotOurs, bpf.Egress)
	}
	dst, src := n.flagsOf(p.Dst), n.flagsOf(p.Src)
	switch {
	case dst&bpf.IPMember != 0:
		return drop(clear(dst), bpf.Egress)
	case src&bpf.IPMember == 0:
		n.takeIdentifier(p, why)
		return pass(p, bpf.ReasonNotOurs, bpf.Egress)
	case src&bpf.IPLocal == 0: // of other nodes' pods, only what answers a client of a node port
		return n.leaves(p, why, clear(src))
	case dst&bpf.IPService != 0:
		return drop(bpf.ReasonNoBackend, bpf.Egress)
	case n.ofNode(p.Dst):
		return drop(bpf.ReasonNodeAddress, bpf.Egress)
	}
	pod := n.Pods[p.Src]
	if pod == nil { // the node's own internal address
		return pass(p, bpf.ReasonNotOurs, bpf.Egress)
	}
	if why == bpf.ReasonNotOurs { // a link's own, and this is not the pod's
		why = bpf.ReasonNotSupported
	}
	if why == 0 {
		why = n.masquerade(p, pod)
	}
	if why != 0 {
		return drop(why, bpf.Egress)
	}
	return pass(p, bpf.ReasonNotOurs, bpf.Egress)
}

func (n *Node) leaves(p *Packet, why, otherwise bpf.Reason) Outcome {
	if why != 0 || n.ofNode(p.Dst) {
		return drop(otherwise, bpf.Egress)
	}
	if p.err {
		why = n.masqueradeError(p)
	} else if x := n.masks.leaving(p.sentKey(), bpf.MasqueradeExposed); x != nil {
		why = p.leaveAs(x)
	}
	switch {
	case why != 0:
		return drop(why, bpf.Egress)
	case n.flagsOf(p.Src)&bpf.IPMember != 0:
		return drop(otherwise, bpf.Egress)
	}
	return pass(p, bpf.ReasonNotOurs, bpf.Egress)
}

// takeIdentifier lets the node have an identifier of ICMP that a pod has.
func (n *Node) takeIdentifier(p *Packet, why bpf.Reason) {
	if why != 0 || !p.icmp() || p.sense != asks || p.err {
		return
	}
	if x := n.masks.coming(p.sentKey(), bpf.MasqueradePod); x != nil {
		n.masks.remove(x)
	}
}

// FromDevice is what comes from the world.
func (n *Node) FromDevice(device int, frame []byte) Outcome {
	p, why := n.read(frame, 0)
	if p.l3 == 0 {
		return pass(p, bpf.ReasonNotOurs, bpf.Ingress)
	}
	if src := n.flagsOf(p.Src); src&bpf.IPMember != 0 {
		return drop(clear(src), bpf.Ingress)
	}
	if why == 0 {
		if why := n.unmasquerade(p); why != 0 {
			return drop(why, bpf.Ingress)
		}
	}
	var began *entry
	if n.Pods[p.Dst] == nil && why == 0 && n.Ready {
		o, e := n.knock(p, device)
		if o != nil {
			return *o
		}
		began = e
	}
	pod := n.Pods[p.Dst]
	switch {
	case pod == nil:
		dst := n.flagsOf(p.Dst)
		switch {
		case dst&bpf.IPMember == 0, why != 0 && dst&bpf.IPMember == 0:
			return pass(p, bpf.ReasonNotOurs, bpf.Ingress)
		case dst&bpf.IPLocal != 0:
			return drop(bpf.ReasonNoEndpoint, bpf.Ingress)
		}
		return drop(clear(dst), bpf.Ingress)
	case why == bpf.ReasonNotOurs:
		return pass(p, why, bpf.Ingress)
	case why != 0:
		return drop(why, bpf.Ingress)
	case !n.Ready:
		return drop(bpf.ReasonNotReady, bpf.Ingress)
	}
	o := n.arrive(p, pod, origin{via: bpf.ViaStack})
	if began != nil && o.Verdict == Drop { // no flow, no rows
		n.withdraw(began)
	}
	return o
}

// knock is for whoever is no pod: a node port? It returns an outcome, or the connection that
// has just begun with a pod of this node, or neither.
func (n *Node) knock(p *Packet, device int) (*Outcome, *entry) {
	if p.err && n.isIngress(p.Src) { // about what a backend elsewhere answered
		o := drop(bpf.ReasonTTLExceeded, bpf.Ingress)
		if p.TTL > 1 {
			at, why := n.locate(p.Dst)
			if o = drop(why, bpf.Ingress); why == 0 {
				o = n.tunnel(p, at.node)
			}
		}
		return &o, nil
	}
	s := n.exposed(p)
	if s == nil {
		return nil, nil
	}
	return n.enter(p, s, device)
}

// exposed is the service that clients outside reach where a packet is sent.
func (n *Node) exposed(p *Packet) *Service {
	to := p.Frame[0:6]
	if p.Proto != tcp && p.Proto != udp || to[0]&1 == 0 && [6]byte(to) != ourMAC { // another machine's
		return nil
	}
	front := Front{At: p.at(destination), Proto: p.Proto}
	s := n.Services[front]
	if s != nil && s.Split {
		front.Outside = true
		s = n.Services[front]
	}
	if n.flagsOf(p.Dst)&(bpf.IPService|bpf.IPMember) != 0 { // cluster IPs are for the mesh
		return nil
	}
	return s
}

// ourMAC is the hardware address of the node's device.
var ourMAC = [6]byte{2, 0, 0, 0, 0, 1}

// entry is a connection of a client with a node port.
type entry struct {
	service uint32
	front   Key // the node port's side
	to      netip.AddrPort
	port    uint16 // the client's, as the backend knows it
	at      place
	why     bpf.Reason // the backend is nowhere
}

// inside is the backend's side, client the client's own.
func (e *entry) inside() Key {
	return Key{e.to.Addr(), e.front.Peer, e.to.Port(), e.port, e.front.Proto}
}
func (e *entry) client() Key {
	return Key{e.front.Peer, e.to.Addr(), e.port, e.to.Port(), e.front.Proto}
}

// flow is that of the connection: the pod's own, or the node's with a backend elsewhere.
func (n *Node) flowOf(e *entry) *Flow {
	if e.why == 0 && e.at.via == bpf.ViaPod {
		return n.flows.plain(e.inside())
	}
	if x := n.masks.leaving(e.client(), bpf.MasqueradeClient); x != nil {
		return n.flows.plain(x.in)
	}
	return nil
}

// withdraw forgets a connection.
func (n *Node) withdraw(e *entry) {
	if x := n.masks.leaving(e.client(), bpf.MasqueradeClient); x != nil {
		if f := n.flows.plain(x.in); f != nil {
			n.flows.remove(f)
		}
		n.masks.remove(x)
	}
	if x := n.masks.out[e.inside()]; x != nil {
		n.masks.remove(x)
	}
}

// enter is a packet for a node port.
func (n *Node) enter(p *Packet, s *Service, device int) (*Outcome, *entry) {
	e := &entry{service: s.ID, front: p.receivedKey(), port: p.Sport}
	drops := func(why bpf.Reason) (*Outcome, *entry) { o := drop(why, bpf.Ingress); return &o, nil }
	if x := n.masks.coming(e.front, bpf.MasqueradeExposed); x != nil {
		e.to, e.port = x.out.local(), x.out.PeerPort
		e.at, e.why = n.locate(e.to.Addr())
		f := n.flowOf(e)
		switch c, why := n.decideExposed(p, e, f); c {
		case goes, unheard:
			if f != nil && e.at.via != bpf.ViaPod {
				if p.TTL <= 1 {
					return drops(bpf.ReasonTTLExceeded)
				}
				n.advance(f, p, bpf.Egress, c == unheard)
			}
			return n.sendInside(p, e)
		case ends:
			n.withdraw(e)
			o := n.reset(p, bpf.Ingress)
			if o.Verdict != Drop {
				o.Verdict, o.Device = Redirect, device
			}
			return &o, nil
		case silently:
			return drops(why)
		}
		n.withdraw(e)
		e.port = p.Sport
	}
	if p.Proto == tcp && !p.opens() {
		return nil, nil // the node's own, if anybody's
	}
	if p.later {
		return drops(bpf.ReasonFragment)
	}
	why := n.openExposed(p, s, e)
	if why == 0 && e.at.via != bpf.ViaPod {
		if why = n.openElsewhere(p, e); why != 0 {
			n.masks.remove(n.masks.out[e.inside()])
		}
	}
	if why != 0 {
		o := n.refuseClient(p, why, device)
		return &o, nil
	}
	o, _ := n.sendInside(p, e)
	return o, e
}

// decideExposed is about a packet of a known connection.
func (n *Node) decideExposed(p *Packet, e *entry, f *Flow) (course, bpf.Reason) {
	if f == nil || n.over(f, p) {
		return fresh, 0
	}
	over := fresh
	if f.open() {
		over = ends
	}
	_, member := n.Members[Member{e.service, e.to}]
	switch {
	case f.open() && e.why == bpf.ReasonNoTunnel: // its node may be missing only for a moment
		return silently, e.why
	case e.why != 0, !member && (!f.open() || e.at.identity == unknownMember):
		return over, 0
	case e.at.node == 0:
		return goes, 0
	}
	switch path := n.path(e.at.node, e.at.cluster); {
	case path == bpf.PathAlive:
		return goes, 0
	case f.open() && (path == bpf.PathSilent || n.heard(f)):
		return unheard, 0
	case !f.open() && path == bpf.PathSilent && f.Replied:
		return goes, 0
	}
	return over, 0
}

// openExposed chooses a backend for a client's connection.
func (n *Node) openExposed(p *Packet, s *Service, e *entry) bpf.Reason {
	if why := inTheClear(n.who(e.front.Peer)); why != 0 {
		return why
	}
	if p.TTL <= 1 {
		return bpf.ReasonTTLExceeded
	}
	to, why := n.choose(s, e.front.Peer, true, e.front)
	if why != 0 {
		return why
	}
	e.to = to
	if e.at, why = n.locate(to.Addr()); why != 0 {
		return why
	}
	if e.at.via == bpf.ViaStack { // it would not answer to us
		return bpf.ReasonNotSupported
	}
	if !n.vacant(e.front) {
		return bpf.ReasonFlowClash
	}
	if !n.vacant(e.inside()) { // the client's port is taken towards this backend
		free := func() bool {
			f := n.flows.received(e.inside())
			return n.vacant(e.inside()) && (f == nil || n.expired(f))
		}
		drawn, ok := n.Witness.Client(e.front)
		if e.port = drawn; ok && (drawn < 1024 || drawn == e.front.PeerPort || !free()) {
			n.complain("client %v got port %d, which is not free", e.front, drawn)
		}
		// It was refused after all, and nothing tells which port it would have had.
		for !ok && (e.port < 1024 || !free()) {
			e.port--
		}
	}
	n.masks.add(&mask{bpf.MasqueradeExposed, e.inside(), e.front})
	return 0
}

// openElsewhere gives a client a port of the ingress address towards its backend: its own if
// it can keep it.
func (n *Node) openElsewhere(p *Packet, e *entry) bpf.Reason {
	if !n.vacant(e.client()) {
		return bpf.ReasonFlowClash
	}
	ingress, _ := n.ingress(family(p.Src))
	key := Key{ingress, e.to.Addr(), e.port, e.to.Port(), e.front.Proto}
	free := func() bool { x := n.masks.in[key]; return x == nil || !n.inUse(x) }
	if !free() {
		drawn, ok := n.Witness.Mask(e.client())
		if key.Port = drawn; !ok || drawn < 1024 || !free() {
			n.complain("client %v got port %d of the ingress address (known: %v), which is not free", e.front, drawn, ok)
		}
	}
	if x := n.masks.in[key]; x != nil {
		n.masks.remove(x)
	}
	n.masks.add(&mask{bpf.MasqueradeClient, e.client(), key})
	if old := n.flows.inside[key]; old != nil {
		if n.live(old) {
			return 0
		}
		n.flows.remove(old)
	}
	f := &Flow{
		Inside: key, To: e.to, As: key.Port, Identity: e.at.identity, Node: e.at.node, Cluster: e.at.cluster,
		Via: bpf.ViaTunnel, Owner: Owned{Clients: true}, Seen: n.Now,
	}
	f.said[bpf.Egress] = numbers{p.Seq, p.Ack}
	n.flows.add(f)
	return 0
}

// sendInside sends a client's packet on to its backend; nil: that is a pod of this node.
func (n *Node) sendInside(p *Packet, e *entry) (*Outcome, *entry) {
	p.rewrite(destination, e.to)
	if e.port != p.Sport {
		p.rewrite(source, netip.AddrPortFrom(p.Src, e.port))
	}
	if e.at.via == bpf.ViaPod {
		return nil, nil
	}
	p.rewrite(source, n.masks.out[e.client()].in.local())
	o := n.tunnel(p, e.at.node)
	return &o, nil
}

// refuseClient drops what a client opens, and tells it so if that helps.
func (n *Node) refuseClient(p *Packet, why bpf.Reason, device int) Outcome {
	o := drop(why, bpf.Ingress)
	if !isHopeless(why) || p.later || p.Frame[0]&1 == 1 || p.Proto == tcp && (p.Flags&rst != 0 || p.hasOptions()) {
		return o
	}
	if p.Proto == tcp {
		o.Frame = p.resetFrame()
	} else {
		typ, code := p.unreachable(why)
		o.Frame = p.errorFrom(p.Dst, typ, code)
	}
	if o.Frame != nil {
		o.Event, o.Verdict, o.Device = bpf.EventRefused, Redirect, device
	}
	return o
}
