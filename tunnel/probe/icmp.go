package probe

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ICMP is the Transport of this machine: echo requests from its addresses, one of an IP
// family, which the kernels of other nodes answer.
type ICMP struct{ sockets []*socket }

// socket is a raw socket of one IP family.
type socket struct {
	echo   *echo
	file   *os.File
	source netip.Addr
	id     uint16
	cookie uint32 // distinguishes our answers from those to other programs
	used   bool   // something was sent, so that there may be an answer
}

// echo is what the IP families do differently.
type echo struct {
	family, protocol int
	request, reply   byte
	header           int // length of the IP header, bytes
	quiet            func(fd int) error
	bind             func(a netip.Addr) unix.Sockaddr
	from             func(a netip.Addr, device int) []byte // as a control message
	// parse splits what was received into its sender and the message.
	parse func(packet []byte, from unix.Sockaddr) (netip.Addr, []byte)
}

var _ Transport = (*ICMP)(nil)

// icmpLength is that of header, cookie and number.
const icmpLength = 16

var echoIPv4 = echo{
	family: unix.AF_INET, protocol: unix.IPPROTO_ICMP, request: 8, reply: 0, header: 20,
	quiet: func(fd int) error {
		// The filter says which types not to receive: all but replies.
		filter := ^uint32(1 << 0)
		const icmpFilter = 1 // ICMP_FILTER of linux/icmp.h, at level SOL_RAW
		if err := unix.SetsockoptString(fd, unix.SOL_RAW, icmpFilter, string((*[4]byte)(unsafe.Pointer(&filter))[:])); err != nil {
			return fmt.Errorf("receive only echo replies: %w", err)
		}
		// A packet that is too large must be lost, not fragmented.
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE); err != nil {
			return fmt.Errorf("forbid fragments: %w", err)
		}
		return nil
	},
	bind: func(a netip.Addr) unix.Sockaddr { return &unix.SockaddrInet4{Addr: a.As4()} },
	from: func(a netip.Addr, device int) []byte {
		return unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: int32(device), Spec_dst: a.As4()})
	},
	parse: func(packet []byte, _ unix.Sockaddr) (netip.Addr, []byte) {
		if len(packet) < 20 || packet[0]>>4 != 4 {
			return netip.Addr{}, nil
		}
		header := int(packet[0]&15) * 4
		if header < 20 || len(packet) < header {
			return netip.Addr{}, nil
		}
		return netip.AddrFrom4([4]byte(packet[12:16])), packet[header:]
	},
}

// The kernel writes and checks the checksums of ICMPv6.
var echoIPv6 = echo{
	family: unix.AF_INET6, protocol: unix.IPPROTO_ICMPV6, request: 128, reply: 129, header: 40,
	quiet: func(fd int) error {
		filter := unix.ICMPv6Filter{}
		for i := range filter.Data {
			filter.Data[i] = ^uint32(0)
		}
		filter.Data[129/32] &^= 1 << (129 % 32)
		if err := unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, &filter); err != nil {
			return fmt.Errorf("receive only echo replies: %w", err)
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE); err != nil {
			return fmt.Errorf("forbid fragments: %w", err)
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1); err != nil {
			return fmt.Errorf("forbid fragments: %w", err)
		}
		return nil
	},
	bind: func(a netip.Addr) unix.Sockaddr { return &unix.SockaddrInet6{Addr: a.As16()} },
	from: func(a netip.Addr, device int) []byte {
		return unix.PktInfo6(&unix.Inet6Pktinfo{Ifindex: uint32(device), Addr: a.As16()})
	},
	parse: func(packet []byte, from unix.Sockaddr) (netip.Addr, []byte) {
		a, ok := from.(*unix.SockaddrInet6)
		if !ok {
			return netip.Addr{}, nil
		}
		return netip.AddrFrom16(a.Addr), packet
	},
}

// NewICMP opens raw sockets bound to sources, which must be addresses of this machine, one
// of each IP family at most. It needs CAP_NET_RAW. Close ends them.
func NewICMP(sources ...netip.Addr) (*ICMP, error) {
	t := &ICMP{}
	for _, source := range sources {
		s, err := newSocket(source)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("probe socket: %w", err), t.Close())
		}
		t.sockets = append(t.sockets, s)
	}
	return t, nil
}

func newSocket(source netip.Addr) (*socket, error) {
	s := &socket{echo: &echoIPv4, source: source}
	if source.Is6() {
		s.echo = &echoIPv6
	}
	// Raw rather than a ping socket, because the default net.ipv4.ping_group_range
	// denies those even to root.
	fd, err := unix.Socket(s.echo.family, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, s.echo.protocol)
	if errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("needs CAP_NET_RAW: %w", err)
	}
	if err != nil {
		return nil, err
	}
	s.file = os.NewFile(uintptr(fd), "icmp")
	if err := s.prepare(fd); err != nil {
		s.file.Close()
		return nil, err
	}
	return s, nil
}

