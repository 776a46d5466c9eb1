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
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/lab/space"
)

// CaptureConfig describes what a capture looks for.
type CaptureConfig struct {
	Marker    []byte         // bytes that must not be seen in the clear
	Inside    []netip.Prefix // addresses that must not be seen outside tunnels
	Encrypted []uint16       // UDP ports of the tunnels
}

// Findings is what a capture has seen. A packet is counted at every device it
// passes.
type Findings struct {
	Packets   uint64   `json:"packets"`
	Encrypted uint64   `json:"encrypted"` // tunnel packets
	Marked    uint64   `json:"marked"`    // with the marker in the clear
	Exposed   uint64   `json:"exposed"`   // from or to an inside address
	Missed    uint64   `json:"missed"`    // not examined: the kernel's buffer was full
	Examples  []string `json:"examples"`  // a few marked and exposed packets
}

// maxExamples bounds Findings.Examples.
const maxExamples = 5

// captureBuffer is how many bytes of packets the kernel buffers for a capture that
// falls behind.
const captureBuffer = 64 << 20

// maxPacket is larger than any packet, in bytes.
const maxPacket = 1 << 17

// Capture examines every packet on every device of the fabrics and the wide area
// network. Findings may be called concurrently.
type Capture struct {
	config CaptureConfig
	group  errgroup.Group

	mu       sync.Mutex
	findings Findings   // guarded by mu
	sockets  []*os.File // set before the capture is shared; Stop clears it under mu
}

// StartCapture starts a capture. Stop ends it.
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

// listen starts capturing on all devices of a namespace.
func (c *Capture) listen(where string, ns *os.File) error {
	if err := c.open(where, ns); err != nil {
		return err
	}
	socket := c.sockets[len(c.sockets)-1]
	c.group.Go(func() error { return c.look(socket) })
	return nil
}

// open opens one socket for all devices of a namespace. The kernel delivers packets
// without link-layer headers.
func (c *Capture) open(where string, ns *os.File) error {
	return space.Once(space.EnterNet(ns), func() error {
		proto := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(proto))
		if err != nil {
			return fmt.Errorf("capture: %w", err)
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer); err != nil {
			unix.Close(fd)
			return fmt.Errorf("capture buffer: %w", err)
		}
		c.sockets = append(c.sockets, os.NewFile(uintptr(fd), where))
		return nil
	})
}

// look reads a socket until its deadline, which Stop sets.
func (c *Capture) look(socket *os.File) error {
	pkt := make([]byte, maxPacket)
	for {
		size, err := socket.Read(pkt)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if errors.Is(err, unix.ENETDOWN) { // reported once when a device goes down
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

// judge examines one IP packet.
func (c *CaptureConfig) judge(pkt []byte) (s sighting) {
	s.marked = len(c.Marker) > 0 && bytes.Contains(pkt, c.Marker)
	src, dst, ok := ends(pkt)
	if !ok {
		return s
	}
	s.exposed = slices.ContainsFunc(c.Inside, func(p netip.Prefix) bool { return p.Contains(src) || p.Contains(dst) })
	proto, sport, dport, ok := ports(pkt)
	s.encrypted = ok && proto == 17 && (slices.Contains(c.Encrypted, sport) || slices.Contains(c.Encrypted, dport))
	return s
}

// ends are the source and destination of an IP packet of either family.
func ends(pkt []byte) (src, dst netip.Addr, ok bool) {
	switch {
	case len(pkt) >= 20 && pkt[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(pkt[12:16])), netip.AddrFrom4([4]byte(pkt[16:20])), true
	case len(pkt) >= 40 && pkt[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(pkt[8:24])), netip.AddrFrom16([16]byte(pkt[24:40])), true
	}
	return src, dst, false
}

// describe summarizes a packet in one line.
func describe(pkt []byte) string {
	src, dst, ok := ends(pkt)
	if !ok {
		return fmt.Sprintf("%d bytes that are not IP", len(pkt))
	}
	proto, sport, dport, ok := ports(pkt)
	if !ok {
		at := 9
		if src.Is6() {
			at = 6
		}
		return fmt.Sprintf("%s → %s protocol %d, %d bytes", src, dst, pkt[at], len(pkt))
	}
	name := map[uint8]string{6: "tcp", 17: "udp"}[proto]
	return fmt.Sprintf("%s %s → %s, %d bytes", name, netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport), len(pkt))
}

// Findings returns what has been seen so far.
func (c *Capture) Findings() (Findings, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, socket := range c.sockets {
		err := onSocket(socket, func(fd int) error {
			// Reading the counters resets them.
			stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
			if err == nil {
				c.findings.Missed += uint64(stats.Drops)
			}
			return err
		})
		if err != nil {
			return Findings{}, fmt.Errorf("capture: count what was missed: %w", err)
		}
	}
	f := c.findings
	f.Examples = slices.Clone(f.Examples)
	return f, nil
}

// Stop ends the capture and returns all it has seen, including the last packet before
// the call. It may be called again.
func (c *Capture) Stop() (Findings, error) {
	var failed []error
	for _, socket := range c.sockets {
		failed = append(failed, onSocket(socket, deafen), socket.SetReadDeadline(time.Unix(1, 0)))
	}
	failed = append(failed, c.group.Wait())
	for _, socket := range c.sockets {
		failed = append(failed, onSocket(socket, func(fd int) error { return c.drain(socket.Name(), fd) }))
	}
	f, err := c.Findings()
	failed = append(failed, err)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, socket := range c.sockets {
		failed = append(failed, socket.Close())
	}
	c.sockets = nil
	return f, errors.Join(failed...)
}

// deafen stops the kernel from adding packets to a socket.
func deafen(fd int) error {
	nothing := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	program := &unix.SockFprog{Len: uint16(len(nothing)), Filter: &nothing[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, program); err != nil {
		return fmt.Errorf("capture: stop: %w", err)
	}
	return nil
}

// drain examines what the kernel still holds for a deaf socket.
func (c *Capture) drain(where string, fd int) error {
	pkt := make([]byte, maxPacket)
	for {
		size, err := unix.Read(fd, pkt)
		switch {
		case err == nil:
			c.note(where, pkt[:size])
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN):
		default:
			return fmt.Errorf("capture: %w", err)
		}
	}
}

// onSocket calls do with a socket's descriptor.
func onSocket(socket *os.File, do func(fd int) error) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = do(int(fd)) }); err != nil {
		return err
	}
	return failed
}
