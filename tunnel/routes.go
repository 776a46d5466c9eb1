package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// routeProtocol marks our routes, so that only those are pruned. It is a number that
// /etc/iproute2/rt_protos leaves free.
const routeProtocol netlink.RouteProtocol = 187

// Metrics of the routes to a member's CIDR: lane 0, lane 1, and last "unreachable", so
// that without a lane a packet is refused and does not leave by the default route in
// the clear.
const (
	metricLane        = 10 // + lane
	metricUnreachable = 1 << 20
)

// KernelHost is the Host of this network namespace.
type KernelHost struct {
	devices [LaneCount]string
	log     *slog.Logger
}

var _ Host = (*KernelHost)(nil)

// NewHost returns a Host that uses these devices. Zero: DefaultDevices. A nil log
// discards everything.
func NewHost(devices [LaneCount]string, log *slog.Logger) *KernelHost {
	if devices == ([LaneCount]string{}) {
		devices = DefaultDevices
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &KernelHost{devices, log}
}

// Set implements Host. A missing device is an error, but everything else is still
// done, the unreachable routes first.
func (h *KernelHost) Set(_ context.Context, want Network, complete bool) error {
	errs := []error{setForwarding()}
	if want.speaksIPv6() {
		errs = append(errs, setForwardingIPv6())
	}
	var links [LaneCount]netlink.Link
	for i, name := range h.devices {
		link, err := netlink.LinkByName(name)
		if err != nil {
			errs = append(errs, fmt.Errorf("find device %s: %w", name, err))
			continue
		}
		links[i] = link
		errs = append(errs, setDevice(link, want.MTU, want.speaksIPv6()))
		// On both: the kernel's loose source check becomes strict for a device
		// without an address.
		for _, internal := range []netip.Addr{want.Internal, want.Second} {
			if internal.IsValid() {
				errs = append(errs, setAddress(link, internal, complete))
			}
		}
	}
	errs = append(errs, h.setRoutes(links, want, complete))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("set network: %w", err)
	}
	return nil
}

// setForwarding lets packets between pods and the outside pass through the node's
// stack, again if somebody switched that off.
func setForwarding() error {
	const path = "/proc/sys/net/ipv4/ip_forward"
	if now, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(now)) == "1" {
		return nil
	}
	if err := os.WriteFile(path, []byte("1"), 0); err != nil {
		return fmt.Errorf("switch on forwarding: %w", err)
	}
	return nil
}

// setForwardingIPv6 is setForwarding for IPv6. A router does not listen to routers unless it
// is told to: devices that get their routes that way go on doing so.
func setForwardingIPv6() error {
	const conf = "/proc/sys/net/ipv6/conf"
	forwarding := filepath.Join(conf, "all", "forwarding")
	now, err := os.ReadFile(forwarding)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("this kernel has no IPv6, but the node has an IPv6 pod CIDR: load module ipv6 or boot without ipv6.disable")
	}
	if err == nil && strings.TrimSpace(string(now)) == "1" {
		return nil
	}
	listening, err := filepath.Glob(filepath.Join(conf, "*", "accept_ra"))
	if err != nil {
		return fmt.Errorf("switch on IPv6 forwarding: %w", err)
	}
	for _, path := range listening {
		// Not the devices to come, nor those of pods and tunnels, where no router is.
		if name := filepath.Base(filepath.Dir(path)); name == "all" || name == "default" || strings.HasPrefix(name, "weft") {
			continue
		}
		if now, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(now)) != "1" {
			continue
		}
		if err := os.WriteFile(path, []byte("2"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("switch on IPv6 forwarding: keep listening to routers: %w", err)
		}
	}
	if err := os.WriteFile(forwarding, []byte("1"), 0); err != nil {
		return fmt.Errorf("switch on IPv6 forwarding: %w", err)
	}
	return nil
}

func setDevice(link netlink.Link, mtu int, ipv6 bool) error {
	name := link.Attrs().Name
	if mtu != 0 && link.Attrs().MTU != mtu {
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			return fmt.Errorf("set MTU of %s to %d: %w", name, mtu, err)
		}
	}
	if ipv6 {
		if err := silence(link); err != nil {
			return err
		}
		if err := setSysctl("ipv6", name, "disable_ipv6", "0"); err != nil {
			return err
		}
		// A kernel without IPv6 does not have this setting.
	} else if err := setSysctl("ipv6", name, "disable_ipv6", "1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if link.Attrs().Flags&unix.IFF_UP == 0 {
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set device %s up: %w", name, err)
		}
	}
	// Packets arrive on either lane but routes name the first, so the strict source
	// check would drop half of them. The kernel uses the larger of this and
	// conf/all; 2, loose, is the largest.
	return setSysctl("ipv4", name, "rp_filter", "2")
}

// silence keeps the kernel from announcing itself over IPv6 on a lane, where nobody listens
// and every announcement would show up as a drop: without an address of its own it says
// nothing of itself, and without multicast nothing of the groups that a router is in.
func silence(link netlink.Link) error {
	name := link.Attrs().Name
	mode, err := os.ReadFile(filepath.Join("/proc/sys/net/ipv6/conf", name, "addr_gen_mode"))
	if err != nil || strings.TrimSpace(string(mode)) != strconv.Itoa(nl.IN6_ADDR_GEN_MODE_NONE) {
		err := netlink.LinkSetIP6AddrGenMode(link, nl.IN6_ADDR_GEN_MODE_NONE)
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			return fmt.Errorf("keep IPv6 addresses off %s: %w", name, err)
		}
	}
	if link.Attrs().RawFlags&unix.IFF_MULTICAST == 0 {
		return nil
	}
	if err := netlink.LinkSetMulticastOff(link); err != nil {
		return fmt.Errorf("switch multicast off on %s: %w", name, err)
	}
	return nil
}

