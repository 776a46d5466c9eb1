// Package state keeps the cluster's own state in memory, decoded once, and passes its
// changes to whoever derives something from it.
//
// What follows from the state is decided in packages endpoints and export.
package state

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// Batch is what a follower is given at once, as a store.Batch.
type Batch struct {
	// Complete means that Events contains every existing key.
	Complete bool
	// Events may be empty; then the batch is a sign of life of the store.
	Events []Event
}

// Cache is the state. Run follows the store; any number of followers follow the cache, each
// at its own pace.
type Cache struct {
	store store.Store
	log   *slog.Logger

	mu        sync.Mutex // guards what follows
	rows      map[string]Event
	whole     bool // rows are all that the store has
	followers map[*follower]bool
}

// follower is one follower's place.
type follower struct {
	pending []Event
	whole   bool // everything has to be passed on
	alive   bool // the store gave a sign of life
	wake    chan struct{}
}

// New returns an empty cache.
func New(s store.Store, log *slog.Logger) *Cache {
	return &Cache{store: s, log: log, rows: map[string]Event{}, followers: map[*follower]bool{}}
}

// Run follows the store until ctx ends; then it returns nil.
func (c *Cache) Run(ctx context.Context) error {
	return store.Persist(ctx, c.log, "following the cluster's state", func(ctx context.Context) error {
		return store.Follow(ctx, c.store, wire.StatePrefix, func(b store.Batch) error {
			c.apply(b)
			return nil
		})
	})
}

func (c *Cache) apply(b store.Batch) {
	events := make([]Event, 0, len(b.Events))
	for _, ev := range b.Events {
		if e, ok := Decode(ev); ok {
			events = append(events, e)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if b.Complete {
		c.whole = true
		clear(c.rows)
	}
	for _, e := range events {
		if c.rows[e.Key] = e; e.Deleted {
			delete(c.rows, e.Key)
		}
	}
	for r := range c.followers {
		switch {
		case b.Complete:
			r.whole, r.pending = true, nil
		case len(b.Events) == 0:
			r.alive = true
		case r.whole || len(events) == 0:
			continue
		default:
			r.pending = append(r.pending, events...)
		}
		r.notify()
	}
}

func (r *follower) notify() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Follow passes everything to each, then every change, as store.Follow does: after the
// cache had to list its store again, another complete batch follows. It returns when ctx
// ends or each fails.
func (c *Cache) Follow(ctx context.Context, each func(Batch) error) error {
	r := &follower{whole: true, wake: make(chan struct{}, 1)}
	c.mu.Lock()
	c.followers[r] = true
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.followers, r)
	}()
	for {
		if b, ok := c.next(r); ok {
			if err := each(b); err != nil {
				return err
			}
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.wake:
		}
	}
}

// next returns what a follower has not seen yet; false if there is nothing.
func (c *Cache) next(r *follower) (Batch, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !c.whole, !r.whole && len(r.pending) == 0 && !r.alive:
		return Batch{}, false
	case r.whole:
		r.whole, r.alive, r.pending = false, false, nil
		return Batch{Complete: true, Events: slices.Collect(maps.Values(c.rows))}, true
	}
	b := Batch{Events: r.pending}
	r.pending, r.alive = nil, false
	return b, true
}
