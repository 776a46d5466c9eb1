package endpoint

import (
	"cmp"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/bpf"
	_ "github.com/weft-mesh/weft/internal/firstthread"
)

// Link is a pod's device pair as it is in the kernel.
type Link struct {
	// Ifindex and Host name the host side.
	Ifindex int
	Host    string
	// MAC is the pod's device's, HostMAC the host side's.
	MAC, HostMAC net.HardwareAddr
	// Netns is the cookie of the pod's network namespace.
	Netns uint64
}

// Plumbing is what a pod needs of the kernel.
type Plumbing interface {
	// Create makes namespace, device pair, addresses and routes, or finds them as
	// they are and leaves them alone. The host side stays down until Up, so that
	// programs are there before the first packet.
	Create(r Record) (Link, error)
	// Find is the host side of a pod's pair, if there is one. It changes nothing.
	Find(r Record) (ifindex int, ok bool)
	// Look is what Create and Up have made. It changes nothing; the error says what is
	// missing.
	Look(r Record) (Link, error)
	// Netns is the pod's network namespace as a file.
	Netns(r Record) string
	// Up lets packets through, and returns when the pod's first will not be lost;
	// harmless when they already pass.
	Up(l Link, r Record) error
	// End ends open TCP connections of a pod, given as the pod knows them, if still says so once
	// the socket is known, and says how many. Those that no socket has are left out, and all if the
	// pod's namespace is gone.
	End(r Record, connections []bpf.FlowKey, still func(bpf.FlowKey) (bool, error)) (int, error)
	// Remove takes everything away; nil if nothing is left.
	Remove(r Record) error
}

// gateway and gatewayIPv6 are every pod's next hop. They exist nowhere: permanent neighbour
// entries point to the host side of the pair.
var (
	gateway     = netip.MustParseAddr("169.254.1.1")
	gatewayIPv6 = netip.MustParseAddr("fe80::1")
)

// gatewayOf is the next hop of the family of a pod's address.
func gatewayOf(ip netip.Addr) netip.Addr {
	if ip.Is4() {
		return gateway
	}
	return gatewayIPv6
}

// everything is the default route's destination in the family of a pod's address.
func everything(ip netip.Addr) netip.Prefix {
	p, _ := ip.Prefix(0)
	return p
}

func family(ip netip.Addr) int {
	if ip.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// ofIPv6 says whether any of a pod's addresses is of IPv6.
func ofIPv6(ips []netip.Addr) bool { return slices.ContainsFunc(ips, netip.Addr.Is6) }

// podDevice is the device inside the pod, unless another is requested.
const podDevice = "eth0"

// Kernel is Plumbing with netlink. It needs root and works in the namespace of
// the process.
type Kernel struct {
	// MTU of the pods' devices, bytes.
	MTU int
	// NetnsDir holds the namespaces as files; /run/netns if empty.
	NetnsDir string
}

func (k Kernel) dir() string {
	if k.NetnsDir == "" {
		return "/run/netns"
	}
	return k.NetnsDir
}

// Netns implements Plumbing.
func (k Kernel) Netns(r Record) string {
	return cmp.Or(r.Netns, filepath.Join(k.dir(), r.Name()))
}

// enter opens a pod's network namespace. The caller closes both.
func (k Kernel) enter(r Record) (netns.NsHandle, *netlink.Handle, error) {
	path := k.Netns(r)
	if !isNamespace(path) {
		return netns.None(), nil, fmt.Errorf("open namespace: %s is not a network namespace", path)
	}
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return netns.None(), nil, fmt.Errorf("open namespace %s: %w", path, err)
	}
	pod, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		ns.Close()
		return netns.None(), nil, fmt.Errorf("enter namespace %s: %w", path, err)
	}
	return ns, pod, nil
}

// HostDevice is the name of the host side: stable, and within the kernel's 15
// bytes whatever the pod is called.
func HostDevice(r Record) string {
	sum := sha256.Sum256([]byte(r.Key()))
	return "weft-" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:])[:10])
}

