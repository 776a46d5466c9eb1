package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"
)

// Follow passes everything under prefix to each: first one complete batch, then
// changes. If the next changes were compacted away or the store went back in time,
// another complete batch follows; the receiver must treat it as mark and sweep, and
// compare values, not revisions. Follow returns when ctx ends or when each or the
// store fails; see Persist for retries.
func Follow(ctx context.Context, s Store, prefix string, each func(Batch) error) error {
	var cause error
	for {
		kvs, at, err := s.List(ctx, prefix)
		if err != nil {
			return fmt.Errorf("list %s: %w", prefix, err)
		}
		all := Batch{Revision: at.Revision, Complete: true, Cause: cause, History: history(at), Events: make([]Event, len(kvs))}
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
		cause = err
	}
}

// history names a period in which the store was not restored: one start of the store,
// or one connection to a store that does not report its starts.
func history(at Point) string {
	if at.Start != "" {
		return at.Start
	}
	return fmt.Sprint("connection ", at.Connection)
}

// Pauses of Persist double from the first to the last. Each is drawn between half of
// it and the whole, so that many clients do not return at once.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 2 * time.Second
)

// Persist runs work again whenever it ends, with growing pauses, until ctx ends; then
// it returns nil. A run longer than lastPause counts as success and resets the pause.
// what names the work in the log, such as "following peers".
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
		log.Warn(what+" failed; retrying", "err", err, "in", pause)
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
