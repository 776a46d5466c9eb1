package model

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/weft-mesh/weft/bpf"
)

// Protocols.
const (
	icmp4, tcp, udp, icmp6, sctp = 1, 6, 17, 58, 132
)

// Flags of TCP.
const (
	fin, syn, rst, ack = 1, 2, 4, 16
)

// sense is the part that ICMP plays in a flow.
type sense int

const (
	answers sense = iota
	asks
	tells // and expects no answer
)

// Packet is a frame, and what decisions need of it.
type Packet struct {
	Frame    []byte
	Src, Dst netip.Addr
	Proto    uint8
	// Of ICMP, Sport is the identifier and Dport the type of the request.
	Sport, Dport uint16
	Flags        uint8
	Seq, Ack     uint32
	TTL          uint8

	l3, l4 int // offsets of the headers; l3 is 0 without IP
	whole  bool
	first  bool // of several fragments
	later  bool // a later fragment, without a transport header
	id     uint32
	sense  sense
	err    bool // an ICMP error
	typ    uint8
	from   sender
	sent   []byte // the frame as it was
}

// sender is whoever the fragments of a packet belong to: a pod by its device, because it can
// forge its address; anybody else by that.
type sender struct {
	device int
	addr   netip.Addr
}

// datagram is one that was sent in fragments.
type datagram struct {
	from     sender
	src, dst netip.Addr
	id       uint32
	proto    uint8
}

type ports struct {
	sport, dport uint16
	sense        sense
}

func be16(b []byte) uint16 { return binary.BigEndian.Uint16(b) }
func be32(b []byte) uint32 { return binary.BigEndian.Uint32(b) }

func (p *Packet) ipv6() bool  { return p.Src.Is6() }
func (p *Packet) icmp() bool  { return isICMP(p.Proto) }
func isICMP(proto uint8) bool { return proto == icmp4 || proto == icmp6 }

// opens tells whether it is the first packet of a TCP connection.
func (p *Packet) opens() bool { return p.Proto == tcp && p.Flags&(syn|ack) == syn }

// read parses a frame that a pod's device sends (or 0), with an Ethernet header. The reason is 0 if the
// packet may be carried.
func (n *Node) read(frame []byte, device int) (*Packet, bpf.Reason) {
	p := &Packet{Frame: slices.Clone(frame), sent: frame, from: sender{device: device}}
	if kind := be16(frame[12:]); kind == 0x0806 {
		return p, bpf.ReasonNotOurs
	} else if kind != 0x0800 && kind != 0x86dd {
		return p, bpf.ReasonNotSupported
	}
	b := frame[14:]
	if len(b) < 20 {
		return p, bpf.ReasonInvalid
	}
	offset, why := 0, bpf.Reason(0)
	switch b[0] >> 4 {
	case 4:
		p.l3 = 14
		offset, why = p.readIPv4(b)
	case 6:
		if len(b) < 40 {
			return p, bpf.ReasonInvalid
		}
		p.l3 = 14
		offset, why = p.readIPv6(b)
	default:
		return p, bpf.ReasonNotSupported
	}
	if device == 0 {
		p.from.addr = p.Src
	}
	if why != 0 {
		return p, why
	}
	of := datagram{p.from, p.Src, p.Dst, p.id, p.Proto}
	if offset > 0 {
		if p.Proto == tcp && offset < 20 { // it would overlap the header that was judged
			return p, bpf.ReasonInvalid
		}
		known, ok := n.datagrams[of]
		if !ok {
			return p, bpf.ReasonFragment
		}
		p.Sport, p.Dport, p.sense, p.later = known.sport, known.dport, known.sense, true
		return p, 0
	}
	if p.l4 > 1024 {
		return p, bpf.ReasonNotSupported
	}
	if why := p.readTransport(); why != 0 {
		return p, why
	}
	if p.first {
		n.datagrams[of] = ports{p.Sport, p.Dport, p.sense}
	}
	return p, 0
}

func (p *Packet) readIPv4(b []byte) (offset int, why bpf.Reason) {
	header, frag := int(b[0]&15)*4, be16(b[6:])
	p.Src, _ = netip.AddrFromSlice(b[12:16])
	p.Dst, _ = netip.AddrFromSlice(b[16:20])
	p.Proto, p.TTL, p.l4, p.id = b[9], b[8], p.l3+header, uint32(be16(b[4:]))
	if header < 20 || int(be16(b[2:])) < header {
		return 0, bpf.ReasonInvalid
	}
	p.first = frag&0x3fff == 0x2000
	p.whole = frag&0x3fff == 0
	return int(frag&0x1fff) * 8, 0
}

func (p *Packet) readIPv6(b []byte) (offset int, why bpf.Reason) {
	p.Src, _ = netip.AddrFromSlice(b[8:24])
	p.Dst, _ = netip.AddrFromSlice(b[24:40])
	p.TTL, p.whole = b[7], true
	proto, at, f, why := extensions(b)
	if why != 0 {
		return 0, why
	}
	p.Proto, p.l4, p.id = proto, p.l3+at, f.id
	p.first, p.whole = f.more && f.offset == 0, !f.more && f.offset == 0
	// In ::/64 are IPv4 addresses, or none, to whom maps are concerned; whoever has no
	// address yet talks to its link.
	if nobody(p.Dst) || nobody(p.Src) && !onLink(p.Dst) {
		return 0, bpf.ReasonInvalid
	}
	return f.offset, 0
}

