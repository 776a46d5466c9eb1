package reflector_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/meshagent/reflector"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
)

const (
	west  = "cilium/cache/ip/v1/west/"
	north = "cilium/cache/ip/v1/north/"
)

// world is a store, and what a reflector of it has applied.
type world struct {
	*storetest.Store
	t *testing.T

	mu         sync.Mutex      // guards what follows
	incomplete map[string]bool // peers
	failing    error
	rows       map[string]string
}

// doubt makes the copies of these peers, and of no others, incomplete.
func (w *world) doubt(peers ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.incomplete)
	for _, peer := range peers {
		w.incomplete[peer] = true
	}
}

// fail has the question which copies are incomplete fail, or not.
func (w *world) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failing = err
}

func (w *world) isIncomplete(_ context.Context, peers []string, _ int64) (out []string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, peer := range peers {
		if w.incomplete[peer] {
			out = append(out, peer)
		}
	}
	return out, w.failing
}

func (w *world) write(ops ...store.Op) {
	w.t.Helper()
	if err := store.Write(w.t.Context(), w.Store, ops...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) apply(events []store.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range events {
		if delete(w.rows, e.Key); !e.Deleted {
			w.rows[e.Key] = string(e.Value)
		}
	}
}

// want checks the rows after a while.
func (w *world) want(when string, after time.Duration, want map[string]string) {
	w.t.Helper()
	time.Sleep(after)
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !maps.Equal(w.rows, want) {
		w.t.Errorf("%s: rows %v, want %v", when, w.rows, want)
	}
}

// inWorld runs a reflector of a store with two peers' copies beside something of our own.
func inWorld(t *testing.T, f func(w *world, r *reflector.Reflector)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w := &world{Store: storetest.New(), t: t, incomplete: map[string]bool{}, rows: map[string]string{}}
		w.SetSignOfLife(10 * time.Second)
		w.write(store.Put(west+"10.2.0.1", []byte("old")), store.Put(west+"10.2.0.2", []byte("old")), store.Put(north+"10.3.0.1", []byte("old")), store.Put("cilium/own", []byte("old")))
		r := reflector.New(reflector.Config{
			Prefix: "cilium/", Store: w, Log: slog.New(slog.DiscardHandler), Apply: w.apply,
			Incomplete: w.isIncomplete,
		})
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		<-r.Synced()
		f(w, r)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// What a restored store says about a peer is old. What is known stays until the copy is
// complete, and what is written meanwhile is news.
func TestAnOldCopyOfAPeerChangesNothing(t *testing.T) {
	for name, busy := range map[string]int{"quiet": 0, "past its old revision before anybody looks": 100} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world, _ *reflector.Reflector) {
				before := w.Copy()
				w.write(store.Put(west+"10.2.0.1", []byte("new")), store.Delete(west+"10.2.0.2"), store.Put(west+"10.2.0.3", []byte("new")),
					store.Put(north+"10.3.0.1", []byte("new")), store.Put("cilium/own", []byte("new")), store.Put("cilium/lost", nil))
				w.want("changed", 0, map[string]string{west + "10.2.0.1": "new", west + "10.2.0.3": "new", north + "10.3.0.1": "new", "cilium/own": "new", "cilium/lost": ""})

				w.doubt("west")
				w.PutBack(before)
				for range busy {
					w.write(store.Put("elsewhere", nil))
				}
				w.want("restored", time.Minute, map[string]string{west + "10.2.0.1": "new", west + "10.2.0.3": "new", north + "10.3.0.1": "old", "cilium/own": "old"})
				w.write(store.Put(west+"10.2.0.4", []byte("news")))
				w.want("in between", 0, map[string]string{west + "10.2.0.1": "new", west + "10.2.0.3": "new", west + "10.2.0.4": "news", north + "10.3.0.1": "old", "cilium/own": "old"})

				w.write(store.Put(west+"10.2.0.1", []byte("newest")), store.Delete(west+"10.2.0.2"))
				w.doubt()
				w.want("read again", 15*time.Second, map[string]string{west + "10.2.0.1": "newest", west + "10.2.0.4": "news", north + "10.3.0.1": "old", "cilium/own": "old"})
			})
		})
	}
}

// The same if the store was empty in between: that what it said then was younger than nothing
// makes an old copy no news.
func TestAnOldCopyAfterAnEmptyStoreChangesNothing(t *testing.T) {
	inWorld(t, func(w *world, _ *reflector.Reflector) {
		for _, value := range []string{"oldest", "older", "old"} { // not among the first revisions
			w.write(store.Put(west+"10.2.0.1", []byte(value)))
		}
		before := w.Copy()
		w.write(store.Put(west+"10.2.0.1", []byte("new")), store.Put(north+"10.3.0.1", []byte("new")))
		w.want("changed", 0, map[string]string{west + "10.2.0.1": "new", west + "10.2.0.2": "old", north + "10.3.0.1": "new", "cilium/own": "old"})
		w.doubt("west")
		w.PutBack(storetest.New().Copy())
		w.want("empty", time.Minute, map[string]string{west + "10.2.0.1": "new", west + "10.2.0.2": "old"})
		w.write(store.Put("cilium/own", []byte("begun again")))
		w.want("in use", 0, map[string]string{west + "10.2.0.1": "new", west + "10.2.0.2": "old", "cilium/own": "begun again"})
		w.PutBack(before)
		w.want("restored", time.Minute, map[string]string{west + "10.2.0.1": "new", west + "10.2.0.2": "old", north + "10.3.0.1": "old", "cilium/own": "old"})
	})
}

