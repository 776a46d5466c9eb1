package statefile

import (
	"errors"
	"fmt"
	"net"
	"syscall"
)

// LockMachine makes this process the only one of its kind on the machine until it
// calls release or exits. Devices, ports and kernel tables exist only once,
// whatever folders the process uses. The lock is an abstract socket name in the
// network namespace, so it disappears with the process. The error wraps ErrInUse
// if another process holds it.
func LockMachine(what string) (release func(), err error) {
	l, err := net.Listen("unix", "@weft-"+what)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, inUse(fmt.Sprintf("another %s runs on this machine: stop it first (`ss -xlp | grep @weft-%s` shows its process)", what, what))
	}
	if err != nil {
		return nil, fmt.Errorf("lock the machine: %w", err)
	}
	return func() { l.Close() }, nil
}
