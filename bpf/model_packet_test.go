package bpf_test

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
)

// packet is what a test sends, before it is bytes.
type packet struct {
	src, dst     netip.Addr
	proto        uint8
	sport, dport uint16 // of ICMP, sport is the identifier
	flags        uint8
	seq, ack     uint32
	kind, code   uint8 // of ICMP
	ttl          uint8
	options      int // bytes of no-operation, or of an extension header
	fragment     uint32
	offset       int
	more         bool
	unchecked    bool // UDP without a checksum
	data         []byte
	to           [6]byte // hardware address; zero: ours
	rest         []byte  // of a datagram that is sent in fragments: what comes in the others
}

func fold(parts ...[]byte) uint16 {
	b := slices.Concat(parts...)
	s := uint32(0)
	for i, c := range b {
		s += uint32(c) << (8 * (1 - i&1))
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}

// transport is the part behind the IP header.
func (p packet) transport() []byte {
	if p.offset > 0 {
		return p.data
	}
	var b []byte
	check := 0
	switch p.proto {
	case 6:
		b = make([]byte, 20)
		binary.BigEndian.PutUint32(b[4:], p.seq)
		binary.BigEndian.PutUint32(b[8:], p.ack)
		b[12], b[13], b[15], check = 5<<4, p.flags, 77, 16
	case 17:
		b = make([]byte, 8)
		binary.BigEndian.PutUint16(b[4:], uint16(8+len(p.data)+len(p.rest)))
		check = 6
	case 132:
		b = make([]byte, 12)
	case 1, 58:
		b = []byte{p.kind, p.code, 0, 0, byte(p.sport >> 8), byte(p.sport), 0, 1}
		check = 2
	default:
		return p.data
	}
	if p.proto != 1 && p.proto != 58 {
		binary.BigEndian.PutUint16(b, p.sport)
		binary.BigEndian.PutUint16(b[2:], p.dport)
	}
	b = append(b, p.data...)
	if check > 0 && !p.unchecked {
		whole, pseudo := slices.Concat(b, p.rest), []byte(nil)
		if p.proto != 1 {
			pseudo = slices.Concat(p.src.AsSlice(), p.dst.AsSlice(), []byte{0, p.proto, byte(len(whole) >> 8), byte(len(whole))})
		}
		sum := fold(pseudo, whole)
		if p.proto == 17 && sum == 0 {
			sum = 0xffff
		}
		binary.BigEndian.PutUint16(b[check:], sum)
	}
	return b
}

// ip is the packet without an Ethernet header.
func (p packet) ip() []byte {
	body := p.transport()
	ttl := cmp.Or(p.ttl, 64)
	if p.src.Is4() {
		h := make([]byte, 20+p.options)
		h[0], h[8], h[9] = 4<<4|uint8(len(h)/4), ttl, p.proto
		binary.BigEndian.PutUint16(h[2:], uint16(len(h)+len(body)))
		binary.BigEndian.PutUint16(h[4:], uint16(p.fragment))
		binary.BigEndian.PutUint16(h[6:], uint16(p.offset/8))
		if p.more {
			h[6] |= 0x20
		}
		copy(h[12:], p.src.AsSlice())
		copy(h[16:], p.dst.AsSlice())
		for i := 20; i < len(h); i++ {
			h[i] = 1
		}
		binary.BigEndian.PutUint16(h[10:], fold(h))
		return append(h, body...)
	}
	next := p.proto
	if p.more || p.offset > 0 {
		piece := make([]byte, 8)
		piece[0] = next
		binary.BigEndian.PutUint16(piece[2:], uint16(p.offset))
		if p.more {
			piece[3] |= 1
		}
		binary.BigEndian.PutUint32(piece[4:], p.fragment)
		body, next = append(piece, body...), 44
	}
	if p.options > 0 {
		ext := make([]byte, (p.options+7)/8*8)
		ext[0], ext[1], ext[2], ext[3] = next, uint8(len(ext)/8-1), 1, uint8(len(ext)-4)
		body, next = append(ext, body...), 60
	}
	h := make([]byte, 8)
	h[0], h[6], h[7] = 6<<4, next, ttl
	binary.BigEndian.PutUint16(h[4:], uint16(len(body)))
	return slices.Concat(h, p.src.AsSlice(), p.dst.AsSlice(), body)
}

func (p packet) frame() []byte {
	kind := []byte{8, 0}
	if p.src.Is6() {
		kind = []byte{0x86, 0xdd}
	}
	to := p.to
	if to == [6]byte{} {
		to = [6]byte{2, 0, 0, 0, 0, 1}
	}
	return slices.Concat(to[:], []byte{2, 0, 0, 0, 0, 2}, kind, p.ip())
}

// dissect reads a frame back, as far as an answer to it needs; false if that is not far.
func dissect(frame []byte) (p packet, ok bool) {
	if len(frame) < 34 {
		return p, false
	}
	b := frame[14:]
	at := 20
	switch {
	case b[0]>>4 == 4:
		p.src, _ = netip.AddrFromSlice(b[12:16])
		p.dst, _ = netip.AddrFromSlice(b[16:20])
		p.proto, at = b[9], int(b[0]&15)*4
		if b[6]&0x3f|b[7] != 0 {
			return p, false
		}
	case b[0]>>4 == 6 && len(b) >= 40:
		p.src, _ = netip.AddrFromSlice(b[8:24])
		p.dst, _ = netip.AddrFromSlice(b[24:40])
		p.proto, at = b[6], 40
		if p.proto == 60 && len(b) > 48 {
			p.proto, at = b[40], 48+int(b[41])*8
		}
	default:
		return p, false
	}
	if at+8 > len(b) {
		return p, false
	}
	b = b[at:]
	p.sport, p.dport = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	switch p.proto {
	case 6:
		if len(b) < 20 {
			return p, false
		}
		p.seq, p.ack, p.flags, p.data = binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:]), b[13], b[20:]
	case 17:
		p.data = b[8:]
	case 132:
		p.data = b[min(12, len(b)):]
	case 1, 58:
		p.kind, p.code, p.sport, p.dport, p.data = b[0], b[1], binary.BigEndian.Uint16(b[4:]), 0, b[8:]
		if p.proto == 1 && (p.kind == 3 || p.kind == 11 || p.kind == 12) || p.proto == 58 && p.kind < 128 {
			return p, false
		}
	default:
		return p, false
	}
	return p, true
}

func (p packet) String() string {
	s := fmt.Sprintf("%v → %v proto %d", p.src, p.dst, p.proto)
	switch p.proto {
	case 1, 58:
		s += fmt.Sprintf(" type %d/%d id %d", p.kind, p.code, p.sport)
	default:
		s += fmt.Sprintf(" %d → %d", p.sport, p.dport)
	}
	if p.proto == 6 {
		for i, c := range "FSRPA" {
			if p.flags>>i&1 == 1 {
				s += fmt.Sprintf(" %c", c)
			}
		}
		s += fmt.Sprintf(" seq %d ack %d", p.seq, p.ack)
	}
	return s
}
