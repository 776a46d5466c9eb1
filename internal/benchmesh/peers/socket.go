package peers

import (
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Socket is a UDP socket that receives on all addresses that lead to its machine, and
// answers from the one that was asked.
type Socket struct {
	*net.UDPConn
	port uint16
}

// socketBuffer is how much may wait to be read, in bytes: all nodes of a large mesh are
// called at once.
const socketBuffer = 16 << 20

// NewSocket listens on a port in the network namespace of this thread; 0: on a free one.
func NewSocket(port uint16) (*Socket, error) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4zero, Port: int(port)})
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		var set error
		err = raw.Control(func(fd uintptr) {
			set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer) // less is slower
		})
		if err == nil {
			err = set
		}
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("ask who was called: %w", err)
	}
	return &Socket{conn, conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()}, nil
}

// read returns a datagram, who sent it, and to whom.
func (s *Socket) read(buffer []byte) (n int, from, at netip.AddrPort, err error) {
	var control [unix.SizeofCmsghdr + unix.SizeofInet4Pktinfo + 16]byte
	n, m, _, from, err := s.ReadMsgUDPAddrPort(buffer, control[:])
	if err != nil {
		return 0, from, at, err
	}
	messages, err := syscall.ParseSocketControlMessage(control[:m])
	if err != nil {
		return 0, from, at, err
	}
	for _, c := range messages {
		if c.Header.Level == unix.IPPROTO_IP && c.Header.Type == unix.IP_PKTINFO && len(c.Data) >= unix.SizeofInet4Pktinfo {
			info := (*unix.Inet4Pktinfo)(unsafe.Pointer(&c.Data[0]))
			at = netip.AddrPortFrom(netip.AddrFrom4(info.Addr), s.port)
		}
	}
	return n, from, at, nil
}

// write sends a datagram from one of our addresses.
func (s *Socket) write(datagram []byte, at, to netip.AddrPort) error {
	_, _, err := s.WriteMsgUDPAddrPort(datagram, unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: at.Addr().As4()}), to)
	return err
}
