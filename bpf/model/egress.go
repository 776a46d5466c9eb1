package model

import (
	"net/netip"

	"github.com/weft-mesh/weft/bpf"
)

// course is what becomes of a packet of a known flow.
type course int

const (
	goes     course = iota // the way of its flow
	unheard                // the same, over a path that does not answer
	fresh                  // it belongs to no live flow: may it open one?
	silently               // dropped
	refused                // dropped under the policy that its flow was opened under
	away                   // dropped, and the pod is told if that helps
	ends                   // its connection ends, and the pod is told
)

// FromPod is what a pod sends.
func (n *Node) FromPod(device int, frame []byte) Outcome {
	p, why := n.read(frame, device)
	switch {
	case why == bpf.ReasonNotOurs:
		return pass(p, why, bpf.Egress)
	case why != 0:
		return n.turnAway(p, verdict{why: why})
	case !n.Ready:
		return drop(bpf.ReasonNotReady, bpf.Egress)
	case p.err:
		return n.errorFromPod(p)
	}
	key := p.sentKey()
	f := n.flows.inside[key]
	c, v := fresh, verdict{}
	if f != nil {
		c, v = n.decide(f, p, device)
	}
	begins := c == fresh
	if begins {
		if f != nil {
			n.flows.remove(f)
		}
		if f, v = n.open(p, key, device); f == nil {
			return n.turnAway(p, v)
		}
	}
	switch c {
	case silently:
		return drop(v.why, bpf.Egress)
	case refused:
		return dropBy(v, f.direction())
	case away:
		return n.turnAway(p, v)
	case ends:
		return n.reset(p, bpf.Egress)
	}
	if p.TTL <= 1 && f.Via != bpf.ViaStack {
		return n.turnAway(p, verdict{why: bpf.ReasonTTLExceeded})
	}
	if !begins {
		n.advance(f, p, bpf.Egress, c == unheard)
	}
	if f.Loop {
		return n.turn(f, p)
	}
	if why := n.translate(f, p); why != 0 {
		return n.turnAway(p, verdict{why: why})
	}
	return n.send(p, f.Via, f.Node)
}

// direction is the one whose policy judged the flow.
func (f *Flow) direction() bpf.Direction {
	if f.ByPeer {
		return bpf.Ingress
	}
	return bpf.Egress
}

// send sends an allowed packet on.
func (n *Node) send(p *Packet, via bpf.Via, node uint16) Outcome {
	switch via {
	case bpf.ViaTunnel:
		return n.tunnel(p, node)
	case bpf.ViaPod:
		pod := n.Pods[p.Dst]
		if pod == nil {
			return n.turnAway(p, verdict{why: bpf.ReasonNoEndpoint})
		}
		return n.deliver(p, pod, origin{via: bpf.ViaPod})
	}
	return pass(p, bpf.ReasonToStack, bpf.Egress)
}

// translate makes the packet one of its flow's outside. A pod knows only the inside.
func (n *Node) translate(f *Flow, p *Packet) bpf.Reason {
	if p.at(destination) != f.To && !p.icmp() {
		if why := p.rewrite(destination, f.To); why != 0 {
			return why
		}
	}
	if f.As != p.Sport && !p.icmp() {
		return p.rewrite(source, netip.AddrPortFrom(p.Src, f.As))
	}
	return 0
}

// decide is about a packet that a pod sends in a known flow.
func (n *Node) decide(f *Flow, p *Packet, device int) (course, verdict) {
	if f.Device != device { // another pod's flow; only the pod that has the address now may replace it
		if pod := n.Pods[p.Src]; pod == nil || pod.Device != device {
			return silently, verdict{why: bpf.ReasonSpoofedSource}
		}
		return fresh, verdict{}
	}
	if n.over(f, p) {
		return fresh, verdict{}
	}
	again, v := n.judgeAgain(f)
	switch again {
	case renewed:
		return fresh, v
	case denied:
		return n.decideRefused(f, p, v)
	}
	path := bpf.PathAlive
	if f.Node != 0 {
		path = n.path(f.Node, f.Cluster)
	}
	if again == kept && (path == bpf.PathAlive || !n.endsHere(f, path)) {
		if path != bpf.PathAlive && f.open() {
			return unheard, v
		}
		return goes, v
	}
	// The backend is gone, or the path. An open connection is reset; anything else may start
	// again elsewhere. An answer is sent all the same: the other side was heard.
	switch {
	case f.open():
		n.flows.remove(f)
		return ends, v
	case f.ByPeer:
		return goes, v
	case f.Service != 0:
		return fresh, v
	}
	return away, verdict{why: bpf.ReasonPathDown}
}

