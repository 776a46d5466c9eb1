package leader

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// ErrDeposed: this server no longer leads, so nothing was written.
var ErrDeposed = errors.New("another API server may lead now")

// fence is a store whose writes are made only while we lead. The store itself checks that
// with each write: a server that was suspended, or cut off, does not know that its lease
// has ended, and would write over what its successor has written.
type fence struct {
	store.Store
	leads store.Cond // the leadership is the one we won
	lost  func()     // ends the term; may be called again
}

// Commit implements store.Store.
func (f *fence) Commit(ctx context.Context, txn store.Txn) (int64, bool, error) {
	txn.If = append(slices.Clip(txn.If), f.leads)
	revision, done, err := f.Store.Commit(ctx, txn)
	if err != nil || done {
		return revision, done, err
	}
	// Which condition failed? Most writers do not ask, because they make none.
	kv, err := f.Store.Get(ctx, f.leads.Key)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return 0, false, fmt.Errorf("look who leads: %w", err)
	}
	if kv.Modified != f.leads.Modified {
		f.lost()
		return 0, false, ErrDeposed
	}
	return revision, false, nil
}

// fenceOf returns the fence of the term that began at a revision.
func fenceOf(s store.Store, began int64, lost func()) *fence {
	return &fence{Store: s, leads: store.Cond{Key: wire.LeaderKey, Modified: began}, lost: lost}
}
