package bpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// lane is a tunnel device whose far end is the test.
type lane struct {
	t       *testing.T
	file    *os.File
	ifindex int
}

// realNode has pods with stacks of their own, and real devices.
type realNode struct {
	*testing.T
	d      *Datapath
	config Config
	pods   map[string]netns.NsHandle
	host   map[string]int
	lane   *lane
}

// Whom pods send everything to, in each family.
const gateway, gatewayIPv6 = "169.254.1.1", "fe80::1"

// network is the name of a transport in the family: tcp4, for example.
func network(transport string) string {
	if overIPv6 {
		return transport + "6"
	}
	return transport + "4"
}

// at is a port of an address in the family.
func at(address string, port uint16) string {
	return netip.AddrPortFrom(inFamily(netip.MustParseAddr(address)), port).String()
}

func newRealNode(t *testing.T, o options) *realNode {
	t.Helper()
	n := &realNode{T: t, config: smallConfig(ownNamespaces(t)), pods: map[string]netns.NsHandle{}, host: map[string]int{}}
	n.d = mustLoad(t, n.config, o)
	lo, err := netlink.LinkByName("lo")
	n.must(err)
	n.must(netlink.LinkSetUp(lo))
	n.must(netlink.AddrAdd(lo, ipNet(nodeInternal)))
	macs := map[string][2]net.HardwareAddr{podA: n.addPod("a", podA), podB: n.addPod("b", podB)}
	fillMesh(t, n.d.Maps(), n.host[podA], n.host[podB])
	for pod, mac := range macs {
		ep, _, _ := n.d.Maps().Endpoints.Lookup(addr(pod))
		copy(ep.MAC[:], mac[0])
		copy(ep.HostMAC[:], mac[1])
		set(t, n.d.Maps().Endpoints, addr(pod), ep)
		n.must(n.d.AttachPod(n.host[pod]))
	}
	n.lane = n.addLane()
	n.must(n.d.AttachTunnel(n.lane.ifindex, 1))
	s, _, _ := n.d.Maps().Settings.Lookup(0)
	s.TunnelIfindex = [2]uint32{0, uint32(n.lane.ifindex)}
	set(t, n.d.Maps().Settings, 0, s)
	return n
}

func (n *realNode) must(err error) {
	n.Helper()
	if err != nil {
		n.Fatal(err)
	}
}

func ipNet(s string) *netlink.Addr {
	a := inFamily(netip.MustParseAddr(s))
	return &netlink.Addr{Flags: unix.IFA_F_NODAD, IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}}
}

// addPod makes a pod as the agent does, and returns the addresses of both ends
// of its veth.
func (n *realNode) addPod(name, ip string) (macs [2]net.HardwareAddr) {
	n.Helper()
	n.host[ip] = addVeth(n, name)
	host, err := netlink.LinkByIndex(n.host[ip])
	n.must(err)
	peer, err := netlink.LinkByName("pod-" + name)
	n.must(err)
	made := make(chan netns.NsHandle)
	go func() { // the thread is not given back, and so ends
		runtime.LockOSThread()
		ns := netns.None()
		if err := unix.Unshare(unix.CLONE_NEWNET); err == nil {
			ns, _ = netns.Get()
		}
		made <- ns
	}()
	ns := <-made
	if !ns.IsOpen() {
		n.Fatal("no network namespace for a pod")
	}
	n.Cleanup(func() { ns.Close() })
	n.pods[ip] = ns
	n.must(netlink.LinkSetNsFd(peer, int(ns)))
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	n.must(err)
	defer h.Close()
	peer, err = h.LinkByName("pod-" + name)
	n.must(err)
	lo, err := h.LinkByName("lo")
	n.must(err)
	n.must(h.LinkSetUp(lo))
	n.must(h.LinkSetUp(peer))
	n.must(netlink.LinkSetUp(host))
	macs = [2]net.HardwareAddr{peer.Attrs().HardwareAddr, host.Attrs().HardwareAddr}
	gw := netip.MustParseAddr(gateway)
	if overIPv6 {
		gw = netip.MustParseAddr(gatewayIPv6)
	}
	dev := peer.Attrs().Index
	n.must(h.AddrAdd(peer, ipNet(ip)))
	n.must(h.NeighAdd(&netlink.Neigh{LinkIndex: dev, IP: gw.AsSlice(), HardwareAddr: macs[1], State: netlink.NUD_PERMANENT}))
	if !overIPv6 { // what is on the link needs no route
		n.must(h.RouteAdd(&netlink.Route{LinkIndex: dev, Dst: &net.IPNet{IP: gw.AsSlice(), Mask: net.CIDRMask(32, 32)}, Scope: netlink.SCOPE_LINK}))
	}
	n.must(h.RouteAdd(&netlink.Route{LinkIndex: dev, Gw: gw.AsSlice()}))
	pod := ipNet(ip).IPNet
	n.must(netlink.NeighAdd(&netlink.Neigh{LinkIndex: n.host[ip], IP: pod.IP, HardwareAddr: macs[0], State: netlink.NUD_PERMANENT}))
	n.must(netlink.RouteAdd(&netlink.Route{LinkIndex: n.host[ip], Dst: pod, Scope: netlink.SCOPE_LINK, Src: ipNet(nodeInternal).IP}))
	for up := false; !up; { // until then it loses what it is given to send
		link, err := h.LinkByIndex(dev)
		n.must(err)
		up = link.Attrs().OperState == netlink.OperUp
	}
	for ours := !overIPv6; !ours; { // until then it takes nothing for the address
		routes, err := h.RouteGet(pod.IP)
		ours = err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL
	}
	return macs
}

