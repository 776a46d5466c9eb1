package model

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/weft-mesh/weft/bpf"
)

// hopeless are the reasons of which a sender is told: they are certain, and sending again would
// not help. Policy drops in silence, as in Cilium; what is temporary passes the next time.
var hopeless = []bpf.Reason{
	bpf.ReasonNoBackend, bpf.ReasonNoEndpoint, bpf.ReasonNoTunnel, bpf.ReasonPathDown, bpf.ReasonFlowClash,
	bpf.ReasonFormerMember, bpf.ReasonNodeAddress, bpf.ReasonNotSupported,
}

func isHopeless(why bpf.Reason) bool { return slices.Contains(hopeless, why) }

// turnAway drops what a pod sent, and tells it so if that helps.
func (n *Node) turnAway(p *Packet, v verdict) Outcome {
	o := dropBy(v, bpf.Egress)
	exceeded := v.why == bpf.ReasonTTLExceeded // traceroute waits for it
	if !exceeded && !isHopeless(v.why) || !n.answerable(p) {
		return o
	}
	original := *p
	original.Frame = slices.Clone(p.sent)
	original.Src, original.Dst = original.addrs()
	if original.Proto == tcp {
		original.Flags = p.Flags
	}
	switch {
	case exceeded:
		typ := uint8(11)
		if p.ipv6() {
			typ = 3
		}
		o.Frame = original.errorFrom(n.Internal[family(p.Src)], typ, 0)
	case p.Proto == tcp && !p.hasOptions():
		o.Frame = original.resetFrame()
	default:
		typ, code := p.unreachable(v.why)
		o.Frame = original.errorFrom(original.Dst, typ, code)
	}
	if o.Frame != nil {
		o.Event, o.Verdict, o.Device = bpf.EventRefused, Into, p.from.device
	}
	return o
}

// answerable tells whether the pod that sent this may be answered at all: never an error or an
// answer, never many, and only at its own address.
func (n *Node) answerable(p *Packet) bool {
	switch {
	case p.l3 == 0, p.err, p.later, p.ipv6() && p.Proto == 0, p.icmp() && p.sense != asks,
		p.Proto == tcp && p.Flags&rst != 0, p.Dst.IsMulticast(), p.Dst.Is4() && p.Dst.As4()[0] >= 240, p.Frame[0]&1 == 1:
		return false
	}
	pod := n.Pods[p.Src]
	return pod != nil && pod.Device == p.from.device && !pod.Held
}

func (p *Packet) addrs() (src, dst netip.Addr) {
	n := p.Src.BitLen() / 8
	src, _ = netip.AddrFromSlice(p.Frame[addrAt(p.l3, source, p.ipv6()):][:n])
	dst, _ = netip.AddrFromSlice(p.Frame[addrAt(p.l3, destination, p.ipv6()):][:n])
	return src, dst
}

func (p *Packet) headerSize() int {
	if p.ipv6() {
		return 40
	}
	return 20
}

// hasOptions tells whether anything is between the IP header and the transport's.
func (p *Packet) hasOptions() bool { return p.l4 != p.l3+p.headerSize() }

// unreachable is the type and code of the error that the sender's protocol heeds.
func (p *Packet) unreachable(why bpf.Reason) (typ, code uint8) {
	protocol := p.Proto == sctp || why == bpf.ReasonNotSupported
	switch {
	case p.Proto == icmp6 && p.ipv6():
		return 1, 3
	case p.ipv6() && protocol:
		return 4, 1
	case p.ipv6():
		return 1, 4
	case p.Proto == icmp4:
		return 3, 1
	case protocol:
		return 3, 2
	}
	return 3, 3
}

// size is that of the IP packet, as its header says.
func (p *Packet) size() int {
	if p.ipv6() {
		return int(be16(p.Frame[p.l3+4:])) + 40
	}
	return int(be16(p.Frame[p.l3+2:]))
}

// answer is a frame from an address to the sender, with this transport.
func (p *Packet) answer(from netip.Addr, proto uint8, body []byte) []byte {
	frame := slices.Concat(p.Frame[6:12], p.Frame[0:6], p.Frame[12:14])
	out := &Packet{Src: from, Dst: p.Src, Proto: proto, l3: 14, l4: 14 + p.headerSize(), whole: true}
	var ip []byte
	if p.ipv6() {
		ip = make([]byte, 8)
		ip[0], ip[6], ip[7] = 0x60, proto, 64
		binary.BigEndian.PutUint16(ip[4:], uint16(len(body)))
	} else {
		ip = make([]byte, 12)
		ip[0], ip[8], ip[9] = 0x45, 64, proto
		if proto == icmp4 {
			ip[1] = 0xc0
		}
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(body)))
	}
	out.Frame = slices.Concat(frame, ip, from.AsSlice(), p.Src.AsSlice(), body)
	out.seal(out.Frame)
	return out.Frame
}

// errorFrom is an ICMP error about the packet; nil if it cannot be quoted.
func (p *Packet) errorFrom(from netip.Addr, typ, code uint8) []byte {
	n := min(p.size(), 128)
	if n < 28 || p.l3+n > len(p.Frame) || !from.IsValid() {
		return nil
	}
	head, proto := make([]byte, 8), uint8(icmp4)
	head[0], head[1] = typ, code
	if p.ipv6() {
		if proto = icmp6; typ == 4 { // the field that it is about
			head[7] = 6
		}
	}
	return p.answer(from, proto, append(head, p.Frame[p.l3:p.l3+n]...))
}

// resetFrame is a TCP reset from the packet's destination, which its sender accepts without a
// challenge.
func (p *Packet) resetFrame() []byte {
	in := p.Frame[p.l4:]
	out := make([]byte, 20)
	copy(out, in[2:4])
	copy(out[2:], in[0:2])
	out[12] = 5 << 4
	if p.Flags&ack != 0 {
		copy(out[4:], in[8:12])
		out[13] = rst
	} else {
		taken := p.size() - p.headerSize() - int(in[12]>>4)*4
		for _, f := range []uint8{syn, fin} {
			if p.Flags&f != 0 {
				taken++
			}
		}
		binary.BigEndian.PutUint32(out[8:], p.Seq+uint32(taken))
		out[13] = rst | ack
	}
	return p.answer(p.Dst, tcp, out)
}

// reset ends the connection of a packet.
func (n *Node) reset(p *Packet, dir bpf.Direction) Outcome {
	if p.hasOptions() || p.later {
		return drop(bpf.ReasonPathDown, dir)
	}
	o := Outcome{Verdict: Into, Device: p.from.device, Reason: bpf.ReasonResetSent, Dir: dir, Event: bpf.EventReset}
	o.Frame = p.resetFrame()
	return o
}
