package statefile

import (
	"errors"
	"fmt"
	"net"
	"syscall"
)

// LockMachine makes this process the only one of its kind on the machine, whatever
// folders it was given, until release or its end: devices, ports and tables of the
// kernel are there once. The lock is a name in the network namespace, so that it
// goes with the process.
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
