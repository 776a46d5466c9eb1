// Package storetest is the in-memory twin of an etcd: package store's interfaces with
// revisions, watches, compaction, leases, restored copies and failures on request.
//
// It takes the time only for signs of life, for leases that are told to end by the clock,
// and on Links that are cut, so it works in synctest bubbles.
package storetest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// Store is an etcd in memory. The zero value is not usable: use New.
type Store struct {
	mu        sync.Mutex // guards what follows
	revision  int64
	compacted int64 // watches must start after this revision
	kvs       map[string]store.KV
	history   []store.Event // in order of revision
	changed   chan struct{} // closed and replaced at every commit
	fail      func(call, key string) error
	lease     store.Lease
	leases    map[store.Lease]*lease
	timed     bool // leases end by the clock
	lineage   wire.Lineage
	number    int64         // tells its starts from those of other stores
	starts    int           // in all of its histories
	alive     time.Duration // pause between two signs of life; 0: watches give none
}

var (
	_ store.Store  = (*Store)(nil)
	_ store.Leases = (*Store)(nil)
	_ store.Holder = (*Store)(nil)
)

// stores counts the stores of this process.
var stores atomic.Int64

// New returns an empty store at revision 1, as a new etcd.
func New() *Store {
	s := &Store{number: stores.Add(1), revision: 1, kvs: map[string]store.KV{}, changed: make(chan struct{}), leases: map[store.Lease]*lease{}}
	s.startLocked()
	return s
}

func (s *Store) startLocked() {
	s.starts++
	s.lineage = s.lineage.With(wire.Start{ID: fmt.Sprintf("%d.%d", s.number, s.starts), After: s.revision})
	s.wakeLocked()
}

// Copy is the content of a store at one moment.
type Copy struct {
	revision  int64
	compacted int64
	history   []store.Event // after compacted: etcd's snapshots have it
	kvs       map[string]store.KV
	lineage   wire.Lineage
	leases    map[store.Lease]time.Duration // and their TTL
	users     map[string]store.User         // of an Etcd
}

// Copy returns the current content, like a copy of the data folder.
func (s *Store) Copy() Copy {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := Copy{
		revision: s.revision, compacted: s.compacted, history: slices.Clip(s.history), kvs: maps.Clone(s.kvs),
		lineage: s.lineage, leases: map[store.Lease]time.Duration{},
	}
	for id, l := range s.leases {
		c.leases[id] = l.ttl
	}
	return c
}

// PutBack restarts the store from a copy: watches that have seen more end with
// ErrWentBack, however much is written before they notice. Leases that the copy lacks have
// ended, and those that it has begin again. What begins with one of the prefixes is deleted
// before anybody reads it.
func (s *Store) PutBack(c Copy, without ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision, s.compacted, s.kvs, s.history, s.lineage = c.revision, c.compacted, maps.Clone(c.kvs), c.history, c.lineage
	s.putBackLeasesLocked(c.leases)
	s.startLocked()
	for _, prefix := range without {
		s.applyLocked([]store.Op{store.DeletePrefix(prefix)})
	}
}

// Fail makes the store call fail before every "get", "list", "watch", "commit", "grant"
// and "renew"; if it returns an error, the call fails with it. Running watches end when it
// returns an error for "watch". nil ends the failures.
func (s *Store) Fail(fail func(call, key string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = fail
	s.wakeLocked()
}

// SetSignOfLife makes watches call each with an empty batch whenever nothing has changed for
// a while, as an etcd is asked to; 0, as at first, means never. Tests in which years pass do
// without.
func (s *Store) SetSignOfLife(pause time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alive = pause
}

// SetAway cuts or restores every connection: while it is away, each call and each watch
// fails with store.ErrUnavailable. It replaces what Fail has set.
func (s *Store) SetAway(away bool) {
	if !away {
		s.Fail(nil)
		return
	}
	s.Fail(func(string, string) error { return store.ErrUnavailable })
}

// Lose puts a new and empty store in the place of this one, as a lost disk does.
func (s *Store) Lose() { s.PutBack(Copy{revision: 1, kvs: map[string]store.KV{}}) }

// Forget deletes everything without a trace in the history.
func (s *Store) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.kvs)
	s.history, s.compacted = nil, s.revision
	s.wakeLocked()
}

// Compact drops history: watches that lag behind end with ErrCompacted.
func (s *Store) Compact() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.compacted = s.revision
	s.history = nil
	s.wakeLocked()
}

// Revision returns the current revision.
func (s *Store) Revision() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.revision
}

// Dump returns everything under prefix as sorted "key=value" lines, for tests to
// compare.
func (s *Store) Dump(prefix string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var lines []string
	for key, kv := range s.kvs {
		if strings.HasPrefix(key, prefix) {
			lines = append(lines, key+"="+string(kv.Value))
		}
	}
	slices.Sort(lines)
	return lines
}

// Value returns the value of a key, even while the store is away.
func (s *Store) Value(key string) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kv, ok := s.kvs[key]
	return kv.Value, ok
}

// Put writes one key, like any client.
func (s *Store) Put(ctx context.Context, key string, value []byte) error {
	return store.Write(ctx, s, store.Put(key, value))
}

// Delete deletes one key, like any client.
func (s *Store) Delete(ctx context.Context, key string) error {
	return store.Write(ctx, s, store.Delete(key))
}

func (s *Store) wakeLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Store) failingLocked(call, key string) error {
	if s.fail == nil {
		return nil
	}
	return s.fail(call, key)
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.KV, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.beforeLocked(ctx, "get", key); err != nil {
		return store.KV{}, err
	}
	kv, ok := s.kvs[key]
	if !ok {
		return store.KV{}, fmt.Errorf("%s: %w", key, store.ErrNotFound)
	}
	return kv, nil
}

