package fabric

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/lab/space"
)

// CaptureConfig says what a capture looks for.
type CaptureConfig struct {
	Marker    []byte         // bytes that must not be seen in the clear
	Inside    []netip.Prefix // addresses that must not be seen outside of tunnels
	Encrypted []uint16       // UDP ports of the tunnels
}

// Findings is what a capture has seen. A packet is counted at each device that
// it passes.
type Findings struct {
	Packets   uint64   `json:"packets"`
	Encrypted uint64   `json:"encrypted"` // of tunnels
	Marked    uint64   `json:"marked"`    // with the marker in the clear
	Exposed   uint64   `json:"exposed"`   // from or to an inside address
	Missed    uint64   `json:"missed"`    // not looked at: the kernel's buffer was full
	Examples  []string `json:"examples"`  // of marked and exposed ones, a few
}

// maxExamples bounds Findings.Examples.
const maxExamples = 5

// captureBuffer is how many bytes of packets the kernel holds for a capture
// that falls behind.
const captureBuffer = 64 << 20

// Capture looks at every packet on every device of the fabrics and of the wide
// area network.
type Capture struct {
	config  CaptureConfig
	sockets []*os.File
	group   errgroup.Group

	mu       sync.Mutex
	findings Findings // guarded by mu
}

// StartCapture begins to look. Stop ends it.
func (n *Network) StartCapture(config CaptureConfig) (_ *Capture, err error) {
	c := &Capture{config: config}
	defer func() {
		if err != nil {
			c.Stop()
		}
	}()
	if err := c.listen("wan", n.wan); err != nil {
		return nil, err
	}
	for _, f := range n.fabrics {
		if err := c.listen("fabric "+f.Cluster, f.ns); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// listen opens one socket for all devices of a namespace. The kernel hands the
// packets over without their link layer headers.
func (c *Capture) listen(where string, ns *os.File) error {
	var socket *os.File
	err := space.Once(space.EnterNet(ns), func() error {
		proto := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(proto))
		if err != nil {
			return fmt.Errorf("capture: %w", err)
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer); err != nil {
			unix.Close(fd)
			return fmt.Errorf("capture buffer: %w", err)
		}
		socket = os.NewFile(uintptr(fd), where)
		return nil
	})
	if err != nil {
		return err
	}
	c.sockets = append(c.sockets, socket)
	c.group.Go(func() error { return c.look(socket) })
	return nil
}

func (c *Capture) look(socket *os.File) error {
	pkt := make([]byte, 1<<17)
	for {
		size, err := socket.Read(pkt)
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if errors.Is(err, unix.ENETDOWN) { // told once when a device goes down
			continue
		}
		if err != nil {
			return fmt.Errorf("capture: %w", err)
		}
		c.note(socket.Name(), pkt[:size])
	}
}

func (c *Capture) note(where string, pkt []byte) {
	seen := c.config.judge(pkt)
	c.mu.Lock()
	defer c.mu.Unlock()
	f := &c.findings
	f.Packets++
	switch {
	case seen.encrypted:
		f.Encrypted++
	case seen.exposed:
		f.Exposed++
	}
	if seen.marked {
		f.Marked++
	}
	if (seen.marked || seen.exposed) && len(f.Examples) < maxExamples {
		f.Examples = append(f.Examples, where+": "+describe(pkt))
	}
}

type sighting struct{ encrypted, marked, exposed bool }

// judge looks at one IP packet.
func (c *CaptureConfig) judge(pkt []byte) (s sighting) {
	s.marked = len(c.Marker) > 0 && bytes.Contains(pkt, c.Marker)
	if len(pkt) < 20 || pkt[0]>>4 != 4 {
		return s
	}
	src, dst := netip.AddrFrom4([4]byte(pkt[12:16])), netip.AddrFrom4([4]byte(pkt[16:20]))
	s.exposed = slices.ContainsFunc(c.Inside, func(p netip.Prefix) bool { return p.Contains(src) || p.Contains(dst) })
	proto, sport, dport, ok := ports(pkt)
	s.encrypted = ok && proto == 17 && (slices.Contains(c.Encrypted, sport) || slices.Contains(c.Encrypted, dport))
	return s
}

// describe is a packet in one line.
func describe(pkt []byte) string {
	if len(pkt) < 20 || pkt[0]>>4 != 4 {
		return fmt.Sprintf("%d bytes that are no IPv4", len(pkt))
	}
	src, dst := netip.AddrFrom4([4]byte(pkt[12:16])), netip.AddrFrom4([4]byte(pkt[16:20]))
	proto, sport, dport, ok := ports(pkt)
	if !ok {
		return fmt.Sprintf("%s → %s protocol %d, %d bytes", src, dst, pkt[9], len(pkt))
	}
	name := map[uint8]string{6: "tcp", 17: "udp"}[proto]
	return fmt.Sprintf("%s %s:%d → %s:%d, %d bytes", name, src, sport, dst, dport, len(pkt))
}

// Findings returns what was seen so far.
func (c *Capture) Findings() Findings {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.findings
	f.Examples = slices.Clone(f.Examples)
	return f
}

// Stop ends the capture and returns all it has seen.
func (c *Capture) Stop() (Findings, error) {
	var missed uint64
	for _, socket := range c.sockets {
		if raw, err := socket.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) {
				if stats, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
					missed += uint64(stats.Drops)
				}
			})
		}
		socket.Close()
	}
	err := c.group.Wait()
	f := c.Findings()
	f.Missed = missed
	return f, err
}
