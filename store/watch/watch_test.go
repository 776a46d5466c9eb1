package watch_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"github.com/weft-mesh/weft/store/watch"
	"github.com/weft-mesh/weft/store/watch/watchtest"
	"github.com/weft-mesh/weft/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const interval = 10 * time.Second

func following(w *watchtest.Watcher) *watch.Store {
	return &watch.Store{Client: w, Link: w.Link(), Lineage: wire.LineageKey, Interval: interval}
}

// at is the point of a list at a revision.
func at(revision int64) watch.Point { return watch.Point{Revision: revision, Start: "1"} }

// A quiet store keeps giving signs of life; a store that stops is noticed, however it
// stops.
func TestSilenceIsNoticed(t *testing.T) {
	for name, fall := range map[string]func(*watchtest.Watcher){
		"half-open connection": (*watchtest.Watcher).Silence,
		"client reconnects":    func(w *watchtest.Watcher) { w.SetStuck(true) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := watchtest.New(7)
				var heard time.Time
				ended := make(chan error, 1)
				go func() {
					ended <- following(w).Watch(t.Context(), "a/", at(7), func(revision int64, events []*clientv3.Event) error {
						if revision != 7 || len(events) != 0 {
							t.Errorf("heard %v at %d", events, revision)
						}
						heard = time.Now()
						return nil
					})
				}()
				time.Sleep(time.Hour)
				synctest.Wait()
				if since := time.Since(heard); since > interval {
					t.Errorf("last heard %v ago", since)
				}
				fell := time.Now()
				fall(w)
				if err := <-ended; !errors.Is(err, watch.ErrSilent) {
					t.Errorf("ended with %v", err)
				}
				if after := time.Since(fell); after < 3*interval || after > 8*interval {
					t.Errorf("noticed after %v", after)
				}
			})
		})
	}
}

// An answer reaches all watches of a client, so they do not all ask.
func TestWatchesShareSignsOfLife(t *testing.T) {
	requests := func(t *testing.T, watches int) (n int) {
		synctest.Test(t, func(t *testing.T) {
			w := watchtest.New(7)
			s := following(w)
			heard := make([]time.Time, watches)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, watches)
			for i := range watches {
				go func() {
					ended <- s.Watch(ctx, "a/", at(7), func(int64, []*clientv3.Event) error {
						heard[i] = time.Now()
						return nil
					})
				}()
				time.Sleep(interval / 7) // they tick at different times
			}
			before := w.Asked()
			time.Sleep(time.Hour)
			n = w.Asked() - before
			cancel()
			for range watches {
				if err := <-ended; !errors.Is(err, context.Canceled) {
					t.Errorf("ended with %v", err)
				}
			}
			for i, last := range heard {
				if since := time.Since(last); since > interval {
					t.Errorf("watch %d last heard %v ago", i, since)
				}
			}
		})
		return n
	}
	if few, many := requests(t, 10), requests(t, 60); few != many || few < int(time.Hour/interval) || few > 3*int(time.Hour/interval)/2 {
		t.Errorf("%d requests an hour by 10 watches, %d by 60", few, many)
	}
}

func TestOnlyWhatIsNewIsHandedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watchtest.New(7)
		enough := errors.New("enough")
		ended := make(chan error, 1)
		go func() {
			ended <- following(w).Watch(t.Context(), "a/", at(7), func(revision int64, events []*clientv3.Event) error {
				if len(events) == 0 {
					return nil
				}
				if len(events) != 1 || string(events[0].Kv.Key) != "a/2" || revision != 8 {
					t.Errorf("heard %v at %d", events, revision)
				}
				return enough
			})
		}()
		synctest.Wait()
		w.Repeat("a/1", "known already") // at revision 7
		w.Put("a/2", "new")
		if err := <-ended; !errors.Is(err, enough) {
			t.Errorf("ended with %v", err)
		}
	})
}

func TestItEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watchtest.New(1)
		w.SetStuck(true)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- following(w).Watch(ctx, "a/", at(1), func(int64, []*clientv3.Event) error { return nil })
		}()
		time.Sleep(interval + time.Second) // while it asks
		began := time.Now()
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) || time.Since(began) != 0 {
			t.Errorf("ended after %v with %v", time.Since(began), err)
		}
	})
}

