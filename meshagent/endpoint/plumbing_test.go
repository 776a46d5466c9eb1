package endpoint

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// inFreshNamespace gives the test a network namespace of its own, which ends
// with its thread.
func inFreshNamespace(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
}

// A device that cannot be looked up is not absent: a running pod keeps its pair.
func TestAFailedLookupTakesNothingAway(t *testing.T) {
	inFreshNamespace(t)
	k := Kernel{MTU: 1420, NetnsDir: filepath.Join(t.TempDir(), "netns")}
	r := Record{Namespace: "shop", Pod: "web-1", IP: netip.MustParseAddr("10.1.1.2"), ID: 1}
	t.Cleanup(func() { _ = k.Remove(r) })
	link, err := k.Create(r)
	if err != nil {
		t.Fatal(err)
	}
	ns, err := netns.GetFromPath(filepath.Join(k.NetnsDir, r.Name()))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	busy := errors.New("no buffer space available")
	if _, _, err := k.ensurePair(r, ns, func(string) (netlink.Link, error) { return nil, busy }); !errors.Is(err, busy) {
		t.Errorf("error %v", err)
	}
	if dev, err := netlink.LinkByName(HostDevice(r)); err != nil || dev.Attrs().Index != link.Ifindex {
		t.Errorf("the pair of a running pod was replaced: %v, %v", dev, err)
	}
}

