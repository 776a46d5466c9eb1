package bpf

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// Tests write a packet as layers: packet(ip(a, b), tcp(1, 2, "S")). Ethernet, lengths
// and checksums are filled in; describe turns a packet back into such text and says
// which checksums are wrong.
//
// They are written for IPv4, and say the same of IPv6 while overIPv6 is set: addresses,
// options and types of ICMP then stand for what IPv6 has in their place.

// overIPv6 is set while a test runs over IPv6. Tests of packets do not run in parallel.
var overIPv6 bool

// families runs a test over both.
func families(t *testing.T, run func(*testing.T)) {
	t.Run("IPv4", run)
	t.Run("IPv6", func(t *testing.T) {
		overIPv6 = true
		defer func() { overIPv6 = false }()
		run(t)
	})
}

// bothFamilies does the same for both.
func bothFamilies(do func()) {
	do()
	overIPv6 = true
	do()
	overIPv6 = false
}

// inFamily is the address that stands for an IPv4 address.
func inFamily(a netip.Addr) netip.Addr {
	if !overIPv6 || !a.Is4() {
		return a
	}
	six := [16]byte{0: 0xfd}
	if a.IsMulticast() {
		six = [16]byte{0xff, 0x0e}
	}
	four := a.As4()
	copy(six[12:], four[:])
	return netip.AddrFrom16(six)
}

// protoInFamily is the protocol that stands for one of IPv4.
func protoInFamily(proto uint8) uint8 {
	if overIPv6 && proto == 1 {
		return 58
	}
	return proto
}

// sixth are the type and code of ICMPv6 that stand for those of ICMP.
var sixth = map[[2]uint8][2]uint8{
	{8, 0}: {128, 0}, {0, 0}: {129, 0}, // echo and its answer
	{3, 1}: {1, 3}, {3, 2}: {4, 1}, {3, 3}: {1, 4}, // unreachable: host, protocol, port
	{11, 0}: {3, 0}, // time exceeded
}

type layer interface {
	// encode prepends the layer to its payload.
	encode(payload []byte) []byte
}

type ipLayer struct {
	src, dst   netip.Addr
	proto      uint8
	id         uint16
	frag       uint16  // flags and offset as on the wire
	options    int     // bytes of no-operation
	extensions []uint8 // of IPv6
	hops       uint8   // left behind, of 64
	version    uint8   // 0: the family's
	inner      layer
	payload    []byte
}

// ip carries one transport layer, which carries a payload.
func ip(src, dst string, inner layer) *ipLayer {
	l := &ipLayer{src: netip.MustParseAddr(src), dst: netip.MustParseAddr(dst), inner: inner}
	switch inner.(type) {
	case *tcpLayer:
		l.proto = 6
	case *udpLayer:
		l.proto = 17
	case *icmpLayer:
		l.proto = 1
	case *sctpLayer:
		l.proto = 132
	case raw:
		l.proto = 47
	}
	return l
}

// piece makes it a fragment: its offset in bytes, and whether more follow.
func (l *ipLayer) piece(id uint16, offset int, more bool) *ipLayer {
	l.id, l.frag = id, uint16(offset/8)
	if more {
		l.frag |= 0x2000
	}
	return l
}

// icmp makes a raw payload one of ICMP: that of a later fragment.
func (l *ipLayer) icmp() *ipLayer { l.proto = 1; return l }

// behind puts extension headers of these kinds, of eight bytes each, before what an IPv6
// packet carries.
func (l *ipLayer) behind(kinds ...uint8) *ipLayer { l.extensions = kinds; return l }

// segmentsLeft is a routing header that has not been followed to its end.
const segmentsLeft = 143

// udp makes it one of UDP.
func (l *ipLayer) udp() *ipLayer { l.proto = 17; return l }

func (l *ipLayer) withOptions(n int) *ipLayer { l.options = n; return l }
func (l *ipLayer) withTTL(n uint8) *ipLayer   { l.hops = 64 - n; return l }

// hop is the packet after one router.
func (l *ipLayer) hop() *ipLayer {
	next := *l
	next.hops++
	return &next
}

