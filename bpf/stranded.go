package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

var strandedPrograms = []string{"stranded_tcp", "stranded_udp"}

// A stranding is why a socket is stranded, an enum stranding.
const (
	backendGone = 1
	cutOff      = 2
)

// stranded is a socket that is connected to a service's backend that it has lost, as the programs
// write it.
type stranded struct {
	Cookie   uint64
	Progress uint64 // of TCP: changes with whatever the other side says
	Local    Addr
	Remote   Addr
	Lport    Port
	Rport    Port
	Ifindex  uint32 // of the device that it is bound to; 0: none
	Family   uint8
	Proto    uint8
	Why      uint8
	Pad      [5]byte
}

// cutOffTime is how long a TCP socket may hear nothing from a node that is dead, by other
// signs, before it is ended. For pods' packets it is 0.5 s as well: see lately in lib/flow.h.
const cutOffTime = 500 * time.Millisecond

// doubted is a TCP socket without a way to its backend.
type doubted struct {
	progress uint64
	since    time.Time // when it last made progress
}

// EndStranded ends the sockets of the node's processes that are connected to a backend of a
// service that is gone, or that cannot be reached: at its next call the process gets
// ECONNABORTED, and where it connects again it reaches another backend. A TCP connection to
// a backend that a service no longer has, but that is still there, goes on, as pods' do.
//
// It returns how many it ended, also if some could not be ended, and how many TCP sockets are
// doubtful: only another call, 0.5 s later, can tell whether they still hear something. A call
// passes over all sockets of the machine. It needs BTF of the kernel, and
// CONFIG_INET_DIAG_DESTROY.
func (d *Datapath) EndStranded() (ended, doubtful int, err error) {
	d.stranding.Lock()
	defer d.stranding.Unlock()
	found, err := d.strandedSockets()
	if err != nil {
		return 0, 0, fmt.Errorf("look for stranded sockets: %w", err)
	}
	now, still := time.Now(), map[uint64]doubted{}
	var errs []error
	for _, s := range found {
		if s.Why == cutOff && s.Proto == unix.IPPROTO_TCP {
			before, ok := d.doubted[s.Cookie]
			if !ok || before.progress != s.Progress {
				before = doubted{progress: s.Progress, since: now}
			}
			if now.Sub(before.since) < cutOffTime {
				still[s.Cookie] = before
				continue
			}
		}
		switch err := s.end(); {
		case err == nil:
			ended++
		case unlessClosed(err) != nil:
			errs = append(errs, fmt.Errorf("end the socket to %v:%d: %w", s.Remote, s.Rport.Number(), err))
		}
	}
	d.doubted = still
	return ended, len(still), errors.Join(errs...)
}

func (d *Datapath) strandedSockets() (all []stranded, err error) {
	if len(d.stranded) == 0 {
		return nil, errors.New("this kernel has no BTF (CONFIG_DEBUG_INFO_BTF)")
	}
	for _, it := range d.stranded {
		r, err := it.Open()
		if err != nil {
			return nil, err
		}
		raw, err := io.ReadAll(r)
		r.Close()
		if err != nil {
			return nil, err
		}
		found := make([]stranded, len(raw)/binary.Size(stranded{}))
		if err := binary.Read(bytes.NewReader(raw), binary.NativeEndian, found); err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

// attachIters makes iterators of those of the programs that are loaded, and takes them out of
// the collection.
func attachIters(coll *ebpf.Collection, programs []string) (all []*link.Iter, err error) {
	for _, name := range programs {
		prog := coll.DetachProgram(name)
		if prog == nil {
			continue
		}
		it, err := link.AttachIter(link.IterOptions{Program: prog})
		prog.Close()
		if err != nil {
			return all, fmt.Errorf("attach %s: %w", name, err)
		}
		all = append(all, it)
	}
	return all, nil
}

// end ends the socket as `ss --kill` does; with ENOENT or ESTALE if it is closed by now.
func (s stranded) end() error {
	req := nl.NewNetlinkRequest(unix.SOCK_DESTROY, unix.NLM_F_ACK)
	req.AddRawData(s.request())
	_, err := req.Execute(unix.NETLINK_SOCK_DIAG, 0)
	return err
}

// request is the socket as a struct inet_diag_req_v2 of linux/inet_diag.h.
func (s stranded) request() []byte {
	side := func(a Addr) (b [16]byte) {
		if s.Family == unix.AF_INET6 {
			return a
		}
		copy(b[:], a[12:])
		return b
	}
	local, remote := side(s.Local), side(s.Remote)
	b := []byte{s.Family, s.Proto, 0, 0}
	b = binary.NativeEndian.AppendUint32(b, ^uint32(0)) // whatever its state
	b = append(append(b, s.Lport[:]...), s.Rport[:]...)
	b = append(append(b, local[:]...), remote[:]...)
	b = binary.NativeEndian.AppendUint32(b, s.Ifindex)
	b = binary.NativeEndian.AppendUint32(b, uint32(s.Cookie))
	return binary.NativeEndian.AppendUint32(b, uint32(s.Cookie>>32))
}
