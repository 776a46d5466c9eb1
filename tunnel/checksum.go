package tunnel

import "encoding/binary"

const (
	ipv6HeaderLen = 40
	udpHeaderLen  = 8

	hopByHop           = 0
	protoUDP           = 17
	routingHeader      = 43
	destinationOptions = 60
)

// mendChecksum writes 0xffff as the checksum of a UDP datagram over IPv6 whose sum is zero, as
// RFC 8200 section 8.1 demands: receivers drop a zero. wireguard-go, which fills in the checksums
// that the kernel left to the device, writes the zero. A datagram that is sent without a checksum
// (RFC 6935) stays as it is, and so does everything that is not UDP over IPv6.
func mendChecksum(packet []byte) {
	if len(packet) < ipv6HeaderLen+udpHeaderLen || packet[0]>>4 != 6 {
		return
	}
	next, at := packet[6], ipv6HeaderLen
	for next == hopByHop || next == routingHeader || next == destinationOptions {
		if len(packet) < at+udpHeaderLen {
			return
		}
		next, at = packet[at], at+8+8*int(packet[at+1])
	}
	if next != protoUDP || len(packet) < at+udpHeaderLen {
		return
	}
	udp := packet[at:]
	if udp[6] != 0 || udp[7] != 0 {
		return
	}
	sum := onesSum(uint64(len(udp))+protoUDP, packet[8:ipv6HeaderLen])
	if fold(onesSum(sum, udp)) == 0xffff {
		udp[6], udp[7] = 0xff, 0xff
	}
}

// onesSum adds the 16-bit words of b to sum; an odd last byte is a word's upper half.
func onesSum(sum uint64, b []byte) uint64 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint64(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint64(b[0]) << 8
	}
	return sum
}

// fold is sum in ones' complement arithmetic of 16 bits.
func fold(sum uint64) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}
