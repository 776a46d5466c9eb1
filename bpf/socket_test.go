package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ownCgroup moves this process into a cgroup of its own until the test ends.
func ownCgroup(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	root := ""
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			root = f[1]
		}
	}
	if root == "" {
		t.Fatal("no cgroup2 file system is mounted")
	}
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	before := root
	for line := range strings.Lines(string(text)) {
		if at, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			before = filepath.Join(root, at)
		}
	}
	dir := filepath.Join(root, fmt.Sprintf("weft-test-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	move := func(to string) {
		if err := os.WriteFile(filepath.Join(to, "cgroup.procs"), []byte("0"), 0); err != nil {
			t.Error(err)
		}
	}
	move(dir)
	t.Cleanup(func() {
		move(before)
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// give gives the loopback device an address of the family, and waits until it can be used.
func give(t *testing.T, ip string) net.IP {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	a := inFamily(netip.MustParseAddr(ip))
	one := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}, Flags: unix.IFA_F_NODAD}
	if err := errors.Join(netlink.LinkSetUp(lo), netlink.AddrReplace(lo, one)); err != nil {
		t.Fatal(err)
	}
	// An IPv6 address may take a moment to be of use.
	l, err := net.Listen("tcp", net.JoinHostPort(a.String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for deadline := time.Now().Add(10 * time.Second); ; {
		c, err := net.DialTimeout("tcp", l.Addr().String(), 100*time.Millisecond)
		if err == nil {
			c.Close()
			return a.AsSlice()
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v cannot be reached: %v", a, err)
		}
	}
}

// A host port at loopback is for processes of the node, of which no other row tells.
func TestSocketsReachHostPortsAtLoopback(t *testing.T) {
	n := newNode(t)
	cgroup := ownCgroup(t)
	if err := n.AttachSockets(cgroup); err != nil {
		t.Fatal(err)
	}
	families(t, func(t *testing.T) {
		n.again(t)
		backend := give(t, podB)
		tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: backend, Port: 8080})
		if err != nil {
			t.Fatal(err)
		}
		defer tcp.Close()
		loopback := netip.MustParseAddr("127.0.0.1")
		if overIPv6 {
			loopback = netip.IPv6Loopback()
		}
		at := netip.AddrPortFrom(loopback, 5432)
		row, _, err := n.m.Services.Lookup(front(near, 6))
		if err != nil {
			t.Fatal(err)
		}
		set(t, n.m.Services, ServiceKey{Addr: AddrOf(loopback), Port: PortOf(5432), Proto: 6, Scope: ScopeProcess}, row)
		c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(at))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got := c.RemoteAddr().(*net.TCPAddr).AddrPort(); got != at {
			t.Errorf("connected to %v, want %v", got, at)
		}
		if c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(netip.AddrPortFrom(loopback, 5433))); err == nil {
			c.Close()
			t.Error("another port of loopback has answered")
		}
	})
}

