package store

import (
	"context"
	"errors"

	"github.com/weft-mesh/weft/identity"
)

// Identities adapts a store for package identity's allocator.
func Identities(s Store) identity.Store { return identities{s} }

type identities struct{ store Store }

// Get implements identity.Store.
func (i identities) Get(ctx context.Context, key string) (identity.Row, bool, error) {
	kv, err := i.store.Get(ctx, key)
	if errors.Is(err, ErrNotFound) {
		return identity.Row{}, false, nil
	}
	return row(kv), err == nil, err
}

// List implements identity.Store.
func (i identities) List(ctx context.Context, prefix string) ([]identity.Row, error) {
	kvs, _, err := i.store.List(ctx, prefix)
	if err != nil {
		return nil, err
	}
	rows := make([]identity.Row, len(kvs))
	for n, kv := range kvs {
		rows[n] = row(kv)
	}
	return rows, nil
}

// Commit implements identity.Store.
func (i identities) Commit(ctx context.Context, txn identity.Txn) (bool, error) {
	_, done, err := i.store.Commit(ctx, transaction(txn))
	return done, err
}

// CommitEach implements identity.Store.
func (i identities) CommitEach(ctx context.Context, txns []identity.Txn) []identity.Outcome {
	ours := make([]Txn, len(txns))
	for n, txn := range txns {
		ours[n] = transaction(txn)
	}
	out := make([]identity.Outcome, len(txns))
	for n, o := range CommitEach(ctx, i.store, ours) {
		out[n] = identity.Outcome(o)
	}
	return out
}

func transaction(txn identity.Txn) (out Txn) {
	for _, c := range txn.If {
		out.If = append(out.If, Cond{Key: c.Key, Modified: c.Revision, Prefix: c.Prefix})
	}
	for _, c := range txn.Then {
		out.Then = append(out.Then, Op{Key: c.Key, Value: c.Value, Delete: c.Delete})
	}
	return out
}

func row(kv KV) identity.Row {
	return identity.Row{Key: kv.Key, Value: kv.Value, Revision: kv.Modified}
}
