package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// observed is what a client saw.
type observed struct {
	Requests int    `json:"requests"`
	Failed   int    `json:"failed"`
	Failure  string `json:"failure,omitempty"` // the last one
	// Seconds is how long they took, without those that failed: a lost packet costs a second
	// of waiting, which would hide what all others cost.
	Seconds float64 `json:"seconds"`
	// Percentiles in microseconds: of connect(), of everything from there to the answer.
	Connect50 float64 `json:"connect50"`
	Connect99 float64 `json:"connect99"`
	Whole50   float64 `json:"whole50"`
	Whole95   float64 `json:"whole95"`
	// Softirq is the seconds that all CPUs spent in soft interrupts meanwhile.
	Softirq float64 `json:"softirq"`
	Busy    float64 `json:"busy"` // and in everything but waiting
}

// warmUp is how many requests come before those that count.
const warmUp = 30

// client connects to a service from one or several threads, one request at a time each,
// and prints what it saw. With -keep all requests of a thread share a connection.
func client(ctx context.Context, args []string, out io.Writer) error {
	set := flag.NewFlagSet("client", flag.ContinueOnError)
	to := set.String("to", "", "")
	last := set.Duration("for", time.Second, "")
	count := set.Int("count", 0, "")
	threads := set.Int("threads", 1, "")
	keep := set.Bool("keep", false, "")
	cpu := set.Int("cpu", -1, "")
	if err := set.Parse(args); err != nil {
		return err
	}
	addr, err := netip.ParseAddrPort(*to)
	if err != nil {
		return err
	}
	// A client that stops to collect garbage would measure that.
	debug.SetGCPercent(-1)
	c := &caller{to: unix.SockaddrInet4{Addr: addr.Addr().As4(), Port: int(addr.Port())}, keep: *keep}
	var all caller
	var mu sync.Mutex
	var g sync.WaitGroup
	var failed error
	before, err := readCPU()
	if err != nil {
		return err
	}
	for range *threads {
		g.Go(func() {
			runtime.LockOSThread()
			one := *c
			err := one.calls(*cpu, *last, *count)
			mu.Lock()
			defer mu.Unlock()
			failed = errors.Join(failed, err)
			all.connects, all.wholes, all.failed = append(all.connects, one.connects...), append(all.wholes, one.wholes...), all.failed+one.failed
			all.took = max(all.took, one.took)
			if one.failure != "" {
				all.failure = one.failure
			}
		})
	}
	g.Wait()
	after, err := readCPU()
	if failed = errors.Join(failed, err); failed != nil {
		return failed
	}
	return json.NewEncoder(out).Encode(observed{
		Requests: len(all.wholes), Failed: all.failed, Failure: all.failure, Seconds: all.took.Seconds(),
		Connect50: percentile(all.connects, 0.5), Connect99: percentile(all.connects, 0.99),
		Whole50: percentile(all.wholes, 0.5), Whole95: percentile(all.wholes, 0.95),
		Softirq: after.softirq - before.softirq, Busy: after.busy - before.busy,
	})
}

// caller is one thread of a client.
type caller struct {
	to               unix.SockaddrInet4
	keep             bool
	connects, wholes []float64 // microseconds
	failed           int
	failure          string        // the last one
	waited           time.Duration // in vain
	took             time.Duration // for all that did not fail
}

// callPatience is how long a call may wait for anything.
const callPatience = time.Second

// calls makes requests for some time, or so many of them if count is positive.
func (c *caller) calls(cpu int, last time.Duration, count int) error {
	if cpu >= 0 {
		var set unix.CPUSet
		set.Set(cpu % runtime.NumCPU())
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return fmt.Errorf("stay on CPU %d: %w", cpu, err)
		}
	}
	// The Go runtime interrupts threads that run for long, and connect() with them.
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &unix.Sigset_t{Val: [16]uint64{1 << (unix.SIGURG - 1)}}, nil); err != nil {
		return err
	}
	c.connects, c.wholes = make([]float64, 0, 1<<16), make([]float64, 0, 1<<16)
	kept := -1
	defer func() {
		if kept >= 0 {
			unix.Close(kept)
		}
	}()
	began := time.Now()
	counted := began
	for i := 0; count > 0 && i < count || count <= 0 && time.Since(began) < last; i++ {
		if i == warmUp && count <= 0 {
			c.connects, c.wholes, c.failed, c.failure, c.waited = c.connects[:0], c.wholes[:0], 0, "", 0
			counted = time.Now()
		}
		start := time.Now()
		if kept < 0 {
			fd, err := c.connect()
			if err != nil {
				c.fail(err, start)
				if time.Since(began) > last+2*callPatience && count <= 0 {
					return err
				}
				continue
			}
			kept = fd
			c.connects = append(c.connects, micros(time.Since(start)))
		}
		if err := ask(kept); err != nil {
			c.fail(err, start)
			unix.Close(kept)
			kept = -1
			continue
		}
		c.wholes = append(c.wholes, micros(time.Since(start)))
		if !c.keep {
			unix.Close(kept)
			kept = -1
		}
	}
	c.took = time.Since(counted) - c.waited
	return nil
}

func (c *caller) fail(err error, since time.Time) {
	c.failed, c.failure, c.waited = c.failed+1, err.Error(), c.waited+time.Since(since)
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

// connect returns a connected socket. It blocks, as most programs do; the SYN and its
// answer are then handled before connect() waits.
func (c *caller) connect() (fd int, err error) {
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, err
	}
	wait := unix.NsecToTimeval(callPatience.Nanoseconds())
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait) // of connect() too
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if err := unix.Connect(fd, &c.to); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("connect", err)
	}
	return fd, nil
}

// ask sends a byte and waits for one.
func ask(fd int) error {
	b := []byte{'?'}
	if _, err := unix.Write(fd, b); err != nil {
		return err
	}
	n, err := unix.Read(fd, b)
	if err == nil && n == 0 {
		err = io.ErrUnexpectedEOF
	}
	return err
}
