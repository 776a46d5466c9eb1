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
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-mesh/weft/tunnel"
)

// stream sends numbered datagrams and records when each number arrived.
type stream struct {
	sent     atomic.Uint64
	arrived  []atomic.Int64 // UnixNano, by number
	stop     context.CancelFunc
	sending  chan struct{}
	received chan struct{}
	lane     atomic.Int32
}

// newStream sends perSecond datagrams a second from a to b until stopped, on
// the lane that the stream is told, -1 for the routes' choice.
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
				binary.BigEndian.PutUint64(packet, s.sent.Load())
				s.sent.Add(1)
				// A refused datagram is a lost one, and is counted as such.
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
			s.arrived[binary.BigEndian.Uint64(packet)].CompareAndSwap(0, time.Now().UnixNano())
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

// finish stops sending, waits for stragglers and says how many were lost.
func (s *stream) finish(t *testing.T) (sent, lost uint64) {
	t.Helper()
	s.stop()
	<-s.sending
	sent = s.sent.Load()
	deadline := time.Now().Add(2 * time.Second)
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
	eventually(t, 10*time.Second, func() error {
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
	s := newStream(t, a, b, 7000, 1000, 30*time.Second)
	s.flowing(t)
	eventually(t, 10*time.Second, func() error {
		if s.sent.Load() < 1000 {
			return errors.New("too few sent yet")
		}
		return nil
	})
	if sent, lost := s.finish(t); lost > 0 {
		t.Errorf("lost %d of %d on a quiet tunnel", lost, sent)
	}
	wireguard := 0
	for _, frame := range seen.drain() {
		if bytes.Contains(frame, []byte(marker)) {
			t.Fatalf("payload in the clear on the wire: %x", frame)
		}
		if isWireGuard(frame) {
			wireguard++
		}
	}
	if wireguard < 1000 {
		t.Errorf("saw %d WireGuard frames, want at least the 1000 sent: the capture shows nothing", wireguard)
	}
}

// isWireGuard says whether an Ethernet frame is a WireGuard data message to one
// of the default ports.
func isWireGuard(frame []byte) bool {
	if len(frame) < 14+20+8+4 || binary.BigEndian.Uint16(frame[12:]) != 0x0800 || frame[23] != 17 {
		return false
	}
	port := binary.BigEndian.Uint16(frame[14+20+2:])
	return (port == tunnel.DefaultPorts[0] || port == tunnel.DefaultPorts[1]) && frame[14+20+8] == 4
}

func TestKilledTunnelComesBackByItself(t *testing.T) {
	needRoot(t)
	const repetitions = 5
	a, b := pair(t)
	seen := a.capture("wire")
	toRestarted := newStream(t, b, a, 7000, 1000, 120*time.Second)
	fromRestarted := newStream(t, a, b, 7001, 1000, 120*time.Second)
	var worstTo, worstFrom time.Duration
	for range repetitions {
		toRestarted.flowing(t)
		fromRestarted.flowing(t)
		killed := time.Now()
		a.kill()
		a.start()
		toRestarted.flowing(t)
		fromRestarted.flowing(t)
		// No agent took part: nobody called Ensure or Set.
		worstTo = max(worstTo, toRestarted.gap(killed))
		worstFrom = max(worstFrom, fromRestarted.gap(killed))
	}
	t.Logf("outage over %d kills: to the restarted node %v, from it %v", repetitions, worstTo, worstFrom)
	if worstTo > time.Second || worstFrom > time.Second {
		t.Errorf("outage of a killed and restarted tunnel: to it %v, from it %v, want below 1 s", worstTo, worstFrom)
	}
	for _, frame := range seen.drain() {
		if bytes.Contains(frame, []byte(marker)) {
			t.Fatalf("payload in the clear on the wire while the tunnel was dead: %x", frame)
		}
	}
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

	// With nobody behind the device, what goes into it is gone.
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
	// The device is gone, the routes with it; what is left says unreachable.
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
	eventually(t, 5*time.Second, func() error {
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
		return // a kernel with WireGuard misses nothing
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