func (n *realNode) addLane() *lane {
	n.Helper()
	la := netlink.NewLinkAttrs()
	la.Name = "lane1"
	tun := &netlink.Tuntap{LinkAttrs: la, Mode: netlink.TUNTAP_MODE_TUN, Flags: netlink.TUNTAP_NO_PI, NonPersist: true, Queues: 1}
	n.must(netlink.LinkAdd(tun))
	n.must(netlink.LinkSetUp(tun))
	l, err := netlink.LinkByName(la.Name)
	n.must(err)
	n.must(unix.SetNonblock(int(tun.Fds[0].Fd()), true))
	fd, err := unix.Dup(int(tun.Fds[0].Fd()))
	n.must(err)
	tun.Fds[0].Close()
	file := os.NewFile(uintptr(fd), "lane1")
	n.Cleanup(func() { file.Close() })
	return &lane{n.T, file, l.Attrs().Index}
}

// receive returns the next packet of the family that came out of the node, but nothing
// that devices say to their links.
func (l *lane) receive() []byte {
	l.t.Helper()
	b, ok := l.next(30 * time.Second)
	if !ok {
		l.t.Fatal("nothing came out of the lane")
	}
	return b
}

// next is receive, and gives up after a while.
func (l *lane) next(patience time.Duration) ([]byte, bool) {
	b := make([]byte, 65536)
	for {
		l.file.SetReadDeadline(time.Now().Add(patience))
		n, err := l.file.Read(b)
		if err != nil {
			return nil, false
		}
		if overIPv6 && b[0]>>4 == 6 && b[6] != 58 || !overIPv6 && b[0]>>4 == 4 {
			return b[:n], true
		}
	}
}

func (l *lane) send(p layer) {
	l.t.Helper()
	if _, err := l.file.Write(p.encode(nil)); err != nil {
		l.t.Fatal(err)
	}
}

// in runs f in the pod's network namespace; sockets made there stay there.
func (n *realNode) in(pod string, f func() error) {
	n.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := netns.Set(n.pods[pod])
		if err == nil {
			err = f()
		}
		done <- err
	}()
	n.must(<-done)
}

// listen echoes every line of each connection to the pod.
func (n *realNode) listen(pod string, port uint16) {
	n.Helper()
	n.in(pod, func() error {
		l, err := net.Listen(network("tcp"), at(pod, port))
		if err != nil {
			return err
		}
		n.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { io.Copy(c, c); c.Close() }()
			}
		}()
		return nil
	})
}

func (n *realNode) dial(pod, to string, wait time.Duration) (c net.Conn, err error) {
	n.Helper()
	n.in(pod, func() error {
		c, err = net.DialTimeout(network("tcp"), to, wait)
		return nil
	})
	if err == nil {
		n.Cleanup(func() { c.Close() })
	}
	return c, err
}

// talk sends a lot of data and expects it back.
func (n *realNode) talk(c net.Conn) {
	n.Helper()
	said := strings.Repeat("weft", 1<<16)
	go io.WriteString(c, said)
	heard := make([]byte, len(said))
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.ReadFull(c, heard); err != nil || string(heard) != said {
		n.Fatalf("%v → %v: %v", c.LocalAddr(), c.RemoteAddr(), err)
	}
}

func TestPodsTalk(t *testing.T) { families(t, testPodsTalk) }