func TestPodGetsItsNetworkOnceAndLosesItOnce(t *testing.T) {
	inFreshNamespace(t)
	k := Kernel{MTU: 1420, NetnsDir: filepath.Join(t.TempDir(), "netns")}
	r := Record{Namespace: "shop", Pod: "web-1", IP: netip.MustParseAddr("10.1.1.2"), ID: 1}
	t.Cleanup(func() { _ = k.Remove(r) })

	link, err := k.Create(r)
	if err != nil {
		t.Fatal(err)
	}
	dev, err := netlink.LinkByName(HostDevice(r))
	if err != nil || dev.Attrs().Flags&net.FlagUp != 0 || dev.Attrs().MTU != 1420 {
		t.Fatalf("host side %+v, %v; want it down with MTU 1420", dev.Attrs(), err)
	}
	if err := k.Up(link, r); err != nil {
		t.Fatal(err)
	}

	// A restarted agent finds the same and changes nothing.
	again, err := k.Create(r)
	if err != nil {
		t.Fatal(err)
	}
	if again.Ifindex != link.Ifindex || again.MAC.String() != link.MAC.String() {
		t.Errorf("adopted %+v, want %+v", again, link)
	}

	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: single(r.IP)}, netlink.RT_FILTER_DST)
	if err != nil || len(routes) != 1 || routes[0].LinkIndex != link.Ifindex {
		t.Errorf("route to the pod: %v, %v", routes, err)
	}
	ns, err := netns.GetFromPath(filepath.Join(k.NetnsDir, r.Name()))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	pod, err := netlink.NewHandleAt(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer pod.Close()
	got, err := pod.RouteGet(net.IPv4(8, 8, 8, 8))
	if err != nil || len(got) != 1 || got[0].Gw.String() != gateway.String() || got[0].Src.String() != r.IP.String() {
		t.Errorf("route out of the pod: %v, %v", got, err)
	}

	// A namespace that died is made anew, with the same address.
	if err := unix.Unmount(filepath.Join(k.NetnsDir, r.Name()), unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Create(r); err != nil {
		t.Fatalf("after a reboot: %v", err)
	}

	for range 2 {
		if err := k.Remove(r); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := netlink.LinkByName(HostDevice(r)); err == nil {
		t.Error("the device is still there")
	}
	if _, err := os.Stat(filepath.Join(k.NetnsDir, r.Name())); err == nil {
		t.Error("the namespace is still there")
	}
}

// Neither side of a pair speaks IPv6, which would only show up as drops. Only a router has to
// be silenced by the setting for which a busy kernel makes the writer spin.
func TestAPairIsQuietInIPv6(t *testing.T) {
	for _, c := range []struct {
		name, forwarding, disabled string
	}{{"a host", "0", "0"}, {"a router", "1", "1"}} {
		t.Run(c.name, func(t *testing.T) {
			inFreshNamespace(t)
			setting := func(name string) string {
				text, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + name)
				if err != nil {
					t.Fatal(err)
				}
				return strings.TrimSpace(string(text))
			}
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte(c.forwarding), 0); err != nil {
				t.Fatal(err)
			}
			k := Kernel{MTU: 1420, NetnsDir: filepath.Join(t.TempDir(), "netns")}
			r := Record{Namespace: "shop", Pod: "web-1", IP: netip.MustParseAddr("10.1.1.2"), ID: 1}
			t.Cleanup(func() { _ = k.Remove(r) })
			link, err := k.Create(r)
			if err == nil {
				err = k.Up(link, r)
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := setting(HostDevice(r) + "/disable_ipv6"); got != c.disabled {
				t.Errorf("disable_ipv6 of the host's side is %s, want %s", got, c.disabled)
			}
			quiet := func(device string) {
				dev, err := netlink.LinkByName(device)
				if err != nil {
					t.Fatal(err)
				}
				if addrs, err := netlink.AddrList(dev, netlink.FAMILY_V6); err != nil || len(addrs) > 0 {
					t.Errorf("%s has IPv6 addresses: %v, %v", device, addrs, err)
				}
			}
			quiet(HostDevice(r))
			ns, err := netns.GetFromPath(filepath.Join(k.NetnsDir, r.Name()))
			if err != nil {
				t.Fatal(err)
			}
			defer ns.Close()
			if err := netns.Set(ns); err != nil { // of this test's own thread
				t.Fatal(err)
			}
			quiet(podDevice)
			if got := setting(podDevice+"/disable_ipv6") + setting("all/disable_ipv6"); got != "10" {
				t.Errorf("disable_ipv6 of the pod's device, then of all its devices: %s", got)
			}
		})
	}
}

// A namespace that a runtime made is used as it is, and is the runtime's to remove. What a
// pod has done to its network is named.
func TestAPodInItsRuntimesNamespace(t *testing.T) {
	inFreshNamespace(t)
	dir := t.TempDir()
	k := Kernel{MTU: 1420, NetnsDir: filepath.Join(dir, "netns")}
	r := Record{Namespace: "shop", Pod: "web-1", IP: netip.MustParseAddr("10.1.1.2"), ID: 1, Netns: filepath.Join(dir, "cni-1"), Interface: "net0"}
	if _, err := k.Create(r); err == nil || !strings.Contains(err.Error(), "is not a network namespace") {
		t.Errorf("without the namespace: %v", err)
	}
	if err := ensureNamespace(dir, r.Netns, false); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(r.Netns, unix.MNT_DETACH) })
	t.Cleanup(func() { _ = k.Remove(r) })
	if err := speakIPv6(r.Netns); err != nil { // as where somebody else made it
		t.Fatal(err)
	}
	link, err := k.Create(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Up(link, r); err != nil {
		t.Fatal(err)
	}
	if seen, err := k.Look(r); err != nil || seen.Ifindex != link.Ifindex || seen.MAC.String() != link.MAC.String() {
		t.Errorf("looked at %+v, %v; want %+v", seen, err, link)
	}
	ns, pod, err := k.enter(r)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	defer pod.Close()
	dev, err := pod.LinkByName("net0")
	if err != nil {
		t.Fatal(err)
	}
	if addrs, err := pod.AddrList(dev, netlink.FAMILY_V6); err != nil || len(addrs) > 0 {
		t.Errorf("the pod speaks IPv6: %v, %v", addrs, err)
	}
	for _, damage := range []struct {
		want string
		do   func() error
	}{
		{"has no default route", func() error { return pod.LinkSetDown(dev) }},
		{"no longer has the address 10.1.1.2", func() error { return pod.AddrDel(dev, &netlink.Addr{IPNet: single(r.IP)}) }},
		{"is gone", func() error { return pod.LinkDel(dev) }},
	} {
		if err := damage.do(); err != nil {
			t.Fatal(err)
		}
		if _, err := k.Look(r); err == nil || !strings.Contains(err.Error(), damage.want) {
			t.Errorf("look: %v, want %q", err, damage.want)
		}
	}
	other := netlink.NewLinkAttrs()
	other.Name = "net0"
	if err := pod.LinkAdd(&netlink.Veth{LinkAttrs: other, PeerName: "net1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Create(r); err == nil || !strings.Contains(err.Error(), "a device net0 that is not ours") {
		t.Errorf("beside somebody else's device: %v", err)
	}
	if err := k.Remove(r); err != nil {
		t.Error(err)
	}
	if !isNamespace(r.Netns) {
		t.Error("the runtime's namespace is gone")
	}
}

// speakIPv6 lets the devices to come in a namespace speak IPv6.
func speakIPv6(namespace string) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
		ns, err := netns.GetFromPath(namespace)
		if err == nil {
			defer ns.Close()
			err = netns.Set(ns)
		}
		if err == nil {
			err = os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("0"), 0)
		}
		done <- err
	}()
	return <-done
}

