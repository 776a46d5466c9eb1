package probe

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ICMP is the Transport of this machine: echo requests from one of its addresses, which
// the kernels of other nodes answer. IPv4 only.
type ICMP struct {
	file   *os.File
	source netip.Addr
	id     uint16
	cookie uint32 // distinguishes our answers from those to other programs
}

var _ Transport = (*ICMP)(nil)

const (
	icmpEchoReply   = 0
	icmpEchoRequest = 8
	icmpLength      = 16 // header, cookie, number
	ipv4Header      = 20
)

// NewICMP opens a raw socket bound to source, which must be an address of this
// machine. It needs CAP_NET_RAW. Close ends it.
func NewICMP(source netip.Addr) (*ICMP, error) {
	if !source.Is4() {
		return nil, fmt.Errorf("probe socket: %v is not an IPv4 address", source)
	}
	// Raw rather than a ping socket, because the default net.ipv4.ping_group_range
	// denies those even to root.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("probe socket: needs CAP_NET_RAW: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("probe socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), "icmp")
	t := &ICMP{file: file, source: source}
	if err := t.prepare(fd); err != nil {
		file.Close()
		return nil, fmt.Errorf("probe socket: %w", err)
	}
	return t, nil
}

func (t *ICMP) prepare(fd int) error {
	var random [6]byte
	if _, err := rand.Read(random[:]); err != nil {
		return err
	}
	t.id, t.cookie = binary.NativeEndian.Uint16(random[:]), binary.NativeEndian.Uint32(random[2:])
	// The filter says which types not to receive: all but replies.
	filter := ^uint32(1 << icmpEchoReply)
	const icmpFilter = 1 // ICMP_FILTER of linux/icmp.h, at level SOL_RAW
	if err := unix.SetsockoptString(fd, unix.SOL_RAW, icmpFilter, string((*[4]byte)(unsafe.Pointer(&filter))[:])); err != nil {
		return fmt.Errorf("receive only echo replies: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		return fmt.Errorf("ask for times of arrival: %w", err)
	}
	// A packet that is too large must be lost, not fragmented.
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE); err != nil {
		return fmt.Errorf("forbid fragments: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: t.source.As4()}); err != nil {
		return fmt.Errorf("bind to %v: %w", t.source, err)
	}
	return nil
}

// Close closes the socket. Prober.Run must have returned.
func (t *ICMP) Close() error { return t.file.Close() }

// Send implements Transport. Errors about single targets are ignored, because such a
// target will not answer.
func (t *ICMP) Send(requests []Request) error {
	raw, err := t.file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		for _, r := range requests {
			if !r.Addr.Is4() {
				continue
			}
			if err := t.send(int(fd), r); errors.Is(err, unix.EBADF) {
				failed = err
			}
		}
	})
	return errors.Join(err, failed)
}

func (t *ICMP) send(fd int, r Request) error {
	packet := make([]byte, max(icmpLength, r.Size-ipv4Header)&^1)
	packet[0] = icmpEchoRequest
	binary.BigEndian.PutUint16(packet[4:], t.id)
	binary.BigEndian.PutUint16(packet[6:], uint16(r.Number))
	binary.BigEndian.PutUint32(packet[8:], t.cookie)
	binary.BigEndian.PutUint32(packet[12:], r.Number)
	binary.BigEndian.PutUint16(packet[2:], checksum(packet))
	info := unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: int32(r.Device), Spec_dst: t.source.As4()})
	return unix.Sendmsg(fd, packet, info, &unix.SockaddrInet4{Addr: r.Addr.As4()}, unix.MSG_DONTWAIT)
}

// Receive implements Transport.
func (t *ICMP) Receive() ([]Answer, error) {
	raw, err := t.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	var answers []Answer
	var failed error
	err = raw.Control(func(fd uintptr) {
		packet, control := make([]byte, 256), make([]byte, 256)
		for len(answers) < 256 {
			n, c, _, _, err := unix.Recvmsg(int(fd), packet, control, unix.MSG_DONTWAIT)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			// An ICMP error about one target is not the socket's.
			if errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.ECONNREFUSED) {
				continue
			}
			if err != nil {
				if !errors.Is(err, unix.EAGAIN) {
					failed = err
				}
				return
			}
			if a, ok := t.parse(packet[:n]); ok {
				a.At = arrival(control[:c])
				answers = append(answers, a)
			}
		}
	})
	return answers, errors.Join(err, failed)
}

// parse reads an IPv4 packet. False for everything but an answer to us.
func (t *ICMP) parse(packet []byte) (Answer, bool) {
	if len(packet) < 20 || packet[0]>>4 != 4 {
		return Answer{}, false
	}
	header := int(packet[0]&15) * 4
	if header < 20 || len(packet) < header+icmpLength {
		return Answer{}, false
	}
	echo := packet[header:]
	if echo[0] != icmpEchoReply || binary.BigEndian.Uint16(echo[4:]) != t.id || binary.BigEndian.Uint32(echo[8:]) != t.cookie {
		return Answer{}, false
	}
	return Answer{From: netip.AddrFrom4([4]byte(packet[12:16])), Number: binary.BigEndian.Uint32(echo[12:])}, true
}

// arrival is the kernel's time of arrival, or now if there is none.
func arrival(control []byte) time.Time {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return time.Now()
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= int(unsafe.Sizeof(unix.Timespec{})) {
			at := (*unix.Timespec)(unsafe.Pointer(&m.Data[0]))
			return time.Unix(at.Unix())
		}
	}
	return time.Now()
}

// Arrival implements Transport.
func (t *ICMP) Arrival(ctx context.Context) {
	if ctx.Err() != nil {
		return
	}
	if err := t.file.SetReadDeadline(time.Time{}); err != nil {
		return
	}
	expired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(expired)
		t.file.SetReadDeadline(time.Unix(1, 0))
	})
	defer func() {
		if !stop() {
			<-expired // or it would cut the next wait short
		}
	}()
	raw, err := t.file.SyscallConn()
	if err != nil {
		return
	}
	var peek [1]byte
	raw.Read(func(fd uintptr) bool {
		_, _, err := unix.Recvfrom(int(fd), peek[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return !errors.Is(err, unix.EAGAIN)
	})
}

// checksum is the Internet checksum of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