// Processes of the node reach services over TCP and UDP, and see the service alone.
func TestSocketsReachServices(t *testing.T) {
	n := newNode(t)
	cgroup := ownCgroup(t)
	if err := n.AttachSockets(cgroup); err != nil {
		t.Fatal(err)
	}
	families(t, func(t *testing.T) {
		n.again(t)
		backend := give(t, podB)
		service := inFamily(netip.MustParseAddr(near))
		tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: backend, Port: 8080})
		if err != nil {
			t.Fatal(err)
		}
		defer tcp.Close()
		c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(netip.AddrPortFrom(service, 80)))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got := c.RemoteAddr().(*net.TCPAddr).AddrPort(); got != netip.AddrPortFrom(service, 80) {
			t.Errorf("connected to %v", got)
		}
		far, err := tcp.Accept()
		if err != nil {
			t.Fatal(err)
		}
		far.Close()

		udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: backend, Port: 8080})
		if err != nil {
			t.Fatal(err)
		}
		defer udp.Close()
		from, err := net.ListenUDP("udp", &net.UDPAddr{IP: backend})
		if err != nil {
			t.Fatal(err)
		}
		defer from.Close()
		buf := make([]byte, 100)
		for _, s := range []*net.UDPConn{udp, from} {
			if err := s.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := from.WriteToUDPAddrPort([]byte("?"), netip.AddrPortFrom(service, 80)); err != nil {
			t.Fatal(err)
		}
		_, client, err := udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := udp.WriteToUDPAddrPort([]byte("!"), client); err != nil {
			t.Fatal(err)
		}
		if _, who, err := from.ReadFromUDPAddrPort(buf); err != nil || who != netip.AddrPortFrom(service, 80) {
			t.Errorf("%v answered: %v", who, err)
		}

		// What cannot work is refused at once.
		_, err = net.Dial("tcp", net.JoinHostPort(inFamily(netip.MustParseAddr(empty)).String(), "80"))
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a service without backends: %v", err)
		}
		set(n, n.m.Prefixes, prefix("10.102.0.0/16"), IPInfo{Identity: 2, Flags: IPService})
		nobody := netip.AddrPortFrom(inFamily(netip.MustParseAddr("10.102.0.9")), 80)
		before := refusedSockets(n)
		if _, err := net.Dial("tcp", nobody.String()); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("an address that no service has: %v", err)
		}
		if _, err := net.Dial("udp", nobody.String()); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("the same over UDP: %v", err)
		}
		if _, err := from.WriteToUDPAddrPort([]byte("?"), nobody); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a datagram to it: %v", err)
		}
		if got := refusedSockets(n) - before; got != 3 {
			t.Errorf("counted %d", got)
		}
		unset(n, n.m.Prefixes, prefix("10.102.0.0/16"))

		// At a load balancer's address, the node is a client like others.
		offers(80, ServiceRanged, groupHere)(n)
		at := net.JoinHostPort(inFamily(netip.MustParseAddr(external)).String(), "80")
		if _, err := net.Dial("tcp", at); !errors.Is(err, syscall.EPERM) {
			t.Errorf("outside of the source ranges: %v", err)
		}
		s, _, _ := n.m.Settings.Lookup(0)
		set(n, n.m.Sources, RangeKey{Bits: 32 + 128, Service: 80, Addr: s.Internal[0]}, 1)
		if c, err := net.Dial("tcp", at); err != nil {
			t.Error(err)
		} else {
			c.Close()
		}
	})
}

// refusedSockets counts what was refused because nobody serves it.
func refusedSockets(n *node) (packets uint64) {
	n.Helper()
	all, err := n.Counters()
	if err != nil {
		n.Fatal(err)
	}
	for _, c := range all {
		if c.Reason == ReasonNoBackend && c.Dir == Egress {
			packets += c.Packets
		}
	}
	return packets
}

// A datagram goes to the backend of the one before it, until that cannot be reached.
func TestDatagramsOfASocketStay(t *testing.T) {
	n := newNode(t)
	if err := n.AttachSockets(ownCgroup(t)); err != nil {
		t.Fatal(err)
	}
	var backends []*net.UDPConn
	heard := make(chan int, 20)
	for i, pod := range []string{podA, podB} {
		s, err := net.ListenUDP("udp", &net.UDPAddr{IP: give(t, pod), Port: 8080})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		backends = append(backends, s)
		go func() {
			for buf := make([]byte, 10); ; {
				if _, err := s.Read(buf); err != nil {
					return
				}
				heard <- i
			}
		}()
		set(t, n.m.Backends, SlotKey{Service: 80, Slot: uint32(i), Cluster: 1}, Backend{Addr: addr(pod), Port: PortOf(8080)})
		set(t, n.m.Members, MemberKey{Service: 80, Addr: addr(pod), Port: PortOf(8080)}, Member{})
	}
	set(t, n.m.Services, front(near, 17), Service{ID: 80, Groups: 1, Group: [MaxGroups]Group{{Cluster: 1, Weight: 1, Count: 2}}})
	from, err := net.ListenUDP("udp", &net.UDPAddr{IP: backends[0].LocalAddr().(*net.UDPAddr).IP})
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	send := func() (got [2]int) {
		for range 20 {
			if _, err := from.WriteToUDPAddrPort([]byte("?"), netip.AddrPortFrom(netip.MustParseAddr(near), 80)); err != nil {
				t.Fatal(err)
			}
		}
		for range 20 {
			select {
			case i := <-heard:
				got[i]++
			case <-time.After(10 * time.Second):
				return got
			}
		}
		return got
	}
	first := send()
	if first != [2]int{20, 0} && first != [2]int{0, 20} {
		t.Fatalf("the backends got %v of 20 datagrams", first)
	}
	gone := []string{podA, podB}[bit(first[1] > 0)]
	unset(t, n.m.Members, MemberKey{Service: 80, Addr: addr(gone), Port: PortOf(8080)})
	set(t, n.m.Backends, SlotKey{Service: 80, Cluster: 1}, Backend{Addr: addr([]string{podB, podA}[bit(gone == podB)]), Port: PortOf(8080)})
	set(t, n.m.Services, front(near, 17), Service{ID: 80, Groups: 1, Group: [MaxGroups]Group{{Cluster: 1, Weight: 1, Count: 1}}})
	if second := send(); second != [2]int{first[1], first[0]} {
		t.Errorf("after %s was removed the backends got %v of 20 datagrams", gone, second)
	}
}

