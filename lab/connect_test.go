package lab

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// tryConnect tries a TCP connection from the calling thread's namespace. It returns
// refused, timeout or connected, or any other error.
func tryConnect(to netip.Addr, port int, patience time.Duration) string {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err.Error()
	}
	defer unix.Close(fd)
	err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.As4(), Port: port})
	if errors.Is(err, unix.EINPROGRESS) {
		if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(patience.Milliseconds())); n == 0 {
			return "timeout"
		}
		code, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		err = nil
		if code != 0 {
			err = unix.Errno(code)
		}
	}
	switch {
	case err == nil:
		return "connected"
	case errors.Is(err, unix.ECONNREFUSED):
		return "refused"
	}
	return err.Error()
}
