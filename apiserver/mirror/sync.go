package mirror

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"time"

	"github.com/weft-mesh/weft/apiserver/api"
	"github.com/weft-mesh/weft/apiserver/store"
	"github.com/weft-mesh/weft/wire"
)

// errRebuilt: the peer's store is another one than our copy is from.
var errRebuilt = errors.New("the peer's store was rebuilt; reading all of it again")

// listing is one folder of a peer, complete as of a point.
type listing struct {
	folder folder
	kvs    []store.KV
	at     store.Point
}

// awaitCanaries waits until the peer's store has been filled: before, an entry
// that is not there means nothing.
func (m *Mirror) awaitCanaries(ctx context.Context, src Source, config wire.ClusterConfig) error {
	missing := map[string]bool{}
	for _, r := range wire.Resources {
		if expected(r, config.Capabilities.EndpointSlicesExportMode) {
			missing[r.StateSyncedKey(m.conf.Peer.Name)] = true
		}
	}
	enough := errors.New("all canaries are there")
	err := store.Follow(ctx, src, wire.SyncedPrefix(m.conf.Peer.Name), func(b store.Batch) error {
		for _, e := range b.Events {
			if !e.Deleted {
				delete(missing, e.Key)
			}
		}
		if len(missing) == 0 {
			return enough
		}
		m.setState(api.LinkConnecting, fmt.Errorf("the peer is filling its store; %d of its resources are not complete yet", len(missing)))
		return nil
	})
	if errors.Is(err, enough) {
		return nil
	}
	return fmt.Errorf("wait until the peer has filled its store: %w", err)
}

// expected says whether a cluster of that export mode writes the resource.
func expected(r wire.Resource, mode string) bool {
	switch r {
	case wire.Services:
		return mode != wire.EndpointSlicesOnly
	case wire.EndpointSlices:
		return mode != ""
	}
	return true
}

