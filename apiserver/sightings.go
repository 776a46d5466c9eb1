package apiserver

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// sightings remember since when each concern has been seen, for concerns whose maker
// cannot say when they began. The server that leads keeps them in the store, so that an
// old concern does not look young after a restart, or at another server.
type sightings struct {
	leads   func() bool
	log     *slog.Logger
	changed chan struct{} // has one element when seen changed

	mu   sync.Mutex // guards seen
	seen map[sighting]*span

	failing failing // to write them
}

// sighting identifies a concern. The message is not part of it, because it changes with
// every count in it.
type sighting struct{ Object, Node, Reason, Part string }

// span is when a concern was first and last seen.
type span struct{ first, last time.Time }

// sightingFile is their form in the store.
type sightingFile struct {
	Seen []sightingEntry `json:"seen"`
}

type sightingEntry struct {
	sighting
	Since time.Time `json:"since"`
}

const (
	// sightingTurn is how exact ages are when nobody asks for the status.
	sightingTurn = 5 * time.Second
	// A concern that comes back within sightingGap counts as never gone: a controller
	// that lists its store again has none for a moment.
	sightingGap = 3 * sightingTurn
	// restartGap is how long the parts may take after a start to find out again what
	// they knew before.
	restartGap = time.Minute
	// sightingPause is the shortest time between two writes.
	sightingPause = time.Second
)

// newSightings returns empty ones. leads reports whether this server leads, and so knows
// best.
func newSightings(leads func() bool, log *slog.Logger) *sightings {
	return &sightings{leads: leads, log: log, changed: make(chan struct{}, 1), seen: map[sighting]*span{}}
}

// follow takes over what the server that leads writes, until ctx ends.
func (s *sightings) follow(ctx context.Context, st store.Store) error {
	return store.Persist(ctx, s.log, "following since when concerns exist", func(ctx context.Context) error {
		return store.Follow(ctx, st, wire.SightingsKey, func(b store.Batch) error {
			for _, ev := range b.Events {
				if ev.Key == wire.SightingsKey && !ev.Deleted && !s.leads() {
					s.take(time.Now(), ev.Value)
				}
			}
			return nil
		})
	})
}

// take makes what was written what is known. If it cannot be read, only ages are lost.
func (s *sightings) take(now time.Time, text []byte) {
	file, err := wire.Unmarshal[sightingFile](text)
	if err != nil {
		s.log.Warn("cannot read since when concerns exist; they appear younger than they are", "err", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.seen)
	for _, e := range file.Seen {
		s.seen[e.sighting] = &span{e.Since, now.Add(restartGap - sightingGap)}
	}
}

// date sets the Since of each concern that has none to when it was first seen, and
// forgets concerns that are over.
func (s *sightings) date(now time.Time, all []api.Concern) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := false
	for i := range all {
		c := &all[i]
		if !c.Since.IsZero() {
			continue
		}
		id := sighting{c.Object, c.Node, c.Reason, c.Part}
		at := s.seen[id]
		if at == nil {
			at, changed = &span{first: now}, true
			s.seen[id] = at
		}
		if at.last.Before(now) {
			at.last = now
		}
		c.Since = at.first
	}
	before := len(s.seen)
	maps.DeleteFunc(s.seen, func(_ sighting, at *span) bool { return now.Sub(at.last) >= sightingGap })
	if changed || len(s.seen) < before {
		select {
		case s.changed <- struct{}{}:
		default:
		}
	}
}

// concerns says that the store is behind.
func (s *sightings) concerns() []api.Concern {
	return s.failing.concern(api.Concern{
		Object: "store", Reason: "SightingsNotWritten", Grace: startingGrace, Message: "since when concerns exist cannot be kept in the store",
		Next: "correct that: when another API server leads, or this one is restarted, concerns appear younger than they are",
	})
}

// write keeps them in the store until ctx ends or the store cannot be read. It continues
// what an earlier leader wrote.
func (s *sightings) write(ctx context.Context, st store.Store) error {
	kv, err := st.Get(ctx, wire.SightingsKey)
	switch {
	case err == nil:
		s.take(time.Now(), kv.Value)
	case !errors.Is(err, store.ErrNotFound):
		return err
	}
	defer s.failing.note(s.log, "", nil) // from then on it is another server's business
	for behind := false; ; {
		if !behind {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-s.changed:
			}
		}
		err := store.Write(ctx, st, store.Put(wire.SightingsKey, wire.Marshal(s.file())))
		behind = err != nil
		if ctx.Err() == nil && !errors.Is(err, store.ErrFull) { // a full store is a concern itself
			s.failing.note(s.log, "cannot keep since when concerns exist; retrying", err)
		}
		pause := time.NewTimer(sightingPause)
		select {
		case <-ctx.Done():
			pause.Stop()
			return ctx.Err()
		case <-pause.C:
		}
	}
}

func (s *sightings) file() (file sightingFile) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, at := range s.seen {
		file.Seen = append(file.Seen, sightingEntry{id, at.first})
	}
	return file
}

// watchConcerns looks at the status periodically, so that a concern's age does not start
// when somebody asks.
func (s *server) watchConcerns(ctx context.Context) error {
	tick := time.NewTicker(sightingTurn)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if _, err := s.look(ctx); err != nil && ctx.Err() == nil {
			s.log.Debug("looking for concerns", "err", err)
		}
	}
}
