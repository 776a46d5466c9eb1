package identities_test

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
)

var errInjected = errors.New("injected failure")

// twin is a store that fails, or calls somebody in between, when a test wants it to.
type twin struct {
	*storetest.Store
	// before is called before each get, list and commit, without any lock held, and may
	// use the store itself. If it fails, the call does not happen and returns its error.
	before func(call string) error
	// after is called after each of them. If it fails, the caller gets its error
	// although the call happened.
	after   func(call string) error
	commits atomic.Int64
}

func newTwin() *twin { return &twin{Store: storetest.New()} }

func (s *twin) Get(ctx context.Context, key string) (kv store.KV, err error) {
	err = s.around("get", func() error { kv, err = s.Store.Get(ctx, key); return err })
	if err != nil {
		return store.KV{}, err
	}
	return kv, nil
}

func (s *twin) List(ctx context.Context, prefix string) (kvs []store.KV, at store.Point, err error) {
	err = s.around("list", func() error { kvs, at, err = s.Store.List(ctx, prefix); return err })
	return kvs, at, err
}

func (s *twin) Commit(ctx context.Context, txn store.Txn) (revision int64, done bool, err error) {
	err = s.around("commit", func() error { revision, done, err = s.Store.Commit(ctx, txn); return err })
	if done {
		s.commits.Add(1)
	}
	return revision, done && err == nil, err
}

func (s *twin) around(call string, act func() error) error {
	if s.before != nil {
		if err := s.before(call); err != nil {
			return err
		}
	}
	err := act()
	if s.after != nil && (err == nil || errors.Is(err, store.ErrNotFound)) {
		if err := s.after(call); err != nil {
			return err
		}
	}
	return err
}

// put writes a key without calling hooks.
func (s *twin) put(key, value string) {
	_, _, _ = s.Store.Commit(context.Background(), store.Txn{Then: []store.Op{store.Put(key, []byte(value))}})
}

// lose deletes every key for which lost returns true, without calling hooks, and returns
// how many there were.
func (s *twin) lose(lost func(key string) bool) int {
	var ops []store.Op
	for key := range s.dump() {
		if lost(key) {
			ops = append(ops, store.Delete(key))
		}
	}
	_, _, _ = s.Store.Commit(context.Background(), store.Txn{Then: ops})
	return len(ops)
}

// dump returns a copy of everything.
func (s *twin) dump() map[string]string {
	kvs, _, _ := s.Store.List(context.Background(), "")
	out := map[string]string{}
	for _, kv := range kvs {
		out[kv.Key] = string(kv.Value)
	}
	return out
}