func (l *ipLayer) encode([]byte) []byte {
	var body []byte
	proto := protoInFamily(l.proto)
	switch t := l.inner.(type) {
	case nil:
		body = l.payload
	case raw:
		body = t
	default:
		body = t.encode(nil)
		if off, ok := checksumAt(proto); ok {
			if u, udp := t.(*udpLayer); !udp || !u.noChecksum {
				var pseudo []byte
				if proto != 1 {
					pseudo = pseudoHeader(inFamily(l.src), inFamily(l.dst), proto, len(body))
				}
				binary.BigEndian.PutUint16(body[off:], checksum(pseudo, body))
			}
		}
	}
	if overIPv6 && l.version != 4 || l.version == 6 {
		return l.encodeIPv6(proto, body)
	}
	h := make([]byte, 20+l.options)
	h[0] = cmp.Or(l.version, 4)<<4 | uint8(len(h)/4)
	binary.BigEndian.PutUint16(h[2:], uint16(len(h)+len(body)))
	binary.BigEndian.PutUint16(h[4:], l.id)
	binary.BigEndian.PutUint16(h[6:], l.frag)
	h[8], h[9] = 64-l.hops, l.proto
	src, dst := l.src.As4(), l.dst.As4()
	copy(h[12:], src[:])
	copy(h[16:], dst[:])
	for i := 20; i < len(h); i++ {
		h[i] = 1
	}
	binary.BigEndian.PutUint16(h[10:], checksum(nil, h))
	return append(h, body...)
}

// encodeIPv6 has options in a header of its own, as far as eight bytes go.
func (l *ipLayer) encodeIPv6(proto uint8, body []byte) []byte {
	src, dst := inFamily(l.src).As16(), inFamily(l.dst).As16()
	for _, kind := range slices.Backward(l.extensions) {
		ext := []byte{proto, 0, 1, 4, 0, 0, 0, 0} // options: one that pads the rest
		switch kind {
		case 43, 44:
			ext[2], ext[3] = 0, 0
		case segmentsLeft:
			kind, ext[2], ext[3] = 43, 0, 1
		}
		body, proto = append(ext, body...), kind
	}
	h := make([]byte, 8, 40)
	h[0], h[6], h[7] = 6<<4, proto, 64-l.hops
	h = append(append(h, src[:]...), dst[:]...)
	if n := (l.options + 7) / 8 * 8; n > 0 {
		h[6] = 60
		options := make([]byte, n) // one option that pads them all
		options[0], options[1], options[2], options[3] = proto, uint8(n/8-1), 1, uint8(n-4)
		h = append(h, options...)
	}
	if l.frag != 0 {
		next := &h[6]
		if l.options > 0 {
			next = &h[40]
		}
		piece := make([]byte, 8)
		piece[0], *next = *next, 44
		binary.BigEndian.PutUint16(piece[2:], l.frag<<3|l.frag>>13&1)
		binary.BigEndian.PutUint32(piece[4:], uint32(l.id)<<16|1)
		h = append(h, piece...)
	}
	binary.BigEndian.PutUint16(h[4:], uint16(len(h)-40+len(body)))
	return append(h, body...)
}

func pseudoHeader(src, dst netip.Addr, proto uint8, n int) []byte {
	b := append(src.AsSlice(), dst.AsSlice()...)
	return append(b, 0, proto, uint8(n>>8), uint8(n)) // the upper half of IPv6's length is zero
}

func checksumAt(proto uint8) (int, bool) {
	switch proto {
	case 1, 58:
		return 2, true
	case 6:
		return 16, true
	case 17:
		return 6, true
	}
	return 0, false
}

type tcpLayer struct {
	sport, dport uint16
	flags        uint8
	seq, ack     uint32
	data         string
}

// tcp has flags by letter: S, A, F, R, P.
func tcp(sport, dport uint16, flags string) *tcpLayer {
	t := &tcpLayer{sport: sport, dport: dport}
	for _, c := range flags {
		t.flags |= map[rune]uint8{'F': 1, 'S': 2, 'R': 4, 'P': 8, 'A': 16}[c]
	}
	return t
}

func (t *tcpLayer) at(seq, ack uint32) *tcpLayer   { t.seq, t.ack = seq, ack; return t }
func (t *tcpLayer) says(data string) *tcpLayer     { t.data = data; return t }
func (u *udpLayer) says(data string) *udpLayer     { u.data = data; return u }
func (u *udpLayer) unchecked() *udpLayer           { u.noChecksum = true; return u }
func (i *icmpLayer) quoting(l *ipLayer) *icmpLayer { i.quote = l; return i }