type fragment struct {
	offset int
	more   bool
	id     uint32
}

// extensions walks over what is between the header of an IPv6 packet and its transport.
func extensions(b []byte) (proto uint8, at int, f fragment, why bpf.Reason) {
	proto, at = b[6], 40
	for range 6 {
		if proto != 0 && proto != 43 && proto != 44 && proto != 60 {
			return proto, at, f, 0
		}
		if at+8 > len(b) {
			return 0, 0, f, bpf.ReasonInvalid
		}
		ext := b[at : at+8]
		switch {
		case proto == 44:
			f = fragment{int(be16(ext[2:]) &^ 7), ext[3]&1 == 1, be32(ext[4:])}
			proto, at = ext[0], at+8
			if f.offset > 0 {
				return proto, at, f, 0
			}
			continue
		case proto == 43 && ext[3] != 0: // it is on its way to somebody else
			return 0, 0, f, bpf.ReasonNotSupported
		}
		proto, at = ext[0], at+int(ext[1])*8+8
	}
	return 0, 0, f, bpf.ReasonNotSupported
}

// nobody tells of an IPv6 address that no host has.
func nobody(a netip.Addr) bool {
	p, _ := a.Prefix(64)
	return a.Is6() && p.Addr() == netip.IPv6Unspecified()
}

func onLink(a netip.Addr) bool {
	return a.IsLinkLocalUnicast() || netip.MustParsePrefix("ff02::/16").Contains(a)
}

func (p *Packet) readTransport() bpf.Reason {
	b := p.Frame[min(p.l4, len(p.Frame)):]
	switch {
	case p.Proto == tcp:
		if len(b) < 20 {
			return bpf.ReasonInvalid
		}
		p.Flags, p.Seq, p.Ack = b[13], be32(b[4:]), be32(b[8:])
	case p.Proto == udp, p.Proto == sctp:
		if len(b) < 8 {
			return bpf.ReasonInvalid
		}
	case p.icmp():
		if (p.Proto == icmp6) != p.ipv6() {
			return bpf.ReasonNotSupported
		}
		if len(b) < 8 {
			return bpf.ReasonInvalid
		}
		return p.readICMP(b)
	default:
		return bpf.ReasonNotSupported
	}
	p.Sport, p.Dport = be16(b), be16(b[2:])
	return 0
}

func (p *Packet) readICMP(b []byte) bpf.Reason {
	p.typ = b[0]
	if p.err = isError(p.Proto, p.typ); p.err {
		return 0
	}
	if p.Proto == icmp4 && p.typ == 5 || p.Proto == icmp6 && p.typ == 137 { // redirects would change routes
		return bpf.ReasonNotSupported
	}
	if p.Proto == icmp6 && p.typ > 129 {
		if p.keepsLink() {
			return bpf.ReasonNotOurs
		}
		return bpf.ReasonNotSupported
	}
	request := uint8(0)
	p.sense, request = senseOf(p.Proto, p.typ)
	p.Dport = uint16(request)
	if p.sense != tells {
		p.Sport = be16(b[4:])
	}
	return 0
}

// keepsLink tells whether a link needs this before anybody can talk. A pod is no router.
func (p *Packet) keepsLink() bool {
	switch p.typ {
	case 130, 134:
		return p.from.device == 0 && onLink(p.Dst)
	case 131, 132, 133, 135, 136, 143:
		return onLink(p.Dst)
	}
	return false
}

func isError(proto, typ uint8) bool {
	if proto == icmp6 {
		return typ < 128
	}
	return typ == 3 || typ == 11 || typ == 12
}

// senseOf also returns the type of the request that belongs to this type.
func senseOf(proto, typ uint8) (sense, uint8) {
	pairs := map[uint8]uint8{0: 8, 14: 13, 16: 15, 18: 17, 43: 42} // answers and their requests
	if proto == icmp6 {
		pairs = map[uint8]uint8{129: 128}
	}
	if request, ok := pairs[typ]; ok {
		return answers, request
	}
	for _, request := range pairs {
		if request == typ {
			return asks, typ
		}
	}
	return tells, typ
}

// echo is the type of an echo request.
func echo(proto uint8) uint16 {
	if proto == icmp6 {
		return 128
	}
	return 8
}

// ---- Changes ----

type side int

const (
	source side = iota
	destination
)

// rewrite changes the address and port of one side; of ICMP, the identifier, which is that of
// both.
func (p *Packet) rewrite(s side, to netip.AddrPort) bpf.Reason {
	addr, port := &p.Src, &p.Sport
	if s == destination {
		addr = &p.Dst
		if !p.icmp() {
			port = &p.Dport
		}
	}
	if p.Proto == sctp && *port != to.Port() { // its checksum covers its ports
		return bpf.ReasonNotSupported
	}
	before, other := slices.Clone(p.Frame), *port != to.Port()
	*addr, *port = to.Addr(), to.Port()
	p.writeAddr(s, to.Addr())
	if other && !p.later && !p.err {
		at := p.l4 + map[side]int{source: 0, destination: 2}[s]
		if p.icmp() {
			at = p.l4 + 4
		}
		binary.BigEndian.PutUint16(p.Frame[at:], to.Port())
	}
	p.seal(before)
	return 0
}

