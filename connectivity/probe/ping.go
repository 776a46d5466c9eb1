package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// Types of ICMP.
const (
	echoRequest, echoReply   = 8, 0
	echoRequest6, echoReply6 = 128, 129
)

// pingBytes is the payload of an echo.
const pingBytes = 32

// ping sends one echo and waits for its reply.
func ping(ctx context.Context, to netip.Addr) (Try, error) {
	network, request, reply := "ip4:icmp", byte(echoRequest), byte(echoReply)
	if !to.Is4() {
		network, request, reply = "ip6:ipv6-icmp", echoRequest6, echoReply6
	}
	var lc net.ListenConfig
	pc, err := lc.ListenPacket(ctx, network, "")
	if err != nil {
		return Try{}, fmt.Errorf("send an ICMP echo, which needs CAP_NET_RAW: %w", err)
	}
	conn := pc.(*net.IPConn)
	defer conn.Close()
	until, _ := ctx.Deadline()
	if err := conn.SetDeadline(until); err != nil {
		return Try{}, err
	}
	packet := make([]byte, 8+pingBytes)
	packet[0] = request
	id := newID()
	copy(packet[4:], id) // identifier, sequence number and some of the payload
	if to.Is4() {
		binary.BigEndian.PutUint16(packet[2:], checksum(packet)) // of IPv6 the kernel does it
	}
	if _, err := conn.WriteTo(packet, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return Try{}, err
	}
	in := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFromIP(in)
		if err != nil {
			return Try{}, err
		}
		addr, _ := netip.AddrFromSlice(from.IP)
		if n == len(packet) && in[0] == reply && addr.Unmap() == to && string(in[4:20]) == id {
			return Try{Bytes: n}, nil
		}
		if ctx.Err() != nil {
			return Try{}, errors.Join(ctx.Err())
		}
	}
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
