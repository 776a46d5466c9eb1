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

// nowhere are the prefixes of addresses that CheckAddress refuses.
var nowhere = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("224.0.0.0/3"),
	netip.MustParsePrefix("::/127"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
}

// CheckCIDR returns an error if a cluster cannot take addresses of pods or services
// from the prefix: it is not written as one, is wider than an IPv4 /8 or an IPv6 /16,
// or holds addresses that CheckAddress refuses.
func CheckCIDR(p netip.Prefix) error {
	widest := 8
	if p.Addr().Is6() {
		widest = 16
	}
	switch {
	case !p.IsValid() || p != p.Masked() || p.Addr().Is4In6():
		return fmt.Errorf("%v is not a valid prefix; write it as 10.2.0.0/16, without bits outside the mask", p)
	case p.Bits() < widest:
		return fmt.Errorf("%v is wider than /%d", p, widest)
	}
	for _, q := range nowhere {
		if p.Overlaps(q) {
			return fmt.Errorf("%v contains addresses of %v, which no machine can have for itself", p, q)
		}
	}
	return nil
}
