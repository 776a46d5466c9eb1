package bpf

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// A map whose limit was lowered may have more rows than the new one has room for.
//
//   - Of connections (flows, masquerades) those are kept that fit: first those that were
//     answered, none that are over, and each with all of its rows.
//   - Of clients (affinities, visitors) those are kept that came last.
//   - What the agent wrote is kept as a whole, in the map of the former size: a policy without
//     one of its rows might allow what it denies, and a pod without its row has no network.

// carry copies the rows of a map into the one that takes its place. maps and moved are those
// that were opened before. The error satisfies isFull if rows that must be kept do not fit.
func carry(name string, r resized, maps map[string]*ebpf.Map, moved map[string]resized, log *slog.Logger) error {
	var left int
	var err error
	switch {
	case !r.smaller():
		err = copyRows(r.old, r.new)
	case name == "flows":
		left, err = carryFlows(r, 0)
	case name == "masquerades":
		err = carryMasquerades(r, flowsOf(maps, moved))
	case name == "affinities" || name == "visitors":
		left, err = carryAffinities(r)
	default:
		err = copyRows(r.old, r.new)
	}
	if left > 0 {
		log.Warn("dropped rows of a map that has become smaller: raise its limit to keep as many", "map", name, "dropped", left, "limit", r.new.MaxEntries())
	}
	return err
}

// isFull says whether an error is of a write to a map that has no room.
func isFull(err error) bool { return errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) }

// copyRows copies a map's rows as bytes; they may change meanwhile. What rows have now that
// those of the version before had not is zero.
func copyRows(from, to *ebpf.Map) error {
	key, row, added := make([]byte, from.KeySize()), make([]byte, from.ValueSize()), make([]byte, to.ValueSize()-from.ValueSize())
	rows := from.Iterate()
	for rows.Next(&key, &row) {
		value := append(row, added...)
		if from.Type() == ebpf.Array {
			if isZero(value) {
				continue
			}
			if binary.NativeEndian.Uint32(key) >= to.MaxEntries() {
				return unix.E2BIG
			}
		}
		if err := to.Put(key, value); err != nil {
			return fmt.Errorf("its rows do not fit: %w", err)
		}
	}
	if err := rows.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return err
	}
	return nil
}

func isZero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

// carryFlows copies live flows that were seen since a time and are not there yet, as long as
// there is room. It returns how many found none.
func carryFlows(r resized, since uint64) (left int, err error) {
	old, to := &table[FlowKey, Flow]{"flows", r.old}, &table[FlowKey, Flow]{"flows", r.new}
	kept, err := countFlows(to)
	if err != nil {
		return 0, err
	}
	now, room := Now(), to.MaxEntries()/rowsPerFlow
	for _, answered := range []bool{true, false} {
		rows, failed := old.All()
		for k, f := range rows {
			open := f.Flags&FlowReplied != 0 && f.Lifetime(k.Proto) != TCPClosing
			if f.Flags&FlowAnswers != 0 || f.Seen < since || f.Expired(k.Proto, now) || open != answered {
				continue
			}
			is, there, err := to.Lookup(k)
			switch {
			case err != nil:
			case there && is.Flags&FlowAnswers == 0 && is.Seen < f.Seen:
				err = to.Update(k, f)
			case there:
			case kept == room:
				left++
			default:
				err = putFlow(old, to, k, f, r.former)
				kept++
			}
			if isFull(err) {
				left, kept = left+1, room
			} else if err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
				return left, fmt.Errorf("carry over flows: %w", err)
			}
		}
		if err := failed(); err != nil {
			return left, err
		}
	}
	return left, nil
}

func countFlows(t *table[FlowKey, Flow]) (n int, err error) {
	rows, failed := t.All()
	for _, f := range rows {
		if f.Flags&FlowAnswers == 0 {
			n++
		}
	}
	return n, failed()
}