// If seen revisions are gone, the watch ends as soon as the client has reconnected.
// The client's own resumption would skip changes before the revision it expects next.
func TestAStoreThatWentBackIsNoticed(t *testing.T) {
	lineage := func(starts ...wire.Start) wire.Lineage { return wire.Lineage{Starts: starts} }
	first := wire.Start{ID: "1"}
	for _, test := range []struct {
		name    string
		lineage wire.Lineage
		now     int64 // revision of the store after the reconnection
		want    error // nil: the watch goes on
	}{
		{"the connection broke", lineage(first), 8, nil},
		{"restarted", lineage(first, wire.Start{ID: "2", After: 8}), 9, nil},
		{"restarted twice, and written to", lineage(first, wire.Start{ID: "2", After: 8}, wire.Start{ID: "3", After: 20}), 30, nil},
		{"restored, quiet", lineage(first, wire.Start{ID: "2", After: 5}), 6, watch.ErrWentBack},
		{"restored, and past its old revision already", lineage(first, wire.Start{ID: "2", After: 5}), 100, watch.ErrWentBack},
		{"restored, and restarted since", lineage(first, wire.Start{ID: "2", After: 5}, wire.Start{ID: "3", After: 90}), 100, watch.ErrWentBack},
		{"restored from before our start", lineage(wire.Start{ID: "0"}, wire.Start{ID: "2", After: 5}), 100, watch.ErrWentBack},
		{"a store that does not say", wire.Lineage{}, 8, watch.ErrReconnected},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := watchtest.New(7)
				ctx, cancel := context.WithCancel(t.Context())
				var heard []string
				ended := make(chan error, 1)
				go func() {
					ended <- following(w).Watch(ctx, "a/", at(7), func(_ int64, events []*clientv3.Event) error {
						for _, e := range events {
							heard = append(heard, string(e.Kv.Key))
						}
						return nil
					})
				}()
				synctest.Wait()
				w.Put("a/1", "") // at revision 8
				synctest.Wait()
				began := time.Now()
				w.SetLineage(test.lineage)
				w.Reconnect(test.now)
				w.Put("a/2", "")
				synctest.Wait()
				want := "[a/1]"
				if test.want == nil {
					want = "[a/1 a/2]"
					cancel()
				}
				err := <-ended
				if test.want != nil && !errors.Is(err, test.want) || time.Since(began) != 0 {
					t.Errorf("ended after %v with %v", time.Since(began), err)
				}
				if fmt.Sprint(heard) != want {
					t.Errorf("heard %v, want %s", heard, want)
				}
				cancel()
			})
		})
	}
}

// A response with an older revision than was seen ends the watch even without a
// reconnection.
func TestARevisionNeverFalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watchtest.New(5)
		err := following(w).Watch(t.Context(), "a/", at(7), func(int64, []*clientv3.Event) error { return nil })
		if !errors.Is(err, watch.ErrWentBack) {
			t.Errorf("ended with %v", err)
		}
	})
}

// Pages read on two connections may come from two histories.
func TestAListIsReadOnOneConnection(t *testing.T) {
	w := watchtest.New(7)
	pages := 0
	got, err := following(w).List(t.Context(), func() (int64, error) {
		if pages++; pages == 1 {
			w.SetLineage(wire.Lineage{Starts: []wire.Start{{ID: "1"}, {ID: "2", After: 5}}})
			w.Reconnect(6)
			return 7, errors.New("required revision is a future revision")
		}
		return 6, nil
	})
	if want := (watch.Point{Revision: 6, Start: "2", Connection: 1}); got != want || err != nil || pages != 2 {
		t.Errorf("read %d times, at %+v, %v", pages, got, err)
	}
}

// A busy reader gets what happened in the meantime in one call, in order.
func TestWhatArrivesMeanwhileComesTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watchtest.New(1)
		var calls []string
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- following(w).Watch(ctx, "a/", at(1), func(revision int64, events []*clientv3.Event) error {
				call := fmt.Sprint(revision)
				for _, ev := range events {
					call += " " + string(ev.Kv.Key)
				}
				calls = append(calls, call)
				time.Sleep(time.Second)
				return nil
			})
		}()
		synctest.Wait()
		for i := range 20 {
			w.Put(fmt.Sprint("a/", i), "")
			synctest.Wait()
		}
		time.Sleep(1500 * time.Millisecond)
		w.Put("a/last", "")
		time.Sleep(5 * time.Second)
		cancel()
		<-ended
		want := []string{"2 a/0", "21 a/1 a/2 a/3 a/4 a/5 a/6 a/7 a/8 a/9 a/10 a/11 a/12 a/13 a/14 a/15 a/16 a/17 a/18 a/19", "22 a/last"}
		if !slices.Equal(calls, want) {
			t.Errorf("calls %q, want %q", calls, want)
		}
	})
}

// Events of a lost history that were not handed on yet are dropped, even if
// everything handed on so far is still there.
func TestWhatWasNotHandedOnYetIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watchtest.New(1)
		var heard []string
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- following(w).Watch(ctx, "a/", at(1), func(_ int64, events []*clientv3.Event) error {
				for _, e := range events {
					heard = append(heard, string(e.Kv.Key))
				}
				time.Sleep(time.Second)
				return nil
			})
		}()
		synctest.Wait()
		w.Put("a/there", "") // at revision 2
		synctest.Wait()
		w.Put("a/lost", "")
		synctest.Wait()
		w.SetLineage(wire.Lineage{Starts: []wire.Start{{ID: "1"}, {ID: "2", After: 2}}})
		w.Reconnect(2)
		w.Put("a/other", "")
		time.Sleep(time.Second)
		synctest.Wait()
		w.Put("a/new", "")
		time.Sleep(5 * time.Second)
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
		if got, want := fmt.Sprint(heard), "[a/there a/other a/new]"; got != want {
			t.Errorf("heard %v, want %v", got, want)
		}
	})
}