// A copy that is being made, or is too large to be made, is no reason to miss what it says.
func TestWhatWasWrittenWhileNobodyLookedIsNews(t *testing.T) {
	inWorld(t, func(w *world, r *reflector.Reflector) {
		w.doubt("west")
		w.SetAway(true)
		time.Sleep(time.Minute)
		w.SetAway(false)
		w.write(store.Put(west+"10.2.0.1", []byte("new")), store.Delete(west+"10.2.0.2"), store.Put(west+"10.2.0.3", []byte("new")), store.Delete(north+"10.3.0.1"))
		w.want("back", time.Minute, map[string]string{west + "10.2.0.1": "new", west + "10.2.0.2": "old", west + "10.2.0.3": "new", "cilium/own": "old"})
		if s := r.State(); !s.Connected || s.Error != "" || s.Keys != 4 {
			t.Errorf("state %+v", s)
		}
	})
}

// Peers become complete one by one; a list of everything for each would be dear.
func TestPeersThatComeBackOneByOneCostFewLists(t *testing.T) {
	inWorld(t, func(w *world, _ *reflector.Reflector) {
		w.write(store.Put(north+"10.3.0.2", []byte("old")))
		before := w.Copy()
		w.write(store.Delete(west+"10.2.0.1"), store.Delete(north+"10.3.0.1"))
		synctest.Wait()
		w.doubt("west", "north")
		var lists atomic.Int32
		w.Fail(func(call, _ string) error {
			if call == "list" {
				lists.Add(1)
			}
			return nil
		})
		w.PutBack(before)
		w.want("restored", time.Minute, map[string]string{west + "10.2.0.2": "old", north + "10.3.0.2": "old", "cilium/own": "old"})
		w.doubt("west")
		w.want("one is there", 11*time.Second, map[string]string{west + "10.2.0.2": "old", north + "10.3.0.1": "old", north + "10.3.0.2": "old", "cilium/own": "old"})
		w.want("the other is away", time.Hour, map[string]string{west + "10.2.0.2": "old", north + "10.3.0.1": "old", north + "10.3.0.2": "old", "cilium/own": "old"})
		if n := lists.Load(); n != 2 {
			t.Errorf("%d lists, want 2", n)
		}
	})
}

// While nobody can tell whether copies are complete, nothing of the list counts.
func TestAListIsNotBelievedWhileItIsNotKnownWhatIsComplete(t *testing.T) {
	inWorld(t, func(w *world, r *reflector.Reflector) {
		before := w.Copy()
		w.write(store.Put("cilium/own", []byte("new")))
		synctest.Wait()
		w.fail(errors.New("no answer"))
		w.PutBack(before)
		w.want("not known", time.Minute, map[string]string{west + "10.2.0.1": "old", west + "10.2.0.2": "old", north + "10.3.0.1": "old", "cilium/own": "new"})
		if s := r.State(); s.Connected || s.Error == "" {
			t.Errorf("state %+v", s)
		}
		w.fail(nil)
		w.want("known", 10*time.Second, map[string]string{west + "10.2.0.1": "old", west + "10.2.0.2": "old", north + "10.3.0.1": "old", "cilium/own": "old"})
	})
}

// A canary is applied after what it stands for, however slow that is.
func TestWhatWasWrittenBeforeComesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		twin := storetest.New()
		twin.SetSignOfLife(10 * time.Second)
		var mu sync.Mutex // guards order
		var order []string
		begin := func(prefix string, slow time.Duration, after ...*reflector.Reflector) (*reflector.Reflector, chan error) {
			r := reflector.New(reflector.Config{Prefix: prefix, Store: twin, Log: slog.New(slog.DiscardHandler), After: after, Apply: func(events []store.Event) {
				time.Sleep(slow)
				mu.Lock()
				defer mu.Unlock()
				for _, e := range events {
					order = append(order, e.Key)
				}
			}})
			done := make(chan error)
			go func() { done <- r.Run(ctx) }()
			return r, done
		}
		first, one := begin("a/", time.Minute)
		_, two := begin("b/", 0, first)
		synctest.Wait()
		_ = twin.Put(ctx, "a/1", nil)
		_ = twin.Put(ctx, "b/1", nil)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		mu.Lock()
		if len(order) != 2 || order[0] != "a/1" {
			t.Errorf("applied in the order %v", order)
		}
		mu.Unlock()
		_ = twin.Put(ctx, "b/2", nil) // and it does not wait for nothing
		synctest.Wait()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if len(order) != 3 {
			t.Errorf("applied %v", order)
		}
		cancel()
		<-one
		<-two
	})
}
