package tunnel_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-mesh/weft/statefile"
	"github.com/weft-mesh/weft/tunnel"
)

// stream sends numbered datagrams and records when each number arrived.
type stream struct {
	sent     atomic.Uint64
	highest  atomic.Uint64  // number that arrived, plus one
	arrived  []atomic.Int64 // UnixNano, by number
	stop     context.CancelFunc
	sending  chan struct{}
	received chan struct{}
	lane     atomic.Int32
}

// window is how many datagrams of a stream may be in flight. Beyond it the stream waits,
// so that a busy machine slows it down but loses nothing: what is lost was lost by the
// tunnel. One datagram per stillTry is sent all the same.
const (
	window   = 128
	stillTry = 10 * time.Millisecond
)

// newStream sends up to perSecond datagrams a second from a to b until stopped, on the
// stream's lane; -1: the routes decide.
func newStream(t *testing.T, a, b *node, port uint16, perSecond int, most time.Duration) *stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), most)
	s := &stream{
		arrived: make([]atomic.Int64, perSecond*int(most/time.Second+2)),
		stop:    cancel, sending: make(chan struct{}), received: make(chan struct{}),
	}
	s.lane.Store(-1)
	to := netip.AddrPortFrom(b.internal, port)
	sink := b.udp(to, "")
	var sources [tunnel.LaneCount + 1]*net.UDPConn
	for i, device := range []string{"", a.config.Devices[0], a.config.Devices[1]} {
		sources[i] = a.udp(netip.AddrPortFrom(a.internal, 0), device)
	}
	go func() {
		defer close(s.sending)
		const tick = time.Millisecond
		ticker := time.NewTicker(tick)
		defer ticker.Stop()
		start := time.Now()
		last := start
		packet := make([]byte, 256)
		copy(packet[8:], marker)
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			due := uint64(time.Since(start).Seconds() * float64(perSecond))
			for s.sent.Load() < min(due, uint64(len(s.arrived))) {
				if s.sent.Load()-s.highest.Load() >= window && time.Since(last) < stillTry {
					break
				}
				last = time.Now()
				binary.BigEndian.PutUint64(packet, s.sent.Load())
				s.sent.Add(1)
				// A refused datagram counts as lost.
				sources[s.lane.Load()+1].WriteToUDPAddrPort(packet, to)
			}
		}
	}()
	go func() {
		defer close(s.received)
		packet := make([]byte, 2048)
		for {
			n, err := sink.Read(packet)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil || n < 8 {
				continue
			}
			number := binary.BigEndian.Uint64(packet)
			s.arrived[number].CompareAndSwap(0, time.Now().UnixNano())
			s.highest.Store(max(s.highest.Load(), number+1))
		}
	}()
	t.Cleanup(func() {
		cancel()
		sink.Close()
		<-s.sending
		<-s.received
	})
	return s
}

const marker = "PLAINTEXT-MARKER-THAT-MUST-NOT-BE-SEEN"

// finish stops sending, waits for stragglers and returns how many were lost.
func (s *stream) finish(t *testing.T) (sent, lost uint64) {
	t.Helper()
	s.stop()
	<-s.sending
	sent = s.sent.Load()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		lost = 0
		for i := range sent {
			if s.arrived[i].Load() == 0 {
				lost++
			}
		}
		if lost == 0 || time.Now().After(deadline) {
			return sent, lost
		}
		<-tick.C
	}
}

// gap is the longest time without an arrival after from.
func (s *stream) gap(from time.Time) time.Duration {
	last, longest := from.UnixNano(), int64(0)
	for i := range s.sent.Load() {
		at := s.arrived[i].Load()
		if at < last {
			continue
		}
		longest, last = max(longest, at-last), at
	}
	return time.Duration(longest)
}

// flowing waits until the stream has delivered something just now.
func (s *stream) flowing(t *testing.T) {
	t.Helper()
	from := s.sent.Load()
	eventually(t, 30*time.Second, func() error {
		for i := from; i < s.sent.Load(); i++ {
			if s.arrived[i].Load() != 0 {
				return nil
			}
		}
		return errors.New("nothing arrives")
	})
}

