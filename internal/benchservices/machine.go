package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/lab"
	"github.com/weft-mesh/weft/lab/space"
)

// machine is one of the four, with a client and backends.
type machine struct {
	mode mode
	node *lab.Node
	lab  *lab.Lab
	self string // this program
}

// clientName is the pod in which clients run, backendNames the others.
const clientName = "client"

var backendNames = []string{"backend-a", "backend-b", "backend-c", "backend-d"}

// podMTU is what Weft's agent gives its pods, for all to be alike.
const podMTU = 1420

func namespaceFile(pod string) string { return "/run/netns/default_" + pod }

// inPod is a command that runs another one in a pod.
func (m *machine) inPod(pod string, command ...string) []string {
	return append([]string{m.lab.Binary(), "lab", "enter", namespaceFile(pod), "/run/weft/hosts", "--", m.self}, command...)
}

// run runs a part of this program in the client's pod and reads what it prints.
func (m *machine) run(ctx context.Context, result any, command ...string) error {
	var stdout, stderr bytes.Buffer
	if err := m.lab.RunAt(ctx, lab.Place{Node: m.node}, &stdout, &stderr, m.inPod(clientName, command...)...); err != nil {
		return fmt.Errorf("%s on %s: %w: %s", command[0], m.node.Full(), err, strings.TrimSpace(stderr.String()))
	}
	return json.Unmarshal(stdout.Bytes(), result)
}

// start starts the backends, and lets the client use many ports: it closes first, and its
// closed connections must not stop it.
func (m *machine) start() error {
	for _, name := range backendNames {
		if _, err := m.lab.StartAt(lab.Place{Node: m.node}, name, nil, m.inPod(name, "serve", "-letter", name[len(name)-1:])...); err != nil {
			return err
		}
	}
	return m.inside(clientName, func() error {
		if err := space.Sysctl("net/ipv4/ip_local_port_range", "10000 65000"); err != nil {
			return err
		}
		return space.Sysctl("net/ipv4/tcp_tw_reuse", "1")
	})
}

// inside runs f in the network namespace of a pod.
func (m *machine) inside(pod string, f func() error) error {
	ns, err := os.Open(m.node.Path(namespaceFile(pod)))
	if err != nil {
		return err
	}
	defer ns.Close()
	return space.Once(space.EnterNet(ns), f)
}

// addPods makes pods as Weft's agent makes them: a pair of devices each, and routes to
// single addresses.
func (m *machine) addPods(addrs map[string]netip.Addr) error {
	for name, addr := range addrs {
		ns, err := space.NewNet()
		if err != nil {
			return err
		}
		err = m.addPod(ns, name, addr)
		ns.Close()
		if err != nil {
			return fmt.Errorf("add pod %s to %s: %w", name, m.node.Full(), err)
		}
	}
	return m.node.Do(func() error { return space.Sysctl("net/ipv4/ip_forward", "1") })
}

// gateway is what pods send everything to; their machines answer for it.
var gateway = netip.MustParseAddr("169.254.1.1")

func (m *machine) addPod(ns *os.File, name string, addr netip.Addr) error {
	var host, inside net.HardwareAddr
	device := "p-" + strings.TrimPrefix(name, "backend-")
	err := m.node.Do(func() error {
		file := namespaceFile(name)
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			return err
		}
		if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()), file, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", file, err)
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = device, podMTU
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns.Fd()), PeerMTU: podMTU}); err != nil {
			return err
		}
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		host = link.Attrs().HardwareAddr
		return netlink.LinkSetUp(link)
	})
	if err != nil {
		return err
	}
	err = space.Once(space.EnterNet(ns), func() error {
		if lo, err := netlink.LinkByName("lo"); err == nil {
			if err := netlink.LinkSetUp(lo); err != nil {
				return err
			}
		}
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		inside = link.Attrs().HardwareAddr
		return route(link, host, addr)
	})
	if err != nil {
		return err
	}
	return m.node.Do(func() error {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		index := link.Attrs().Index
		if err := space.Sysctl("net/ipv4/conf/"+device+"/rp_filter", "0"); err != nil {
			return err
		}
		if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: inside}); err != nil {
			return err
		}
		return netlink.RouteReplace(&netlink.Route{LinkIndex: index, Dst: single(addr), Scope: netlink.SCOPE_LINK})
	})
}

// route configures the device of a pod.
func route(link netlink.Link, host net.HardwareAddr, addr netip.Addr) error {
	index := link.Attrs().Index
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: single(addr)}); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: gateway.AsSlice(), HardwareAddr: host}); err != nil {
		return err
	}
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: index, Dst: single(gateway), Scope: netlink.SCOPE_LINK}); err != nil {
		return err
	}
	return netlink.RouteReplace(&netlink.Route{LinkIndex: index, Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Gw: gateway.AsSlice()})
}

func single(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}
