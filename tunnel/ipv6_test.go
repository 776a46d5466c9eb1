package tunnel_test

import (
	"testing"

	"github.com/vishvananda/netlink"
)

// Tunnels carry only IPv4, so the kernel must not announce itself over IPv6: every
// announcement would show up as a drop.
func TestTunnelsAreQuietInIPv6(t *testing.T) {
	needRoot(t)
	a, _ := pair(t)
	for _, device := range a.config.Devices {
		link := a.link(device)
		a.do(func() error {
			addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
			if len(addrs) > 0 {
				t.Errorf("%s has IPv6 addresses: %v", device, addrs)
			}
			return err
		})
	}
}
