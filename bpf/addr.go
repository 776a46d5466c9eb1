package bpf

import (
	"encoding/binary"
	"net/netip"
)

// Addr is an address as it is in maps: 16 bytes, IPv4 mapped into ::ffff:0:0/96.
// The zero value means "none".
type Addr [16]byte

// AddrOf converts ip to the form used in maps. The zero netip.Addr gives the zero
// Addr.
func AddrOf(ip netip.Addr) Addr {
	if !ip.IsValid() {
		return Addr{}
	}
	return ip.As16()
}

// Netip is the address, with IPv4 unmapped; invalid for the zero Addr.
func (a Addr) Netip() netip.Addr {
	if a == (Addr{}) {
		return netip.Addr{}
	}
	return netip.AddrFrom16(a).Unmap()
}

func (a Addr) String() string { return a.Netip().String() }

// Port is a port number in network byte order.
type Port [2]byte

// PortOf converts a number to the form used in maps.
func PortOf(n uint16) Port {
	var p Port
	binary.BigEndian.PutUint16(p[:], n)
	return p
}

// Number is the port in host byte order.
func (p Port) Number() uint16 { return binary.BigEndian.Uint16(p[:]) }

// PrefixKey is a key of the longest-prefix table. Bits counts from the start
// of the 16 bytes: an IPv4 /24 has 96 + 24.
type PrefixKey struct {
	Bits uint32
	Addr Addr
}

// PrefixOf converts a prefix to a key; host bits are cleared.
func PrefixOf(p netip.Prefix) PrefixKey {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return PrefixKey{Bits: uint32(bits), Addr: AddrOf(p.Masked().Addr())}
}

// Netip is the prefix, with IPv4 unmapped.
func (k PrefixKey) Netip() netip.Prefix {
	a, bits := netip.AddrFrom16(k.Addr), int(k.Bits)
	if a.Is4In6() && bits >= 96 {
		return netip.PrefixFrom(a.Unmap(), bits-96)
	}
	return netip.PrefixFrom(a, bits)
}
