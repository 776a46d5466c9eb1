package model

import (
	"encoding/binary"
	"net/netip"

	"github.com/weft-mesh/weft/bpf"
)

// quote is the packet that an ICMP error is about.
type quote struct {
	src, dst     netip.Addr
	sport, dport uint16 // of ICMP, as in Packet
	proto        uint8
	sense        sense
	l3, l4       int // offsets in the frame
}

// readQuote also returns false if the quote is of no use.
func (p *Packet) readQuote() (q quote, ok bool) {
	q.l3 = p.l4 + 8
	b := p.Frame[min(q.l3, len(p.Frame)):]
	if !p.ipv6() {
		if len(b) < 20 || b[0]>>4 != 4 || b[0]&15 < 5 || be16(b[6:])&0x1fff != 0 {
			return q, false
		}
		q.src, _ = netip.AddrFromSlice(b[12:16])
		q.dst, _ = netip.AddrFromSlice(b[16:20])
		q.proto, q.l4 = b[9], q.l3+int(b[0]&15)*4
	} else {
		if len(b) < 40 || b[0]>>4 != 6 {
			return q, false
		}
		q.src, _ = netip.AddrFromSlice(b[8:24])
		q.dst, _ = netip.AddrFromSlice(b[24:40])
		proto, at, f, why := extensions(b)
		if nobody(q.src) || nobody(q.dst) || why != 0 || f.offset != 0 {
			return q, false
		}
		q.proto, q.l4 = proto, q.l3+at
	}
	if q.l4+8 > len(p.Frame) {
		return q, false
	}
	b = p.Frame[q.l4:]
	q.sport, q.dport = be16(b), be16(b[2:])
	if isICMP(q.proto) {
		if isError(q.proto, b[0]) {
			return q, false
		}
		request := uint8(0)
		q.sense, request = senseOf(q.proto, b[0])
		q.sport, q.dport = be16(b[4:]), uint16(request)
		if q.sense == tells {
			q.sport = 0
		}
	}
	return q, true
}

// sentKey is the quoted packet's key as its sender sees it.
func (q quote) sentKey() Key {
	return (&Packet{Src: q.src, Dst: q.dst, Sport: q.sport, Dport: q.dport, Proto: q.proto, sense: q.sense}).sentKey()
}

func (q quote) receivedKey() Key {
	return (&Packet{Src: q.src, Dst: q.dst, Sport: q.sport, Dport: q.dport, Proto: q.proto, sense: q.sense}).receivedKey()
}

// restore changes the address and port of one side of a quoted packet. Its own checksum, at
// which nobody looks, stays.
func (p *Packet) restore(q *quote, s side, to netip.AddrPort) {
	before := append([]byte(nil), p.Frame...)
	copy(p.Frame[addrAt(q.l3, s, p.ipv6()):], to.Addr().AsSlice())
	at := q.l4 + 2*int(s)
	if isICMP(q.proto) {
		at = q.l4 + 4
	}
	if !isICMP(q.proto) || q.sense != tells {
		binary.BigEndian.PutUint16(p.Frame[at:], to.Port())
	}
	if !p.ipv6() {
		header := p.Frame[q.l3:q.l4]
		header[10], header[11] = 0, 0
		binary.BigEndian.PutUint16(header[10:], sum(header))
	}
	p.seal(before)
}

// errorForPod is an ICMP error about what a pod sent. The reason says why it is not for it.
func (n *Node) errorForPod(p *Packet, from origin) verdict {
	q, ok := p.readQuote()
	if !ok || q.src != p.Dst {
		return verdict{why: bpf.ReasonInvalid}
	}
	key := q.sentKey()
	f := n.flows.received(key)
	if f == nil {
		return verdict{why: bpf.ReasonInvalid}
	}
	if !n.onPath(p, f, from) {
		return verdict{why: bpf.ReasonSpoofedSource}
	}
	if v := n.judgeError(f); v.why != 0 {
		return v
	}
	if q.sport != f.Inside.Port {
		p.restore(&q, source, netip.AddrPortFrom(q.src, f.Inside.Port))
	}
	if q.dst == f.Inside.Peer {
		return verdict{}
	}
	p.restore(&q, destination, netip.AddrPortFrom(f.Inside.Peer, f.Inside.PeerPort))
	if p.Src == q.dst { // from the backend itself: the pod knows only the service
		return verdict{why: p.rewrite(source, netip.AddrPortFrom(f.Inside.Peer, 0))}
	}
	return verdict{}
}

// onPath tells whether the sender of an error can have seen a packet of the flow: it comes the
// way that the flow goes and, through a tunnel, from its cluster.
func (n *Node) onPath(p *Packet, f *Flow, from origin) bool {
	if from.host {
		return true
	}
	return f.Via == from.via && (from.via != bpf.ViaTunnel || n.who(p.Src).cluster == f.Cluster)
}

// judgeError asks policy about the flow that an error belongs to.
func (n *Node) judgeError(f *Flow) verdict {
	switch again, v := n.judgeAgain(f); again {
	case renewed:
		return verdict{why: bpf.ReasonInvalid}
	case denied:
		return v
	}
	return verdict{}
}

// errorFromPod is an ICMP error from a pod about what it received.
func (n *Node) errorFromPod(p *Packet) Outcome {
	no := func(why bpf.Reason) Outcome { return drop(why, bpf.Egress) }
	q, ok := p.readQuote()
	if !ok || q.dst != p.Src || q.src != p.Dst {
		return no(bpf.ReasonInvalid)
	}
	f := n.flows.inside[q.receivedKey()]
	switch {
	case f == nil:
		return no(bpf.ReasonInvalid)
	case f.Device != p.from.device:
		return no(bpf.ReasonSpoofedSource)
	case f.Service != 0 || f.Loop: // about a service's answer: helps nobody
		return no(bpf.ReasonNotSupported)
	}
	if v := n.judgeError(f); v.why != 0 {
		return dropBy(v, bpf.Egress)
	}
	if f.Node != 0 && n.path(f.Node, f.Cluster) == bpf.PathDead {
		return no(bpf.ReasonPathDown)
	}
	if f.Via != bpf.ViaStack && p.TTL <= 1 {
		return no(bpf.ReasonTTLExceeded)
	}
	if f.As != f.Inside.Port {
		p.restore(&q, destination, netip.AddrPortFrom(q.dst, f.As))
	}
	return n.send(p, f.Via, f.Node)
}
