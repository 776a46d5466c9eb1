package journal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const objects = "weft/state/objects/"

// limited is a store with an etcd's limits. It notes the writes of objects in order, and
// calls before and after around each call.
type limited struct {
	*storetest.Store
	limit         Limit
	before, after func(call string) error

	mu   sync.Mutex // guards made
	made []string
}

func (l *limited) around(name string, call func() error) error {
	if l.before != nil {
		if err := l.before(name); err != nil {
			return err
		}
	}
	err := call()
	if l.after != nil && err == nil {
		err = l.after(name)
	}
	return err
}

func (l *limited) Get(ctx context.Context, key string) (kv store.KV, err error) {
	err = l.around("get", func() error { kv, err = l.Store.Get(ctx, key); return err })
	return kv, err
}

func (l *limited) GetMany(ctx context.Context, keys ...string) (kvs []store.KV, err error) {
	err = l.around("get", func() error { kvs, err = l.Store.GetMany(ctx, keys...); return err })
	return kvs, err
}

func (l *limited) Commit(ctx context.Context, txn store.Txn) (revision int64, done bool, err error) {
	err = l.around("commit", func() error {
		size := 0
		for _, op := range txn.Then {
			size += len(op.Key) + len(op.Value)
		}
		if len(txn.If) > l.limit.Ops || len(txn.Then) > l.limit.Ops || size > l.limit.Bytes {
			return fmt.Errorf("etcdserver: %w", store.ErrTooLarge)
		}
		l.mu.Lock() // so that made is in the order of the commits
		defer l.mu.Unlock()
		revision, done, err = l.Store.Commit(ctx, txn)
		for _, op := range txn.Then {
			if done && strings.HasPrefix(op.Key, objects) {
				l.made = append(l.made, op.Key)
			}
		}
		return err
	})
	return revision, done, err
}

func object(i int) string { return fmt.Sprintf("%s%03d", objects, i) }

// seed writes half of the objects that rewrite changes.
func seed(t *testing.T, s store.Store, n int) {
	t.Helper()
	for i := 0; i < n; i += 2 {
		if err := store.Write(t.Context(), s, store.Put(object(i), []byte("old"))); err != nil {
			t.Fatal(err)
		}
	}
}

// rewrite is a change of n objects, conditional on all of them: it creates every second
// one and changes or deletes the others.
func rewrite(t *testing.T, j *Journal, n int) Change {
	t.Helper()
	c := Change{User: "admin"}
	var err error
	if c.Since, err = j.Turn(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		kvs, err := j.conf.Store.GetMany(t.Context(), object(i))
		if err != nil {
			t.Fatal(err)
		}
		c.If = append(c.If, store.Cond{Key: object(i), Modified: kvs[0].Modified})
		w := wire.Write{Key: object(i), Value: []byte(strings.Repeat("new", 10+i%7)), Action: "configured"}
		if i%4 == 0 {
			w = wire.Write{Key: object(i), Delete: true, Action: "deleted"}
		}
		c.Then = append(c.Then, w)
	}
	return c
}

// state is "old", "new" or what else the objects are.
func state(s *storetest.Store, n int) string {
	dump := s.Dump(objects)
	var before, after []string
	for i := range n {
		if i%2 == 0 {
			before = append(before, object(i)+"=old")
		}
		if i%4 != 0 {
			after = append(after, object(i)+"="+strings.Repeat("new", 10+i%7))
		}
	}
	switch {
	case slices.Equal(dump, before):
		return "old"
	case slices.Equal(dump, after):
		return "new"
	}
	return strings.Join(dump, "\n")
}

// left is what is left of changes beside the turn.
func left(s *storetest.Store) []string {
	return slices.DeleteFunc(s.Dump("weft/changes/"), func(line string) bool { return strings.HasPrefix(line, wire.ChangeTurnKey) })
}

var limits = map[string]Limit{
	"one transaction":       {200, 1 << 20},
	"by operations":         {20, 1 << 20},
	"by bytes":              {200, 1500},
	"one write at a time":   {4, 700},
	"few bytes":             {20, 460},
	"etcd's own, not in it": usual,
}

const writes = 40

func TestChangesOfAnySize(t *testing.T) {
	for name, limit := range limits {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &limited{Store: storetest.New(), limit: limit}
				var audit []string
				j := New(Config{Store: s, Audit: func(user string, w wire.Write) { audit = append(audit, w.Key) }})
				for _, n := range []int{1, 2, 7, writes, 150} {
					s.Store.Commit(t.Context(), store.Txn{Then: []store.Op{store.DeletePrefix(objects)}})
					seed(t, s.Store, n)
					audit, s.made = nil, nil
					c := rewrite(t, j, n)
					steps := 0
					c.Progress = func(made, of int) { steps++ }
					done, err := j.Make(t.Context(), c)
					if err != nil || !done || state(s.Store, n) != "new" {
						t.Fatalf("%d writes: %v, %v, %s", n, done, err, state(s.Store, n))
					}
					var want []string
					for _, w := range c.Then {
						want = append(want, w.Key)
					}
					if !slices.Equal(s.made, want) || !slices.Equal(audit, want) {
						t.Errorf("%d writes: made %v, audited %v", n, s.made, audit)
					}
					if n+1 > limit.Ops && steps == 0 {
						t.Errorf("%d writes: no progress is told", n)
					}
					if l := left(s.Store); len(l) > 0 {
						t.Errorf("%d writes: left %q", n, l)
					}
					// The conditions do not hold any more.
					if done, err := j.Make(t.Context(), c); done || err != nil {
						t.Errorf("%d writes again: %v, %v", n, done, err)
					}
					if l := left(s.Store); len(l) > 0 {
						t.Errorf("%d writes again: left %q", n, l)
					}
				}
			})
		})
	}
}

