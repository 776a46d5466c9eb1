// Package reflectortest is an etcd in memory, with the failures one wants to see.
//
// It keeps no history beyond the last few changes, as a compacted store does.
package reflectortest

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/weft-mesh/weft/meshagent/reflector"
	"github.com/weft-mesh/weft/store/watch"
	"github.com/weft-mesh/weft/wire"
)

// ErrAway is what every call answers while the store is away.
var ErrAway = errors.New("store is away")

var errCompacted = errors.New("revision has been compacted")

// Store is a reflector.Source and Sink. Several goroutines may use it.
type Store struct {
	// mu guards everything below.
	mu       sync.Mutex
	away     bool
	revision int64
	keys     map[string]reflector.KV
	history  []reflector.Event
	changed  chan struct{}
	lineage  wire.Lineage
	starts   int // of any of its histories
}

// New returns an empty store.
func New() *Store {
	s := &Store{keys: map[string]reflector.KV{}, changed: make(chan struct{})}
	s.startLocked()
	return s
}

func (s *Store) startLocked() {
	s.starts++
	s.lineage = s.lineage.With(wire.Start{ID: strconv.Itoa(s.starts), After: s.revision})
	s.wakeLocked()
}

// Copy is what a store held at one moment.
type Copy struct {
	revision int64
	keys     map[string]reflector.KV
	lineage  wire.Lineage
}

// Copy keeps what there is, as a copy of the data folder does.
func (s *Store) Copy() Copy {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Copy{s.revision, maps.Clone(s.keys), s.lineage}
}

// PutBack starts the store from a copy: watches that have seen more end with
// watch.ErrWentBack, however much is written before they notice.
func (s *Store) PutBack(c Copy) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision, s.keys, s.history, s.lineage = c.revision, maps.Clone(c.keys), nil, c.lineage
	s.startLocked()
}

// SetAway cuts or restores every connection. Watches end, as after a long cut.
func (s *Store) SetAway(away bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = away
	s.history = nil
	s.wakeLocked()
}

// Forget empties the store, as a lost disk does.
func (s *Store) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.keys)
	s.history = nil
}

func (s *Store) wakeLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Put stores value under key.
func (s *Store) Put(ctx context.Context, key string, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away {
		return ErrAway
	}
	s.revision++
	kv := reflector.KV{Key: key, Value: slices.Clone(value), Revision: s.revision}
	s.keys[key] = kv
	s.history = append(s.history, reflector.Event{KV: kv})
	s.wakeLocked()
	return nil
}

// Write makes changes in their order.
func (s *Store) Write(ctx context.Context, changes []reflector.Change) error {
	for _, c := range changes {
		act := func() error { return s.Put(ctx, c.Key, c.Value) }
		if c.Delete {
			act = func() error { return s.Delete(ctx, c.Key) }
		}
		if err := act(); err != nil {
			return err
		}
	}
	return nil
}

// PutLeased is Put: leases here never end.
func (s *Store) PutLeased(ctx context.Context, key string, value []byte) error {
	return s.Put(ctx, key, value)
}

// Delete removes key.
func (s *Store) Delete(ctx context.Context, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away {
		return ErrAway
	}
	if _, ok := s.keys[key]; !ok {
		return nil
	}
	s.revision++
	delete(s.keys, key)
	s.history = append(s.history, reflector.Event{KV: reflector.KV{Key: key, Revision: s.revision}, Deleted: true})
	s.wakeLocked()
	return nil
}

// Renew keeps leases, which never end here.
func (s *Store) Renew(ctx context.Context) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away {
		return false, ErrAway
	}
	return false, nil
}

// Get returns the value under key.
func (s *Store) Get(key string) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kv, ok := s.keys[key]
	return kv.Value, ok
}

// List implements reflector.Source.
func (s *Store) List(ctx context.Context, prefix string) ([]reflector.KV, watch.Point, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away {
		return nil, watch.Point{}, ErrAway
	}
	var kvs []reflector.KV
	for key, kv := range s.keys {
		if strings.HasPrefix(key, prefix) {
			kvs = append(kvs, kv)
		}
	}
	slices.SortFunc(kvs, func(a, b reflector.KV) int { return strings.Compare(a.Key, b.Key) })
	return kvs, watch.Point{Revision: s.revision, Start: s.lineage.Last()}, nil
}

// signOfLife is the pause between two of them, as a real store gives them.
const signOfLife = 10 * time.Second

// Watch implements reflector.Source.
func (s *Store) Watch(ctx context.Context, prefix string, after watch.Point, each func(int64, []reflector.Event)) error {
	for {
		events, changed, err := s.after(prefix, &after)
		if err != nil {
			return err
		}
		each(after.Revision, events)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-time.After(signOfLife):
		}
	}
}

func (s *Store) after(prefix string, at *watch.Point) ([]reflector.Event, <-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away {
		return nil, nil, ErrAway
	}
	if !s.lineage.Holds(at.Start, at.Revision) {
		return nil, nil, watch.ErrWentBack
	}
	if at.Revision < s.revision && (len(s.history) == 0 || s.history[0].Revision > at.Revision+1) {
		return nil, nil, errCompacted
	}
	var events []reflector.Event
	for _, e := range s.history {
		if e.Revision > at.Revision && strings.HasPrefix(e.Key, prefix) {
			events = append(events, e)
		}
	}
	*at = watch.Point{Revision: s.revision, Start: s.lineage.Last()}
	return events, s.changed, nil
}
