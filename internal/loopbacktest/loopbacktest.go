// Package loopbacktest gives every test its own loopback address, so that tests
// never collide on a port, whatever else runs on the machine.
//
// It is for tests within one process; package lab makes network namespaces for
// whole nodes.
package loopbacktest

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
)

// claim is the port that reserves an address. Tests use other ports.
const claim = 1024

// Addr is an address in 127.0.0.0/8 that no other test gets until this one ends.
// All its ports but one are free and stay free while a server restarts, provided
// they are below 32768, where the kernel's ephemeral ports begin.
func Addr(t testing.TB) netip.Addr {
	t.Helper()
	var err error
	for range 100 {
		addr := netip.AddrFrom4([4]byte{127, byte(1 + rand.N(254)), byte(rand.N(256)), byte(1 + rand.N(254))})
		var held *net.UDPConn
		if held, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, claim))); err == nil {
			t.Cleanup(func() { held.Close() })
			return addr
		}
	}
	t.Fatalf("no free loopback address: %v", err)
	return netip.Addr{}
}