func TestTrafficIsEncrypted(t *testing.T) {
	needRoot(t)
	a, b := pair(t)
	seen := a.capture("wire")
	s := newStream(t, a, b, 7000, 1000, 120*time.Second)
	s.flowing(t)
	eventually(t, 30*time.Second, func() error {
		if s.sent.Load() < 1000 {
			return errors.New("too few sent yet")
		}
		return nil
	})
	sent, lost := s.finish(t)
	if lost > 0 {
		t.Errorf("lost %d of %d on a quiet tunnel", lost, sent)
	}
	var wireguard uint64
	look := func() {
		for _, frame := range seen.drain() {
			if bytes.Contains(frame, []byte(marker)) {
				t.Fatalf("payload in the clear on the wire: %x", frame)
			}
			if isWireGuard(frame) {
				wireguard++
			}
		}
	}
	eventually(t, 30*time.Second, func() error {
		if look(); wireguard < sent {
			return fmt.Errorf("saw %d WireGuard frames, want at least the %d sent: the capture shows nothing", wireguard, sent)
		}
		return nil
	})
	look() // what came with the last of them
}

// Types of WireGuard's messages.
const handshakeInitiation, transportData = 1, 4

// messageType is that of the WireGuard message in an Ethernet frame to one of
// these ports, 0 for any other frame.
func messageType(frame []byte, ports ...uint16) byte {
	if len(frame) < 14+20+8+4 || binary.BigEndian.Uint16(frame[12:]) != 0x0800 || frame[23] != 17 {
		return 0
	}
	if !slices.Contains(ports, binary.BigEndian.Uint16(frame[14+20+2:])) {
		return 0
	}
	return frame[14+20+8]
}

// isWireGuard reports whether an Ethernet frame is a WireGuard data message to one of
// the default ports.
func isWireGuard(frame []byte) bool {
	return messageType(frame, tunnel.DefaultPorts[:]...) == transportData
}

func TestKilledTunnelComesBackByItself(t *testing.T) {
	needRoot(t)
	const repetitions = 5
	a, b := pair(t)
	seen := a.capture("wire")
	toRestarted := newStream(t, b, a, 7000, 1000, 120*time.Second)
	fromRestarted := newStream(t, a, b, 7001, 1000, 120*time.Second)
	var to, from []time.Duration
	for range repetitions {
		toRestarted.flowing(t)
		fromRestarted.flowing(t)
		killed := time.Now()
		a.kill()
		a.start()
		toRestarted.flowing(t)
		fromRestarted.flowing(t)
		// No agent took part: nobody called Ensure or Set.
		to = append(to, toRestarted.gap(killed))
		from = append(from, fromRestarted.gap(killed))
	}
	t.Logf("outages: to the restarted node %v, from it %v", to, from)
	// A busy machine makes them longer. If one of WireGuard's timers had to run out,
	// each would take 5 s.
	if slices.Max(to) > 4*time.Second || slices.Max(from) > 4*time.Second {
		t.Errorf("outages of a killed and restarted tunnel: to it %v, from it %v, want a handshake's time", to, from)
	}
	for _, frame := range seen.drain() {
		if bytes.Contains(frame, []byte(marker)) {
			t.Fatalf("payload in the clear on the wire while the tunnel was dead: %x", frame)
		}
	}
}

// After a power cut a node's network may be later than its tunnel. The first
// handshakes go nowhere, and WireGuard would wait 5 s before it tries again.
func TestRestartBeforeAnybodyAnswers(t *testing.T) {
	needRoot(t)
	a, b := pair(t)
	toRestarted := newStream(t, b, a, 7000, 1000, 120*time.Second)
	fromRestarted := newStream(t, a, b, 7001, 1000, 120*time.Second)
	toRestarted.flowing(t)
	fromRestarted.flowing(t)
	a.kill()
	b.kill()
	seen := a.capture("wire")
	a.start()
	var tries int
	await := func(want int) time.Time {
		eventually(t, 30*time.Second, func() error {
			for _, frame := range seen.drain() {
				if messageType(frame, tunnel.DefaultPorts[0]) == handshakeInitiation {
					tries++
				}
			}
			if tries < want {
				return fmt.Errorf("%d handshakes were tried", tries)
			}
			return nil
		})
		return time.Now()
	}
	first := await(1)
	if took := await(4).Sub(first); took > 10*time.Second { // WireGuard alone: 15 s
		t.Errorf("three more handshakes were tried in %v", took)
	}
	b.start()
	toRestarted.flowing(t)
	fromRestarted.flowing(t)
}

