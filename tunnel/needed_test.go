package tunnel

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
)

// A kernel that has WireGuard needs no other, except while a device in user space carries the
// packets.
func TestWhenWireGuardInUserSpaceIsNeeded(t *testing.T) {
	has := func(l netlink.Link) func(string) (netlink.Link, error) {
		return func(string) (netlink.Link, error) { return l, nil }
	}
	fails := func(err error) func(string) (netlink.Link, error) {
		return func(string) (netlink.Link, error) { return nil, err }
	}
	missing := fails(netlink.LinkNotFoundError{})
	for name, c := range map[string]struct {
		find func(string) (netlink.Link, error)
		try  error
		want bool
	}{
		"kernel with WireGuard, no device yet":    {missing, nil, false},
		"kernel without WireGuard, no device yet": {missing, errors.New("operation not supported"), true},
		"the kernel's device is there":            {has(&netlink.Wireguard{}), nil, false},
		"a device in user space carries packets":  {has(&netlink.Tuntap{}), nil, true},
		"the same on a kernel without WireGuard":  {has(&netlink.Tuntap{}), errors.New("operation not supported"), true},
	} {
		if got, err := needed("weft0", c.find, func() error { return c.try }); err != nil || got != c.want {
			t.Errorf("%s: %v, %v; want %v", name, got, err, c.want)
		}
	}
	if _, err := needed("weft0", fails(errors.New("no right")), nil); err == nil {
		t.Error("a kernel that does not answer was taken for one without a device")
	}
}
