// Package loopbacktest gives every test addresses of its own, so that tests
// never meet on a port, whatever else runs on the machine.
//
// It is for tests of one process; whole nodes have network namespaces, which
// package lab makes.
package loopbacktest

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
)

// claim is the port that an address is held by. Tests use others.
const claim = 1024

// Addr is an address of 127.0.0.0/8 that nobody else gets before the test ends.
// All its ports but one are free, also those a server gave up for a moment, as
// long as they are below those the kernel chooses from, 32768 and more.
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
	t.Fatalf("no address of loopback can be had: %v", err)
	return netip.Addr{}
}