// Create implements Plumbing.
func (k Kernel) Create(r Record) (_ Link, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("create network of pod %s: %w", r.Key(), err)
		}
	}()
	// One that the requester made is the requester's: it is neither made nor removed here.
	if r.Netns == "" {
		if err := ensureNamespace(k.dir(), k.Netns(r), ofIPv6(r.IPs())); err != nil {
			return Link{}, err
		}
	}
	ns, pod, err := k.enter(r)
	if err != nil {
		return Link{}, err
	}
	defer ns.Close()
	defer pod.Close()

	host, inside, err := k.ensurePair(r, ns, pod.LinkByName)
	if err != nil {
		return Link{}, err
	}
	if err := quiet(pod, inside); err != nil {
		return Link{}, err
	}
	if ofIPv6(r.IPs()) {
		if err := allowIPv6(ns, r.Device()); err != nil {
			return Link{}, fmt.Errorf("in the pod: %w", err)
		}
	}
	if err := configurePod(pod, inside, host.Attrs().HardwareAddr, r.IPs(), k.MTU); err != nil {
		return Link{}, err
	}
	if err := configureHost(host, inside.Attrs().HardwareAddr, r.IPs()); err != nil {
		return Link{}, err
	}
	link := linkOf(host, inside)
	link.Netns, err = cookieOf(ns)
	return link, err
}

func linkOf(host, inside netlink.Link) Link {
	return Link{
		Ifindex: host.Attrs().Index, Host: host.Attrs().Name,
		MAC: inside.Attrs().HardwareAddr, HostMAC: host.Attrs().HardwareAddr,
	}
}

// Look implements Plumbing.
func (k Kernel) Look(r Record) (_ Link, err error) {
	host, err := device(netlink.LinkByName, HostDevice(r))
	if err != nil {
		return Link{}, err
	}
	if host == nil {
		return Link{}, fmt.Errorf("device %s is gone", HostDevice(r))
	}
	if host.Attrs().Flags&net.FlagUp == 0 {
		return Link{}, fmt.Errorf("device %s is down", HostDevice(r))
	}
	ns, pod, err := k.enter(r)
	if err != nil {
		return Link{}, err
	}
	defer ns.Close()
	defer pod.Close()
	inside, err := device(pod.LinkByName, r.Device())
	if err != nil {
		return Link{}, err
	}
	if inside == nil || inside.Attrs().ParentIndex != host.Attrs().Index {
		return Link{}, fmt.Errorf("the pod's %s is not the other end of %s", r.Device(), HostDevice(r))
	}
	for _, ip := range r.IPs() {
		addrs, err := pod.AddrList(inside, family(ip))
		if err != nil {
			return Link{}, fmt.Errorf("list the pod's addresses: %w", err)
		}
		if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.Equal(ip.AsSlice()) }) {
			return Link{}, fmt.Errorf("the pod's %s no longer has the address %v", r.Device(), ip)
		}
	}
	if !configured(pod, inside, r.IPs()) {
		return Link{}, fmt.Errorf("the pod's %s is down or has no default route", r.Device())
	}
	return linkOf(host, inside), nil
}

// device looks a device up with a netlink function, and returns nil if there is none.
// Any other failure is an error: a device that could not be looked up is not absent.
func device(byName func(string) (netlink.Link, error), name string) (netlink.Link, error) {
	link, err := byName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find device %s: %w", name, err)
	}
	return link, nil
}

// ensurePair finds both sides of the pair, or creates them. Half a pair is what is left
// of a namespace that died, or somebody else's: it is replaced. inPod looks devices up in
// the pod's namespace.
func (k Kernel) ensurePair(r Record, ns netns.NsHandle, inPod func(string) (netlink.Link, error)) (host, inside netlink.Link, err error) {
	name := HostDevice(r)
	if host, err = device(netlink.LinkByName, name); err != nil {
		return nil, nil, err
	}
	if inside, err = device(inPod, r.Device()); err != nil {
		return nil, nil, fmt.Errorf("in the pod: %w", err)
	}
	if host != nil && inside != nil && inside.Attrs().ParentIndex == host.Attrs().Index {
		return host, inside, nil
	}
	if host != nil {
		if err := netlink.LinkDel(host); err != nil {
			return nil, nil, fmt.Errorf("remove half a device pair: %w", err)
		}
	}
	if inside != nil {
		return nil, nil, fmt.Errorf("the pod has a device %s that is not ours: remove it, or request another interface", r.Device())
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, k.MTU
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: r.Device(), PeerNamespace: netlink.NsFd(ns), PeerMTU: uint32(k.MTU)}
	if err := netlink.LinkAdd(veth); err != nil {
		return nil, nil, fmt.Errorf("add device pair %s: %w", name, err)
	}
	if host, err = netlink.LinkByName(name); err != nil {
		return nil, nil, fmt.Errorf("find device %s: %w", name, err)
	}
	if inside, err = inPod(r.Device()); err != nil {
		return nil, nil, fmt.Errorf("find device of the pod: %w", err)
	}
	return host, inside, nil
}