func (p *Packet) writeAddr(s side, a netip.Addr) {
	copy(p.Frame[addrAt(p.l3, s, p.ipv6()):], a.AsSlice())
}

// addrAt is where an IP header has an address.
func addrAt(l3 int, s side, ipv6 bool) int {
	switch {
	case ipv6 && s == source:
		return l3 + 8
	case ipv6:
		return l3 + 24
	case s == source:
		return l3 + 12
	}
	return l3 + 16
}

// hop is one router on the way.
func (p *Packet) hop() {
	if p.ipv6() {
		p.Frame[p.l3+7]--
		return
	}
	p.Frame[p.l3+8]--
	p.seal(nil)
}

// at is the source or destination.
func (p *Packet) at(s side) netip.AddrPort {
	if s == source {
		return netip.AddrPortFrom(p.Src, p.Sport)
	}
	return netip.AddrPortFrom(p.Dst, p.Dport)
}

// ---- Checksums ----

func sum(parts ...[]byte) uint16 {
	var s uint32
	for _, b := range parts {
		for i, c := range b {
			s += uint32(c) << (8 * (1 - i%2))
		}
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// checksum is where a transport has one; 0: it has none that we know.
func checksumAt(proto uint8) int {
	return map[uint8]int{tcp: 16, udp: 6, icmp4: 2, icmp6: 2}[proto]
}

// segment is the transport's bytes, as the IP header says.
func (p *Packet) segment() []byte {
	end := p.l3 + int(be16(p.Frame[p.l3+2:]))
	if p.ipv6() {
		end = p.l3 + 40 + int(be16(p.Frame[p.l3+4:]))
	}
	if end > len(p.Frame) || end < p.l4 {
		return nil
	}
	return p.Frame[p.l4:end]
}

// pseudo is the header that a transport's checksum covers as well.
func (p *Packet) pseudo(n int) []byte {
	if p.Proto == icmp4 {
		return nil
	}
	return append(append(p.Src.AsSlice(), p.Dst.AsSlice()...), 0, p.Proto, byte(n>>8), byte(n))
}

// seal computes the checksums again, from scratch. Of a first fragment it is that of the whole
// datagram, of which only the difference from the frame before is known.
func (p *Packet) seal(before []byte) {
	if !p.ipv6() {
		header := p.Frame[p.l3:p.l4]
		header[10], header[11] = 0, 0
		binary.BigEndian.PutUint16(header[10:], sum(header))
	}
	at, seg := checksumAt(p.Proto), p.segment()
	if p.later || at == 0 || len(seg) < at+2 || before == nil {
		return
	}
	was := be16(seg[at:])
	if p.Proto == udp && was == 0 { // it has none
		return
	}
	var now uint16
	if p.whole {
		seg[at], seg[at+1] = 0, 0
		now = sum(p.pseudo(len(seg)), seg)
	} else {
		old := *p
		old.Frame = before
		old.Src, _ = netip.AddrFromSlice(before[addrAt(p.l3, source, p.ipv6()):][:p.Src.BitLen()/8])
		old.Dst, _ = netip.AddrFromSlice(before[addrAt(p.l3, destination, p.ipv6()):][:p.Dst.BitLen()/8])
		// What is new, less what was there: to a checksum, ^x is -x.
		rest := ^sum(inverse(old.pseudo(0)), inverse(before[p.l4:p.l4+8]), p.pseudo(0), p.Frame[p.l4:p.l4+8])
		now = sum([]byte{byte(^was >> 8), byte(^was)}, []byte{byte(rest >> 8), byte(rest)})
	}
	if p.Proto == udp && now == 0 {
		now = 0xffff
	}
	binary.BigEndian.PutUint16(seg[at:], now)
}

func inverse(b []byte) []byte {
	out := make([]byte, len(b))
	for i := range b {
		out[i] = ^b[i]
	}
	return out
}

// Sound reports whether lengths and checksums of a frame are right: only of such a frame is
// it known what the checksums of the next one are.
func (p *Packet) Sound() bool {
	if p.l3 == 0 || p.l4 > len(p.Frame) {
		return false
	}
	seg := p.segment()
	if seg == nil || !p.ipv6() && sum(p.Frame[p.l3:p.l4]) != 0 {
		return false
	}
	at := checksumAt(p.Proto)
	if !p.whole || at == 0 {
		return true
	}
	if len(seg) < at+2 {
		return false
	}
	return p.Proto == udp && be16(seg[at:]) == 0 || sum(p.pseudo(len(seg)), seg) == 0
}

// Sound is the same of a frame.
func Sound(frame []byte) bool {
	p, why := New().read(frame, 0)
	return (why == 0 || why == bpf.ReasonFragment || why == bpf.ReasonNotSupported) && p.Sound()
}