// setSysctl sets a device's setting unless it has the value already.
func setSysctl(family, device, setting, value string) error {
	path := filepath.Join("/proc/sys/net", family, "conf", device, setting)
	if now, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(now)) == value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("set %s of %s to %s: %w", setting, device, value, err)
	}
	return nil
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// setAddress sets the internal address on the device. Other addresses of its family are
// removed only if complete is set.
func setAddress(link netlink.Link, internal netip.Addr, complete bool) error {
	name := link.Attrs().Name
	want := hostNet(internal)
	have, err := netlink.AddrList(link, family(internal))
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", name, err)
	}
	present := false
	for _, addr := range have {
		if addr.IPNet.String() == want.String() {
			present = true
		}
	}
	if !present {
		// Nobody else can have it: there is no neighbour to ask.
		flags := 0
		if internal.Is6() {
			flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &want, Flags: flags}); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add address %v to %s: %w", internal, name, err)
		}
	}
	if !complete {
		return nil
	}
	for _, addr := range have {
		if addr.IPNet.String() == want.String() {
			continue
		}
		if err := netlink.AddrDel(link, &addr); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("delete address %v from %s: %w", addr.IPNet, name, err)
		}
	}
	return nil
}

// routeKey identifies a route.
type routeKey struct {
	prefix netip.Prefix
	metric int
}

// routeWant is the rest of a route.
type routeWant struct {
	device int // ifindex; 0: unreachable
	source netip.Addr
}

// wantedRoutes are the routes for a network over devices with these ifindexes (0: the
// device does not exist). On a node without an IPv6 pod CIDR, the IPv6 CIDRs that a
// dual-stack peer announces as well get no routes.
func wantedRoutes(devices [LaneCount]int, want Network) map[routeKey]routeWant {
	routes := map[routeKey]routeWant{}
	ipv6 := want.speaksIPv6()
	for _, prefix := range want.Members {
		if prefix.Addr().Is6() && !ipv6 {
			continue
		}
		prefix = prefix.Masked()
		for i, index := range devices {
			if index != 0 {
				routes[routeKey{prefix, metricLane + i}] = routeWant{index, want.source(prefix)}
			}
		}
		routes[routeKey{prefix, metricUnreachable}] = routeWant{}
	}
	for _, prefix := range slices.Concat(want.Former, want.Local) {
		if prefix.Addr().Is4() || ipv6 {
			routes[routeKey{prefix.Masked(), metricUnreachable}] = routeWant{}
		}
	}
	return routes
}

func (h *KernelHost) setRoutes(links [LaneCount]netlink.Link, want Network, complete bool) error {
	var devices [LaneCount]int
	for i, link := range links {
		if link != nil {
			devices[i] = link.Attrs().Index
		}
	}
	wanted := wantedRoutes(devices, want)
	// Of a node that is removed nothing is known.
	have, err := listRoutes(want.speaksIPv6() || len(want.Local) == 0)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	present := map[routeKey]routeWant{}
	var errs []error
	for _, r := range have {
		key, is := readRoute(r)
		present[key] = is
		if _, stays := wanted[key]; stays || !complete {
			continue
		}
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("delete route to %v: %w", key.prefix, err))
		}
	}
	// Unreachable first: at no moment may packets leave by another route.
	for _, unreachable := range []bool{true, false} {
		for key, w := range wanted {
			if (w.device == 0) != unreachable {
				continue
			}
			if is, there := present[key]; there && is == w {
				continue
			}
			if err := netlink.RouteReplace(route(key, w)); err != nil {
				errs = append(errs, fmt.Errorf("add route to %v: %w", key.prefix, err))
			}
		}
	}
	return errors.Join(errs...)
}

// listRoutes lists our routes, those of IPv6 too if asked for.
func listRoutes(ipv6 bool) ([]netlink.Route, error) {
	ours, mask := &netlink.Route{Protocol: routeProtocol, Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE
	have, err := netlink.RouteListFiltered(unix.AF_INET, ours, mask)
	if err != nil || !ipv6 {
		return have, err
	}
	more, err := netlink.RouteListFiltered(unix.AF_INET6, ours, mask)
	return append(have, more...), err
}

func route(key routeKey, w routeWant) *netlink.Route {
	dst := ipNet(key.prefix)
	r := &netlink.Route{Dst: &dst, Protocol: routeProtocol, Priority: key.metric, Table: unix.RT_TABLE_MAIN}
	if w.device == 0 {
		r.Type = unix.RTN_UNREACHABLE
		return r
	}
	r.LinkIndex, r.Scope = w.device, netlink.SCOPE_LINK
	if w.source.IsValid() {
		r.Src = w.source.AsSlice()
	}
	return r
}

func readRoute(r netlink.Route) (routeKey, routeWant) {
	key := routeKey{metric: r.Priority}
	if r.Dst != nil {
		key.prefix = fromIPNet(*r.Dst)
	}
	w := routeWant{}
	if r.Type != unix.RTN_UNREACHABLE {
		w.device = r.LinkIndex
		if addr, ok := netip.AddrFromSlice(r.Src); ok {
			w.source = addr.Unmap()
		}
	}
	return key, w
}

// Remove removes our routes, only when an operator asks for it. The internal address
// goes with the device.
func (h *KernelHost) Remove(ctx context.Context) error {
	if err := h.setRoutes([LaneCount]netlink.Link{}, Network{}, true); err != nil {
		return fmt.Errorf("remove routes: %w", err)
	}
	return nil
}

func hostNet(addr netip.Addr) net.IPNet { return ipNet(netip.PrefixFrom(addr, addr.BitLen())) }