func configurePod(pod *netlink.Handle, dev netlink.Link, hostMAC net.HardwareAddr, ips []netip.Addr, mtu int) error {
	if lo, err := pod.LinkByName("lo"); err == nil {
		if err := pod.LinkSetUp(lo); err != nil {
			return fmt.Errorf("set loopback up: %w", err)
		}
	}
	if dev.Attrs().MTU == mtu && configured(pod, dev, ips) {
		return nil // a pod of an earlier life: hands off
	}
	if dev.Attrs().MTU != mtu {
		if err := pod.LinkSetMTU(dev, mtu); err != nil {
			return fmt.Errorf("set MTU %d: %w", mtu, err)
		}
	}
	for _, ip := range ips {
		flags := 0
		if ip.Is6() {
			flags = unix.IFA_F_NODAD // nobody else is on the link
		}
		if err := pod.AddrReplace(dev, &netlink.Addr{IPNet: single(ip), Flags: flags}); err != nil {
			return fmt.Errorf("give the address %s: %w", ip, err)
		}
	}
	if err := pod.LinkSetUp(dev); err != nil {
		return fmt.Errorf("set device up: %w", err)
	}
	index := dev.Attrs().Index
	for _, ip := range ips {
		gateway := gatewayOf(ip)
		if err := pod.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: gateway.AsSlice(), HardwareAddr: hostMAC}); err != nil {
			return fmt.Errorf("set neighbour %s: %w", gateway, err)
		}
		all := everything(ip)
		routes := []netlink.Route{
			{LinkIndex: index, Dst: single(gateway), Scope: netlink.SCOPE_LINK},
			{LinkIndex: index, Dst: &net.IPNet{IP: all.Addr().AsSlice(), Mask: net.CIDRMask(0, all.Addr().BitLen())}, Gw: gateway.AsSlice()},
		}
		for _, route := range routes {
			if err := pod.RouteReplace(&route); err != nil {
				return fmt.Errorf("set route %s in the pod: %w", route.Dst, err)
			}
		}
	}
	return nil
}

// configured says whether the last step of configurePod was done before.
func configured(pod *netlink.Handle, dev netlink.Link, ips []netip.Addr) bool {
	return dev.Attrs().Flags&net.FlagUp != 0 && !slices.ContainsFunc(ips, func(ip netip.Addr) bool {
		routes, err := pod.RouteList(dev, family(ip))
		return err != nil || !slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Gw != nil && r.Gw.Equal(gatewayOf(ip).AsSlice()) })
	})
}

func configureHost(dev netlink.Link, podMAC net.HardwareAddr, ips []netip.Addr) error {
	// Answers are taken as they come.
	setSysctl("net/ipv4/conf/"+dev.Attrs().Name+"/rp_filter", "0")
	setSysctl("net/ipv4/conf/"+dev.Attrs().Name+"/forwarding", "1")
	if dev.Attrs().Flags&net.FlagUp == 0 {
		return silence(dev, ofIPv6(ips))
	}
	return routeHost(dev.Attrs().Index, podMAC, ips)
}

// quiet keeps IPv6 addresses off a pod's device that is not up yet: a runtime's namespace may
// give it one.
func quiet(pod *netlink.Handle, dev netlink.Link) error {
	if dev.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	err := pod.LinkSetIP6AddrGenMode(dev, nl.IN6_ADDR_GEN_MODE_NONE)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("keep IPv6 addresses off the pod's %s: %w", dev.Attrs().Name, err)
	}
	return nil
}

