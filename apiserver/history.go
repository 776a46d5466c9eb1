package apiserver

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/weft-mesh/weft/api"
)

// etcd drops history periodically, whatever its size. A burst of changes could fill the
// database earlier, and then nothing can be written. So the embedded etcd's history is
// dropped early if it takes too much space. Followers that lag behind list again.
const (
	// historyTurn is how often the database is looked at.
	historyTurn = 2 * time.Second
	// historyKept is how much history stays while more than half of the quota is in
	// use; above five eighths, none does.
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
	failing failing
}

// concerns says that history cannot be dropped.
func (h *history) concerns() []api.Concern {
	return h.failing.concern(api.Concern{
		Object: "store", Reason: "HistoryNotDropped", Grace: startingGrace, Message: "the store's history cannot be dropped when it takes too much space",
		Next: "look at the API server's log: a full database refuses all writes",
	})
}

// compactTo returns the revision up to which history is dropped now; 0 means that all of
// it stays. samples are in order of time, the last one from now. least is the least that
// was in use since history was last dropped: if there is hardly more now, it is not
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
	look := func() error {
		revision, inUse, err := h.usage(ctx)
		if err != nil {
			return err
		}
		least = min(least, inUse)
		samples = append(samples, sample{time.Now(), revision})
		for len(samples) > 2 && time.Since(samples[1].at) >= historyKept {
			samples = samples[1:]
		}
		to := compactTo(samples, inUse, least, h.quota)
		if to <= done {
			return nil
		}
		if err := h.compact(ctx, to); err != nil {
			return fmt.Errorf("compact it: %w", err)
		}
		done, least = to, inUse
		h.log.Info("dropped history of the store because it took too much of the database", "revision", to, "bytes", inUse, "quota", h.quota)
		return nil
	}
	for {
		if err := look(); ctx.Err() == nil {
			h.failing.note(h.log, "cannot drop the store's history; retrying", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
