// Package reflector passes on what changes under a prefix of the cluster's store, and says
// how current that is.
//
// All wanted state, local and remote, reaches the agent through it. Package store follows
// the prefix; what a key means is up to whoever receives the changes.
package reflector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/weft-mesh/weft/store"
)

// Config describes one reflector.
type Config struct {
	Prefix string
	Store  store.Store
	// Apply receives changes in order. It is never called concurrently.
	Apply func([]store.Event)
	// Trust returns an error if the store must not be believed. It is called before each
	// list and again after it; a refused list changes nothing and is requested again. If
	// Trust is nil, every store is believed.
	Trust func(context.Context) error
	// Incomplete returns those of these peers of whose exports the store's copies were not
	// complete as of a revision. If it is nil, all are.
	Incomplete func(ctx context.Context, peers []string, revision int64) ([]string, error)
	// After are those who apply what was written before a key before this one applies
	// the key: a canary is worth nothing without what it stands for.
	After []*Reflector
	Log   *slog.Logger
}

// Reflector follows one prefix.
//
//	listing ──complete──► watching ──broken──► listing …
//	            │
//	            └─ what the list lacks is deleted, only then and only now
//
// A connection that goes away deletes nothing: rows stay as they are until a
// complete list says otherwise. What a list says about a peer counts only if the copy of
// the peer's export was complete; see doubted.
type Reflector struct {
	cfg    Config
	synced chan struct{}
	once   sync.Once

	mu    sync.Mutex // guards what follows
	state State
	moved chan struct{} // closed when the state changes; nil: nobody waits
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
	// Denied says that the store denies what is read here.
	Denied bool `json:"denied,omitempty"`
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
	if r.moved != nil {
		close(r.moved)
		r.moved = nil
	}
}

// reach waits until everything up to a revision was applied. It gives up when the store
// cannot be read, because it may have become another one meanwhile.
func (r *Reflector) reach(ctx context.Context, revision int64) error {
	for {
		r.mu.Lock()
		switch {
		case r.state.Error != "":
			defer r.mu.Unlock()
			return fmt.Errorf("wait for %s: %s", r.cfg.Prefix, r.state.Error)
		case r.state.Revision >= revision:
			r.mu.Unlock()
			return nil
		}
		if r.moved == nil {
			r.moved = make(chan struct{})
		}
		moved := r.moved
		r.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Run follows the prefix until ctx ends.
func (r *Reflector) Run(ctx context.Context) error {
	f := following{Reflector: r, known: newKnown()}
	// The agent says for all of its reflectors together that the store is away.
	quiet := slog.New(slog.DiscardHandler)
	return store.Persist(ctx, quiet, "following "+r.cfg.Prefix, func(ctx context.Context) error {
		err := store.Follow(ctx, trusted{r.cfg.Store, r.cfg.Trust}, r.cfg.Prefix, func(b store.Batch) error {
			return f.take(ctx, b)
		})
		if ctx.Err() == nil && !errors.Is(err, errCompleted) {
			r.cfg.Log.Debug("store cannot be reached; keeping the last known state", "prefix", r.cfg.Prefix, "error", err)
			r.update(func(s *State) { s.Connected, s.Error, s.Denied = false, cause(err), errors.Is(err, store.ErrDenied) })
		}
		return err
	})
}

// trusted is a store whose lists are believed only if it was trusted before and after.
type trusted struct {
	store.Store
	trust func(context.Context) error
}

// List implements store.Store.
func (t trusted) List(ctx context.Context, prefix string) ([]store.KV, store.Point, error) {
	if t.trust == nil {
		return t.Store.List(ctx, prefix)
	}
	if err := t.trust(ctx); err != nil {
		return nil, store.Point{}, err
	}
	kvs, at, err := t.Store.List(ctx, prefix)
	if err != nil {
		return nil, store.Point{}, err
	}
	return kvs, at, t.trust(ctx)
}