// silence keeps the host from speaking IPv6 of its own accord on a device that is not up yet:
// without an address it has nothing to announce. A router announces the groups it is in all
// the same, so there IPv6 is switched off, which is dear (see setSysctl), unless the pod has
// an address of IPv6.
func silence(dev netlink.Link, ipv6 bool) error {
	name := dev.Attrs().Name
	err := netlink.LinkSetIP6AddrGenMode(dev, nl.IN6_ADDR_GEN_MODE_NONE)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return nil // a kernel without IPv6
	}
	if err != nil {
		return fmt.Errorf("keep IPv6 addresses off %s: %w", name, err)
	}
	if ipv6 {
		setSysctl("net/ipv6/conf/"+name+"/disable_ipv6", "0")
		return nil
	}
	if text, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + name + "/forwarding"); err == nil && strings.TrimSpace(string(text)) != "0" {
		setSysctl("net/ipv6/conf/"+name+"/disable_ipv6", "1")
	}
	return nil
}

func routeHost(index int, podMAC net.HardwareAddr, ips []netip.Addr) error {
	for _, ip := range ips {
		if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: podMAC}); err != nil {
			return fmt.Errorf("set neighbour %s: %w", ip, err)
		}
		route := netlink.Route{LinkIndex: index, Dst: single(ip), Scope: netlink.SCOPE_LINK}
		if err := netlink.RouteReplace(&route); err != nil {
			return fmt.Errorf("set route to %s: %w", ip, err)
		}
	}
	return nil
}

// Up implements Plumbing. Routes need a device that is up, so they come here.
func (k Kernel) Up(l Link, r Record) error {
	dev, err := netlink.LinkByIndex(l.Ifindex)
	if err != nil {
		return fmt.Errorf("find device %s of pod %s: %w", l.Host, r.Key(), err)
	}
	if err := netlink.LinkSetUp(dev); err != nil {
		return fmt.Errorf("set device %s of pod %s up: %w", l.Host, r.Key(), err)
	}
	if err := routeHost(l.Ifindex, l.MAC, r.IPs()); err != nil {
		return err
	}
	return k.awaitReady(r)
}

// awaitReady returns when the pod's device can send and receive. Its side of the
// pair was up first, without carrier, and gets its queue from the kernel's link
// watcher a moment after the host's side is up: until then it loses what the pod
// sends. Asking makes the watcher look at once since Linux 6.8. An address of IPv6
// becomes one a moment after it was given, when a worker of the kernel has looked at
// it: until then the pod does not take what is for it. A pod that has taken its
// device down itself is not waited for.
func (k Kernel) awaitReady(r Record) error {
	const patience, pause = time.Second, 2 * time.Millisecond
	ns, pod, err := k.enter(r)
	if err != nil {
		return fmt.Errorf("pod %s: %w", r.Key(), err)
	}
	defer ns.Close()
	defer pod.Close()
	for deadline := time.Now().Add(patience); ; time.Sleep(pause) {
		dev, err := pod.LinkByName(r.Device())
		if err != nil {
			return fmt.Errorf("find device of pod %s: %w", r.Key(), err)
		}
		up := dev.Attrs().Flags&net.FlagUp != 0
		if !up || dev.Attrs().OperState == netlink.OperUp && takes(pod, r.IPs()) || time.Now().After(deadline) {
			return nil
		}
	}
}

// takes says whether a pod takes what is for its addresses of IPv6.
func takes(pod *netlink.Handle, ips []netip.Addr) bool {
	return !slices.ContainsFunc(ips, func(ip netip.Addr) bool {
		if ip.Is4() {
			return false
		}
		routes, err := pod.RouteGet(ip.AsSlice())
		return err != nil || len(routes) == 0 || routes[0].Type != unix.RTN_LOCAL
	})
}

// Find implements Plumbing.
func (k Kernel) Find(r Record) (ifindex int, ok bool) {
	dev, err := netlink.LinkByName(HostDevice(r))
	if err != nil {
		return 0, false
	}
	return dev.Attrs().Index, true
}

// Remove implements Plumbing. The host's route goes with its device.
func (k Kernel) Remove(r Record) error {
	dev, err := device(netlink.LinkByName, HostDevice(r))
	if err != nil {
		return fmt.Errorf("remove network of pod %s: %w", r.Key(), err)
	}
	if dev != nil {
		if err := netlink.LinkDel(dev); err != nil {
			return fmt.Errorf("remove device of pod %s: %w", r.Key(), err)
		}
	}
	if r.Netns != "" {
		return nil
	}
	path := k.Netns(r)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount namespace of pod %s: %w", r.Key(), err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove namespace of pod %s: %w", r.Key(), err)
	}
	return nil
}

func single(ip netip.Addr) *net.IPNet {
	return &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(ip.BitLen(), ip.BitLen())}
}
