package bpf

import (
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// How long an idle flow lives, by state. The programs are loaded with the same
// values.
const (
	TCPEstablished = 8000 * time.Second
	TCPOpening     = 60 * time.Second // only one side has sent something
	TCPClosing     = 10 * time.Second // reset, or both have finished
	NotTCP         = 60 * time.Second
)

// Now is the time by the clock of Flow.Seen: CLOCK_MONOTONIC_COARSE in nanoseconds.
func Now() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil {
		return 0 // never fails on Linux; 0 expires nothing
	}
	return uint64(ts.Nano())
}

// Lifetime is how long the flow lives without a packet.
func (f Flow) Lifetime(proto uint8) time.Duration {
	const closed = FlowFinLocal | FlowFinRemote
	switch {
	case proto != unix.IPPROTO_TCP:
		return NotTCP
	case f.Flags&FlowReset != 0, f.Flags&closed == closed:
		return TCPClosing
	case f.Flags&FlowReplied != 0:
		return TCPEstablished
	}
	return TCPOpening
}

// Expired reports whether the flow has been idle for longer than its lifetime at now.
func (f Flow) Expired(proto uint8, now uint64) bool {
	return now > f.Seen && now-f.Seen > uint64(f.Lifetime(proto))
}

// PodGone reports whether the flow's local pod is gone, or the pod of this node that
// opened it. Without its pod a flow carries nothing, but would hold a share for hours.
// device returns the device of the pod with an address, or 0 if no pod has it.
func (f Flow) PodGone(k FlowKey, device func(Addr) uint32) bool {
	switch {
	case f.Ifindex == 0:
		return false // the node's own
	case device(k.Local) != f.Ifindex:
		return true
	}
	return f.Owner != SharesNode && f.Owner != f.Ifindex && device(k.Remote) != f.Owner
}

// Swept is what one Sweep found.
type Swept struct {
	Live    int // flows left
	Deleted int // flows that had expired, or whose pod is gone
	Orphans int // rows for answers without a flow, deleted
	// Masquerades are rows of masqueraded connections whose flow is over, deleted.
	Masquerades int
	// Nodes are the indexes of the nodes that live flows go to.
	Nodes map[uint16]bool
}

// Forget deletes those of the given flows that are still expired at now or without a
// pod, with the rows for their answers, and returns how many. Until then a packet may have
// revived a flow, or a new connection may use its ports.
type Forget func(dead []FlowKey, now uint64) (gone int, err error)

// SweepMaps deletes the flows that have expired at now or have lost their pod through
// forget, and then rows for answers without a flow.
func SweepMaps(m *Maps, now uint64, forget Forget) (Swept, error) {
	s, _, err := sweepMaps(m, now, forget)
	return s, err
}

// sweepMaps also returns how many flows each owner had before any was deleted.
func sweepMaps(m *Maps, now uint64, forget Forget) (s Swept, held map[uint32]int64, err error) {
	held, s.Nodes = map[uint32]int64{}, map[uint16]bool{}
	pods := map[Addr]uint32{}
	endpoints, failed := m.Endpoints.All()
	for addr, ep := range endpoints {
		pods[addr] = ep.Ifindex
	}
	if err := failed(); err != nil {
		return s, held, fmt.Errorf("sweep flows: %w", err)
	}
	device := func(a Addr) uint32 { return pods[a] }
	var dead []FlowKey
	answers := 0 // rows for answers, less those that a flow should have
	rows, failed := m.Flows.All()
	for k, f := range rows {
		if f.Flags&FlowAnswers != 0 {
			answers++
			continue
		}
		if f.Flags&FlowTranslated != 0 {
			answers--
		}
		held[f.Owner]++
		if f.Expired(k.Proto, now) || f.PodGone(k, device) {
			dead = append(dead, k)
			continue
		}
		s.Live++
		if f.Node != 0 {
			s.Nodes[f.Node] = true
		}
	}
	if err := failed(); err != nil {
		return s, held, fmt.Errorf("sweep flows: %w", err)
	}
	if s.Deleted, err = forget(dead, now); err != nil {
		return s, held, fmt.Errorf("sweep flows: %w", err)
	}
	s.Live += len(dead) - s.Deleted
	if answers <= 0 {
		return s, held, nil
	}
	if s.Orphans, err = forgetOrphans(m); err != nil {
		return s, held, fmt.Errorf("sweep answers: %w", err)
	}
	return s, held, nil
}

// sweptAtOnce is the number of flows per run of the program: rows of doomed.
const sweptAtOnce = 4096

