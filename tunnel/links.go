package tunnel

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// kernelLinks are this network namespace's devices.
type kernelLinks struct{}

func (kernelLinks) ensure(name string) (int, Kind, error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		if err := addWireGuard(name); err != nil {
			return 0, "", err
		}
		link, err = netlink.LinkByName(name)
	}
	if err != nil {
		return 0, "", fmt.Errorf("find device %s: %w", name, err)
	}
	var kind Kind
	switch link.Type() {
	case "wireguard":
		kind = Kernel
	case "tuntap", "tun":
		kind = Userspace
	default:
		return 0, "", fmt.Errorf("device %s is a %s, not a WireGuard device: remove it or choose another name", name, link.Type())
	}
	if link.Attrs().Flags&unix.IFF_UP == 0 {
		if err := netlink.LinkSetUp(link); err != nil {
			return 0, "", fmt.Errorf("set device %s up: %w", name, err)
		}
	}
	return link.Attrs().Index, kind, nil
}

func addWireGuard(name string) error {
	err := netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: name}})
	switch {
	case err == nil, errors.Is(err, unix.EEXIST):
		return nil
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("device %s: %w", name, ErrNoWireGuard)
	}
	return fmt.Errorf("add device %s: %w", name, err)
}

func (kernelLinks) received(name string) (uint64, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("find device %s: %w", name, err)
	}
	if link.Attrs().Statistics == nil {
		return 0, fmt.Errorf("device %s has no statistics", name)
	}
	return link.Attrs().Statistics.RxPackets, nil
}
