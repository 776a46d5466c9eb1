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

	"github.com/weft-mesh/weft/wire/watch"
	"github.com/weft-mesh/weft/wire/watch/watchtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const interval = 10 * time.Second

// A quiet store gives signs of life for as long as one likes; one that stops
// doing so is noticed, however it does it.
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
					ended <- watch.Prefix(t.Context(), w, "a/", 7, interval, func(revision int64, events []*clientv3.Event) error {
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

func TestOnlyWhatIsNewIsHandedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watchtest.New(6)
		enough := errors.New("enough")
		ended := make(chan error, 1)
		go func() {
			ended <- watch.Prefix(t.Context(), w, "a/", 7, interval, func(revision int64, events []*clientv3.Event) error {
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
		w.Put("a/1", "known already") // at revision 7
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
			ended <- watch.Prefix(ctx, w, "a/", 1, interval, func(int64, []*clientv3.Event) error { return nil })
		}()
		time.Sleep(interval + time.Second) // while it asks
		began := time.Now()
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) || time.Since(began) != 0 {
			t.Errorf("ended after %v with %v", time.Since(began), err)
		}
	})
}

// Whoever is busy hears in one call of what happened meanwhile, in order.
func TestWhatArrivesMeanwhileComesTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watchtest.New(1)
		var calls []string
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- watch.Prefix(ctx, w, "a/", 1, interval, func(revision int64, events []*clientv3.Event) error {
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
