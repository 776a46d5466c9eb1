// Package reflector follows prefixes of the cluster's etcd and passes on changes.
//
// All wanted state, local and remote, reaches the agent through it. What a key means is
// up to whoever receives the changes.
package reflector

import (
	"context"
	"errors"
	"hash/maphash"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/weft-mesh/weft/store/watch"
)

// KV is one key as stored. Revision is that of its last change.
type KV struct {
	Key      string
	Value    []byte
	Revision int64
}

// Event is one change. A deleted key has no value.
type Event struct {
	KV
	Deleted bool
}

// Source is what a reflector needs of etcd.
type Source interface {
	// List returns all keys under prefix as they were at one point.
	List(ctx context.Context, prefix string) (kvs []KV, at watch.Point, err error)
	// Watch calls each, in order, with what changed under prefix after a point, and
	// with the revision that this is current to. Without changes it is a sign of
	// life. It blocks until ctx ends or it can no longer promise that nothing is
	// missed, which includes a store that has fallen silent or went back in time; the
	// caller then lists again.
	Watch(ctx context.Context, prefix string, after watch.Point, each func(revision int64, events []Event)) error
}

// Config describes one reflector.
type Config struct {
	Prefix string
	Source Source
	// Apply receives changes in order. It is never called concurrently.
	Apply func([]Event)
	// Trust returns an error if the store must not be believed. It is called before each
	// list and again after it; a refused list changes nothing and is requested again. If
	// Trust is nil, every store is believed.
	Trust func(context.Context) error
	Log   *slog.Logger
}

// Reflector follows one prefix.
//
//	listing ──complete──► watching ──broken──► listing …
//	            │
//	            └─ what the list lacks is deleted, only then and only now
//
// A connection that goes away deletes nothing: rows stay as they are until a
// complete list says otherwise.
type Reflector struct {
	cfg    Config
	synced chan struct{}
	once   sync.Once

	// mu guards state, which is read by status.
	mu    sync.Mutex
	state State
}

// State describes a reflector.
type State struct {
	Prefix string `json:"prefix"`
	// Synced is set once a list has been read in full.
	Synced bool `json:"synced"`
	// Connected is set while the watch runs.
	Connected bool `json:"connected"`
	// Revision is that of the store up to which everything under the prefix was
	// read, as of Heard.
	Revision int64 `json:"revision"`
	// Keys counts keys known now.
	Keys int `json:"keys"`
	// Heard is when the store last answered, reported a change or gave a sign of
	// life.
	Heard time.Time `json:"heard"`
	// Error says why it is not connected; empty otherwise.
	Error string `json:"error,omitempty"`
}

// New makes a reflector that does nothing until Run.
func New(cfg Config) *Reflector {
	return &Reflector{cfg: cfg, synced: make(chan struct{}), state: State{Prefix: cfg.Prefix}}
}

// Synced is closed after the first complete list was applied.
func (r *Reflector) Synced() <-chan struct{} { return r.synced }

// State returns the present state. Any goroutine may call it.
func (r *Reflector) State() State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state
}

// cause is an error for people: a deadline is not said in Go's words.
func cause(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer in time"
	}
	return err.Error()
}

func (r *Reflector) update(f func(*State)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.state)
}

const (
	// firstPause and lastPause bound the wait before listing again. A store that
	// is away is asked every 2 s at most: one small request per agent.
	firstPause = 50 * time.Millisecond
	lastPause  = 2 * time.Second
)

// Run follows the prefix until ctx ends.
func (r *Reflector) Run(ctx context.Context) error {
	known := map[string]version{}
	pause := firstPause
	for ctx.Err() == nil {
		healthy, err := r.follow(ctx, known)
		if ctx.Err() != nil {
			break
		}
		r.update(func(s *State) {
			s.Connected = false
			if err != nil {
				s.Error = cause(err)
			}
		})
		if healthy {
			pause = firstPause
		}
		switch {
		case errors.Is(err, watch.ErrWentBack):
			r.cfg.Log.Warn("the store was restored from an older copy; reading all of it again", "prefix", r.cfg.Prefix, "error", err)
		case err != nil:
			r.cfg.Log.Debug("store cannot be reached; keeping the last known state", "prefix", r.cfg.Prefix, "error", err)
		}
		// Jitter keeps a thousand agents from listing at the same moment.
		wait := pause/2 + rand.N(pause)
		pause = min(2*pause, lastPause)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return nil
}

// follow lists once and watches until that breaks. healthy says that the watch lasted
// for a while, so that the next attempt need not wait long.
func (r *Reflector) follow(ctx context.Context, known map[string]version) (healthy bool, err error) {
	kvs, at, err := r.list(ctx)
	if err != nil {
		return false, err
	}
	if changes := sweep(known, kvs); len(changes) > 0 {
		r.cfg.Apply(changes)
	}
	r.update(func(s *State) {
		s.Synced, s.Connected, s.Error, s.Heard, s.Revision, s.Keys = true, true, "", time.Now(), at.Revision, len(known)
	})
	r.once.Do(func() { close(r.synced) })

	began := time.Now()
	err = r.cfg.Source.Watch(ctx, r.cfg.Prefix, at, func(revision int64, events []Event) {
		for _, e := range events {
			if e.Deleted {
				delete(known, e.Key)
			} else {
				known[e.Key] = versionOf(e.KV)
			}
		}
		if len(events) > 0 {
			r.cfg.Apply(events)
		}
		r.update(func(s *State) { s.Heard, s.Revision, s.Keys = time.Now(), revision, len(known) })
	})
	if err == nil && ctx.Err() == nil {
		err = errors.New("watch ended")
	}
	return time.Since(began) >= lastPause, err
}

// list reads everything from a store that was trusted before and after.
func (r *Reflector) list(ctx context.Context) ([]KV, watch.Point, error) {
	trust := r.cfg.Trust
	if trust == nil {
		trust = func(context.Context) error { return nil }
	}
	if err := trust(ctx); err != nil {
		return nil, watch.Point{}, err
	}
	kvs, at, err := r.cfg.Source.List(ctx, r.cfg.Prefix)
	if err != nil {
		return nil, watch.Point{}, err
	}
	return kvs, at, trust(ctx)
}

// version tells one value of a key from another. The revision alone does not: in
// a store that went back in time, it stands for something else.
type version struct {
	revision int64
	hash     uint64
}

var seed = maphash.MakeSeed()

func versionOf(kv KV) version { return version{kv.Revision, maphash.Bytes(seed, kv.Value)} }

// sweep turns a complete list into the changes against known, and brings known
// up to it: deletions last, so that something renamed exists at every moment.
func sweep(known map[string]version, kvs []KV) []Event {
	var events []Event
	listed := make(map[string]struct{}, len(kvs))
	for _, kv := range kvs {
		listed[kv.Key] = struct{}{}
		if v := versionOf(kv); known[kv.Key] != v {
			known[kv.Key] = v
			events = append(events, Event{KV: kv})
		}
	}
	for key := range known {
		if _, ok := listed[key]; !ok {
			delete(known, key)
			events = append(events, Event{KV: KV{Key: key}, Deleted: true})
		}
	}
	return events
}
