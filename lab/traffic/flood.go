package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// A flood uses this many source ports in turn, starting with the first.
const firstFloodPort, floodPorts = 1024, 60000

// Flood sends datagrams at a steady rate until ctx ends, each from a different port, so
// that each is a new flow. After 60,000 source ports it moves to the target's next
// port. It returns how many it sent.
//
// It uses a raw socket, which needs privileges: a UDP socket cannot change its port
// that often.
func Flood(ctx context.Context, t Target, rate float64) (sent int, err error) {
	if t.Scheme != "udp" || rate <= 0 {
		return 0, errors.New("flood: give a target udp://HOST:PORT, and a rate above zero")
	}
	to, err := net.ResolveUDPAddr("udp4", t.Host)
	if err != nil {
		return 0, fmt.Errorf("flood: %w", err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return 0, fmt.Errorf("flood: open raw socket: %w", err)
	}
	defer unix.Close(fd)
	addr := &unix.SockaddrInet4{Addr: [4]byte(to.IP.To4())}
	const tick = 5 * time.Millisecond
	ticks := time.NewTicker(tick)
	defer ticks.Stop()
	for began := time.Now(); ; {
		for due := int(time.Since(began).Seconds() * rate); sent < due; sent++ {
			err := unix.Sendto(fd, floodPacket(sent, to.Port), 0, addr)
			if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EPERM) {
				return sent, fmt.Errorf("flood %s: %w", net.JoinHostPort(to.IP.String(), strconv.Itoa(to.Port)), err)
			}
			if ctx.Err() != nil {
				return sent, nil
			}
		}
		select {
		case <-ctx.Done():
			return sent, nil
		case <-ticks.C:
		}
	}
}

// floodPacket is the n-th datagram to port and the ports after it: a header without a
// checksum, and eight bytes.
func floodPacket(n, port int) []byte {
	p := make([]byte, 16)
	binary.BigEndian.PutUint16(p[0:], uint16(firstFloodPort+n%floodPorts))
	binary.BigEndian.PutUint16(p[2:], uint16(port+n/floodPorts))
	binary.BigEndian.PutUint16(p[4:], uint16(len(p)))
	copy(p[8:], "flooding")
	return p
}
