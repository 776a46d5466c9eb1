package mirror

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// errRebuilt: the peer's store is not the one our copy is from.
var errRebuilt = errors.New("the peer's store was rebuilt; reading all of it again")

// listing is the complete content of one of the peer's folders at a point.
type listing struct {
	folder folder
	kvs    []store.KV
	at     store.Point
}

// list reads everything from the peer. If the peer is over its limit, it returns
// errOverLimit, along with the lists if they are complete; beyond Limit.Read it stops
// and returns none.
func (m *Mirror) list(ctx context.Context, src Source, config wire.ClusterConfig) (out []listing, over error) {
	most := m.conf.Limit.Read()
	entries, bytes := 0, 0
	for _, f := range m.claims.read(config.Capabilities) {
		kvs, at, err := listOne(ctx, src, f.prefix, m.conf.Listing)
		if errors.Is(err, store.ErrDenied) && f.resource == "" {
			continue // a peer that was added before Cilium's were told apart
		}
		switch {
		case errors.Is(err, store.ErrTooMany):
			return nil, m.bound(f, m.conf.Limit.Entries+1, bytes)
		case errors.Is(err, store.ErrTooMuch):
			return nil, m.bound(f, entries, m.conf.Limit.Bytes+1)
		case err != nil:
			return nil, fmt.Errorf("list the peer's %s: %w", f.name, err)
		}
		entries += len(kvs)
		for _, kv := range kvs {
			bytes += len(kv.Key) + len(kv.Value)
		}
		if over == nil {
			over = m.bound(f, entries, bytes)
		}
		if over != nil && most.check(entries, bytes) != nil {
			return nil, over
		}
		out = append(out, listing{f, kvs, at})
	}
	return out, over
}

func listOne(ctx context.Context, src Source, prefix string, within time.Duration) ([]store.KV, store.Point, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	return src.List(ctx, prefix)
}

// sweep makes our copy equal to complete lists. What they lack is deleted, or held if
// it is too much. over says why our copy may only shrink; nil if it may grow.
func (m *Mirror) sweep(ctx context.Context, lists []listing, over error) error {
	m.writing.Lock()
	defer m.writing.Unlock()
	m.mu.Lock()
	ops, listed := m.sweepLocked(lists)
	entries, bytes := m.afterLocked(ops)
	m.mu.Unlock()
	if over == nil {
		if over = m.bound(folder{name: "entries", prefix: wire.CiliumStatePrefix}, entries, bytes); over == nil {
			m.pardonOverLimit()
		}
	}
	if err := m.commitWithin(ctx, ops, over); err != nil {
		return err
	}
	m.mu.Lock()
	if len(m.held) == 0 {
		m.generation = listed
	}
	m.count.relists++
	m.mu.Unlock()
	return nil
}

func (m *Mirror) sweepLocked(lists []listing) (ops []store.Op, generation string) {
	all := 0
	for _, l := range lists {
		all += len(l.kvs)
	}
	seen, listed := make(map[string]bool, all), map[string]bool{} // listed: only once something is refused
	m.pending = nil
	for _, l := range lists {
		for _, kv := range l.kvs {
			ours, op, ok := m.acceptLocked(l.folder, kv.Key, kv.Value)
			if len(m.count.refused) > 0 {
				listed[kv.Key], listed[m.oursOf(l.folder, kv.Key)] = true, true
			}
			if ok {
				seen[ours] = true
				ops = append(ops, op...)
			}
			if kv.Key == wire.ExportClusterKey {
				if c, err := wire.Unmarshal[wire.ExportCluster](kv.Value); err == nil {
					generation = c.Generation
				}
			}
		}
	}
	maps.DeleteFunc(m.count.refused, func(key string, r refusal) bool { return r.kind.reason != OverLimit && !listed[key] })
	r := relist{Generation: m.generation, Listed: generation}
	other := otherForm(lists)
	var gone []string
	for key, e := range m.have {
		missing := !seen[key]
		if missing && e.folder == other {
			ops = append(ops, store.Delete(key)) // after the puts of what replaces it
			continue
		}
		r.Have++
		if missing {
			r.Missing++
			gone = append(gone, key)
		}
		if e.folder == string(wire.Nodes) {
			r.Nodes++
			if missing {
				r.MissingNodes++
			}
		}
	}
	m.count.holding = hold(r)
	clear(m.held)
	if m.count.holding != "" {
		for _, key := range gone {
			m.held[key] = true
		}
		m.conf.Log.Warn("holding deletions of a peer until `weft peer release`", "peer", m.conf.Peer.Name, "entries", r.Missing, "why", m.count.holding)
		return ops, generation
	}
	for _, key := range gone {
		ops = append(ops, store.Delete(key))
	}
	return append(ops, m.clusterOpLocked()...), generation
}