func TestStoppingIsNotRemoving(t *testing.T) {
	needRoot(t)
	a, b := pair(t)
	if err := a.stop(); err != nil {
		t.Fatalf("stopped tunnel: %v", err)
	}
	a.do(func() error {
		for _, name := range a.config.Devices {
			if _, err := netlink.LinkByName(name); err != nil {
				return fmt.Errorf("after stopping: %w", err)
			}
		}
		return nil
	})
	for lane := range tunnel.LaneCount {
		info, err := os.Stat(savedFile(a, lane))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600: it holds the private key", info.Name(), info.Mode().Perm())
		}
	}

	// With no process behind the device, packets sent into it are lost.
	seen := a.capture("wire")
	conn := a.udp(netip.AddrPortFrom(a.internal, 0), "")
	for range 100 {
		conn.WriteToUDPAddrPort([]byte(marker), netip.AddrPortFrom(b.internal, 7000))
	}
	for _, frame := range seen.drain() {
		if bytes.Contains(frame, []byte(marker)) {
			t.Fatalf("payload in the clear on the wire: %x", frame)
		}
	}

	a.do(func() error { return tunnel.Remove(a.config) })
	a.do(func() error { return tunnel.Remove(a.config) }) // again: nothing to do
	a.do(func() error {
		for _, name := range a.config.Devices {
			if _, err := netlink.LinkByName(name); err == nil {
				return fmt.Errorf("device %s is there after removing", name)
			}
		}
		return nil
	})
	if exists(savedFile(a, 0)) {
		t.Error("saved configuration is there after removing")
	}
	// The routes went with the device; only the unreachable ones are left.
	if _, err := conn.WriteToUDPAddrPort([]byte(marker), netip.AddrPortFrom(b.internal, 7000)); err == nil {
		t.Error("a packet to a member was accepted without a lane")
	}
}

func TestUnknownPeerIsSentNothing(t *testing.T) {
	needRoot(t)
	a, b := newNode(t, 1), newNode(t, 2)
	wire(t, a.space, b.space, "wire", "wire", "192.0.2.1/24", "192.0.2.2/24")
	a.start()
	a.ready()
	// Known, but its key is not: no peer on either lane.
	a.set(tunnel.Peer{Cluster: "east", Node: "n2", Allowed: []netip.Prefix{b.cidr}})
	seen := a.capture("wire")
	conn := a.udp(netip.AddrPortFrom(a.internal, 0), "")
	for range 200 {
		conn.WriteToUDPAddrPort([]byte(marker), netip.AddrPortFrom(b.internal, 7000))
	}
	eventually(t, 30*time.Second, func() error {
		var sent uint64
		a.do(func() error {
			link, err := netlink.LinkByName(a.config.Devices[0])
			sent = link.Attrs().Statistics.TxPackets
			return err
		})
		if sent < 200 {
			return fmt.Errorf("only %d packets reached the lane", sent)
		}
		return nil
	})
	for _, frame := range seen.drain() {
		if bytes.Contains(frame, []byte(marker)) || isWireGuard(frame) {
			t.Fatalf("sent to a node without a key: %x", frame)
		}
	}
}

func TestMissingTunnelProcessIsNamed(t *testing.T) {
	needRoot(t)
	n := newNode(t, 1)
	err := n.in(func() error { _, err := n.lanes.Ensure(context.Background()); return err })
	if err == nil {
		if own := n.ready(); own.Lanes[0].Kind != tunnel.Kernel {
			t.Errorf("nobody serves %s, and it counts as there", own.Lanes[0].Device)
		}
		return // the kernel has WireGuard
	}
	if !errors.Is(err, tunnel.ErrNoWireGuard) || !strings.Contains(err.Error(), "start weft-tunnel.service") {
		t.Errorf("without anything that encrypts: %v", err)
	}

	n.start()
	before := n.ready()
	n.kill()
	err = n.in(func() error { _, err := n.lanes.Set(context.Background(), nil, true); return err })
	if !errors.Is(err, tunnel.ErrNoWireGuard) {
		t.Errorf("with a dead process: %v", err)
	}
	n.start()
	if after := n.ready(); after.Lanes != before.Lanes {
		t.Errorf("keys or devices changed over a restart:\n%+v\n%+v", before, after)
	}
}

