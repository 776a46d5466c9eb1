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

// Kept restores keys that their writer wants to stay: if anyone else deletes one, or a
// restored store lacks it, it is written again. Safe for concurrent use.
type Kept struct {
	store Store
	log   *slog.Logger

	// mu guards want. It is held from a decision to its write, so that a key which is
	// no longer wanted is not written again after its deletion.
	mu   sync.Mutex
	want map[string][]byte
}

// NewKept returns a Kept that wants no keys yet.
func NewKept(s Store, log *slog.Logger) *Kept {
	return &Kept{store: s, log: log, want: map[string][]byte{}}
}

// Note records what is wanted from now on. Call it before the writes themselves.
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

// Run restores what is wanted under the prefixes, until ctx ends.
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

// Keep restores single keys with the value they had last, whoever wrote it, until ctx
// ends. It is for keys that are never deleted on purpose.
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
	var txns []Txn
	for _, key := range slices.Sorted(maps.Keys(gone)) {
		if value, wanted := k.want[key]; wanted && gone[key] {
			txns = append(txns, Txn{If: []Cond{{Key: key}}, Then: []Op{Put(key, value)}})
		}
	}
	written, first := 0, ""
	for i, o := range CommitEach(ctx, k.store, txns) {
		switch {
		case o.Err != nil && !errors.Is(o.Err, ErrTooLarge): // its writer reports that one
			return o.Err
		case o.Revision != 0:
			if written++; written == 1 {
				first = txns[i].Then[0].Key
			}
		}
	}
	if written > 0 {
		k.log.Warn("keys of this API server were missing from the store; wrote them again", "keys", written, "first", first)
	}
	return nil
}