// putFlow writes a flow with the row for its answers, if it has one: both or neither. former says
// that old had these in another map.
func putFlow(old, to *table[FlowKey, Flow], k FlowKey, f Flow, former bool) error {
	if err := to.m.Update(k, f, ebpf.UpdateNoExist); err != nil {
		return err
	}
	at, has := f.Answers(k)
	if !has {
		return nil
	}
	row := f.answersRow(k)
	if !former {
		is, there, err := old.Lookup(at)
		if err != nil || !there || is.Flags&FlowAnswers == 0 || is.opposite(at) != k {
			return err // another flow's by now
		}
		row = is
	}
	err := to.m.Update(at, row, ebpf.UpdateNoExist)
	if isFull(err) {
		return errors.Join(err, to.Delete(k))
	}
	if errors.Is(err, ebpf.ErrKeyExist) {
		return nil
	}
	return err
}

// flowsOf are the tables that flows may be in.
func flowsOf(maps map[string]*ebpf.Map, moved map[string]resized) (all []*table[FlowKey, Flow]) {
	all = append(all, &table[FlowKey, Flow]{"flows", maps["flows"]})
	if r := moved["flows"]; r.former {
		all = append(all, &table[FlowKey, Flow]{"flows", r.old})
	}
	return all
}

// carryMasquerades copies the rows of flows that were carried over. There is room for all:
// as many rows as they may have.
func carryMasquerades(r resized, flows []*table[FlowKey, Flow]) error {
	old, to := &table[FlowKey, Masquerade]{"masquerades", r.old}, &table[FlowKey, Masquerade]{"masquerades", r.new}
	rows, failed := old.All()
	for k, row := range rows {
		if row.Answer != 0 || !isConnection(flows, old, k, row) {
			continue
		}
		answer := row.otherOfPair(k)
		back, there, err := old.Lookup(answer)
		if err != nil || !there || back.Answer == 0 || back.otherOfPair(answer) != k {
			continue // half of a pair
		}
		// The port first: see masquerade.h.
		if err = to.m.Update(answer, back, ebpf.UpdateNoExist); err == nil {
			if err = to.m.Update(k, row, ebpf.UpdateNoExist); err != nil {
				err = errors.Join(err, to.Delete(answer))
			}
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyExist) && !isFull(err) {
			return fmt.Errorf("carry over masquerades: %w", err)
		}
	}
	return failed()
}

// isConnection says whether a row belongs to a flow, as in_use of masquerade.h does. k is the
// key of what a pod sends, or a client to a backend elsewhere.
func isConnection(flows []*table[FlowKey, Flow], masquerades *table[FlowKey, Masquerade], k FlowKey, row Masquerade) bool {
	switch row.Kind {
	case MasqueradeExposed:
		if isFlow(flows, k) { // the backend is a pod of this node
			return true
		}
		k.Local, k.Lport, k.Remote, k.Rport = k.Remote, k.Rport, k.Local, k.Lport
		client, ok, err := masquerades.Lookup(k)
		if err != nil || !ok || client.Answer != 0 || client.Kind != MasqueradeClient {
			return false
		}
		row = client
		fallthrough
	case MasqueradeClient:
		k.Local, k.Lport = row.Addr, row.Port
	}
	return isFlow(flows, k)
}

// isFlow says whether a packet that leaves with this key is of a flow.
func isFlow(flows []*table[FlowKey, Flow], k FlowKey) bool {
	for _, t := range flows {
		if f, ok, err := t.Lookup(k); err == nil && ok {
			if f.Flags&FlowAnswers == 0 {
				return true
			}
			_, ok, err := t.Lookup(f.opposite(k))
			return err == nil && ok
		}
	}
	return false
}

// carryAffinities copies the clients that came last, and returns how many it left behind.
func carryAffinities(r resized) (left int, err error) {
	type client struct {
		key AffinityKey
		row Affinity
	}
	var all []client
	rows, failed := (&table[AffinityKey, Affinity]{"affinities", r.old}).All()
	for k, row := range rows {
		all = append(all, client{k, row})
	}
	if err := failed(); err != nil {
		return 0, err
	}
	// The newest last: the map evicts whoever was written first.
	slices.SortFunc(all, func(a, b client) int { return cmp.Compare(a.row.Seen, b.row.Seen) })
	left = max(0, len(all)-int(r.new.MaxEntries()))
	for _, c := range all[left:] {
		if err := r.new.Put(c.key, c.row); err != nil {
			return left, err
		}
	}
	return left, nil
}

