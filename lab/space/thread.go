// Package space provides what simulated machines are made of: threads in their
// namespaces, and cgroups.
//
// Package lab decides which machines exist and what runs on them.
package space

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	_ "github.com/weft-mesh/weft/internal/firstthread"
)

// ErrClosed means that a Thread has ended.
var ErrClosed = errors.New("namespace thread is closed")

// Thread is an operating system thread that has entered some namespaces and stays
// there. Its children inherit them, and die with the thread if they ask for a death
// signal, so it lives as long as its machine does.
//
// A Thread may be used concurrently; it does one piece of work at a time.
type Thread struct {
	work chan func()
	once sync.Once
	quit chan struct{}
	done chan struct{}
}

// NewThread starts a thread, which calls enter to enter its namespaces. With a nil
// enter it stays in those of the process. Close ends it.
func NewThread(enter func() error) (*Thread, error) {
	t := &Thread{work: make(chan func()), quit: make(chan struct{}), done: make(chan struct{})}
	started := make(chan error, 1)
	go t.run(enter, started)
	if err := <-started; err != nil {
		return nil, err
	}
	return t, nil
}

// run never unlocks its thread: the runtime then ends the thread with the goroutine,
// so that no other goroutine ever runs in these namespaces.
func (t *Thread) run(enter func() error, started chan<- error) {
	runtime.LockOSThread()
	defer close(t.done)
	if enter != nil {
		if err := enter(); err != nil {
			started <- err
			return
		}
	}
	started <- nil
	for {
		select {
		case f := <-t.work:
			f()
		case <-t.quit:
			return
		}
	}
}

// Do runs f on the thread and returns its error. After Close it returns
// ErrClosed. f must not call Do of the same Thread.
func (t *Thread) Do(f func() error) error {
	result := make(chan error, 1)
	select {
	case t.work <- func() { result <- f() }:
		return <-result
	case <-t.done:
		return ErrClosed
	}
}

// Close ends the thread after its current piece of work. It may be called twice.
func (t *Thread) Close() {
	t.once.Do(func() { close(t.quit) })
	<-t.done
}

// Once runs f on a thread of its own that first calls enter. The thread ends
// afterwards.
func Once(enter, f func() error) error {
	t, err := NewThread(enter)
	if err != nil {
		return err
	}
	defer t.Close()
	return t.Do(f)
}

// EnterNet moves the calling thread into a network namespace. The caller must have
// locked the thread, and must never unlock it.
func EnterNet(ns *os.File) func() error {
	return func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return nil
	}
}

// EnterProcess moves the calling thread into the network, mount and host name
// namespaces of a process. The caller must have locked the thread, and must never
// unlock it.
func EnterProcess(pid int) func() error {
	return func() error {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return fmt.Errorf("open process %d: %w", pid, err)
		}
		defer unix.Close(fd)
		// A thread that shares its root directory with others cannot change mount
		// namespaces.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare file system state: %w", err)
		}
		if err := unix.Setns(fd, unix.CLONE_NEWNET|unix.CLONE_NEWNS|unix.CLONE_NEWUTS); err != nil {
			return fmt.Errorf("enter namespaces of process %d: %w", pid, err)
		}
		return nil
	}
}

// NewNet makes an empty network namespace and returns a handle to it. It lasts until
// the handle is closed and nothing uses it.
func NewNet() (ns *os.File, err error) {
	err = Once(nil, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	return ns, err
}

// NetOf returns a handle to the network namespace of a process.
func NetOf(pid int) (*os.File, error) {
	return os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
}

// Sysctl sets a value below /proc/sys. The keys under net belong to the
// network namespace of the calling thread.
func Sysctl(key, value string) error {
	if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl: %w", err)
	}
	return nil
}
