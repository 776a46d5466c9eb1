package bpf

import (
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// speakers are sockets of the node that are connected to one backend: over TCP and UDP through
// a service, mapped being one of IPv6, and to the backend itself.
type speakers struct {
	tcp, udp, mapped, direct net.Conn
}

// speak connects a socket of each kind to a backend at podB of service near.
func speak(t *testing.T) speakers {
	t.Helper()
	backend := net.JoinHostPort(give(t, podB).String(), "8080")
	l, err := net.Listen("tcp", backend)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	u, err := net.ListenPacket("udp", backend)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	service := net.JoinHostPort(inFamily(netip.MustParseAddr(near)).String(), "80")
	dial := func(network, addr string) net.Conn {
		c, err := net.Dial(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	return speakers{tcp: dial("tcp", service), udp: dial("udp", service), mapped: dialMapped(t, addr(near)), direct: dial("tcp", backend)}
}

// dialMapped connects a UDP socket of IPv6 to a service of either family.
func dialMapped(t *testing.T, service Addr) net.Conn {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "mapped")
	defer f.Close()
	if err := unix.Connect(fd, &unix.SockaddrInet6{Addr: service, Port: 80}); err != nil {
		t.Fatal(err)
	}
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// aborted tells whether a socket was ended.
func aborted(t *testing.T, c net.Conn) bool {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var code int
	var asked error
	if err := raw.Control(func(fd uintptr) { code, asked = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR) }); err != nil || asked != nil {
		t.Fatal(err, asked)
	}
	if code != 0 && code != int(unix.ECONNABORTED) {
		t.Error(unix.Errno(code))
	}
	return code != 0
}

func TestStrandedSocketsEnd(t *testing.T) {
	n := newNode(t)
	if err := n.AttachSockets(ownCgroup(t)); err != nil {
		t.Fatal(err)
	}
	leaves := func(n *node) { unset(t, n.m.Members, MemberKey{Service: 80, Addr: addr(podB), Port: PortOf(8080)}) }
	moves := func(n *node) { // to another node
		unset(t, n.m.Endpoints, addr(podB))
		set(t, n.m.IPs, addr(podB), IPInfo{Identity: idB, Cluster: 2, Node: 3, Flags: IPMember})
	}
	for name, c := range map[string]struct {
		change   func(*node)
		tcp, udp bool // are ended
	}{
		"nothing happened":                         {func(*node) {}, false, false},
		"the service has it no more":               {leaves, false, true},
		"the pod is gone":                          {func(n *node) { leaves(n); unset(t, n.m.Endpoints, addr(podB)) }, true, true},
		"the service still has a pod that is gone": {func(n *node) { unset(t, n.m.Endpoints, addr(podB)) }, false, false},
		"a pod elsewhere is gone":                  {func(n *node) { moves(n); leaves(n); unset(t, n.m.IPs, addr(podB)) }, true, true},
		"its node is silent":                       {func(n *node) { moves(n); set(t, n.m.Nodes, 3, Node{Path: PathSilent, Keyed: 1, Cluster: 2}) }, false, false},
		"its node is not known for a moment": {func(n *node) {
			moves(n)
			set(t, n.m.IPs, addr(podB), IPInfo{Identity: idB, Cluster: 2, Flags: IPMember})
		}, false, false},
		"its peer was removed":                   {func(n *node) { moves(n); leaves(n); set(t, n.m.IPs, addr(podB), IPInfo{Flags: IPFormer | IPMember}) }, true, true},
		"the agent has not written its rows yet": {func(n *node) { leaves(n); n.change(func(s *Settings) { s.Revision = 0 }) }, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			families(t, func(t *testing.T) {
				n := n.again(t)
				s := speak(t)
				c.change(n)
				got, _, err := n.EndStranded()
				if err != nil {
					t.Fatal(err)
				}
				if want := bit(c.tcp) + 2*bit(c.udp); got != want {
					t.Errorf("ended %d sockets, want %d", got, want)
				}
				if tcp, udp, mapped := aborted(t, s.tcp), aborted(t, s.udp), aborted(t, s.mapped); tcp != c.tcp || udp != c.udp || mapped != c.udp {
					t.Errorf("ended: TCP %v, UDP %v and %v", tcp, udp, mapped)
				}
				if aborted(t, s.direct) {
					t.Error("ended the socket that is connected to the backend itself")
				}
			})
		})
	}
}

// A TCP connection to a node that is said to be dead ends only if it hears nothing either.
func TestAConnectionThatHearsSomethingIsNotStranded(t *testing.T) {
	n := newNode(t)
	if err := n.AttachSockets(ownCgroup(t)); err != nil {
		t.Fatal(err)
	}
	s := speak(t)
	unset(t, n.m.Endpoints, addr(podB))
	set(t, n.m.IPs, addr(podB), IPInfo{Identity: idB, Cluster: 2, Node: 3, Flags: IPMember})
	set(t, n.m.Nodes, 3, Node{Path: PathDead, Keyed: 1, Cluster: 2})
	look := func(want, wantDoubtful int) {
		t.Helper()
		if got, doubtful, err := n.EndStranded(); got != want || doubtful != wantDoubtful || err != nil {
			t.Fatalf("ended %d sockets, want %d; %d are doubtful, want %d: %v", got, want, doubtful, wantDoubtful, err)
		}
	}
	later := func() {
		for cookie, d := range n.doubted {
			d.since = d.since.Add(-cutOffTime)
			n.doubted[cookie] = d
		}
	}
	echo := func() {
		t.Helper()
		if err := s.tcp.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.tcp.Write([]byte("?")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(s.tcp, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	echo()
	look(2, 1) // those of UDP
	if !aborted(t, s.udp) || !aborted(t, s.mapped) {
		t.Error("sockets of UDP stay with a dead node")
	}
	later()
	echo()
	look(0, 1)
	look(0, 1)
	later()
	set(t, n.m.Nodes, 3, Node{Path: PathAlive, Keyed: 1, Cluster: 2})
	look(0, 0)
	set(t, n.m.Nodes, 3, Node{Path: PathDead, Keyed: 1, Cluster: 2})
	look(0, 1)
	later()
	look(1, 0)
	if !aborted(t, s.tcp) {
		t.Error("the connection was not ended")
	}
}
