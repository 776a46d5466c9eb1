package tunnel

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
)

// needed says whether a lane's device has to be served in user space: because it is already, or
// because the kernel has no WireGuard. find and try are of the kernel.
func needed(name string, find func(string) (netlink.Link, error), try func() error) (bool, error) {
	link, err := find(name)
	if err == nil {
		return link.Type() != "wireguard", nil
	}
	if !errors.As(err, new(netlink.LinkNotFoundError)) {
		return false, fmt.Errorf("find device %s: %w", name, err)
	}
	return try() != nil, nil
}

// tryWireGuard makes a device of the kernel's WireGuard, and removes it.
func tryWireGuard() error {
	probe := &netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "weft-probe"}}
	_ = netlink.LinkDel(probe) // of a process that was killed meanwhile
	if err := netlink.LinkAdd(probe); err != nil {
		return err
	}
	return netlink.LinkDel(probe)
}