// endsHere tells whether a flow ends because of its path, rather than wait for it.
func (n *Node) endsHere(f *Flow, path bpf.Path) bool {
	if path == bpf.PathDead {
		return !f.open() || !n.heard(f)
	}
	return !f.Replied && f.Service != 0 && n.aliveElsewhere(f.Inside)
}

// decideRefused is about a packet of a flow that may not go on.
func (n *Node) decideRefused(f *Flow, p *Packet, v verdict) (course, verdict) {
	if v.why == bpf.ReasonNoTunnel && n.waits(f, p) {
		return silently, v
	}
	hopeless := v.why == bpf.ReasonFormerMember || v.why == bpf.ReasonNoTunnel && f.Replied && !p.opens()
	if p.Proto == tcp && p.Flags&rst == 0 && hopeless {
		f.Reset, f.Seen = true, n.Now
		return ends, v
	}
	n.tried(f, v.why)
	if f.ByPeer {
		return refused, v
	}
	return away, v
}

// again is what judging a flow again comes to.
type again int

const (
	kept    again = iota
	gone          // its backend was removed from the service
	renewed       // the address has a new pod: this is not its flow
	denied
)

// restsOn is what a flow's verdict rests on.
func (f *Flow) restsOn() []any {
	other := any(f.Inside.Peer)
	if f.Service != 0 {
		other = f.To.Addr()
	}
	return []any{nil, f.Inside.Local, other, f.Identity}
}

// stamp notes what a verdict rests on.
func (n *Node) stamp(f *Flow) {
	f.verdict = map[any]uint64{}
	for _, what := range f.restsOn() {
		f.verdict[what] = n.changes[what]
	}
}

func (n *Node) holds(f *Flow) bool {
	for _, what := range f.restsOn() {
		if was, ok := f.verdict[what]; !ok || was != n.changes[what] {
			return false
		}
	}
	return true
}

// judgeAgain judges a flow in the direction in which it was opened, if anything changed that
// its verdict rests on.
func (n *Node) judgeAgain(f *Flow) (again, verdict) {
	if n.holds(f) {
		return kept, verdict{}
	}
	pod := n.Pods[f.Inside.Local]
	if pod == nil || pod.Device != f.Device {
		return renewed, verdict{}
	}
	if pod.Held {
		return denied, verdict{why: bpf.ReasonHeld}
	}
	// A pod with itself, and the node with its pods: nobody else has a say.
	if f.Loop || f.ByPeer && f.Via == bpf.ViaStack && f.Identity == host {
		f.Waiting = false
		n.stamp(f)
		return kept, verdict{}
	}
	to := netip.AddrPortFrom(f.Inside.Peer, f.Inside.PeerPort)
	if f.Service != 0 {
		to = f.To
	}
	at, why := n.locateOffered(to, f.Inside.Proto)
	if f.ByPeer {
		at, why = n.locate(to.Addr())
	}
	// A backend that left its service keeps open connections for as long as it exists.
	if _, member := n.Members[Member{f.Service, f.To}]; f.Service != 0 && !member &&
		(!f.open() || why != 0 && why != bpf.ReasonNoTunnel || at.via != f.Via || at.identity == unknownMember) {
		return gone, verdict{}
	}
	// What went through a tunnel never leaves in the clear.
	if f.Via == bpf.ViaTunnel && why != bpf.ReasonNodeAddress && (at.via == bpf.ViaStack || at.flags&bpf.IPFormer != 0) {
		return denied, verdict{why: bpf.ReasonFormerMember}
	}
	port := f.To.Port()
	if f.ByPeer {
		port = f.Inside.Port
	}
	if isICMP(f.Inside.Proto) {
		port = f.Inside.PeerPort &^ askedByPeer
	}
	v := n.judge(pod.Set, f.direction(), at.identity, f.Inside.Proto, port)
	if v.why != 0 {
		return denied, v
	}
	if why != 0 && (!f.ByPeer || why == bpf.ReasonNodeAddress || why == bpf.ReasonNoTunnel && f.Replied) {
		return denied, verdict{why: why}
	}
	f.Identity, f.Rule, f.Node, f.Cluster, f.Via = at.identity, v.rule, at.node, at.cluster, at.via
	f.Waiting = false
	n.stamp(f)
	return kept, v
}