func testPodsTalk(t *testing.T) {
	for name, o := range map[string]options{"tcx": {}, "clsact": {clsact: true}} {
		t.Run(name, func(t *testing.T) {
			n := newRealNode(t, o)
			n.listen(podA, 8080)
			n.listen(podB, 8080)
			for what, to := range map[string]string{"directly": at(podB, 8080), "through a service": at(near, 80)} {
				c, err := n.dial(podA, to, 30*time.Second)
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				n.talk(c)
				local := c.LocalAddr().(*net.TCPAddr).AddrPort()
				key := FlowKey{Local: addr(podA), Remote: AddrOf(netip.MustParseAddrPort(to).Addr()), Lport: PortOf(local.Port()),
					Rport: PortOf(netip.MustParseAddrPort(to).Port()), Proto: 6}
				if f, ok, _ := n.d.Maps().Flows.Lookup(key); !ok || f.Flags&FlowReplied == 0 {
					t.Errorf("%s: flow %v: %+v", what, key, f)
				}
			}
			loop, err := n.dial(podB, at(near, 80), 30*time.Second)
			if err != nil {
				t.Fatalf("to itself: %v", err)
			}
			n.talk(loop)
			host, err := net.DialTimeout(network("tcp"), at(podA, 8080), 30*time.Second)
			if err != nil {
				t.Fatalf("from the node: %v", err)
			}
			defer host.Close()
			n.talk(host)
		})
	}
}

func TestPolicyStopsPods(t *testing.T) { families(t, testPolicyStopsPods) }

func testPolicyStopsPods(t *testing.T) {
	n := newRealNode(t, options{})
	n.listen(podB, 8080)
	c, err := n.dial(podA, at(podB, 8080), 5*time.Second)
	n.must(err)
	n.talk(c)

	events := make(chan Event, 64)
	ctx, cancel := context.WithCancel(t.Context())
	finished := make(chan error)
	go func() { finished <- n.d.Events(ctx, func(e Event) { events <- e }) }()
	set(t, n.d.Maps().Sets, SetKey{Gen: 1, Set: 7}, SetInfo{Enforced: [2]uint8{0, 1}})
	ep, _, _ := n.d.Maps().Endpoints.Lookup(addr(podB))
	ep.Set = 7
	set(t, n.d.Maps().Endpoints, addr(podB), ep)
	s, _, _ := n.d.Maps().Settings.Lookup(0)
	s.Revision++
	set(t, n.d.Maps().Settings, 0, s)

	if _, err := n.dial(podA, at(podB, 8080), 300*time.Millisecond); err == nil {
		t.Error("connected in spite of the policy")
	}
	deadline := time.After(5 * time.Second)
	for told := false; !told; {
		select {
		case e := <-events: // pods also try IPv6 when they come up
			if told = e.Reason == ReasonPolicyDenied; told && (e.SrcIdentity != idA || e.DstIdentity != idB) {
				t.Errorf("event %+v", e)
			}
		case <-deadline:
			t.Fatal("no event")
		}
	}
	c.SetDeadline(time.Now().Add(300 * time.Millisecond))
	io.WriteString(c, "still there?")
	if n, err := c.Read(make([]byte, 10)); err == nil {
		t.Errorf("read %d bytes over a connection the policy ended", n)
	}
	cancel()
	if err := <-finished; err != nil {
		t.Errorf("events ended with %v", err)
	}
}

// What goes into a lane and comes out of it has no Ethernet header.
func TestThroughTunnel(t *testing.T) { families(t, testThroughTunnel) }

func testThroughTunnel(t *testing.T) {
	n := newRealNode(t, options{})
	set(t, n.d.Maps().Nodes, 4, Node{Cluster: 2}) // c answers for service far
	var pod *net.UDPConn
	n.in(podA, func() (err error) {
		to := netip.MustParseAddrPort(at(far, 80))
		pod, err = net.DialUDP(network("udp"), &net.UDPAddr{Port: 1000}, net.UDPAddrFromAddrPort(to))
		return err
	})
	defer pod.Close()
	if _, err := io.WriteString(pod, "question"); err != nil {
		t.Fatal(err)
	}
	if got := describeIP(n.lane.receive(), false); !strings.Contains(got, inFamily(netip.MustParseAddr(podA)).String()+" → "+inFamily(netip.MustParseAddr(podC)).String()) || !strings.Contains(got, `udp 1000 → 8080 "question"`) {
		t.Errorf("out of the lane came\n%s", got)
	}
	n.lane.send(ip(podC, podA, udp(8080, 1000).says("answer")))
	b := make([]byte, 100)
	pod.SetReadDeadline(time.Now().Add(30 * time.Second))
	if got, err := pod.Read(b); err != nil || string(b[:got]) != "answer" {
		t.Errorf("pod read %q, %v", b[:got], err)
	}
}

// A connection over a path that died ends with the pod's next packet.
func TestResetOverDeadPath(t *testing.T) { families(t, testResetOverDeadPath) }

func testResetOverDeadPath(t *testing.T) {
	n := newRealNode(t, options{})
	opened := make(chan struct{})
	go func() {
		defer close(opened)
		for {
			syn := n.lane.receive()
			tcpHeader := syn[headerLen(syn):]
			port, seq := be16(tcpHeader), binary.BigEndian.Uint32(tcpHeader[4:])
			n.lane.send(ip(podC, podA, tcp(80, port, "SA").at(5000, seq+1)))
			return
		}
	}()
	c, err := n.dial(podA, at(podC, 80), 30*time.Second)
	n.must(err)
	<-opened
	set(t, n.d.Maps().Clusters, 2, Cluster{})
	if _, err := io.WriteString(c, strings.Repeat("are you there? ", 1000)); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read ended with %v, want a reset", err)
	}
}

