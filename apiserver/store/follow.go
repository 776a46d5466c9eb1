package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"
)

// Follow hands over everything under prefix: first one complete batch, then
// changes. When the store has compacted what came next, or went back in time,
// another complete batch follows, which the receiver takes as mark and sweep: it
// compares values, not revisions. Follow returns when ctx ends, each fails, or the
// store does; see Persist for trying again.
func Follow(ctx context.Context, s Store, prefix string, each func(Batch) error) error {
	for {
		kvs, at, err := s.List(ctx, prefix)
		if err != nil {
			return fmt.Errorf("list %s: %w", prefix, err)
		}
		all := Batch{Revision: at.Revision, Complete: true, History: history(at), Events: make([]Event, len(kvs))}
		for i, kv := range kvs {
			all.Events[i].KV = kv
		}
		if err := each(all); err != nil {
			return err
		}
		err = s.Watch(ctx, prefix, at, each)
		if !errors.Is(err, ErrCompacted) && !errors.Is(err, ErrWentBack) && !errors.Is(err, ErrReconnected) {
			return err
		}
	}
}

// history is what was never restored: one start of the store, or one connection
// to a store that does not tell its starts.
func history(at Point) string {
	if at.Start != "" {
		return at.Start
	}
	return fmt.Sprint("connection ", at.Connection)
}

// Back-off of Persist: doubling from the first to the last pause, each drawn
// between half of it and the whole, so that many do not come back as one.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
)

// Persist runs work again whenever it fails, with growing pauses, until ctx
// ends; then it returns nil. A run longer than the last pause counts as success and
// starts the pauses over.
func Persist(ctx context.Context, log *slog.Logger, what string, work func(context.Context) error) error {
	pause := firstPause
	for {
		began := time.Now()
		err := work(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > lastPause {
			pause = firstPause
		}
		log.Warn(what+" will be tried again", "err", err, "in", pause)
		timer := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		pause = min(2*pause, lastPause)
	}
}
