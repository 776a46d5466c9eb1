package journal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

const (
	// quiet is how long a committed change may stand still before another server than the
	// one that committed it goes on with it.
	quiet = time.Second
	// sweep is the pause between two looks at drafts. One that has not changed from one
	// look to the next has no owner: no change is prepared that slowly.
	sweep = 10 * time.Minute
)

// stuck says why the committed change is not carried out; Err is nil if it is, or if
// there is none.
type stuck struct {
	since time.Time
	err   error
}

// Run carries out changes whose server does not, and removes drafts without an owner,
// until ctx ends.
func (j *Journal) Run(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return store.Persist(ctx, j.conf.Log, "following the committed change", func(ctx context.Context) error {
			return store.Follow(ctx, j.conf.Store, wire.ChangeKey, func(store.Batch) error {
				select {
				case changed <- struct{}{}:
				default:
				}
				return nil
			})
		})
	})
	g.Go(func() error { return j.finish(ctx, changed) })
	g.Go(func() error {
		return store.Persist(ctx, j.conf.Log, "removing changes that were given up", j.sweepAll)
	})
	return g.Wait()
}

// finish carries out the committed change when it stands still, and at once when this
// server starts.
func (j *Journal) finish(ctx context.Context, changed <-chan struct{}) error {
	timer := time.NewTimer(quiet)
	defer timer.Stop()
	first, seen := true, int64(0)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
		kv, err := j.conf.Store.Get(ctx, wire.ChangeKey)
		switch {
		case errors.Is(err, store.ErrNotFound):
			first, seen = false, 0
			_, err := j.settle(ctx) // audits the last step if its answer was lost
			j.note(err)
			continue // until something changes
		case err == nil && (first || kv.Modified == seen):
			c, _ := wire.ParseChange(kv.Value) // settle says what is wrong with it
			j.conf.Log.Info("carrying out a change that its API server has not finished", "user", c.User, "committed", c.At, "made", c.Made, "of", c.Writes)
			if _, err = j.settle(ctx); err != nil && ctx.Err() == nil {
				j.conf.Log.Warn("a committed change cannot be carried out; retrying", "err", err, "in", quiet)
			}
			j.note(err)
			first = false
		}
		seen = kv.Modified
		timer.Reset(quiet)
	}
}

func (j *Journal) note(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil && j.stuck.err == nil {
		j.stuck.since = time.Now()
	}
	j.stuck.err = err
}

// Concerns says that a committed change cannot be carried out.
func (j *Journal) Concerns(cluster string) []api.Concern {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.stuck.err == nil {
		return nil
	}
	return []api.Concern{{
		Object: "cluster " + cluster, Reason: "ChangeUnfinished", Since: j.stuck.since,
		Message: fmt.Sprintf("a change is committed but cannot be carried out completely, and until then no other is made: %v", j.stuck.err),
		Next:    "correct what the store reports, then it is carried out by itself; if it cannot be read, update this API server or restore the store from a backup",
	}}
}

// sweepAll removes drafts without an owner, until ctx ends or the store fails.
func (j *Journal) sweepAll(ctx context.Context) error {
	seen := map[string]int64{}
	for {
		kvs, _, err := j.conf.Store.List(ctx, wire.ChangeDraftsPrefix)
		if err != nil {
			return err
		}
		now := map[string]int64{}
		for _, kv := range kvs {
			id, ok := wire.ParseChangeDraftKey(kv.Key)
			if !ok || seen[kv.Key] != kv.Modified {
				now[kv.Key] = kv.Modified
				continue
			}
			_, done, err := j.conf.Store.Commit(ctx, store.Txn{If: []store.Cond{{Key: kv.Key, Modified: kv.Modified}}, Then: forget(id)})
			if err != nil {
				return err
			}
			if done {
				j.conf.Log.Info("removed a change that was given up before it was committed", "change", string(kv.Value))
			}
		}
		seen = now
		if err := pause(ctx, sweep); err != nil {
			return err
		}
	}
}
