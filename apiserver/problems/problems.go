// Package problems keeps in the store what the controllers could not do, so that every API
// server can tell it, also one that has just succeeded another.
//
// The controllers find the problems. What becomes of them in the status, and since when
// each is known, is decided in package apiserver.
package problems

import (
	"bytes"
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// Rows are problems as they are written, by key below wire.ProblemsPrefix.
type Rows map[string][]byte

// Source is a controller.
type Source interface {
	// Changed has an element when the problems may have changed.
	Changed() <-chan struct{}
	// Problems returns all of them; false until the controller has looked at
	// everything once.
	Problems() (Rows, bool)
}

// writePause is the shortest time between two writes: a controller may find problems, and
// see them go, at the pace of the cluster's changes.
const writePause = 200 * time.Millisecond

// Publish keeps the rows below the prefixes equal to a source's problems, until ctx ends
// or the store fails. What an earlier leader has left stays until the source has looked.
func Publish(ctx context.Context, s store.Store, src Source, prefixes ...string) error {
	written := Rows{}
	for _, prefix := range prefixes {
		kvs, _, err := s.List(ctx, prefix)
		if err != nil {
			return err
		}
		for _, kv := range kvs {
			written[kv.Key] = kv.Value
		}
	}
	for {
		if rows, ok := src.Problems(); ok {
			// One that is too large for the store holds up no other; there is no
			// better place to say so.
			if _, err := store.WriteFitting(ctx, s, difference(written, rows)...); err != nil {
				return err
			}
			written = rows
		}
		pause := time.NewTimer(writePause)
		select {
		case <-ctx.Done():
			pause.Stop()
			return ctx.Err()
		case <-pause.C:
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-src.Changed():
		}
	}
}

// difference returns the writes that turn one set of rows into another.
func difference(have, want Rows) (ops []store.Op) {
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if old, there := have[key]; !there || !bytes.Equal(old, want[key]) {
			ops = append(ops, store.Put(key, want[key]))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(have)) {
		if _, wanted := want[key]; !wanted {
			ops = append(ops, store.Delete(key))
		}
	}
	return ops
}

// Board shows what is in the store. Safe for concurrent use.
type Board struct {
	store store.Store
	log   *slog.Logger

	mu   sync.Mutex // guards rows
	rows Rows
}

// NewBoard returns an empty one.
func NewBoard(s store.Store, log *slog.Logger) *Board {
	return &Board{store: s, log: log, rows: Rows{}}
}

// Run follows the store until ctx ends.
func (b *Board) Run(ctx context.Context) error {
	return store.Persist(ctx, b.log, "following the controllers' problems", func(ctx context.Context) error {
		return store.Follow(ctx, b.store, wire.ProblemsPrefix, func(batch store.Batch) error {
			b.mu.Lock()
			defer b.mu.Unlock()
			if batch.Complete {
				clear(b.rows)
			}
			for _, ev := range batch.Events {
				if b.rows[ev.Key] = ev.Value; ev.Deleted {
					delete(b.rows, ev.Key)
				}
			}
			return nil
		})
	})
}

// Rows returns a copy of all rows.
func (b *Board) Rows() Rows {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.rows)
}

// With returns the rows with those below the prefixes replaced.
func (r Rows) With(other Rows, prefixes ...string) Rows {
	out := maps.Clone(r)
	maps.DeleteFunc(out, func(key string, _ []byte) bool {
		return slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(key, prefix) })
	})
	maps.Copy(out, other)
	return out
}

// Pod returns a pod's trouble; nil if there is none.
func (r Rows) Pod(namespace, pod string) *api.Concern {
	text, there := r[wire.TroubleKey(namespace, pod)]
	if !there {
		return nil
	}
	c, err := wire.Unmarshal[api.Concern](text)
	if err != nil {
		return nil
	}
	return &c
}

// Refused returns the claims of the cluster's nodes that are refused, ordered by node.
func (r Rows) Refused() []api.Refusal {
	out := all[api.Refusal](r, wire.RefusedPrefix)
	slices.SortFunc(out, func(a, b api.Refusal) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Resource, b.Resource), cmp.Compare(a.Reason, b.Reason))
	})
	return out
}

// Unwritten returns what is wrong with endpoints and slices that cannot be written.
func (r Rows) Unwritten() []api.Concern {
	concerns, err := wire.Unmarshal[[]api.Concern](r[wire.UnwrittenKey])
	if err != nil {
		return nil // there is no such row
	}
	return concerns
}

// Sources returns what is wrong with the sources of objects.
func (r Rows) Sources() []api.Concern { return all[api.Concern](r, wire.SourceProblemsPrefix) }

// all joins the lists of the rows below a prefix, in the order of their keys.
func all[T any](r Rows, prefix string) (out []T) {
	for _, key := range slices.Sorted(maps.Keys(r)) {
		if !strings.HasPrefix(key, prefix) {
			continue
		}
		if list, err := wire.Unmarshal[[]T](r[key]); err == nil {
			out = append(out, list...)
		}
	}
	return out
}

// NotExported returns why keys are not exported as they should be.
func (r Rows) NotExported() map[string]string {
	out := map[string]string{}
	for row, text := range r {
		if key, ok := strings.CutPrefix(row, wire.NotExportedPrefix); ok {
			out[key] = string(text)
		}
	}
	return out
}
