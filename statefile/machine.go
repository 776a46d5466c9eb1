package statefile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// machineDir holds the locks of LockMachine. Only root can write to it; a lock that
// anybody can take, such as an abstract socket name, would let any local process keep
// ours from starting.
const machineDir = "/run/weft"

// LockMachine makes this process the only one of its kind on the machine until it
// calls release or exits. Devices, ports and kernel tables exist only once per network
// namespace, whatever folders the process uses, and so does the lock. It needs root.
// The error wraps ErrInUse if another process holds it.
func LockMachine(what string) (release func(), err error) {
	path, err := machineLock(what)
	if err == nil {
		err = os.MkdirAll(machineDir, 0o755)
	}
	if err != nil {
		return nil, fmt.Errorf("lock the machine: %w", err)
	}
	release, err = hold(path)
	var by heldBy
	if errors.As(err, &by) {
		return nil, inUse(fmt.Sprintf("another %s runs on this machine: stop it first", by.name(what)))
	}
	if err != nil {
		return nil, fmt.Errorf("lock the machine: %w", err)
	}
	return release, nil
}

// machineLock is the file of a lock, by the network namespace that it is for.
func machineLock(what string) (string, error) {
	var ns unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &ns); err != nil {
		return "", fmt.Errorf("find this network namespace: %w", err)
	}
	return filepath.Join(machineDir, fmt.Sprintf("%s-%d.lock", what, ns.Ino)), nil
}
