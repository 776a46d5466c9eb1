// Package fabric is the network between simulated machines: a switch per cluster, and
// between the switches a wide area network that can be cut, delayed and made lossy.
//
// It deals in addresses and packets; package lab decides what is plugged in.
package fabric

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/lab/space"
)

// uplink is the name of a fabric's device to the wide area network.
const uplink = "wan"

// queueLen is the length of the devices' queues, in packets: long enough that only
// faults that a script asked for lose any.
const queueLen = 20000

// Fabric is the switch of one cluster: a network namespace with a bridge, whose own
// addresses are the gateways of everything plugged in. Its methods may be called
// concurrently.
type Fabric struct {
	Site

	ns   *os.File
	link *netlink.Handle
	tun  *os.File

	mu     sync.Mutex
	bridge int             // guarded by mu, like what follows
	ports  map[string]bool // by name, true: up
	blocks map[string][]Block
}

// newFabric makes the namespace, the bridge and the uplink.
func newFabric(site Site) (_ *Fabric, err error) {
	f := &Fabric{Site: site, ports: map[string]bool{}, blocks: map[string][]Block{}}
	defer func() {
		if err != nil {
			f.close()
			err = fmt.Errorf("fabric of cluster %s: %w", site.Cluster, err)
		}
	}()
	if f.ns, f.link, err = newRouter(); err != nil {
		return nil, err
	}
	// With a hardware address of its own: it would have that of a port, and another one once
	// the port is unplugged, where machines go on sending to the old one. Without a querier,
	// snooping would lose what IPv6 sends to find neighbours.
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0", TxQLen: queueLen, HardwareAddr: hardwareAddr(site.Gateways[0])}, MulticastSnooping: new(false)}
	if err = f.link.LinkAdd(bridge); err != nil {
		return nil, fmt.Errorf("make bridge: %w", err)
	}
	dev, err := f.link.LinkByName("br0")
	if err != nil {
		return nil, err
	}
	f.bridge = dev.Attrs().Index
	if err = f.addressUp(f.link, dev, f.Gateways); err != nil {
		return nil, err
	}
	f.tun, err = openTun(f.ns, f.link, uplink)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// newRouter makes a network namespace that forwards packets.
func newRouter() (ns *os.File, link *netlink.Handle, err error) {
	if ns, err = space.NewNet(); err != nil {
		return nil, nil, err
	}
	err = space.Once(space.EnterNet(ns), func() error {
		return errors.Join(
			space.Sysctl("net/ipv4/ip_forward", "1"),
			space.Sysctl("net/ipv4/conf/all/rp_filter", "0"),
			space.Sysctl("net/ipv4/conf/default/rp_filter", "0"),
			forwardIPv6(),
		)
	})
	if err == nil {
		link, err = netlink.NewHandleAt(netns.NsHandle(ns.Fd()))
	}
	if err == nil {
		err = loopbackUp(link)
	}
	if err != nil {
		if link != nil {
			link.Close()
		}
		ns.Close()
		return nil, nil, err
	}
	return ns, link, nil
}

// forwardIPv6 does nothing where the kernel has no IPv6: its addresses are refused later.
func forwardIPv6() error {
	err := space.Sysctl("net/ipv6/conf/all/forwarding", "1")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func loopbackUp(link *netlink.Handle) error {
	lo, err := link.LinkByName("lo")
	if err != nil {
		return err
	}
	return link.LinkSetUp(lo)
}

// addressUp gives a device its addresses, one in each of the fabric's subnets.
func (f *Fabric) addressUp(link *netlink.Handle, dev netlink.Link, addrs []netip.Addr) error {
	for i, addr := range addrs {
		flags := 0
		if addr.Is6() {
			flags = unix.IFA_F_NODAD // usable at once
		}
		if err := link.AddrAdd(dev, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(addr, f.Subnets[i].Bits())), Flags: flags}); err != nil {
			return fmt.Errorf("address %s on %s: %w", addr, dev.Attrs().Name, err)
		}
	}
	if err := link.LinkSetUp(dev); err != nil {
		return fmt.Errorf("bring up %s: %w", dev.Attrs().Name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Plug connects a network namespace: it gets a device with addresses, one in each of Subnets,
// and, if asked, default routes through the gateways. port names the end at the switch.
func (f *Fabric) Plug(port string, into *os.File, device string, addrs []netip.Addr, defaultRoute bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: port, MasterIndex: f.bridge, TxQLen: queueLen},
		PeerName:      device,
		PeerNamespace: netlink.NsFd(into.Fd()),
		// As on a real machine, the address survives a power loss: neighbours would
		// keep sending to the old one for half a minute.
		PeerHardwareAddr: hardwareAddr(addrs[0]),
	}
	if err := f.link.LinkAdd(veth); err != nil {
		return fmt.Errorf("plug %s into fabric %s: %w", port, f.Cluster, err)
	}
	far, err := netlink.NewHandleAt(netns.NsHandle(into.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer far.Close()
	dev, err := far.LinkByName(device)
	if err != nil {
		return err
	}
	if err := f.addressUp(far, dev, addrs); err != nil {
		return err
	}
	if err := f.setPortLocked(port, true); err != nil {
		return err
	}
	if len(f.blocks[port]) > 0 {
		if err := f.blockLocked(port); err != nil {
			return err
		}
	}
	if !defaultRoute {
		return nil
	}
	for _, gateway := range f.Gateways {
		all, err := gateway.Prefix(0)
		if err != nil {
			return err
		}
		if err := far.RouteReplace(&netlink.Route{LinkIndex: dev.Attrs().Index, Gw: gateway.AsSlice(), Dst: ipNet(all)}); err != nil {
			return fmt.Errorf("default route of %s: %w", port, err)
		}
	}
	return nil
}

// hardwareAddr is a locally administered Ethernet address for a machine's address, of which
// the network and the last two bytes tell it from all others.
func hardwareAddr(a netip.Addr) net.HardwareAddr {
	if a.Is4() {
		b := a.As4()
		return net.HardwareAddr{0x02, 0x77, b[0], b[1], b[2], b[3]}
	}
	b := a.As16()
	return net.HardwareAddr{0x02, 0x76, b[6], b[7], b[14], b[15]}
}

// SetPort takes a port down or up, like unplugging its cable or plugging it in.
// Everything in flight is lost.
func (f *Fabric) SetPort(port string, up bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.setPortLocked(port, up)
}

func (f *Fabric) setPortLocked(port string, up bool) error {
	dev, err := f.link.LinkByName(port)
	if err != nil {
		return fmt.Errorf("port %s of fabric %s: %w", port, f.Cluster, err)
	}
	set := f.link.LinkSetDown
	if up {
		set = f.link.LinkSetUp
	}
	if err := set(dev); err != nil {
		return fmt.Errorf("port %s of fabric %s: %w", port, f.Cluster, err)
	}
	f.ports[port] = up
	return nil
}

// Up reports whether a port is plugged in and up.
func (f *Fabric) Up(port string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ports[port]
}

// Unplug removes a port and the device at its other end. It does nothing if they are
// gone.
func (f *Fabric) Unplug(port string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.ports, port)
	dev, err := f.link.LinkByName(port)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = f.link.LinkDel(dev)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("unplug %s from fabric %s: %w", port, f.Cluster, err)
	}
	return nil
}

func (f *Fabric) close() {
	if f.tun != nil {
		f.tun.Close()
	}
	if f.link != nil {
		f.link.Close()
	}
	if f.ns != nil {
		f.ns.Close()
	}
}