// list reads everything of the peer. One that is over its limit fails with
// errOverLimit, and with lists all the same if they are complete: more than
// Limit.Read allows is not read to its end.
func (m *Mirror) list(ctx context.Context, src Source) (out []listing, over error) {
	most := m.conf.Limit.Read()
	entries, bytes := 0, 0
	for _, f := range m.claims.folders() {
		kvs, at, err := listOne(ctx, src, f.prefix, m.conf.Listing)
		if errors.Is(err, store.ErrDenied) && f.resource == "" {
			continue // a Cilium peer: its role does not name our prefix
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

// sweep makes our copy equal to complete lists. What they lack goes, unless it
// is so much that it is held. over is why it may only shrink; nil: it may grow.
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
	seen, listed := map[string]bool{}, map[string]bool{}
	m.pending = nil
	for _, l := range lists {
		for _, kv := range l.kvs {
			listed[kv.Key], listed[m.oursOf(l.folder, kv.Key)] = true, true
			if ours, op, ok := m.acceptLocked(l.folder, kv.Key, kv.Value); ok {
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
	var gone []string
	for key, e := range m.have {
		r.Have++
		missing := !seen[key]
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
		m.conf.Log.Warn("deletions of a peer are held", "peer", m.conf.Peer.Name, "entries", r.Missing, "why", m.count.holding)
		return ops, generation
	}
	for _, key := range gone {
		ops = append(ops, store.Delete(key))
	}
	return append(ops, m.clusterOpLocked()...), generation
}

// bound refuses to copy so much of the peer.
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

// afterLocked is how large our copy would be after these writes.
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

// acceptLocked judges one of the peer's values: the key it is kept under, what
// to write, false if all of it is refused. The cluster's own entry waits in pending,
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

// clusterOpLocked writes the cluster's own entry if it changed.
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

// follow takes in changes until the watch ends. A history that was compacted
// away, or is no longer that of the peer's store, ends the session, and the next
// begins with a complete list.
func (m *Mirror) follow(ctx context.Context, src Source, q *queue, f folder, after store.Point) error {
	err := src.Watch(ctx, f.prefix, after, func(b store.Batch) error {
		m.hear()
		entries, bytes := q.put(f, b.Events, time.Now())
		if most := m.conf.Limit.Read(); most.check(entries, bytes) != nil {
			return m.bound(f, m.conf.Limit.Entries+1, bytes) // no peer within its limit has so much to say
		}
		return nil
	})
	if err == nil {
		err = store.ErrUnavailable
	}
	return fmt.Errorf("follow the peer's %s: %w", f.name, err)
}

// drainChanges is how many changes are carried over at once, and how many bytes of
// them: as much as one transaction takes.
const (
	drainChanges = 100
	drainBytes   = 1 << 20
)

// owed is how long nothing may be written because of what was.
func (m *Mirror) owed() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pace.wait(time.Now())
}

// awaitPace waits until nothing is owed. Without it a peer could break the link off
// again and again, and have every list written at once.
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

// drain carries changes over, at the pace of the peer.
func (m *Mirror) drain(ctx context.Context, q *queue) error {
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
		if err := m.change(ctx, f, events); err != nil {
			return fmt.Errorf("follow the peer's %s: %w", f.name, err)
		}
	}
}

// tellLate logs once that changes wait, until none does.
func (m *Mirror) tellLate(q *queue) {
	if n, _ := q.oldest(); n > 0 && !m.late {
		m.late = true
		m.conf.Log.Warn("a peer changes more than is carried over at once; its changes come late", "peer", m.conf.Peer.Name, "waiting", n)
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

// change carries over what the peer wrote and withdrew.
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
		// Withdrawn, or replaced by a lie: what it said before no longer holds.
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

// lastOfEach drops all changes of a key but the last, because a transaction
// takes one write of a key, and what was in between is nobody's business.
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
		ours, _ = f.resource.StateToCache(key, m.conf.Peer.Name)
	}
	return ours
}

// commitWithin writes what may be written: everything, or what makes our copy no
// larger if the peer is over its limit, and fails with that then.
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

// commit writes to our store and remembers what stands there. A value that is
// too large for it is refused by itself. After any other failure it is not
// known how much was written, and the next session reads it.
func (m *Mirror) commit(ctx context.Context, ops []store.Op) error {
	err := store.Write(ctx, m.conf.Store, ops...)
	if err == nil {
		m.remember(ops)
		return nil
	}
	if errors.Is(err, store.ErrTooLarge) {
		err = m.commitEach(ctx, ops)
	}
	if err != nil {
		m.mu.Lock()
		m.known = false
		m.mu.Unlock()
	}
	return err
}

func (m *Mirror) commitEach(ctx context.Context, ops []store.Op) error {
	for _, op := range ops {
		switch err := store.Write(ctx, m.conf.Store, op); {
		case errors.Is(err, store.ErrTooLarge):
			m.mu.Lock()
			m.refuseLocked(folder{name: m.folderOf(op.Key)}, op.Key, TooLarge, fmt.Errorf("%d bytes are more than our store takes", len(op.Value)))
			m.mu.Unlock()
		case err != nil:
			return err
		default:
			m.remember([]store.Op{op})
		}
	}
	return nil
}

func (m *Mirror) folderOf(key string) string {
	if ref, ok := wire.ParseCiliumCacheKey(key); ok {
		return string(ref.Resource)
	}
	return "weft"
}

func (m *Mirror) remember(ops []store.Op) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for _, op := range ops {
		if old, known := m.have[op.Key]; known {
			m.pace.spend(now, 1, old.size) // it becomes history
		}
		m.bytes -= m.have[op.Key].size // 0 for what is new
		m.pardonLocked(op.Key)         // if it was too large for our store
		if op.Delete {
			delete(m.have, op.Key)
			delete(m.held, op.Key)
			m.count.withdrawn++
			continue
		}
		e := entryOf(m.folderOf(op.Key), op.Key, op.Value)
		m.have[op.Key] = e
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

// raiseCanaries tells our agents what of the copy is complete. They stay up: a
// later session changes nothing about that.
func (m *Mirror) raiseCanaries(ctx context.Context, mode string) error {
	var ops []store.Op
	var raised []wire.Resource
	for _, r := range wire.Resources {
		if !expected(r, mode) {
			continue
		}
		raised = append(raised, r)
		key := r.CacheSyncedKey(m.conf.Peer.Name)
		if _, err := m.conf.Store.Get(ctx, key); errors.Is(err, store.ErrNotFound) {
			ops = append(ops, store.Put(key, wire.TimeText(time.Now())))
		} else if err != nil {
			return fmt.Errorf("raise canaries: %w", err)
		}
	}
	if err := store.Write(ctx, m.conf.Store, ops...); err != nil {
		return fmt.Errorf("raise canaries: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range raised {
		m.count.synced[r] = true
	}
	return nil
}