// bound returns an error, and records it, if this much must not be copied.
func (m *Mirror) bound(f folder, entries, bytes int) error {
	err := m.conf.Limit.check(entries, bytes)
	if err == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refuseLocked(f, f.prefix, OverLimit, err)
	return fmt.Errorf("%w: %w", ErrRefused, err)
}

// afterLocked returns how large our copy would be after these writes.
func (m *Mirror) afterLocked(ops []store.Op) (entries, bytes int) {
	entries, bytes = len(m.have), m.bytes
	for _, op := range ops {
		if e, known := m.have[op.Key]; known {
			entries, bytes = entries-1, bytes-e.size
		}
		if !op.Delete {
			entries, bytes = entries+1, bytes+len(op.Key)+len(op.Value)
		}
	}
	return entries, bytes
}

// acceptLocked judges one of the peer's values. It returns our key for it and what to
// write, and false if nothing of it is kept. The peer's ExportCluster waits in pending,
// because it carries the generation.
func (m *Mirror) acceptLocked(f folder, key string, value []byte) (ours string, ops []store.Op, ok bool) {
	ours, value, reason, err := m.claims.judge(f, key, value)
	if err != nil {
		m.refuseLocked(f, key, reason, err)
	} else {
		m.pardonLocked(key)
	}
	if value == nil {
		return ours, nil, false
	}
	if key == wire.ExportClusterKey {
		m.pending = value
		return ours, nil, true
	}
	if e, known := m.have[ours]; known && e.hash == maphash.Bytes(seed, value) {
		return ours, nil, true
	}
	return ours, []store.Op{store.Put(ours, value)}, true
}

// clusterOpLocked returns the write of the pending ExportCluster, if it changed.
func (m *Mirror) clusterOpLocked() []store.Op {
	if m.pending == nil {
		return nil
	}
	key := wire.PeerClusterKey(m.conf.Peer.Name)
	if e, known := m.have[key]; known && e.hash == maphash.Bytes(seed, m.pending) {
		return nil
	}
	return []store.Op{store.Put(key, m.pending)}
}

// follow queues changes until the watch ends. If history was compacted away or the
// peer's store went back in time, the session ends and the next one begins with a
// complete list.
func (m *Mirror) follow(ctx context.Context, src Source, q *queue, f folder, after store.Point) error {
	err := src.Watch(ctx, f.prefix, after, func(b store.Batch) error {
		m.hear()
		entries, bytes := q.put(f, b.Events, upTo(b), time.Now())
		if most := m.conf.Limit.Read(); most.check(entries, bytes) != nil {
			return m.bound(f, m.conf.Limit.Entries+1, bytes) // no peer within its limit changes this much
		}
		return nil
	})
	if err == nil {
		err = store.ErrUnavailable
	}
	return fmt.Errorf("follow the peer's %s: %w", f.name, err)
}

// upTo returns the revision up to which a batch is complete. While a watch catches up, the
// batch's own revision is later than that.
func upTo(b store.Batch) int64 {
	if n := len(b.Events); n > 0 {
		return b.Events[n-1].Modified
	}
	return b.Revision
}

