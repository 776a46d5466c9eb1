package store

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Kept are keys that stay for as long as whoever writes them wants them: what
// anybody else deletes is written again.
type Kept struct {
	store Store
	log   *slog.Logger

	// mu guards want, and is held over a decision and its write: what is no longer
	// wanted must not be written after it was deleted.
	mu   sync.Mutex
	want map[string][]byte
}

// NewKept makes Kept with nothing in it.
func NewKept(s Store, log *slog.Logger) *Kept {
	return &Kept{store: s, log: log, want: map[string][]byte{}}
}

// Note says what is wanted from now on. It comes before the writes themselves.
func (k *Kept) Note(ops ...Op) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, op := range ops {
		if op.Delete {
			delete(k.want, op.Key)
		} else {
			k.want[op.Key] = op.Value
		}
	}
}

// Run keeps what is wanted under the prefixes, until ctx ends.
func (k *Kept) Run(ctx context.Context, prefixes ...string) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, prefix := range prefixes {
		g.Go(func() error {
			return Persist(ctx, k.log, "keeping "+prefix, func(ctx context.Context) error {
				return Follow(ctx, k.store, prefix, func(b Batch) error { return k.look(ctx, prefix, b) })
			})
		})
	}
	return g.Wait()
}

// Learn notes what is there now.
func (k *Kept) Learn(ctx context.Context, keys ...string) error {
	for _, key := range keys {
		kv, err := k.store.Get(ctx, key)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		k.Note(Put(key, kv.Value))
	}
	return nil
}

// Keep keeps single keys as they were last, whoever wrote that, until ctx ends.
// Nobody deletes them rightly.
func (k *Kept) Keep(ctx context.Context, keys ...string) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, key := range keys {
		g.Go(func() error {
			return Persist(ctx, k.log, "keeping "+key, func(ctx context.Context) error {
				return Follow(ctx, k.store, key, func(b Batch) error {
					for _, e := range b.Events {
						if e.Key == key && !e.Deleted {
							k.Note(Put(key, e.Value))
						}
					}
					return k.look(ctx, key, b)
				})
			})
		})
	}
	return g.Wait()
}

func (k *Kept) look(ctx context.Context, prefix string, b Batch) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	gone := map[string]bool{}
	if b.Complete {
		for key := range k.want {
			gone[key] = strings.HasPrefix(key, prefix)
		}
	}
	for _, e := range b.Events {
		gone[e.Key] = e.Deleted
	}
	for _, key := range slices.Sorted(maps.Keys(gone)) {
		value, wanted := k.want[key]
		if !gone[key] || !wanted {
			continue
		}
		_, done, err := k.store.Commit(ctx, Txn{If: []Cond{{Key: key}}, Then: []Op{Put(key, value)}})
		if err != nil && !errors.Is(err, ErrTooLarge) {
			return err
		}
		if done {
			k.log.Warn("a key that belongs to this API server was gone; wrote it again", "key", key)
		}
	}
	return nil
}
