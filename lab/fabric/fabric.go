// Package fabric is the network between simulated machines: a switch per cluster, and
// between the switches a wide area network that can be cut, delayed and made lossy.
//
// It deals in addresses and packets; package lab decides what is plugged in.
package fabric

import (
	"errors"
	"fmt"
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
// address is the gateway of everything plugged in. Its methods may be called
// concurrently.
type Fabric struct {
	Cluster string
	Subnet  netip.Prefix // of the machines
	Gateway netip.Addr   // in Subnet

	ns   *os.File
	link *netlink.Handle
	tun  *os.File

	mu     sync.Mutex
	bridge int             // guarded by mu, like what follows
	ports  map[string]bool // by name, true: up
	blocks map[string][]Block
}

// newFabric makes the namespace, the bridge and the uplink.
func newFabric(cluster string, subnet netip.Prefix, gateway netip.Addr) (_ *Fabric, err error) {
	f := &Fabric{Cluster: cluster, Subnet: subnet, Gateway: gateway, ports: map[string]bool{}, blocks: map[string][]Block{}}
	defer func() {
		if err != nil {
			f.close()
			err = fmt.Errorf("fabric of cluster %s: %w", cluster, err)
		}
	}()
	if f.ns, f.link, err = newRouter(); err != nil {
		return nil, err
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0", TxQLen: queueLen}}
	if err = f.link.LinkAdd(bridge); err != nil {
		return nil, fmt.Errorf("make bridge: %w", err)
	}
	dev, err := f.link.LinkByName("br0")
	if err != nil {
		return nil, err
	}
	f.bridge = dev.Attrs().Index
	if err = addressUp(f.link, dev, netip.PrefixFrom(gateway, subnet.Bits())); err != nil {
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

func loopbackUp(link *netlink.Handle) error {
	lo, err := link.LinkByName("lo")
	if err != nil {
		return err
	}
	return link.LinkSetUp(lo)
}

func addressUp(link *netlink.Handle, dev netlink.Link, addr netip.Prefix) error {
	if err := link.AddrAdd(dev, &netlink.Addr{IPNet: ipNet(addr)}); err != nil {
		return fmt.Errorf("address %s on %s: %w", addr, dev.Attrs().Name, err)
	}
	if err := link.LinkSetUp(dev); err != nil {
		return fmt.Errorf("bring up %s: %w", dev.Attrs().Name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Plug connects a network namespace: it gets a device with an address and, if asked,
// a default route through the gateway. port names the end at the switch.
func (f *Fabric) Plug(port string, into *os.File, device string, addr netip.Addr, defaultRoute bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: port, MasterIndex: f.bridge, TxQLen: queueLen},
		PeerName:      device,
		PeerNamespace: netlink.NsFd(into.Fd()),
		// As on a real machine, the address survives a power loss: neighbours would
		// keep sending to the old one for half a minute.
		PeerHardwareAddr: hardwareAddr(addr),
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
	if err := addressUp(far, dev, netip.PrefixFrom(addr, f.Subnet.Bits())); err != nil {
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
	err = far.RouteReplace(&netlink.Route{LinkIndex: dev.Attrs().Index, Gw: f.Gateway.AsSlice(), Dst: ipNet(netip.MustParsePrefix("0.0.0.0/0"))})
	if err != nil {
		return fmt.Errorf("default route of %s: %w", port, err)
	}
	return nil
}

// hardwareAddr is a locally administered Ethernet address for an IPv4 address.
func hardwareAddr(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 0x77, b[0], b[1], b[2], b[3]}
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
