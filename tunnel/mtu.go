package tunnel

import (
	"fmt"
	"net/netip"
)

// Overheads in bytes, outermost first, in one place so that no two places disagree.
const (
	overheadIPv6      = 40 // outer header, the larger of the two
	overheadIPv4      = 20
	overheadUDP       = 8
	overheadWireGuard = 16 // type, receiver index, counter
	overheadTag       = 16 // Poly1305
	// WireGuard pads the inner packet to a multiple of 16 bytes, but never beyond
	// the lane's MTU, so padding needs no room.
	paddingWireGuard = 0

	// Overhead is what a lane adds to a packet.
	Overhead = overheadIPv6 + overheadUDP + overheadWireGuard + overheadTag + paddingWireGuard
)

// Outer is the size, in bytes, of the packet in which a lane with this MTU sends a packet of
// inner bytes to an endpoint: for 1420, 1480 over IPv4 and 1500 over IPv6.
func Outer(inner, mtu int, endpoint netip.Addr) int {
	padded := min((inner+15)/16*16, max(inner, mtu))
	header := overheadIPv4
	if endpoint.Is6() {
		header = overheadIPv6
	}
	return header + overheadUDP + overheadWireGuard + padded + overheadTag
}

// MinMTU is the smallest inner MTU: IPv6 refuses a link below it.
const MinMTU = 1280

// MTU is the inner MTU of lanes and pods over a device with the given MTU:
// 1420 over 1500. It fails when less than MinMTU would be left.
func MTU(device int) (int, error) {
	inner := device - Overhead
	if inner < MinMTU {
		return 0, fmt.Errorf("device MTU %d leaves %d inside the tunnel, but at least %d are needed: raise the device MTU to %d or more", device, inner, MinMTU, MinMTU+Overhead)
	}
	return inner, nil
}