// takeOver fills the maps that take the place of one of the version before, and pins them:
// until then a start that did not get through leaves the rows to the next one.
func (d *Datapath) takeOver(moved map[string]resized) error {
	var former []description
	for _, m := range described {
		if moved[m.name].former {
			former = append(former, m)
		}
	}
	if len(former) == 0 {
		return nil
	}
	if err := d.catchUp(moved); err != nil {
		return err
	}
	for _, m := range former {
		if err := moved[m.name].new.Pin(filepath.Join(d.dir, m.pin())); err != nil {
			return fmt.Errorf("pin map %s: %w", m.name, err)
		}
		d.log.Info("took over the rows of the version before", "map", m.name)
	}
	return nil
}

// catchUp carries over the connections that the previous generation wrote after the maps
// had been copied, or all flows if their map is of the version before.
func (d *Datapath) catchUp(moved map[string]resized) error {
	flows, resizedFlows := moved["flows"]
	masked, resizedMasquerades := moved["masquerades"]
	if resizedMasquerades && (masked.former || !masked.smaller()) {
		if err := copyRows(masked.old, masked.new); err != nil && !isFull(err) {
			return fmt.Errorf("carry over masquerades: %w", err)
		}
	}
	if resizedFlows {
		left, err := d.catchUpFlows(flows)
		if err != nil {
			return fmt.Errorf("carry over flows: %w", err)
		}
		if left > 0 {
			d.log.Warn("dropped flows that found no room when programs were replaced: raise the limit to keep as many", "map", "flows", "dropped", left, "limit", flows.new.MaxEntries())
		}
	}
	if resizedMasquerades && !masked.former && masked.smaller() {
		return carryMasquerades(masked, flowsOf(d.maps, moved))
	}
	return nil
}

// catchUpFlows returns how many flows found no room.
func (d *Datapath) catchUpFlows(r resized) (left int, err error) {
	if r.smaller() {
		return carryFlows(r, r.since)
	}
	rows, failed := (&table[FlowKey, Flow]{"flows", r.old}).All()
	for k, f := range rows {
		if now, ok, err := d.rows.Flows.Lookup(k); err == nil && ok && now.Seen >= f.Seen {
			continue
		}
		if err = d.rows.Flows.Update(k, f); err == nil && r.former {
			if at, has := f.Answers(k); has {
				err = d.rows.Flows.Update(at, f.answersRow(k))
			}
		}
		switch {
		case errors.Is(err, ErrFull):
			left++
		case err != nil:
			return left, err
		}
	}
	return left, failed()
}

// answersRow is the row for the answers of a translated flow.
func (f Flow) answersRow(k FlowKey) Flow {
	flags := FlowAnswers
	if f.Flags.Other() != (Port{}) {
		flags = flags.withOther(k.Lport)
	}
	if k.Beside != 0 {
		flags |= FlowBeside
	}
	return Flow{Seen: f.Seen, Flags: flags, Backend: k.Remote, Bport: k.Rport, Ifindex: f.Ifindex, Owner: f.Owner}
}

// recount corrects the accounts of who holds flows by those that were kept.
func (d *Datapath) recount() error {
	held := map[uint32]int64{}
	rows, failed := d.rows.Flows.All()
	for _, f := range rows {
		if f.Flags&FlowAnswers == 0 {
			held[f.Owner]++
		}
	}
	accounts, err := d.accounts()
	if err := errors.Join(err, failed()); err != nil {
		return fmt.Errorf("count the flows that were kept: %w", err)
	}
	for owner, s := range accounts {
		if owner == SharesCommon || s.Used == held[owner] {
			continue
		}
		if err := d.add(owner, held[owner]-s.Used); err != nil {
			return err
		}
	}
	return nil
}