// refused runs a second process beside the first and returns its output.
func refused(t *testing.T, n *node, cfg tunnel.ServeConfig) string {
	t.Helper()
	var said strings.Builder
	process := n.command(cfg)
	process.Stderr = &said
	n.do(process.Start)
	ended := make(chan error, 1)
	go func() { ended <- process.Wait() }()
	select {
	case err := <-ended:
		if err == nil {
			t.Errorf("it served, and ended well: %s", &said)
		}
	case <-time.After(time.Minute):
		process.Process.Kill()
		<-ended
		t.Errorf("it serves: %s", &said)
	}
	return said.String()
}

func TestServeSaysWhatIsInTheWay(t *testing.T) {
	needRoot(t)
	n := newNode(t, 1)
	n.start()
	n.ready()

	twin := n.config
	twin.StateDir = t.TempDir()
	if got := refused(t, n, twin); !strings.Contains(got, "another process serves this device") {
		t.Errorf("the same devices twice: %s", got)
	}
	n.ready() // and the first does not notice

	taken := n.config
	taken.Devices = [tunnel.LaneCount]string{n.config.Devices[0] + "x", n.config.Devices[1] + "x"}
	taken.StateDir = t.TempDir()
	if got := refused(t, n, taken); !strings.Contains(got, "UDP port") {
		t.Errorf("the same ports twice: %s", got)
	}
	foreign := taken
	foreign.Devices[0], foreign.Ports = "lo", [tunnel.LaneCount]uint16{7, 8}
	if got := refused(t, n, foreign); !strings.Contains(got, "lo: attach: a device of this name exists but is not a TUN device") {
		t.Errorf("a device that is not a TUN device: %s", got)
	}
	n.do(func() error { return tunnel.Remove(taken) })
	n.do(func() error {
		if err := tunnel.Remove(tunnel.ServeConfig{Devices: [tunnel.LaneCount]string{"lo", "lo"}}); err == nil {
			return errors.New("removed the loopback device")
		}
		return nil
	})
}

func TestDeletedDeviceEndsTheProcess(t *testing.T) {
	needRoot(t)
	n := newNode(t, 1)
	n.start()
	before := n.ready()
	n.do(func() error {
		link, err := netlink.LinkByName(n.config.Devices[0])
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	// Its supervisor starts it again, and everything is back.
	if err := n.process.Wait(); err == nil {
		t.Error("ended without an error, although its device is gone")
	}
	n.process = nil
	n.start()
	if after := n.ready(); after.Lanes[0].PublicKey != before.Lanes[0].PublicKey {
		t.Errorf("another key on the new device: %+v", after)
	}
}

func TestBrokenSavedConfigurationIsPutAside(t *testing.T) {
	needRoot(t)
	a, b := pair(t)
	peers := func(n *node) string {
		text, err := os.ReadFile(savedFile(n, 0))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	before := peers(a)
	if !strings.Contains(before, "private_key=") || !strings.Contains(before, "public_key=") {
		t.Fatalf("saved:\n%s", before)
	}
	a.kill()
	if err := os.WriteFile(savedFile(a, 0), []byte(before[:len(before)/2]+"\nnonsense\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.start()
	a.ready()
	a.set(b.peer(b.ready())) // the agent's next round
	shaken(t, a, b)
	after := peers(a)
	for line := range strings.Lines(before) {
		if !strings.Contains(after, line) && line != "remove=true\n" { // made anew by then
			t.Errorf("saved:\n%s\nwant:\n%s", after, before)
			break
		}
	}
	if d := statefile.Damages(a.config.StateDir); len(d) != 1 || d[0].Path != savedFile(a, 0) {
		t.Errorf("put aside: %v", d)
	}
}

func TestFullDiskIsSurvivedAndRepaired(t *testing.T) {
	needRoot(t)
	a, b := newNode(t, 1), newNode(t, 2)
	wire(t, a.space, b.space, "wire", "wire", "192.0.2.1/24", "192.0.2.2/24")
	// A state directory that cannot be written: there is a file in its place.
	dir := a.config.StateDir
	a.start()
	b.start()
	ownA, ownB := a.ready(), b.ready()
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a.set(b.peer(ownB))
	b.set(a.peer(ownA))
	shaken(t, a, b) // it works; only the next start would miss the change
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, func() error {
		text, err := os.ReadFile(savedFile(a, 0))
		if err != nil || !strings.Contains(string(text), "public_key=") {
			return fmt.Errorf("not saved yet: %w", err)
		}
		return nil
	})
}
