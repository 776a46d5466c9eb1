package tunnel_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	_ "github.com/weft-mesh/weft/internal/firstthread"
	"github.com/weft-mesh/weft/tunnel"
)

// needRoot skips a test where network namespaces cannot be created.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces and TUN devices")
	}
}

// space is a network namespace of its own, gone with the test.
type space struct {
	t  *testing.T
	ns netns.NsHandle
}

func newSpace(t *testing.T) *space {
	t.Helper()
	s := &space{t: t, ns: netns.None()}
	// A fresh thread creates it, and ends with the goroutine.
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		ns, err := netns.New()
		s.ns = ns
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
	t.Cleanup(func() { s.ns.Close() })
	s.do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return s
}

// in runs f on a thread inside the namespace. Threads that f starts are outside;
// sockets that it opens stay inside.
func (s *space) in(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := netns.Set(s.ns); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func (s *space) do(f func() error) {
	s.t.Helper()
	if err := s.in(f); err != nil {
		s.t.Fatal(err)
	}
}

// wire connects two namespaces by a veth pair with one address each.
func wire(t *testing.T, a, b *space, nameA, nameB, addrA, addrB string) {
	t.Helper()
	a.do(func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: nameA}, PeerName: nameB, PeerNamespace: netlink.NsFd(b.ns),
		})
	})
	for _, end := range []struct {
		s          *space
		name, addr string
	}{{a, nameA, addrA}, {b, nameB, addrB}} {
		end.s.do(func() error {
			link, err := netlink.LinkByName(end.name)
			if err != nil {
				return err
			}
			if end.addr != "" {
				addr, err := netlink.ParseAddr(end.addr)
				if err != nil {
					return err
				}
				if err := netlink.AddrAdd(link, addr); err != nil {
					return err
				}
			}
			return netlink.LinkSetUp(link)
		})
	}
}

func (s *space) link(name string) (link netlink.Link) {
	s.t.Helper()
	s.do(func() (err error) {
		link, err = netlink.LinkByName(name)
		return err
	})
	return link
}

// wire sets the namespace's end of the wire up or down.
func (s *space) wire(up bool) {
	s.t.Helper()
	link := s.link("wire")
	s.do(func() error {
		if up {
			return netlink.LinkSetUp(link)
		}
		return netlink.LinkSetDown(link)
	})
}

var serial atomic.Uint32

// node is one machine: a namespace, a `weft tunnel` process and Lanes.
type node struct {
	*space
	name     string
	outer    netip.Addr // on the wire
	internal netip.Addr
	cidr     netip.Prefix
	config   tunnel.ServeConfig
	agentDir string
	lanes    *tunnel.WireGuard
	host     *tunnel.KernelHost
	process  *exec.Cmd
	peers    []tunnel.Peer // as last set
}

// newNode creates node i with outer address 192.0.2.i and pods in 10.1.i.0/24.
func newNode(t *testing.T, i int) *node {
	t.Helper()
	n := &node{
		space:    newSpace(t),
		name:     fmt.Sprintf("n%d", i),
		outer:    netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}),
		internal: netip.AddrFrom4([4]byte{10, 1, byte(i), 1}),
		cidr:     netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i), 0}), 24),
	}
	// wgctrl looks for sockets in one place only, whatever the namespace.
	unique := fmt.Sprintf("t%d.%d", os.Getpid()%100000, serial.Add(1))
	n.config = tunnel.ServeDefaults()
	n.config.Devices = [tunnel.LaneCount]string{unique + "a", unique + "b"}
	n.config.StateDir = t.TempDir()
	n.agentDir = t.TempDir()
	n.reopen()
	n.host = tunnel.NewHost(n.config.Devices, nil)
	t.Cleanup(func() {
		n.kill()
		n.do(func() error { return tunnel.Remove(n.config) })
	})
	return n
}

// reopen restarts the agent, as far as its lanes are concerned.
func (n *node) reopen() {
	n.lanes = tunnel.NewLanes(tunnel.LanesConfig{StateDir: n.agentDir, Devices: n.config.Devices})
}

// start runs the node's `weft tunnel`.
func (n *node) start() {
	n.t.Helper()
	n.process = n.command(n.config)
	n.process.Stderr = testLog{n.t, n.name}
	n.do(n.process.Start)
}