// GetMany implements store.Store. It fails as "get" of the first key.
func (s *Store) GetMany(ctx context.Context, keys ...string) ([]store.KV, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.beforeLocked(ctx, "get", keys[0]); err != nil {
		return nil, err
	}
	kvs := make([]store.KV, len(keys))
	for i, key := range keys {
		kvs[i] = s.kvs[key]
		kvs[i].Key = key
	}
	return kvs, nil
}

func (s *Store) beforeLocked(ctx context.Context, call, key string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.failingLocked(call, key)
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string) ([]store.KV, store.Point, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.beforeLocked(ctx, "list", prefix); err != nil {
		return nil, store.Point{}, err
	}
	var kvs []store.KV
	for key, kv := range s.kvs {
		if strings.HasPrefix(key, prefix) {
			kvs = append(kvs, kv)
		}
	}
	slices.SortFunc(kvs, func(a, b store.KV) int { return strings.Compare(a.Key, b.Key) })
	return kvs, store.Point{Revision: s.revision, Start: s.lineage.Last()}, nil
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefix string, after store.Point, each func(store.Batch) error) error {
	empty := false // the next batch may be
	for {
		s.mu.Lock()
		if err := s.beforeLocked(ctx, "watch", prefix); err != nil {
			s.mu.Unlock()
			return err
		}
		if !s.lineage.Holds(after.Start, after.Revision) {
			s.mu.Unlock()
			return fmt.Errorf("watch %s: %w", prefix, store.ErrWentBack)
		}
		if after.Revision < s.compacted {
			s.mu.Unlock()
			return fmt.Errorf("watch %s: %w", prefix, store.ErrCompacted)
		}
		batch := store.Batch{Revision: s.revision}
		first, _ := slices.BinarySearchFunc(s.history, after.Revision+1, func(ev store.Event, r int64) int { return cmp.Compare(ev.Modified, r) })
		for _, ev := range s.history[first:] {
			if strings.HasPrefix(ev.Key, prefix) {
				batch.Events = append(batch.Events, ev)
			}
		}
		changed, pause := s.changed, s.alive
		after = store.Point{Revision: batch.Revision, Start: s.lineage.Last()}
		s.mu.Unlock()
		if len(batch.Events) > 0 || empty {
			if err := each(batch); err != nil {
				return err
			}
		}
		var err error
		if empty, err = wait(ctx, changed, pause); err != nil {
			return err
		}
	}
}

// wait waits for a change, or until it is time for a sign of life.
func wait(ctx context.Context, changed <-chan struct{}, pause time.Duration) (sign bool, err error) {
	var due <-chan time.Time // never
	if pause > 0 {
		timer := time.NewTimer(pause)
		defer timer.Stop()
		due = timer.C
	}
	select {
	case <-changed:
		return false, nil
	case <-due:
		return true, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// Commit implements store.Store.
func (s *Store) Commit(ctx context.Context, txn store.Txn) (int64, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := ""
	if len(txn.Then) > 0 {
		key = txn.Then[0].Key
	}
	if err := s.beforeLocked(ctx, "commit", key); err != nil {
		return 0, false, err
	}
	if err := writtenTwice(txn.Then); err != nil {
		return 0, false, err
	}
	for _, c := range txn.If {
		if !s.holdsLocked(c) {
			return s.revision, false, nil
		}
	}
	for _, op := range txn.Then {
		if _, ok := s.leases[op.Lease]; op.Lease != 0 && !ok {
			return 0, false, fmt.Errorf("put %s: %w", op.Key, store.ErrLeaseEnded)
		}
	}
	s.applyLocked(txn.Then)
	return s.revision, true, nil
}

// writtenTwice refuses what etcd refuses: two writes of one key in a transaction.
func writtenTwice(ops []store.Op) error {
	deleted := make(map[string]bool, len(ops))
	for _, op := range ops {
		if was, twice := deleted[op.Key]; twice && !(was && op.Delete) {
			return fmt.Errorf("duplicate key given in txn request: %s", op.Key)
		}
		deleted[op.Key] = op.Delete
	}
	return nil
}

func (s *Store) holdsLocked(c store.Cond) bool {
	if !c.Prefix {
		return s.kvs[c.Key].Modified == c.Modified
	}
	for key := range s.kvs {
		if strings.HasPrefix(key, c.Key) {
			return false
		}
	}
	return true
}

func (s *Store) applyLocked(ops []store.Op) {
	next, before := s.revision+1, len(s.history)
	for _, op := range ops {
		if !op.Delete {
			kv := store.KV{Key: op.Key, Value: slices.Clone(op.Value), Created: next, Modified: next, Lease: op.Lease}
			if old, ok := s.kvs[op.Key]; ok {
				kv.Created = old.Created
			}
			s.kvs[op.Key] = kv
			s.history = append(s.history, store.Event{KV: kv})
			continue
		}
		for _, key := range s.coveredLocked(op) {
			delete(s.kvs, key)
			s.history = append(s.history, store.Event{KV: store.KV{Key: key, Modified: next}, Deleted: true})
		}
	}
	if len(s.history) > before {
		s.revision = next
		s.wakeLocked()
	}
}

// coveredLocked returns the existing keys that a deletion covers.
func (s *Store) coveredLocked(op store.Op) (keys []string) {
	if !op.Prefix {
		if _, ok := s.kvs[op.Key]; ok {
			keys = append(keys, op.Key)
		}
		return keys
	}
	for key := range s.kvs {
		if strings.HasPrefix(key, op.Key) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}
