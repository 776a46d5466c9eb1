package bpf

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
)

// Tests write a packet as layers: packet(ip(a, b), tcp(1, 2, "S")). Ethernet, lengths
// and checksums are filled in; describe turns a packet back into such text and says
// which checksums are wrong.

type layer interface {
	// encode prepends the layer to its payload.
	encode(payload []byte) []byte
}

type ipLayer struct {
	src, dst netip.Addr
	proto    uint8
	id       uint16
	frag     uint16 // flags and offset as on the wire
	options  int    // bytes of no-operation
	hops     uint8  // left behind, of 64
	version  uint8
	inner    layer
	payload  []byte
}

// ip carries one transport layer, which carries a payload.
func ip(src, dst string, inner layer) *ipLayer {
	l := &ipLayer{src: netip.MustParseAddr(src), dst: netip.MustParseAddr(dst), inner: inner, version: 4}
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
	switch t := l.inner.(type) {
	case nil:
		body = l.payload
	case raw:
		body = t
	default:
		body = t.encode(nil)
		if off, ok := checksumAt(l.proto); ok && l.proto != 132 {
			if u, udp := t.(*udpLayer); !udp || !u.noChecksum {
				var pseudo []byte
				if l.proto != 1 {
					pseudo = l.pseudo(len(body))
				}
				binary.BigEndian.PutUint16(body[off:], checksum(pseudo, body))
			}
		}
	}
	h := make([]byte, 20+l.options)
	h[0] = l.version<<4 | uint8(len(h)/4)
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

func (l *ipLayer) pseudo(n int) []byte {
	src, dst := l.src.As4(), l.dst.As4()
	return append(append(append([]byte{}, src[:]...), dst[:]...), 0, l.proto, uint8(n>>8), uint8(n))
}

func checksumAt(proto uint8) (int, bool) {
	switch proto {
	case 1:
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
	binary.BigEndian.PutUint16(b[4:], i.id)
	if i.quote != nil {
		quote := i.quote.encode(nil)
		b = append(b, quote[:min(cmp.Or(i.quoted, 28+i.quote.options), len(quote))]...)
	}
	return b
}

// raw is bytes that no other layer describes.
type raw []byte

func (r raw) encode([]byte) []byte { return r }

// packet prepends an Ethernet header to an IP layer.
func packet(l layer) []byte {
	kind := uint16(0x0800)
	eth := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, byte(kind >> 8), byte(kind)}
	return append(eth, l.encode(nil)...)
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
	if binary.BigEndian.Uint16(b[12:]) != 0x0800 {
		return fmt.Sprintf("%s\n%04x % x", s, b[12:14], b[14:])
	}
	return s + "\n" + describeIP(b[14:], true)
}

func describeIP(b []byte, whole bool) string {
	if len(b) < 20 {
		return fmt.Sprintf("ip of %d bytes", len(b))
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
	l := &ipLayer{src: src, dst: dst, proto: b[9]}
	return s + "\n" + l.describeBody(body, whole && frag == 0)
}

func (l *ipLayer) describeBody(b []byte, whole bool) string {
	if len(b) < 8 {
		return fmt.Sprintf("%x", b)
	}
	wrong := ""
	if off, ok := checksumAt(l.proto); ok && whole && len(b) >= off+2 {
		pseudo := l.pseudo(len(b))
		if l.proto == 1 {
			pseudo = nil
		}
		none := l.proto == 17 && binary.BigEndian.Uint16(b[off:]) == 0
		switch {
		case none:
			wrong = " unchecked"
		case checksum(pseudo, b) != 0:
			wrong = " WRONG CHECKSUM"
		}
	}
	sport, dport := binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	switch l.proto {
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
	}
	return fmt.Sprintf("%d → %d %x", sport, dport, b[4:])
}