func (t *tcpLayer) encode([]byte) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, t.sport)
	binary.BigEndian.PutUint16(b[2:], t.dport)
	binary.BigEndian.PutUint32(b[4:], t.seq)
	binary.BigEndian.PutUint32(b[8:], t.ack)
	b[12], b[13] = 5<<4, t.flags
	return append(b, t.data...)
}

type udpLayer struct {
	sport, dport uint16
	data         string
	noChecksum   bool
}

func udp(sport, dport uint16) *udpLayer { return &udpLayer{sport: sport, dport: dport} }

func (u *udpLayer) encode([]byte) []byte {
	b := make([]byte, 8)
	binary.BigEndian.PutUint16(b, u.sport)
	binary.BigEndian.PutUint16(b[2:], u.dport)
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(u.data)))
	return append(b, u.data...)
}

type sctpLayer struct{ sport, dport uint16 }

func (s *sctpLayer) encode([]byte) []byte {
	b := make([]byte, 12)
	binary.BigEndian.PutUint16(b, s.sport)
	binary.BigEndian.PutUint16(b[2:], s.dport)
	return b
}

type icmpLayer struct {
	kind, code uint8
	id         uint16
	quote      *ipLayer
	quoted     int // bytes of it at most, 0: its header and 8
}

func echo(id uint16) *icmpLayer            { return &icmpLayer{kind: 8, id: id} }
func echoReply(id uint16) *icmpLayer       { return &icmpLayer{kind: 0, id: id} }
func portUnreachable() *icmpLayer          { return &icmpLayer{kind: 3, code: 3} }
func (i *icmpLayer) of(k uint8) *icmpLayer { i.kind = k; return i }

func (i *icmpLayer) encode([]byte) []byte {
	b := make([]byte, 8)
	b[0], b[1] = i.kind, i.code
	if six, ok := sixth[[2]uint8{i.kind, i.code}]; ok && overIPv6 {
		b[0], b[1] = six[0], six[1]
	}
	if b[0] == 4 && overIPv6 {
		b[7] = 6 // the field that it is about
	}
	binary.BigEndian.PutUint16(b[4:], i.id)
	if i.quote != nil {
		quote := i.quote.encode(nil)
		b = append(b, quote[:min(cmp.Or(i.quoted, headerLen(quote)+8), len(quote))]...)
	}
	return b
}

// raw is bytes that no other layer describes.
type raw []byte

func (r raw) encode([]byte) []byte { return r }

// packet prepends an Ethernet header to an IP layer.
func packet(l layer) []byte {
	kind, b := uint16(0x0800), l.encode(nil)
	if b[0]>>4 == 6 {
		kind = 0x86dd
	}
	eth := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, byte(kind >> 8), byte(kind)}
	return append(eth, b...)
}

// ethernet carries any payload of an EtherType.
func ethernet(kind uint16, payload []byte) []byte {
	return append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, byte(kind >> 8), byte(kind)}, payload...)
}

