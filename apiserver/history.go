package apiserver

import (
	"context"
	"log/slog"
	"time"
)

// etcd drops history by the clock, whatever its size; a burst of changes could
// fill the database before, and then nothing is written any more. So the embedded
// etcd's history is dropped early where it takes too much. Who lags behind what is
// left of it lists again.
const (
	// historyTurn is how often the database is looked at.
	historyTurn = 2 * time.Second
	// historyKept is how much history followers find while more than half of the
	// quota is taken; above five eighths they find none.
	historyKept = time.Minute
)

// sample is the store's revision at one moment.
type sample struct {
	at       time.Time
	revision int64
}

// history keeps the store's history from filling its database.
type history struct {
	turn    time.Duration
	quota   int64
	usage   func(ctx context.Context) (revision, inUse int64, err error)
	compact func(ctx context.Context, revision int64) error
	log     *slog.Logger
}

// compactTo is the revision up to which history goes now; 0 means that it stays.
// samples are in order of time, the last one of now. least is how little was in
// use since history was dropped last: where there is hardly more now, it is no
// history that takes the space.
func compactTo(samples []sample, inUse, least, quota int64) (revision int64) {
	now := samples[len(samples)-1]
	switch {
	case inUse-least < quota/16:
	case inUse > quota/8*5:
		return now.revision
	case inUse > quota/2:
		for _, s := range samples {
			if now.at.Sub(s.at) >= historyKept {
				revision = s.revision
			}
		}
	}
	return revision
}

// Run looks until ctx ends.
func (h *history) Run(ctx context.Context) error {
	tick := time.NewTicker(h.turn)
	defer tick.Stop()
	var samples []sample
	var done, least int64
	for {
		if revision, inUse, err := h.usage(ctx); err == nil {
			least = min(least, inUse)
			samples = append(samples, sample{time.Now(), revision})
			for len(samples) > 2 && time.Since(samples[1].at) >= historyKept {
				samples = samples[1:]
			}
			if to := compactTo(samples, inUse, least, h.quota); to > done {
				if err := h.compact(ctx, to); err != nil && ctx.Err() == nil {
					h.log.Warn("cannot drop history of the store", "revision", to, "err", err)
				} else {
					done, least = to, inUse
					h.log.Info("dropped history of the store, which took more than its share of the database", "revision", to, "bytes", inUse, "quota", h.quota)
				}
			}
		} else if ctx.Err() == nil {
			h.log.Warn("cannot ask the store for its size", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