// A pod with an address of each family has a network of each, whoever made its namespace and
// whatever that says of IPv6. The first packet is not held up by the detection of duplicate
// addresses, and nobody has to ask for a neighbour.
func TestAPodOfBothFamilies(t *testing.T) {
	for _, runtimes := range []bool{false, true} {
		t.Run(fmt.Sprintf("runtime's namespace %v", runtimes), func(t *testing.T) {
			inFreshNamespace(t)
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0); err != nil { // as on a node
				t.Fatal(err)
			}
			lo, err := netlink.LinkByName("lo")
			if err == nil {
				err = netlink.AddrAdd(lo, &netlink.Addr{IPNet: single(netip.MustParseAddr("fd00:10:1:1::1")), Flags: unix.IFA_F_NODAD})
			}
			if err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(10 * time.Second); ; { // a worker of the kernel makes it local
				routes, err := netlink.RouteGet(net.ParseIP("fd00:10:1:1::1"))
				if err == nil && routes[0].Type == unix.RTN_LOCAL {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("the node's address is %v, %v", routes, err)
				}
			}
			dir := t.TempDir()
			k := Kernel{MTU: 1420, NetnsDir: filepath.Join(dir, "netns")}
			r := Record{Namespace: "shop", Pod: "web-1", IP: netip.MustParseAddr("10.1.1.2"), Second: netip.MustParseAddr("fd00:10:1:1::2"), ID: 1}
			if runtimes {
				r.Netns = filepath.Join(dir, "cni-1")
				if err := ensureNamespace(dir, r.Netns, false); err != nil { // without IPv6
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = unix.Unmount(r.Netns, unix.MNT_DETACH) })
			}
			t.Cleanup(func() { _ = k.Remove(r) })
			link, err := k.Create(r)
			if err == nil {
				err = k.Up(link, r)
			}
			if err != nil {
				t.Fatal(err)
			}
			if again, err := k.Create(r); err != nil || again.Ifindex != link.Ifindex {
				t.Errorf("again: %+v, %v", again, err)
			}
			ns, pod, err := k.enter(r)
			if err != nil {
				t.Fatal(err)
			}
			defer ns.Close()
			defer pod.Close()
			for ip, outside := range map[netip.Addr]string{r.IP: "192.0.2.1", r.Second: "2001:db8::1"} {
				got, err := pod.RouteGet(net.ParseIP(outside))
				if err != nil || len(got) != 1 || got[0].Gw.String() != gatewayOf(ip).String() || got[0].Src.String() != ip.String() {
					t.Errorf("route from %v to %s: %v, %v", ip, outside, got, err)
				}
				routes, err := netlink.RouteListFiltered(family(ip), &netlink.Route{Dst: single(ip)}, netlink.RT_FILTER_DST)
				if err != nil || len(routes) != 1 || routes[0].LinkIndex != link.Ifindex {
					t.Errorf("route to %v: %v, %v", ip, routes, err)
				}
			}
			// The node talks to the pod at once.
			listening := make(chan net.Listener, 1)
			go func() {
				runtime.LockOSThread() // ends with the goroutine
				if err := netns.Set(ns); err != nil {
					t.Error(err)
				}
				l, err := net.Listen("tcp6", "[fd00:10:1:1::2]:80")
				if err != nil {
					t.Error(err)
				}
				listening <- l
			}()
			if l := <-listening; l != nil {
				defer l.Close()
			}
			conn, err := net.DialTimeout("tcp6", "[fd00:10:1:1::2]:80", 500*time.Millisecond) // less than it takes to ask again
			if err != nil {
				t.Fatal(err)
			}
			conn.Close()
			if _, err := k.Look(r); err != nil {
				t.Errorf("look: %v", err)
			}
			dev, err := pod.LinkByName(podDevice)
			if err != nil {
				t.Fatal(err)
			}
			if err := pod.AddrDel(dev, &netlink.Addr{IPNet: single(r.Second)}); err != nil {
				t.Fatal(err)
			}
			if _, err := k.Look(r); err == nil || !strings.Contains(err.Error(), "no longer has the address fd00:10:1:1::2") {
				t.Errorf("look: %v", err)
			}
		})
	}
}