// drainChanges and drainBytes bound how much is copied at once: as much as fits into
// one transaction.
const (
	drainChanges = 100
	drainBytes   = 1 << 20
)

// owed returns how long to wait until the next write, because of earlier ones.
func (m *Mirror) owed() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pace.wait(time.Now())
}

// awaitPace waits until nothing is owed. Otherwise a peer that keeps breaking the link
// would have every complete list written at once.
func (m *Mirror) awaitPace(ctx context.Context) error {
	for wait := m.owed(); wait > 0; wait = m.owed() {
		m.setState(api.LinkConnecting, fmt.Errorf("it changed more than %d entries or %d KiB a second; it is read again in %v: ask its operator what rewrites them, or raise peerChanges and peerHistoryBytes (--peer-changes, --peer-history-bytes)",
			m.conf.Rate.Changes, m.conf.Rate.Bytes>>10, max(time.Second, wait.Round(time.Second))))
		if err := sleep(ctx, min(wait, time.Second)); err != nil {
			return err
		}
	}
	return nil
}

// drain copies changes from the queue, as fast as Rate allows, if they are vouched for.
func (m *Mirror) drain(ctx context.Context, q *queue, vouched func(folder, []store.Event) error) error {
	for {
		if wait := m.owed(); wait > 0 {
			m.tellLate(q)
			if err := sleep(ctx, wait); err != nil {
				return err
			}
			continue
		}
		f, events := q.take(drainChanges, drainBytes)
		if len(events) == 0 {
			m.late = false
			select {
			case <-q.wake:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := vouched(f, events); err != nil {
			return fmt.Errorf("follow the peer's %s: %w", f.name, err)
		}
		if err := m.change(ctx, f, events); err != nil {
			return fmt.Errorf("follow the peer's %s: %w", f.name, err)
		}
		q.done(f, len(events))
	}
}

// tellLate logs that changes wait, once until the queue is empty again.
func (m *Mirror) tellLate(q *queue) {
	if n, _ := q.oldest(); n > 0 && !m.late {
		m.late = true
		m.conf.Log.Warn("a peer changes more than its rate allows; its changes arrive late", "peer", m.conf.Peer.Name, "waiting", n)
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// change copies what the peer wrote and withdrew.
func (m *Mirror) change(ctx context.Context, f folder, events []store.Event) error {
	if len(events) == 0 {
		return nil
	}
	m.writing.Lock()
	defer m.writing.Unlock()
	m.mu.Lock()
	ops, rebuilt := m.changeLocked(f, events)
	entries, bytes := m.afterLocked(ops)
	created := 0
	for _, op := range ops {
		if _, known := m.have[op.Key]; !known {
			created++
		}
	}
	m.pace.spend(time.Now(), created, 0)
	m.mu.Unlock()
	if rebuilt {
		return errRebuilt
	}
	over := m.bound(f, entries, bytes)
	if over == nil {
		m.pardonOverLimit()
	}
	return m.commitWithin(ctx, ops, over)
}

func (m *Mirror) changeLocked(f folder, events []store.Event) (ops []store.Op, rebuilt bool) {
	for _, e := range lastOfEach(events) {
		var ours string
		var put []store.Op
		ok := false
		if e.Deleted {
			ours = m.oursOf(f, e.Key)
			m.pardonLocked(e.Key)
			m.pardonLocked(ours)
		} else if ours, put, ok = m.acceptLocked(f, e.Key, e.Value); ok {
			if e.Key == wire.ExportClusterKey {
				if c, err := wire.Unmarshal[wire.ExportCluster](e.Value); err == nil && m.generation != "" && c.Generation != m.generation && len(m.held) == 0 {
					return nil, true
				}
				if len(m.held) == 0 {
					put = m.clusterOpLocked()
				}
			}
			delete(m.held, ours)
			ops = append(ops, put...)
			continue
		}
		// Withdrawn, or replaced by a lie: either way the old value is void.
		if _, known := m.have[ours]; known {
			ops = append(ops, store.Delete(ours))
		}
	}
	if m.count.holding != "" && len(m.held) == 0 {
		// Everything came back.
		m.count.holding = ""
		ops = append(ops, m.clusterOpLocked()...)
	}
	return ops, false
}

// lastOfEach drops all changes of a key but the last, because a transaction may write
// a key only once.
func lastOfEach(events []store.Event) []store.Event {
	last := make(map[string]int, len(events))
	for i, e := range events {
		last[e.Key] = i
	}
	if len(last) == len(events) {
		return events
	}
	out := make([]store.Event, 0, len(last))
	for i, e := range events {
		if last[e.Key] == i {
			out = append(out, e)
		}
	}
	return out
}

func (m *Mirror) oursOf(f folder, key string) string {
	var ours string
	if f.resource == "" {
		ours, _ = wire.ExportToCache(key, m.conf.Peer.Name)
	} else {
		ours, _, _ = f.ours(m.conf.Peer.Name, key)
	}
	return ours
}

// commitWithin writes everything, or if over is set, only what does not enlarge our
// copy; then it returns over.
func (m *Mirror) commitWithin(ctx context.Context, ops []store.Op, over error) error {
	if over != nil {
		m.mu.Lock()
		ops = slices.DeleteFunc(ops, func(op store.Op) bool {
			e, known := m.have[op.Key]
			return !op.Delete && (!known || op.Key == wire.PeerClusterKey(m.conf.Peer.Name) || len(op.Key)+len(op.Value) > e.size)
		})
		m.mu.Unlock()
	}
	if err := m.commit(ctx, ops); err != nil {
		return fmt.Errorf("write our copy: %w", err)
	}
	return over
}

// commit writes to our store and remembers what it contains. A value that is too large
// for it is refused alone. After any other failure it is not known how much was
// written, and the next session reads our copy again.
func (m *Mirror) commit(ctx context.Context, ops []store.Op) error {
	tooLarge, err := store.WriteFitting(ctx, m.conf.Store, ops...)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		m.known = false
		return err
	}
	refused := make(map[string]bool, len(tooLarge))
	for _, op := range tooLarge {
		refused[op.Key] = true
		m.refuseLocked(folder{name: m.folderOf(op.Key)}, op.Key, TooLarge, fmt.Errorf("%d bytes are more than our store accepts", len(op.Value)))
	}
	m.rememberLocked(slices.DeleteFunc(slices.Clone(ops), func(op store.Op) bool { return refused[op.Key] }))
	return nil
}

func (m *Mirror) folderOf(key string) string {
	if ref, ok := wire.ParseCiliumCacheKey(key); ok {
		return string(ref.Resource)
	}
	return "weft"
}

func (m *Mirror) rememberLocked(ops []store.Op) {
	now := time.Now()
	for _, op := range ops {
		if old, known := m.have[op.Key]; known {
			m.pace.spend(now, 1, old.size) // it becomes history
			m.entries[old.folder]--
			m.bytes -= old.size
		}
		m.pardonLocked(op.Key) // if it was too large for our store
		if op.Delete {
			delete(m.have, op.Key)
			delete(m.held, op.Key)
			m.count.withdrawn++
			continue
		}
		e := entryOf(m.folderOf(op.Key), op.Key, op.Value)
		m.have[op.Key] = e
		m.entries[e.folder]++
		m.bytes += e.size
		m.count.written++
		if op.Key == wire.PeerClusterKey(m.conf.Peer.Name) {
			if c, err := wire.Unmarshal[wire.ExportCluster](op.Value); err == nil {
				m.generation = c.Generation
			}
		}
	}
	if m.count.holding != "" && len(m.held) == 0 {
		m.count.holding = ""
	}
}
