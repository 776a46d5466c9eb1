package model

import (
	"net/netip"

	"github.com/weft-mesh/weft/bpf"
)

// ToTunnel is what the node's stack sends into a lane.
func (n *Node) ToTunnel(device int, frame []byte) Outcome {
	p, why := n.read(frame, 0)
	switch {
	case why == bpf.ReasonNotOurs:
		return drop(bpf.ReasonNotSupported, bpf.Egress)
	case why != 0 && why != bpf.ReasonFragment: // a later fragment of the node's own was not noted
		return drop(why, bpf.Egress)
	case !n.Ready:
		return drop(bpf.ReasonNotReady, bpf.Egress)
	}
	switch {
	case n.own(p.Src):
		if why == 0 {
			n.noteSent(p)
		}
	case n.Pods[p.Src] != nil, n.isIngress(p.Src):
		return pass(p, bpf.ReasonEnteredTunnel, bpf.Egress)
	default:
		if why := n.processAnswers(p, why != 0); why != 0 {
			return drop(why, bpf.Egress)
		}
	}
	// Its routes know only one lane; the other must be idle for its key to change.
	at := n.who(p.Dst)
	if lane := n.lane(at.node); at.node != 0 && lane != 0 && lane != device {
		return Outcome{Verdict: Redirect, Device: lane, Reason: bpf.ReasonChangedTunnel, Frame: p.Frame}
	}
	return pass(p, bpf.ReasonEnteredTunnel, bpf.Egress)
}

// noteSent remembers what the node asks, so that the answer is let in. Echoes need no flow.
func (n *Node) noteSent(p *Packet) {
	if p.later || p.icmp() && (p.err || p.sense == answers || p.Dport == echo(p.Proto)) {
		return
	}
	key := p.sentKey()
	f := n.flows.inside[key]
	if f != nil && !n.over(f, p) {
		n.advance(f, p, bpf.Egress, false)
		return
	}
	if f != nil {
		n.flows.remove(f)
	}
	n.flows.add(&Flow{Inside: key, To: netip.AddrPortFrom(key.Peer, key.PeerPort), As: key.Port, Identity: host, Via: bpf.ViaTunnel, Seen: n.Now})
}

// accepts tells why the node takes something from a tunnel, or 0: echoes, which is how nodes
// learn that a path is alive, and answers to what it asked.
func (n *Node) accepts(p *Packet) bpf.Reason {
	if p.err {
		q, ok := p.readQuote()
		if !ok || q.src != p.Dst || !isICMP(q.proto) && n.flows.received(Key{q.src, q.dst, q.sport, q.dport, q.proto}) == nil {
			return bpf.ReasonInvalid
		}
		return 0
	}
	if p.icmp() && p.Dport == echo(p.Proto) {
		return 0
	}
	f := n.flows.received(p.receivedKey())
	if f == nil || n.over(f, p) {
		return bpf.ReasonNodeClosed
	}
	n.advance(f, p, bpf.Ingress, false)
	return 0
}

// reachesProcess tells why no process of the node gets something from a tunnel, or 0: it is behind
// a service, and the sender is a pod of another node of the cluster, or in its place.
func (n *Node) reachesProcess(p *Packet) bpf.Reason {
	switch {
	case !n.machine(p.Dst): // nothing is forwarded from a tunnel
		return bpf.ReasonNoEndpoint
	case p.icmp(), !n.offers(netip.AddrPortFrom(p.Dst, p.Dport), p.Proto), !n.neighbour(p.Src):
		return bpf.ReasonNodeClosed
	}
	return 0
}

// processAnswers tells why something may not go into a tunnel, or 0: it is what such a process
// answers, or an error about what it was sent. A fragment whose ports are not known has none.
func (n *Node) processAnswers(p *Packet, portless bool) bpf.Reason {
	if !n.machine(p.Src) {
		return bpf.ReasonSpoofedSource
	}
	switch {
	case p.err:
		q, ok := p.readQuote()
		if !ok {
			return bpf.ReasonInvalid
		}
		if q.dst != p.Src || q.src != p.Dst || !n.offers(netip.AddrPortFrom(q.dst, q.dport), q.proto) {
			return bpf.ReasonSpoofedSource
		}
	case !portless && !n.offers(netip.AddrPortFrom(p.Src, p.Sport), p.Proto):
		return bpf.ReasonSpoofedSource
	}
	if !n.neighbour(p.Dst) {
		return bpf.ReasonSpoofedSource
	}
	return 0
}

// Connect is where a process of the node gets when it connects to an address, or why it is
// refused: a backend if a service is there, nowhere if only services have such addresses, and
// otherwise what it asked for. What sockets remember is not covered.
func (n *Node) Connect(at netip.AddrPort, proto uint8) (netip.AddrPort, bpf.Reason) {
	s := n.serviceAt(Front{At: at, Proto: proto})
	if s == nil {
		s = n.Services[Front{At: at, Proto: proto, Process: true}]
	}
	if !n.Ready {
		return at, 0
	}
	if s == nil {
		if _, why := n.locate(at.Addr()); why == bpf.ReasonNoBackend {
			return at, why
		}
		return at, 0
	}
	self := n.Internal[family(at.Addr())]
	return n.choose(s, self, false, Key{Local: self, Peer: at.Addr(), PeerPort: at.Port(), Proto: proto})
}
