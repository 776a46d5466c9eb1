package storetest_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
)

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ctx := storetest.New(), t.Context()
		put := func(key, value string) {
			t.Helper()
			if err := store.Write(ctx, s, store.Put(key, []byte(value))); err != nil {
				t.Fatal(err)
			}
		}
		put("a/1", "x")
		put("b/1", "other prefix")
		ctx, cancel := context.WithCancel(ctx)
		var batches []store.Batch
		done := make(chan error, 1)
		go func() {
			done <- store.Follow(ctx, s, "a/", func(b store.Batch) error {
				batches = append(batches, b)
				return nil
			})
		}()
		synctest.Wait()
		put("a/2", "y")
		synctest.Wait()
		if err := store.Write(ctx, s, store.DeletePrefix("a/")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
		if len(batches) != 3 || !batches[0].Complete || len(batches[0].Events) != 1 || batches[1].Complete ||
			len(batches[2].Events) != 2 || !batches[2].Events[1].Deleted {
			t.Errorf("batches: %+v", batches)
		}
	})
}

func TestCommitOnlyIfUnchanged(t *testing.T) {
	s, ctx := storetest.New(), t.Context()
	create := store.Txn{If: []store.Cond{{Key: "k"}}, Then: []store.Op{store.Put("k", []byte("1"))}}
	if _, done, err := s.Commit(ctx, create); err != nil || !done {
		t.Fatal(done, err)
	}
	if _, done, err := s.Commit(ctx, create); err != nil || done {
		t.Fatal("created twice", err)
	}
	kv, err := s.Get(ctx, "k")
	if err != nil {
		t.Fatal(err)
	}
	change := store.Txn{If: []store.Cond{{Key: "k", Modified: kv.Modified}}, Then: []store.Op{store.Put("k", []byte("2"))}}
	if _, done, _ := s.Commit(ctx, change); !done {
		t.Error("unchanged key refused")
	}
	if _, done, _ := s.Commit(ctx, change); done {
		t.Error("changed key accepted")
	}
}

func TestCompactionEndsLateWatch(t *testing.T) {
	s, ctx := storetest.New(), t.Context()
	_, at, err := s.List(ctx, "k")
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Write(ctx, s, store.Put("k", nil)); err != nil {
		t.Fatal(err)
	}
	s.Compact()
	if err := s.Watch(ctx, "k", at, func(store.Batch) error { return nil }); !errors.Is(err, store.ErrCompacted) {
		t.Error(err)
	}
}

// A copy has the history that the store had: a watch that had not heard of a deletion before
// the copy was made hears of it after the copy was put back.
func TestCopiesHaveTheirHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ctx := storetest.New(), t.Context()
		if err := s.Put(ctx, "k", nil); err != nil {
			t.Fatal(err)
		}
		_, at, err := s.List(ctx, "k")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Delete(ctx, "k"); err != nil {
			t.Fatal(err)
		}
		c := s.Copy()
		if err := s.Put(ctx, "later", nil); err != nil {
			t.Fatal(err)
		}
		s.PutBack(c)
		heard := errors.New("heard")
		if err := s.Watch(ctx, "k", at, func(b store.Batch) error {
			if len(b.Events) != 1 || !b.Events[0].Deleted {
				t.Errorf("heard of %+v", b.Events)
			}
			return heard
		}); !errors.Is(err, heard) {
			t.Error(err)
		}
		s.Compact()
		c = s.Copy()
		s.PutBack(c)
		if err := s.Watch(ctx, "k", at, func(store.Batch) error { return nil }); !errors.Is(err, store.ErrCompacted) {
			t.Errorf("a copy of a compacted store: %v", err)
		}
		s.Lose()
		if err := s.Watch(ctx, "k", at, func(store.Batch) error { return nil }); !errors.Is(err, store.ErrWentBack) || s.Revision() != 1 {
			t.Errorf("a new store at revision %d: %v", s.Revision(), err)
		}
	})
}