var errCrash = errors.New("the server has ended")

// failures are what may happen to a call: each returns hooks that make the k-th call fail.
var failures = map[string]func(k int, crash func()) (before, after func(string) error){
	"the server ends before":        ends(false),
	"the server ends after":         ends(true),
	"the store does not answer":     fails(false, store.ErrUnavailable),
	"the store's answer is lost":    fails(true, store.ErrUnavailable),
	"the store is full":             onlyCommits(fails(false, store.ErrFull)),
	"the store is down for a while": outage(3),
	"the store is down for long":    outage(100),
}

func ends(after bool) func(int, func()) (func(string) error, func(string) error) {
	return func(k int, crash func()) (func(string) error, func(string) error) {
		calls := 0
		fail := func(string) error {
			if calls++; calls >= k {
				crash()
				return errCrash
			}
			return nil
		}
		if after {
			return func(string) error {
				if calls >= k {
					return errCrash
				}
				return nil
			}, fail
		}
		return fail, nil
	}
}

func fails(after bool, err error) func(int, func()) (func(string) error, func(string) error) {
	return func(k int, _ func()) (func(string) error, func(string) error) {
		calls := 0
		fail := func(string) error {
			if calls++; calls == k {
				return err
			}
			return nil
		}
		if after {
			return nil, fail
		}
		return fail, nil
	}
}

func onlyCommits(f func(int, func()) (func(string) error, func(string) error)) func(int, func()) (func(string) error, func(string) error) {
	return func(k int, crash func()) (func(string) error, func(string) error) {
		before, _ := f(k, crash)
		return func(call string) error {
			if call != "commit" {
				return nil
			}
			return before(call)
		}, nil
	}
}

func outage(length int) func(int, func()) (func(string) error, func(string) error) {
	return func(k int, _ func()) (func(string) error, func(string) error) {
		calls := 0
		return func(string) error {
			if calls++; calls >= k && calls < k+length {
				return store.ErrUnavailable
			}
			return nil
		}, nil
	}
}

// TestEveryFailure makes every call of a change fail in turn, in every way. Whatever
// happens, a fresh server then finds all of the change or nothing of it, as the caller
// was told, and no trace of how.
func TestEveryFailure(t *testing.T) {
	for limitName, limit := range limits {
		for name, failure := range failures {
			t.Run(limitName+"/"+name, func(t *testing.T) {
				outcomes := map[string]int{}
				for k := 1; ; k++ {
					failed := false
					synctest.Test(t, func(t *testing.T) {
						failed = failAt(t, k, limit, failure, outcomes)
					})
					if !failed || t.Failed() {
						break
					}
				}
				if outcomes["made"] == 0 {
					t.Errorf("%v", outcomes)
				}
			})
		}
	}
}

func failAt(t *testing.T, k int, limit Limit, failure func(int, func()) (func(string) error, func(string) error), outcomes map[string]int) (failed bool) {
	s := &limited{Store: storetest.New(), limit: limit}
	seed(t, s.Store, writes)
	audited := map[string]int{}
	audit := func(_ string, w wire.Write) { audited[w.Key]++ }
	j := New(Config{Store: s, Audit: audit})
	c := rewrite(t, j, writes)
	ctx, crash := context.WithCancel(t.Context())
	defer crash()
	before, after := failure(k, crash)
	noting := func(f func(string) error) func(string) error {
		if f == nil {
			return nil
		}
		return func(call string) error {
			err := f(call)
			failed = failed || err != nil
			return err
		}
	}
	s.before, s.after = noting(before), noting(after)
	done, err := j.Make(ctx, c)
	s.before, s.after = nil, nil
	outcome := outcomeOf(done, err)
	outcomes[outcome]++
	ended := ctx.Err() != nil

	// A fresh server.
	ctx, stop := context.WithCancel(t.Context())
	fresh := make(chan error, 1)
	go func() { fresh <- New(Config{Store: s, Audit: audit}).Run(ctx) }()
	time.Sleep(2*sweep + time.Minute)
	stop()
	if err := <-fresh; err != nil {
		t.Error(err)
	}
	got := state(s.Store, writes)
	if got != "old" && got != "new" || outcome == "made" && got != "new" || outcome == "not made" && got != "old" {
		t.Errorf("call %d failed: %s (%v, %v), but the objects are %s", k, outcome, done, err, got)
	}
	if got == "new" && len(s.made) != writes {
		t.Errorf("call %d failed: %d writes were made of %d", k, len(s.made), writes)
	}
	for key, n := range audited {
		if n != 1 || got != "new" {
			t.Errorf("call %d failed: %s is audited %d times, and the objects are %s", k, key, n, got)
		}
	}
	if outcome == "made" && !ended && len(audited) != writes {
		t.Errorf("call %d failed: %d writes are audited of %d", k, len(audited), writes)
	}
	if l := left(s.Store); len(l) > 0 {
		t.Errorf("call %d failed: left %q", k, l)
	}
	return failed
}

func outcomeOf(done bool, err error) string {
	var unfinished *Unfinished
	var notMade *NotMade
	switch {
	case errors.As(err, &unfinished) || done && err == nil:
		return "made"
	case errors.As(err, &notMade) || err == nil || errors.Is(err, store.ErrFull):
		return "not made"
	}
	return "open"
}