// Not one packet is lost while generations replace each other.
func TestReloadLosesNothing(t *testing.T) { families(t, testReloadLosesNothing) }

func testReloadLosesNothing(t *testing.T) {
	for name, o := range map[string]options{"tcx": {}, "clsact": {clsact: true}} {
		t.Run(name, func(t *testing.T) {
			n := newRealNode(t, o)
			var server, client *net.UDPConn
			n.in(podB, func() (err error) {
				server, err = net.ListenUDP(network("udp"), &net.UDPAddr{Port: 8080})
				return err
			})
			defer server.Close()
			n.in(podA, func() (err error) {
				client, err = net.DialUDP(network("udp"), nil, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at(near, 80))))
				return err
			})
			defer client.Close()
			go func() {
				b := make([]byte, 100)
				for {
					n, from, err := server.ReadFromUDPAddrPort(b)
					if err != nil {
						return
					}
					server.WriteToUDPAddrPort(b[:n], from)
				}
			}()
			stop, lost := make(chan struct{}), make(chan string)
			go func() {
				b := make([]byte, 100)
				for i := 0; ; i++ {
					select {
					case <-stop:
						lost <- ""
						return
					default:
					}
					io.WriteString(client, "ping")
					client.SetReadDeadline(time.Now().Add(30 * time.Second))
					if _, err := client.Read(b); err != nil {
						lost <- fmt.Sprintf("packet %d: %v", i, err)
						<-stop
						return
					}
				}
			}()
			for range 10 {
				d := mustLoad(t, n.config, o)
				if err := d.AttachPod(n.host[podA]); err != nil {
					t.Error(err)
				}
				n.d.Close()
				n.d = d
			}
			close(stop)
			if what := <-lost; what != "" {
				counters, _ := n.d.Counters()
				t.Errorf("%s; counted: %+v", what, counters)
			}
		})
	}
}

// A pod's own stack understands our answers: refusals at once, and the first hop of a
// traceroute.
func TestPodIsTold(t *testing.T) { families(t, testPodIsTold) }

func testPodIsTold(t *testing.T) {
	n := newRealNode(t, options{})
	for _, to := range []string{at(empty, 80), at("10.1.1.200", 80)} {
		if _, err := n.dial(podA, to, 30*time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("TCP to %s: %v, want connection refused", to, err)
		}
		c := n.udp(podA, to)
		if _, err := io.WriteString(c, "anybody there?"); err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, err := c.Read(make([]byte, 10)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("UDP to %s: %v, want connection refused", to, err)
		}
	}

	c := n.udp(podA, at(podC, 33434))
	raw, err := c.SyscallConn()
	n.must(err)
	n.must(raw.Control(func(fd uintptr) {
		if overIPv6 {
			n.must(unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 1))
			n.must(unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1))
			return
		}
		n.must(unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TTL, 1))
		n.must(unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVERR, 1))
	}))
	if _, err := io.WriteString(c, "first hop?"); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := c.Read(make([]byte, 10)); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Fatalf("with one hop to live: %v, want no route to host", err)
	}
	var control [512]byte
	n.must(raw.Control(func(fd uintptr) {
		_, oobn, _, _, err := unix.Recvmsg(int(fd), make([]byte, 64), control[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		n.must(err)
		messages, err := unix.ParseSocketControlMessage(control[:oobn])
		n.must(err)
		for _, m := range messages {
			// struct sock_extended_err of 16 bytes, then its sender, a sockaddr_in or
			// sockaddr_in6.
			option, exceeded, from, to := int32(unix.IP_RECVERR), uint8(11), 20, 24
			if overIPv6 {
				option, exceeded, from, to = unix.IPV6_RECVERR, 3, 24, 40
			}
			if m.Header.Type != option || len(m.Data) < to {
				continue
			}
			said, _ := netip.AddrFromSlice(m.Data[from:to])
			if m.Data[5] != exceeded || AddrOf(said) != addr(nodeInternal) {
				t.Errorf("ICMP type %d of %v, want time exceeded (%d) of %v", m.Data[5], said, exceeded, addr(nodeInternal))
			}
			return
		}
		t.Errorf("no error of who sent it: %v", messages)
	}))
}

// udp is a connected UDP socket of the pod, which gets ICMP errors.
func (n *realNode) udp(pod, to string) (c *net.UDPConn) {
	n.Helper()
	n.in(pod, func() (err error) {
		c, err = net.DialUDP(network("udp"), nil, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to)))
		return err
	})
	n.Cleanup(func() { c.Close() })
	return c
}