func (s *socket) prepare(fd int) error {
	var random [6]byte
	if _, err := rand.Read(random[:]); err != nil {
		return err
	}
	s.id, s.cookie = binary.NativeEndian.Uint16(random[:]), binary.NativeEndian.Uint32(random[2:])
	if err := s.echo.quiet(fd); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		return fmt.Errorf("ask for times of arrival: %w", err)
	}
	if err := unix.Bind(fd, s.echo.bind(s.source)); err != nil {
		return fmt.Errorf("bind to %v: %w", s.source, err)
	}
	return nil
}

// Close closes the sockets. Prober.Run must have returned.
func (t *ICMP) Close() error {
	var errs []error
	for _, s := range t.sockets {
		errs = append(errs, s.file.Close())
	}
	return errors.Join(errs...)
}

// Send implements Transport. Errors about single targets are ignored, because such a
// target will not answer.
func (t *ICMP) Send(requests []Request) error {
	for _, s := range t.sockets {
		if err := s.sendAll(requests); err != nil {
			return err
		}
	}
	return nil
}

// sendAll sends the requests of the socket's family.
func (s *socket) sendAll(requests []Request) error {
	raw, err := s.file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		for _, r := range requests {
			if r.Addr.BitLen() != s.source.BitLen() {
				continue
			}
			s.used = true
			if err := s.send(int(fd), r); errors.Is(err, unix.EBADF) {
				failed = err
			}
		}
	})
	return errors.Join(err, failed)
}

func (s *socket) send(fd int, r Request) error {
	packet := make([]byte, max(icmpLength, r.Size-s.echo.header)&^1)
	packet[0] = s.echo.request
	binary.BigEndian.PutUint16(packet[4:], s.id)
	binary.BigEndian.PutUint16(packet[6:], uint16(r.Number))
	binary.BigEndian.PutUint32(packet[8:], s.cookie)
	binary.BigEndian.PutUint32(packet[12:], r.Number)
	binary.BigEndian.PutUint16(packet[2:], checksum(packet))
	return unix.Sendmsg(fd, packet, s.echo.from(s.source, r.Device), s.echo.bind(r.Addr), unix.MSG_DONTWAIT)
}

// Receive implements Transport.
func (t *ICMP) Receive() (answers []Answer, err error) {
	for _, s := range t.sockets {
		if !s.used {
			continue
		}
		more, err := s.receive()
		if answers = append(answers, more...); err != nil {
			return answers, err
		}
	}
	return answers, nil
}

func (s *socket) receive() ([]Answer, error) {
	raw, err := s.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	var answers []Answer
	var failed error
	err = raw.Control(func(fd uintptr) {
		packet, control := make([]byte, 256), make([]byte, 256)
		for len(answers) < 256 {
			n, c, _, from, err := unix.Recvmsg(int(fd), packet, control, unix.MSG_DONTWAIT)
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
			if a, ok := s.read(packet[:n], from); ok {
				a.At = arrival(control[:c])
				answers = append(answers, a)
			}
		}
	})
	return answers, errors.Join(err, failed)
}

// read reads what was received. False for everything but an answer to us.
func (s *socket) read(packet []byte, from unix.Sockaddr) (Answer, bool) {
	who, message := s.echo.parse(packet, from)
	if len(message) < icmpLength || message[0] != s.echo.reply ||
		binary.BigEndian.Uint16(message[4:]) != s.id || binary.BigEndian.Uint32(message[8:]) != s.cookie {
		return Answer{}, false
	}
	return Answer{From: who, Number: binary.BigEndian.Uint32(message[12:])}, true
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
	var used []*socket
	for _, s := range t.sockets {
		if s.used {
			used = append(used, s)
		}
	}
	if len(used) == 0 {
		used = t.sockets[:min(1, len(t.sockets))]
	}
	if len(used) == 1 {
		used[0].await(ctx)
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var waiting sync.WaitGroup
	for _, s := range used {
		waiting.Go(func() {
			defer cancel()
			s.await(ctx)
		})
	}
	waiting.Wait()
}

// await waits until there may be something to receive, or until ctx ends.
func (s *socket) await(ctx context.Context) {
	if ctx.Err() != nil {
		return
	}
	if err := s.file.SetReadDeadline(time.Time{}); err != nil {
		return
	}
	expired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(expired)
		s.file.SetReadDeadline(time.Unix(1, 0))
	})
	defer func() {
		if !stop() {
			<-expired // or it would cut the next wait short
		}
	}()
	raw, err := s.file.SyscallConn()
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
