package store_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
)

// strict is a store with etcd's default limits. It counts calls.
type strict struct {
	*storetest.Store
	commits, failed, gets int
}

func (s *strict) Get(ctx context.Context, key string) (store.KV, error) {
	s.gets++
	return s.Store.Get(ctx, key)
}

func (s *strict) Commit(ctx context.Context, txn store.Txn) (int64, bool, error) {
	s.commits++
	size := 0
	for _, op := range txn.Then {
		size += len(op.Key) + len(op.Value)
	}
	if len(txn.If) > 128 || len(txn.Then) > 128 || size > 3<<19 {
		return 0, false, store.ErrTooLarge
	}
	revision, done, err := s.Store.Commit(ctx, txn)
	if !done {
		s.failed++
	}
	return revision, done, err
}

func key(i int) string { return fmt.Sprintf("k/%03d", i) }

// create is a transaction of three writes.
func create(i int) store.Txn {
	return store.Txn{If: []store.Cond{{Key: key(i)}}, Then: []store.Op{
		store.Put(key(i), []byte("x")), store.Put("ref/"+key(i), nil), store.Delete("shared"),
	}}
}

func TestCommitEachSharesTransactions(t *testing.T) {
	for name, test := range map[string]struct {
		txns           []store.Txn
		there          []int
		commits        int
		stale, refused []int
	}{
		"nothing": {},
		"one":     {txns: []store.Txn{create(0)}, commits: 1},
		// 1 + 2n operations: 49 fit below 100.
		"many": {txns: each(200, create), commits: 5},
		"one is stale: looked for, and the others made": {txns: each(40, create), there: []int{7}, commits: 2, stale: []int{7}},
		"all are stale": {txns: each(40, create), there: numbers(40), commits: 1, stale: numbers(40)},
		"one is too large": {
			txns:    append(each(2, create), store.Txn{Then: []store.Op{store.Put("large", make([]byte, 2<<20))}}, create(3)),
			commits: 3, refused: []int{2},
		},
		"what contradicts each other is apart": {
			txns: []store.Txn{
				{Then: []store.Op{store.Put("a", []byte("1"))}}, {Then: []store.Op{store.Put("a", []byte("2"))}},
				{If: []store.Cond{{Key: "b"}}, Then: []store.Op{store.Put("b", nil)}}, {If: []store.Cond{{Key: "b", Modified: 1}}, Then: []store.Op{store.Put("c", nil)}},
			},
			commits: 3, stale: []int{3},
		},
		"what is about a prefix is alone": {
			txns: []store.Txn{create(0), {Then: []store.Op{store.DeletePrefix("ref/")}}, create(1), {If: []store.Cond{{Key: "other/", Prefix: true}}, Then: []store.Op{store.Put("d", nil)}}}, commits: 4,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := &strict{Store: storetest.New()}
			for _, i := range test.there {
				if err := store.Write(t.Context(), s.Store, store.Put(key(i), []byte("before"))); err != nil {
					t.Fatal(err)
				}
			}
			out := store.CommitEach(t.Context(), s, test.txns)
			var stale, refused []int
			for i, o := range out {
				switch {
				case errors.Is(o.Err, store.ErrTooLarge):
					refused = append(refused, i)
				case o.Err != nil:
					t.Error(o.Err)
				case o.Revision == 0:
					stale = append(stale, i)
				}
			}
			if s.commits != test.commits || !slices.Equal(stale, test.stale) || !slices.Equal(refused, test.refused) {
				t.Errorf("%d commits, stale %v, refused %v; want %d, %v, %v", s.commits, stale, refused, test.commits, test.stale, test.refused)
			}
		})
	}
}

// After the store itself has failed, the rest is not tried.
func TestCommitEachEndsWithTheStore(t *testing.T) {
	s := &strict{Store: storetest.New()}
	n := 0
	s.Fail(func(call, _ string) error {
		if n++; n > 2 {
			return store.ErrUnavailable
		}
		return nil
	})
	out := store.CommitEach(t.Context(), s, each(200, create))
	for i, o := range out {
		if made := i < 98; made != (o.Err == nil) || made != (o.Revision != 0) {
			t.Fatalf("transaction %d: %+v", i, o)
		}
	}
	if s.commits != 3 {
		t.Errorf("asked %d times", s.commits)
	}
}

// Transactions on separate keys have the same outcome together as one after the other.
func TestCommitEachDoesWhatCommitDoes(t *testing.T) {
	for range 200 {
		one, all := storetest.New(), &strict{Store: storetest.New()}
		for i := range 60 {
			if rand.IntN(2) == 0 {
				for _, s := range []store.Store{one, all.Store} {
					if err := store.Write(t.Context(), s, store.Put(key(i), nil)); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		txns := each(60, func(i int) store.Txn {
			txn := create(i)
			if rand.IntN(2) == 0 {
				kv, _ := one.Get(t.Context(), key(i))
				txn.If[0].Modified = kv.Modified
			}
			return txn
		})
		out := store.CommitEach(t.Context(), all, txns)
		for i, txn := range txns {
			_, done, err := one.Commit(t.Context(), txn)
			if err != nil || out[i].Err != nil || done != (out[i].Revision != 0) {
				t.Fatalf("transaction %d: alone %v, %v; together %+v", i, done, err, out[i])
			}
		}
		if !slices.Equal(one.Dump(""), all.Dump("")) {
			t.Fatal("the stores differ")
		}
	}
}

func each[T any](n int, f func(int) T) (all []T) {
	for i := range n {
		all = append(all, f(i))
	}
	return all
}

func numbers(n int) []int { return each(n, func(i int) int { return i }) }

// One value that is too large costs a few transactions more, not one for each write.
func TestWriteFittingLeavesOutWhatIsTooLarge(t *testing.T) {
	for name, test := range map[string]struct {
		large   []int // of 500 writes
		commits int
	}{
		"none":  {nil, 5},
		"one":   {[]int{250}, 5 + 2*7},
		"first": {[]int{0}, 5 + 2*7},
		"many":  {[]int{3, 4, 499}, 5 + 5*7},
	} {
		t.Run(name, func(t *testing.T) {
			s := &strict{Store: storetest.New()}
			ops, want := make([]store.Op, 500), 500-len(test.large)
			for i := range ops {
				ops[i] = store.Put(key(i), []byte("x"))
			}
			var large []string
			for _, i := range test.large {
				ops[i].Value = make([]byte, 2<<20)
				large = append(large, key(i))
			}
			tooLarge, err := store.WriteFitting(t.Context(), s, ops...)
			if err != nil {
				t.Fatal(err)
			}
			var left []string
			for _, op := range tooLarge {
				left = append(left, op.Key)
			}
			if !slices.Equal(left, large) || len(s.Dump("k/")) != want {
				t.Errorf("left out %q, %d are written", left, len(s.Dump("k/")))
			}
			if s.commits > test.commits {
				t.Errorf("%d transactions, want at most %d", s.commits, test.commits)
			}
		})
	}
	s := &strict{Store: storetest.New()}
	s.Fail(func(call, k string) error {
		if call == "commit" && k == key(0) {
			return store.ErrFull
		}
		return nil
	})
	if _, err := store.WriteFitting(t.Context(), s, store.Put(key(1), make([]byte, 2<<20)), store.Put(key(0), nil)); !errors.Is(err, store.ErrFull) {
		t.Errorf("another failure: %v", err)
	}
}
