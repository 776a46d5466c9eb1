package tunnel

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

const tunDevice = "/dev/net/tun"

// openTUN creates the persistent TUN device, or attaches to the one that an earlier
// process left, and sets it up.
func openTUN(name string, mtu int, log *slog.Logger) (tun.Device, error) {
	there, err := netlink.LinkByName(name)
	fresh := errors.As(err, &netlink.LinkNotFoundError{})
	if err != nil && !fresh {
		return nil, fmt.Errorf("look for device: %w", err)
	}
	if !fresh && there.Type() == "wireguard" {
		return nil, errors.New("the kernel's own WireGuard serves this device: `weft tunnel` is not needed on this node")
	}
	file, err := attachTUN(name)
	if err != nil {
		return nil, err
	}
	dev, err := configureTUN(file, name, mtu, fresh)
	if err != nil {
		file.Close()
		return nil, err
	}
	return &guardedTUN{Device: dev, log: log}, nil
}

func attachTUN(name string) (*os.File, error) {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV):
		return nil, fmt.Errorf("open %s: this kernel has no TUN devices; load module tun: %w", tunDevice, err)
	case err != nil:
		return nil, fmt.Errorf("open %s: %w", tunDevice, err)
	}
	file, err := attachFD(fd, name)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return file, nil
}

func attachFD(fd int, name string) (*os.File, error) {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return nil, fmt.Errorf("device name: %w", err)
	}
	// IFF_VNET_HDR enables checksum and segmentation offload; pods' packets arrive
	// without their checksums filled in.
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	switch err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); {
	case errors.Is(err, unix.EBUSY):
		return nil, fmt.Errorf("attach: another process serves this device; stop it first: %w", err)
	case errors.Is(err, unix.EINVAL):
		return nil, fmt.Errorf("attach: a device of this name exists but is not a TUN device; remove it or choose another name: %w", err)
	case errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("attach: needs CAP_NET_ADMIN: %w", err)
	case err != nil:
		return nil, fmt.Errorf("attach: %w", err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return nil, fmt.Errorf("make persistent: %w", err)
	}
	// Before Go's poller gets the file, so that Close ends a blocked Read.
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("set nonblocking: %w", err)
	}
	return os.NewFile(uintptr(fd), tunDevice), nil
}

func configureTUN(file *os.File, name string, mtu int, fresh bool) (tun.Device, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find device: %w", err)
	}
	// A device that existed keeps the MTU that the agent gave it.
	inherited := link.Attrs().MTU
	if fresh {
		inherited = mtu
	}
	dev, err := tun.CreateTUNFromFile(file, inherited)
	if err != nil {
		return nil, fmt.Errorf("take over TUN device: %w", err)
	}
	// Before it is up, or the first announcements are out.
	if err := silence(link); err != nil {
		dev.Close()
		return nil, err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		dev.Close()
		return nil, fmt.Errorf("set device up: %w", err)
	}
	return dev, nil
}

// guardedTUN keeps a malformed packet from ending the tunnel, since wireguard-go closes the
// device after any error of Read, even one about a packet's header; and mends the checksums
// that wireguard-go fills in.
type guardedTUN struct {
	tun.Device
	log       *slog.Logger
	malformed atomic.Uint64
}

func (g *guardedTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := g.Device.Read(bufs, sizes, offset)
	for i := range n {
		mendChecksum(bufs[i][offset : offset+sizes[i]])
	}
	var broken *fs.PathError
	if err == nil || errors.Is(err, os.ErrClosed) || errors.Is(err, tun.ErrTooManySegments) || errors.As(err, &broken) {
		return n, err
	}
	if count := g.malformed.Add(1); count&(count-1) == 0 {
		g.log.Warn("dropped a packet that cannot be segmented", "error", err, "total", count)
	}
	return 0, nil
}

// Remove removes both lanes' devices and everything saved about them, only when an
// operator asks for it; stopping never does. `weft tunnel` must not be running. Nil if
// they are already gone.
func Remove(cfg ServeConfig) error {
	var errs []error
	for _, name := range cfg.Devices {
		errs = append(errs, removeLink(name))
		for _, path := range []string{
			filepath.Join(cfg.StateDir, name+".conf"),
			filepath.Join(cfg.SocketDir, name+".sock"),
		} {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove tunnel: %w", err)
	}
	return nil
}

func removeLink(name string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for device %s: %w", name, err)
	}
	if kind := link.Type(); kind != "tuntap" && kind != "tun" && kind != "wireguard" {
		return fmt.Errorf("device %s is a %s, not a tunnel; left alone", name, kind)
	}
	if err := netlink.LinkDel(link); err != nil {
		return fmt.Errorf("delete device %s: %w", name, err)
	}
	return nil
}