func checksum(pseudo, b []byte) uint16 {
	var sum uint32
	for _, part := range [][]byte{pseudo, b} {
		for i := 0; i+1 < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
		if len(part)%2 == 1 {
			sum += uint32(part[len(part)-1]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// describe is a packet in words, one line per layer.
func describe(b []byte) string {
	if len(b) < 14 {
		return fmt.Sprintf("%d bytes", len(b))
	}
	s := fmt.Sprintf("ethernet %x ← %x", b[0:6], b[6:12])
	if kind := binary.BigEndian.Uint16(b[12:]); kind != 0x0800 && kind != 0x86dd {
		return fmt.Sprintf("%s\n%04x % x", s, b[12:14], b[14:])
	}
	return s + "\n" + describeIP(b[14:], true)
}

// headerLen is the length of an IP header with its options.
func headerLen(b []byte) int {
	if b[0]>>4 == 4 {
		return int(b[0]&15) * 4
	}
	n := 40
	for next := b[6]; n+8 <= len(b) && (next == 60 || next == 44); {
		this := next
		next = b[n]
		if this == 44 {
			n += 8
			continue
		}
		n += int(b[n+1]+1) * 8
	}
	return n
}

func describeIP(b []byte, whole bool) string {
	if len(b) < 20 {
		return fmt.Sprintf("ip of %d bytes", len(b))
	}
	if b[0]>>4 == 6 {
		return describeIPv6(b, whole)
	}
	hlen := int(b[0]&15) * 4
	if hlen < 20 || hlen > len(b) {
		return fmt.Sprintf("ip with a header of %d bytes", hlen)
	}
	src, _ := netip.AddrFromSlice(b[12:16])
	dst, _ := netip.AddrFromSlice(b[16:20])
	frag := binary.BigEndian.Uint16(b[6:])
	s := fmt.Sprintf("ip %s → %s proto %d ttl %d length %d", src, dst, b[9], b[8], binary.BigEndian.Uint16(b[2:]))
	if frag != 0 {
		s += fmt.Sprintf(" piece %04x of %d", frag, binary.BigEndian.Uint16(b[4:]))
	}
	if checksum(nil, b[:hlen]) != 0 {
		s += " WRONG CHECKSUM"
	}
	body := b[hlen:]
	if frag&0x1fff != 0 {
		return s + fmt.Sprintf("\n  %x", body)
	}
	return s + "\n" + describeBody(src, dst, b[9], body, whole && frag == 0)
}

func describeIPv6(b []byte, whole bool) string {
	n := 40
	if len(b) >= n {
		n = headerLen(b)
	}
	if len(b) < n {
		return fmt.Sprintf("ip of %d bytes", len(b))
	}
	src, _ := netip.AddrFromSlice(b[8:24])
	dst, _ := netip.AddrFromSlice(b[24:40])
	proto, frag := b[6], []byte(nil)
	for at := 40; at < n; {
		next := b[at]
		if proto == 44 {
			frag = b[at+2 : at+8]
			at += 8
		} else {
			at += int(b[at+1]+1) * 8
		}
		proto = next
	}
	s := fmt.Sprintf("ip %s → %s proto %d ttl %d length %d", src, dst, proto, b[7], 40+int(binary.BigEndian.Uint16(b[4:])))
	if frag != nil {
		s += fmt.Sprintf(" piece %x", frag)
		if binary.BigEndian.Uint16(frag)>>3 != 0 {
			return s + fmt.Sprintf("\n  %x", b[n:])
		}
	}
	return s + "\n" + describeBody(src, dst, proto, b[n:], whole && frag == nil)
}

func describeBody(src, dst netip.Addr, proto uint8, b []byte, whole bool) string {
	if len(b) < 8 {
		return fmt.Sprintf("%x", b)
	}
	wrong := ""
	if off, ok := checksumAt(proto); ok && whole && len(b) >= off+2 {
		pseudo := pseudoHeader(src, dst, proto, len(b))
		if proto == 1 {
			pseudo = nil
		}
		none := proto == 17 && binary.BigEndian.Uint16(b[off:]) == 0
		switch {
		case none:
			wrong = " unchecked"
		case checksum(pseudo, b) != 0:
			wrong = " WRONG CHECKSUM"
		}
	}
	sport, dport := binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	switch proto {
	case 6:
		if len(b) < 20 {
			return fmt.Sprintf("tcp %d → %d seq %d", sport, dport, binary.BigEndian.Uint32(b[4:]))
		}
		var flags strings.Builder
		for i, c := range "FSRPA" {
			if b[13]>>i&1 == 1 {
				flags.WriteRune(c)
			}
		}
		return fmt.Sprintf("tcp %d → %d %s seq %d ack %d%s %q", sport, dport, flags.String(),
			binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:]), wrong, b[20:])
	case 17:
		return fmt.Sprintf("udp %d → %d%s %q", sport, dport, wrong, b[8:])
	case 1:
		s := fmt.Sprintf("icmp %d/%d id %d%s", b[0], b[1], binary.BigEndian.Uint16(b[4:]), wrong)
		if b[0] == 3 || b[0] == 11 || b[0] == 12 {
			return s + "\n  about " + describeIP(b[8:], false)
		}
		return s
	case 58:
		s := fmt.Sprintf("icmpv6 %d/%d id %d%s", b[0], b[1], binary.BigEndian.Uint16(b[4:]), wrong)
		if b[0] < 128 {
			return s + fmt.Sprintf(" field %d", be16(b[6:])) + "\n  about " + describeIP(b[8:], false)
		}
		return s
	}
	return fmt.Sprintf("%d → %d %x", sport, dport, b[4:])
}