// forget implements Forget in the kernel, where only a few instructions lie between
// check and deletion. A packet that comes between them costs its connection the
// first answer; at worst, if it has written only the reply row by then, all answers
// until the flow expires again.
func (d *Datapath) forget(dead []FlowKey, now uint64) (gone int, err error) {
	d.sweeping.Lock()
	defer d.sweeping.Unlock()
	return d.forgetLocked(dead, now)
}

func (d *Datapath) forgetLocked(dead []FlowKey, now uint64) (gone int, err error) {
	for some := range slices.Chunk(dead, sweptAtOnce) {
		rows := make([]uint32, len(some))
		for i := range rows {
			rows[i] = uint32(i)
		}
		if _, err := d.doomed.BatchUpdate(rows, some, nil); err != nil {
			return gone, fmt.Errorf("write the list of flows: %w", err)
		}
		asked := struct { // struct sweep
			Now        uint64
			Count, Pad uint32
		}{Now: now, Count: uint32(len(some))}
		n, err := d.sweep.Run(&ebpf.RunOptions{Context: asked})
		if err != nil {
			return gone, fmt.Errorf("run program sweep: %w", err)
		}
		gone += int(n)
	}
	return gone, nil
}

// masqueradeSweep is the pause between two runs of program sweep_masquerades. A row that is
// not needed any more gives up its port when that is needed, so there is no hurry, and the
// walk takes 13 ms for the default size of the table even if there is no row in it.
const masqueradeSweep = 30 * time.Second

// forgetMasqueradesLocked deletes the rows of masqueraded connections whose flow is over at
// now, all in the kernel: only a few instructions lie between each check and deletion.
func (d *Datapath) forgetMasqueradesLocked(now uint64) (gone int, err error) {
	asked := struct { // struct swept_masquerades
		Now        uint64
		Rows, Gone uint32
	}{Now: now}
	if _, err := d.sweepMasquerades.Run(&ebpf.RunOptions{Context: asked, ContextOut: &asked}); err != nil {
		return 0, fmt.Errorf("run program sweep_masquerades: %w", err)
	}
	d.masqueraded.Store(asked.Rows)
	return int(asked.Gone), nil
}

// Masqueraded is how many connections of pods with the world came from the node's address
// when they were last looked through, at most half a minute ago.
func (d *Datapath) Masqueraded() int { return int(d.masqueraded.Load() / 2) }

// forgetOrphans deletes rows for answers without a flow, and returns how many. They come
// from two CPUs that chose different backends for the first packets of one flow. A
// row that looks like one, and then its flow, are read again right before the
// deletion: a new connection may have claimed the row, and the datapath writes the
// flow after it.
func forgetOrphans(m *Maps) (gone int, err error) {
	all := map[FlowKey]Flow{}
	rows, failed := m.Flows.All()
	for k, f := range rows {
		if f.Flags&FlowAnswers != 0 {
			all[k] = f
		}
	}
	if err := failed(); err != nil {
		return 0, err
	}
	for k, f := range all {
		orphan, err := isOrphan(m, k, f)
		if orphan {
			orphan, err = stillOrphan(m, k, f)
		}
		if orphan {
			err = m.Flows.Delete(k)
		}
		if err != nil {
			return gone, err
		}
		if orphan {
			gone++
		}
	}
	return gone, nil
}

// stillOrphan is isOrphan for a row that may have changed since it was read.
func stillOrphan(m *Maps, k FlowKey, f Flow) (bool, error) {
	if again, ok, err := m.Flows.Lookup(k); err != nil || !ok || again != f {
		return false, err
	}
	return isOrphan(m, k, f)
}

// isOrphan reports whether the flow of a row for answers is gone or goes to another
// backend.
func isOrphan(m *Maps, k FlowKey, answers Flow) (bool, error) {
	flow := answers.opposite(k)
	f, ok, err := m.Flows.Lookup(flow)
	return err == nil && (!ok || f.Flags&FlowTranslated == 0 || f.opposite(flow) != k), err
}

// opposite is the key of the other row of a translated flow: of the one for the answers if
// this is the flow itself, and the other way round.
func (f Flow) opposite(k FlowKey) FlowKey {
	k.Remote, k.Rport, k.Beside = f.Backend, f.Bport, 0
	if other := f.Flags.Other(); other != (Port{}) {
		k.Lport = other
	}
	if f.Flags&FlowBeside != 0 {
		k.Beside = 1
	}
	return k
}

// Answers is the key of the row for the answers of the flow's backend; false if the flow
// has none.
func (f Flow) Answers(k FlowKey) (FlowKey, bool) {
	return f.opposite(k), f.Flags&FlowTranslated != 0
}

// Answered reports whether this row, which has the key at, is for the answers of the flow
// with this key.
func (f Flow) Answered(at, k FlowKey) bool { return f.Flags&FlowAnswers != 0 && f.opposite(at) == k }