// command is a `weft tunnel` process, to be started inside.
func (n *node) command(cfg tunnel.ServeConfig) *exec.Cmd {
	n.t.Helper()
	text, err := json.Marshal(cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	process := exec.Command(os.Args[0])
	process.Env = append(os.Environ(), serveVariable+"="+string(text))
	return process
}

// kill sends SIGKILL and waits for the process to end.
func (n *node) kill() {
	if n.process == nil {
		return
	}
	n.process.Process.Kill()
	n.process.Wait()
	n.process = nil
}

// stop asks the process to end and returns its error.
func (n *node) stop() error {
	n.process.Process.Signal(syscall.SIGTERM)
	err := n.process.Wait()
	n.process = nil
	return err
}

// ready waits until the node's lanes answer.
func (n *node) ready() tunnel.Own {
	n.t.Helper()
	if n.process != nil {
		// Wait for the process first, or the kernel's WireGuard would create the
		// devices.
		eventually(n.t, 30*time.Second, func() error {
			for _, device := range n.config.Devices {
				if !exists(filepath.Join(n.config.SocketDir, device+".sock")) {
					return fmt.Errorf("%s is not served yet", device)
				}
			}
			return nil
		})
	}
	var own tunnel.Own
	eventually(n.t, 30*time.Second, func() error {
		return n.in(func() (err error) {
			own, err = n.lanes.Ensure(context.Background())
			return err
		})
	})
	return own
}

// peer is the node as its peers know it.
func (n *node) peer(own tunnel.Own) tunnel.Peer {
	p := tunnel.Peer{Cluster: "east", Node: n.name, Allowed: []netip.Prefix{n.cidr}}
	for i, lane := range own.Lanes {
		p.Keys[i] = lane.PublicKey
		p.Endpoint[i] = netip.AddrPortFrom(n.outer, lane.Port)
	}
	return p
}

// set configures the node's peers and its network.
func (n *node) set(peers ...tunnel.Peer) {
	n.t.Helper()
	n.peers = peers
	n.do(func() error {
		st, err := n.lanes.Set(context.Background(), peers, true)
		if len(st.Refused) > 0 {
			return fmt.Errorf("refused: %v", st.Refused)
		}
		return err
	})
	n.do(func() error {
		return n.host.Set(context.Background(), tunnel.Network{
			Internal: n.internal, MTU: 1420, Members: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")},
			Local: []netip.Prefix{n.cidr},
		}, true)
	})
}

func (n *node) status() tunnel.Status {
	n.t.Helper()
	var st tunnel.Status
	n.do(func() (err error) {
		st, err = n.lanes.Status(context.Background())
		return err
	})
	return st
}

// udp opens a socket inside; with device "" the routes decide.
func (n *node) udp(local netip.AddrPort, device string) *net.UDPConn {
	n.t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) {
			if device != "" {
				err = unix.BindToDevice(int(fd), device)
			}
			if err == nil {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
			}
			if err == nil {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 8<<20)
			}
		}); e != nil {
			return e
		}
		return err
	}}
	var conn net.PacketConn
	n.do(func() (err error) {
		conn, err = lc.ListenPacket(context.Background(), "udp4", local.String())
		return err
	})
	n.t.Cleanup(func() { conn.Close() })
	return conn.(*net.UDPConn)
}

// pair creates two nodes that are peers, and waits for their handshakes.
func pair(t *testing.T) (a, b *node) {
	t.Helper()
	a, b = newNode(t, 1), newNode(t, 2)
	wire(t, a.space, b.space, "wire", "wire", "192.0.2.1/24", "192.0.2.2/24")
	a.start()
	b.start()
	ownA, ownB := a.ready(), b.ready()
	a.set(b.peer(ownB))
	b.set(a.peer(ownA))
	shaken(t, a, b)
	return a, b
}

// look is the agent's next look at its lanes.
func (n *node) look() {
	n.t.Helper()
	n.set(n.peers...)
}

// shaken waits until all nodes have handshakes on both lanes with all peers, and look at
// them as agents do until then, and once more.
func shaken(t *testing.T, nodes ...*node) {
	t.Helper()
	for _, n := range nodes {
		eventually(t, 30*time.Second, func() error {
			for _, n := range nodes {
				n.look()
			}
			for _, p := range n.status().Peers {
				if p.Handshaken() != [tunnel.LaneCount]bool{true, true} {
					return fmt.Errorf("%s: handshakes with %s: %v", n.name, p.Node, p.Handshaken())
				}
			}
			return nil
		})
	}
	for _, n := range nodes {
		n.look()
	}
}

// capture copies every frame on a device until the test ends.
type capture struct {
	fd     int
	frames chan []byte
}

func (s *space) capture(device string) *capture {
	s.t.Helper()
	c := &capture{frames: make(chan []byte, 1<<16)}
	s.do(func() (err error) {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		proto := uint16(unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8)
		if c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(proto)); err != nil {
			return err
		}
		// Room for what a busy machine reads late.
		if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
			return err
		}
		if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50000}); err != nil {
			return err
		}
		return unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: link.Attrs().Index})
	})
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		defer close(c.frames)
		buf := make([]byte, 1<<16)
		for {
			select {
			case <-stop:
				return
			default:
			}
			size, _, err := unix.Recvfrom(c.fd, buf, 0)
			if err != nil {
				continue
			}
			select {
			case c.frames <- append([]byte(nil), buf[:size]...):
			case <-stop:
				return
			}
		}
	}()
	s.t.Cleanup(func() {
		close(stop)
		<-ended
		unix.Close(c.fd)
	})
	return c
}

// drain returns what was captured so far.
func (c *capture) drain() [][]byte {
	var all [][]byte
	for {
		select {
		case f := <-c.frames:
			all = append(all, f)
		default:
			return all
		}
	}
}

// eventually repeats f until it succeeds.
func eventually(t *testing.T, within time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still not after %v: %v", within, err)
		}
		<-tick.C
	}
}

// testLog shows a child's lines under its node's name.
type testLog struct {
	t    *testing.T
	name string
}

func (l testLog) Write(p []byte) (int, error) {
	l.t.Logf("%s: %s", l.name, strings.TrimSpace(string(p)))
	return len(p), nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func savedFile(n *node, lane int) string {
	return filepath.Join(n.config.StateDir, n.config.Devices[lane]+".conf")
}

// hostPrefix is an address outside the node's CIDR.
func hostPrefix(n *node) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, 200, n.internal.As4()[2]}), 32)
}
