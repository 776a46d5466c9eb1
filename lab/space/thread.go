// Package space holds what a simulated machine is made of: threads that live
// in its namespaces, and its cgroup.
//
// Which machines exist and what runs in them is decided in package lab.
package space

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrClosed says that a Thread has ended and runs nothing any more.
var ErrClosed = errors.New("namespace thread is closed")

// Thread is one operating system thread that has entered some namespaces and
// stays there. Children that it starts inherit them, and die with it when they
// ask for a death signal, so it lives as long as its machine does.
//
// Several goroutines may use a Thread; their work is done one after another.
type Thread struct {
	work chan func()
	once sync.Once
	quit chan struct{}
	done chan struct{}
}

// NewThread starts a thread and lets it enter its namespaces. A nil enter
// leaves it in those of the process. Close ends it.
func NewThread(enter func() error) (*Thread, error) {
	t := &Thread{work: make(chan func()), quit: make(chan struct{}), done: make(chan struct{})}
	started := make(chan error, 1)
	go t.run(enter, started)
	if err := <-started; err != nil {
		return nil, err
	}
	return t, nil
}

// run never unlocks its thread: the runtime then ends the thread with the
// goroutine, and no other goroutine ever wakes up in a foreign namespace.
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

// Close ends the thread after its current piece of work. Closing twice is
// harmless.
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

// EnterNet moves the calling thread into a network namespace. The caller has
// locked the thread and never gives it back.
func EnterNet(ns *os.File) func() error {
	return func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return nil
	}
}

// EnterProcess moves the calling thread into the network, mount and host name
// namespaces of a process. The caller has locked the thread and never gives it
// back.
func EnterProcess(pid int) func() error {
	return func() error {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return fmt.Errorf("open process %d: %w", pid, err)
		}
		defer unix.Close(fd)
		// A thread that shares its root directory with others may not change
		// mount namespaces.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare file system state: %w", err)
		}
		if err := unix.Setns(fd, unix.CLONE_NEWNET|unix.CLONE_NEWNS|unix.CLONE_NEWUTS); err != nil {
			return fmt.Errorf("enter namespaces of process %d: %w", pid, err)
		}
		return nil
	}
}

// NewNet makes an empty network namespace and returns a handle on it. It lives
// until the handle is closed and nothing in it is left.
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

// NetOf returns a handle on the network namespace of a process.
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