// unasked tells of an answer without a request, and of the end of no connection.
func (p *Packet) unasked() bool {
	return p.icmp() && p.sense == answers || p.Proto == tcp && p.Flags&rst != 0
}

// open opens a flow for what a pod sends; nil: it may not, for this reason.
func (n *Node) open(p *Packet, key Key, device int) (*Flow, verdict) {
	no := func(why bpf.Reason) (*Flow, verdict) { return nil, verdict{why: why} }
	pod := n.Pods[p.Src]
	switch {
	case pod == nil || pod.Device != device:
		return no(bpf.ReasonSpoofedSource)
	case pod.Held:
		return no(bpf.ReasonHeld)
	case p.unasked():
		return no(bpf.ReasonInvalid)
	}
	f := &Flow{Inside: key, To: netip.AddrPortFrom(key.Peer, key.PeerPort), As: key.Port, Device: device, Owner: Owned{Device: device}, Seen: n.Now}
	f.Fin[bpf.Egress] = p.Proto == tcp && p.Flags&fin != 0
	f.said[bpf.Egress] = numbers{p.Seq, p.Ack}
	member := true
	if s := n.serviceAt(Front{At: f.To, Proto: p.Proto}); s != nil {
		to, why := n.choose(s, p.Src, false, key)
		if why != 0 {
			return no(why)
		}
		f.To, f.Service = to, s.ID
		_, member = n.Members[Member{s.ID, to}]
		if to.Addr() == p.Src {
			return n.openLoop(f)
		}
	}
	at, why := n.locateOffered(f.To, p.Proto)
	if why == bpf.ReasonNoBackend {
		return no(why)
	}
	port := f.To.Port()
	if p.icmp() {
		port = p.Dport
	}
	v := n.judge(pod.Set, bpf.Egress, at.identity, p.Proto, port)
	switch {
	case v.why != 0:
		return nil, v
	case why != 0:
		return no(why)
	case at.node != 0 && n.path(at.node, at.cluster) == bpf.PathDead:
		return no(bpf.ReasonPathDown)
	case at.node != 0 && n.lane(at.node) == 0:
		return no(bpf.ReasonNoTunnel)
	case at.via != bpf.ViaStack && p.TTL <= 1:
		return no(bpf.ReasonTTLExceeded)
	}
	f.Identity, f.Rule, f.Node, f.Cluster, f.Via = at.identity, v.rule, at.node, at.cluster, at.via
	if n.stamp(f); !member { // removed since it was chosen: the next packet looks again
		f.verdict = nil
	}
	if why := n.claim(f, nil); why != 0 {
		return no(why)
	}
	n.flows.add(f)
	return f, v
}

// free tells whether nobody alive has this key outside; what is over gives way.
func (n *Node) free(k Key) bool {
	for _, f := range []*Flow{n.flows.outside[k], n.flows.inside[k]} {
		if f == nil {
			continue
		}
		if n.live(f) {
			return false
		}
		n.flows.remove(f)
	}
	return true
}

// claim finds a source port at which the answers of a flow are told from those of all others:
// its own, or else a random one. also says what else must be so of it.
//
// A flow that stands beside others' answers gets their key when these are over. Who asks just
// then may be given another port, whether or not that flow is over as well.
func (n *Node) claim(f *Flow, also func(port uint16) bool) bpf.Reason {
	heir := n.flows.inside[f.Outside()]
	stored, known := n.Witness.Port(f.Inside)
	yields := heir != nil && heir.As != heir.Inside.Port && known && stored != 0 && stored != f.As
	if !yields && (also == nil || also(f.As)) && n.free(f.Outside()) {
		return 0
	}
	if before := n.flows.outside[f.Outside()]; yields && before != nil && !n.live(before) {
		n.flows.remove(before)
	}
	if f.Inside.Proto == sctp { // its checksum covers its ports
		return bpf.ReasonFlowClash
	}
	drawn, ok := n.Witness.Port(f.Inside)
	if !ok || drawn < 1024 || drawn == f.Inside.Port {
		n.complain("flow %v got source port %d (known: %v)", f.Inside, drawn, ok)
	}
	f.As = drawn
	if also != nil && !also(drawn) || !n.free(f.Outside()) {
		n.complain("flow %v got source port %d, which another one has", f.Inside, drawn)
	}
	return 0
}
