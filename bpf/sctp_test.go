//go:build sctp

package bpf

import (
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// association is a blocking socket of SCTP, which package net does not know. It waits for half a
// minute at most.
type association int

// uninterrupted repeats a call that a signal has interrupted.
func uninterrupted(f func() error) (err error) {
	for err = unix.EINTR; err == unix.EINTR; {
		err = f()
	}
	return err
}

func newAssociation() (association, error) {
	family := unix.AF_INET
	if overIPv6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return 0, err
	}
	patience := unix.Timeval{Sec: 30}
	return association(fd), errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience))
}

func (a association) Read(b []byte) (n int, err error) {
	err = uninterrupted(func() error { n, err = unix.Read(int(a), b); return err })
	if n == 0 && err == nil {
		err = io.EOF
	}
	return max(n, 0), err
}

func (a association) Write(b []byte) (n int, err error) {
	err = uninterrupted(func() error { n, err = unix.Write(int(a), b); return err })
	return max(n, 0), err
}

func sockaddr(to string) unix.Sockaddr {
	a := netip.MustParseAddrPort(to)
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// listenSCTP echoes what the pod is sent on the first so many associations.
func (n *realNode) listenSCTP(pod string, port uint16, count int) {
	n.Helper()
	n.in(pod, func() error {
		l, err := newAssociation()
		if err != nil {
			return err
		}
		n.Cleanup(func() { unix.Close(int(l)) })
		if err := errors.Join(unix.Bind(int(l), sockaddr(at(pod, port))), unix.Listen(int(l), 8)); err != nil {
			return err
		}
		go func() {
			for range count {
				var c int
				if uninterrupted(func() (err error) { c, _, err = unix.Accept(int(l)); return err }) != nil {
					return
				}
				go func() { io.Copy(association(c), association(c)); unix.Close(c) }()
			}
		}()
		return nil
	})
}

// dialSCTP opens an association of a pod, from this port.
func (n *realNode) dialSCTP(pod string, port uint16, to string) (c association) {
	n.Helper()
	n.in(pod, func() (err error) {
		if c, err = newAssociation(); err != nil {
			return err
		}
		n.Cleanup(func() { unix.Close(int(c)) })
		if err := unix.Bind(int(c), sockaddr(at(pod, port))); err != nil {
			return err
		}
		err = uninterrupted(func() error { return unix.Connect(int(c), sockaddr(to)) })
		if err == unix.EISCONN { // since it was interrupted
			return nil
		}
		return err
	})
	return c
}

// Pods have SCTP associations with one another, directly and through a service that keeps the
// port. The build tag is that of guests, as in `make test-guest` of CI, whose kernels have SCTP.
func TestSCTP(t *testing.T) {
	families(t, func(t *testing.T) {
		r := newRealNode(t, options{})
		const same = "10.101.0.83"
		m := r.d.Maps()
		set(t, m.Services, ServiceKey{Addr: addr(same), Port: PortOf(8080), Proto: 132}, Service{ID: 83, Groups: 1, Group: [MaxGroups]Group{{Cluster: 1, Weight: 1, Count: 1}}})
		set(t, m.Backends, SlotKey{Service: 83, Cluster: 1}, Backend{Addr: addr(podB), Port: PortOf(8080)})
		set(t, m.Members, MemberKey{Service: 83, Addr: addr(podB), Port: PortOf(8080)}, Member{})
		r.listenSCTP(podB, 8080, 2)
		for i, to := range []string{podB, same} {
			port := uint16(5000 + i)
			c := r.dialSCTP(podA, port, at(to, 8080))
			for range 8 { // messages: one after another, each in several packets
				said, heard := strings.Repeat("weft", 1000), make([]byte, 4000)
				if _, err := io.WriteString(c, said); err != nil {
					t.Fatalf("%s: %v", to, err)
				}
				if _, err := io.ReadFull(c, heard); err != nil || string(heard) != said {
					counters, _ := r.d.Counters()
					t.Fatalf("%s: %v; counters %+v", to, err, counters)
				}
			}
			key := FlowKey{Local: addr(podA), Remote: addr(to), Lport: PortOf(port), Rport: PortOf(8080), Proto: 132}
			if f, ok, _ := m.Flows.Lookup(key); !ok || f.Flags&FlowReplied == 0 || f.Flags&FlowService != 0 != (to == same) {
				t.Errorf("%s: flow %v: %+v", to, ok, f)
			}
		}
	})
}
