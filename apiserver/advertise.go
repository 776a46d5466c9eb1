package apiserver

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
)

// Misconfigured is an error in one setting that only this machine can find.
type Misconfigured struct {
	Setting string // as in the configuration file
	Err     error
}

func (e *Misconfigured) Error() string { return e.Err.Error() }

// Unwrap returns what is wrong.
func (e *Misconfigured) Unwrap() error { return e.Err }

// documentation are the prefixes reserved for examples.
var documentation = []netip.Prefix{
	netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8::/32"),
}

// checkAdvertise refuses an address that is not this machine's: certificates, join bundles
// and invites contain it, and none of them would work.
func checkAdvertise(c Config) error {
	if c.AdvertiseElsewhere {
		return nil
	}
	l, err := net.Listen("tcp", netip.AddrPortFrom(c.Advertise, 0).String())
	if err == nil {
		return l.Close()
	}
	if !errors.Is(err, syscall.EADDRNOTAVAIL) {
		return nil // listening there later gives a better error
	}
	return notHere(c.Advertise, own())
}

func notHere(advertise netip.Addr, own []netip.Addr) error {
	text := fmt.Sprintf("advertise is %v, which is not an address of this machine", advertise)
	for _, p := range documentation {
		if p.Contains(advertise) {
			text = fmt.Sprintf("advertise is %v, which is from an example and is not an address of this machine", advertise)
		}
	}
	fix := "give the one at which agents and peers reach it"
	if len(own) > 0 {
		texts := make([]string, len(own))
		for i, a := range own {
			texts[i] = a.String()
		}
		fix = "give one of its own (" + strings.Join(texts, ", ") + ")"
	}
	return &Misconfigured{Setting: "advertise", Err: fmt.Errorf("%s: %s, or set advertiseElsewhere if a load balancer leads here", text, fix)}
}

// own returns the addresses of this machine that others could use.
func own() (all []netip.Addr) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil // the error then lists none
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			all = append(all, p.Addr())
		}
	}
	return all
}