// Programs stay when the process that attached them ends, are replaced by those of the
// next, put back when somebody removes them, and go when they are detached.
func TestSocketProgramsOutliveTheProcess(t *testing.T) {
	n := newNode(t)
	cgroup := ownCgroup(t)
	pins := func() int {
		found, err := filepath.Glob(filepath.Join(n.config.PinDir, socketPin("*")))
		if err != nil {
			t.Fatal(err)
		}
		return len(found)
	}
	holds := func(d *Datapath) {
		t.Helper()
		for hook, prog := range d.sockets {
			l, err := open(filepath.Join(n.config.PinDir, socketPin(hook)))
			if err != nil || l == nil {
				t.Fatalf("%s is not attached: %v", hook, err)
			}
			got, err := l.Info()
			l.Close()
			if err != nil {
				t.Fatal(err)
			}
			want, err := prog.Info()
			if err != nil {
				t.Fatal(err)
			}
			if id, _ := want.ID(); got.Program != id {
				t.Errorf("%s: program %d is attached, want %d", hook, got.Program, id)
			}
		}
	}
	attach := func(d *Datapath) {
		t.Helper()
		if err := d.AttachSockets(cgroup); err != nil {
			t.Fatal(err)
		}
		holds(d)
	}
	attach(n.Datapath)
	attach(n.Datapath)
	if err := os.Remove(filepath.Join(n.config.PinDir, socketPin("connect4"))); err != nil {
		t.Fatal(err)
	}
	attach(n.Datapath)
	next, err := load(n.config, options{ethernetTunnel: true})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	holds(next) // without being told the cgroup
	attach(n.Datapath)
	attach(next)
	if err := next.AttachSockets(cgroup + "-gone"); err == nil {
		t.Error("attached to a cgroup that does not exist")
	}
	if err := next.DetachSockets(); err != nil || pins() != 0 {
		t.Errorf("%d programs are left: %v", pins(), err)
	}
	if err := next.DetachSockets(); err != nil {
		t.Error(err)
	}
}

// A backend that a socket speaks to through two services, or itself, answers as what was
// asked last.
func TestASocketHearsFromWhatItAskedLast(t *testing.T) {
	n := newNode(t)
	if err := n.AttachSockets(ownCgroup(t)); err != nil {
		t.Fatal(err)
	}
	const second = "10.101.0.82"
	backend := give(t, podB)
	server, err := net.ListenUDP("udp", &net.UDPAddr{IP: backend, Port: 8080})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	set(t, n.m.Services, front(second, 17), Service{ID: 82, Groups: 1, Group: [MaxGroups]Group{{Cluster: 1, Weight: 1, Count: 1}}})
	set(t, n.m.Backends, SlotKey{Service: 82, Cluster: 1}, Backend{Addr: addr(podB), Port: PortOf(8080)})
	set(t, n.m.Members, MemberKey{Service: 82, Addr: addr(podB), Port: PortOf(8080)}, Member{})
	// One of IPv6 as well, which speaks to IPv4 through mapped addresses.
	for _, local := range []*net.UDPAddr{{IP: backend}, {}} {
		from, err := net.ListenUDP("udp", local)
		if err != nil {
			t.Fatal(err)
		}
		defer from.Close()
		for _, at := range []string{near + ":80", second + ":80", near + ":80", podB + ":8080", second + ":80"} {
			asked, buf := netip.MustParseAddrPort(at), make([]byte, 10)
			deadline := time.Now().Add(10 * time.Second)
			if err := errors.Join(from.SetDeadline(deadline), server.SetDeadline(deadline)); err != nil {
				t.Fatal(err)
			}
			if _, err := from.WriteToUDPAddrPort([]byte("?"), asked); err != nil {
				t.Fatal(err)
			}
			_, client, err := server.ReadFromUDPAddrPort(buf)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := server.WriteToUDPAddrPort([]byte("!"), client); err != nil {
				t.Fatal(err)
			}
			_, who, err := from.ReadFromUDPAddrPort(buf)
			if who = netip.AddrPortFrom(who.Addr().Unmap(), who.Port()); err != nil || who != asked {
				t.Errorf("asked %v, %v answered: %v", asked, who, err)
			}
		}
	}
}
