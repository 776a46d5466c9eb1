package service

import (
	"fmt"
	"net/netip"
)

// CheckAddress returns an error if no backend can have the address, whoever offers it,
// because it names no single machine or means something else on every node. The rules
// are Kubernetes', plus the addresses that IPv4 reserves for broadcast.
func CheckAddress(a netip.Addr) error {
	what := ""
	switch {
	case !a.IsValid() || a.Zone() != "":
		what = "not an IP address"
	case a.Is4In6():
		what = "IPv4 written as IPv6; write " + a.Unmap().String()
	case a.Is4() && a.As4()[0] == 0:
		what = "an address of no network (0.0.0.0/8)"
	case a.IsUnspecified():
		what = "the unspecified address"
	case a.IsLoopback():
		what = "a loopback address"
	case a.IsLinkLocalUnicast():
		what = "a link-local address"
	case a.IsMulticast():
		what = "a multicast address"
	case a.Is4() && a.As4()[0] >= 240:
		what = "a reserved or broadcast address (240.0.0.0/4)"
	}
	if what == "" {
		return nil
	}
	return fmt.Errorf("%v is %s", a, what)
}
