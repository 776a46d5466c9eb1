package fabric

import (
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/lab/space"
)

// openTun makes a TUN device in a namespace and brings it up. Reading from the file
// yields the IP packets that the namespace sends to the device. Closing the file
// removes the device.
func openTun(ns *os.File, link *netlink.Handle, name string) (tun *os.File, err error) {
	err = space.Once(space.EnterNet(ns), func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		req, err := unix.NewIfreq(name)
		if err != nil {
			unix.Close(fd)
			return err
		}
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			unix.Close(fd)
			return fmt.Errorf("make TUN device %s: %w", name, err)
		}
		tun = os.NewFile(uintptr(fd), name)
		return nil
	})
	if err != nil {
		return nil, err
	}
	dev, err := link.LinkByName(name)
	if err == nil {
		err = link.LinkSetTxQLen(dev, queueLen)
	}
	if err == nil {
		err = link.LinkSetUp(dev)
	}
	if err != nil {
		tun.Close()
		return nil, fmt.Errorf("bring up TUN device %s: %w", name, err)
	}
	return tun, nil
}
