package expectations

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
)

// packet is the little of a frame that an expectation is about.
type packet struct {
	src, dst netip.AddrPort
	proto    uint8
	answers  bool // a TCP connection's second packet
}

var protocols = map[string]uint8{"TCP": 6, "UDP": 17, "SCTP": 132}

// Flags of TCP.
const syn, ack = 2, 16

// nodeMAC is the hardware address of a node's device.
var nodeMAC = []byte{2, 0, 0, 0, 0, 1}

// frame is the packet as bytes. Checksums are left out: nothing here looks at them.
func (p packet) frame() []byte {
	body := make([]byte, map[uint8]int{6: 20, 17: 8, 132: 12}[p.proto])
	binary.BigEndian.PutUint16(body, p.src.Port())
	binary.BigEndian.PutUint16(body[2:], p.dst.Port())
	switch p.proto {
	case 6:
		body[12], body[13] = 5<<4, syn
		if p.answers {
			body[13] |= ack
		}
	case 17:
		body[5] = 8
	}
	src, dst := p.src.Addr().AsSlice(), p.dst.Addr().AsSlice()
	kind, head := []byte{8, 0}, make([]byte, 12)
	if p.src.Addr().Is6() {
		kind, head = []byte{0x86, 0xdd}, make([]byte, 8)
		head[0], head[5], head[6], head[7] = 6<<4, byte(len(body)), p.proto, 64
	} else {
		head[0], head[3], head[8], head[9] = 4<<4|5, byte(20+len(body)), 64, p.proto
	}
	return slices.Concat(nodeMAC, []byte{2, 0, 0, 0, 0, 2}, kind, head, src, dst, body)
}

// read is the packet of a frame of TCP, UDP or SCTP without options.
func read(frame []byte) (p packet) {
	ip, at := frame[14:], 20
	var src, dst netip.Addr
	if ip[0]>>4 == 6 {
		src, _ = netip.AddrFromSlice(ip[8:24])
		dst, _ = netip.AddrFromSlice(ip[24:40])
		p.proto, at = ip[6], 40
	} else {
		src, _ = netip.AddrFromSlice(ip[12:16])
		dst, _ = netip.AddrFromSlice(ip[16:20])
		p.proto = ip[9]
	}
	p.src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(ip[at:]))
	p.dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(ip[at+2:]))
	p.answers = p.proto == 6 && ip[at+13]&ack != 0
	return p
}

// answer is what the receiver says in return.
func (p packet) answer() packet { return packet{p.dst, p.src, p.proto, p.proto == 6} }

func (p packet) String() string { return fmt.Sprintf("%v > %v (%d)", p.src, p.dst, p.proto) }
