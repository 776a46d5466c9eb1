package reflector_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/weft-mesh/weft/meshagent/reflector"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestKeepsRowsWhileTheStoreIsAwayAndSweepsAfterwards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		twin := storetest.New()
		put := func(k string) {
			if err := twin.Put(ctx, k, []byte(k)); err != nil {
				t.Fatal(err)
			}
		}
		put("a/1")
		put("a/2")
		put("b/1")

		rows := map[string]bool{}
		r := reflector.New(reflector.Config{
			Prefix: "a/", Store: twin, Log: slog.New(slog.DiscardHandler),
			Apply: func(events []store.Event) {
				for _, e := range events {
					if e.Deleted {
						delete(rows, e.Key)
					} else {
						rows[e.Key] = true
					}
				}
			},
		})
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		<-r.Synced()
		synctest.Wait()
		want := func(when string, keys ...string) {
			t.Helper()
			w := map[string]bool{}
			for _, k := range keys {
				w[k] = true
			}
			if !maps.Equal(rows, w) {
				t.Errorf("%s: rows %v, want %v", when, rows, w)
			}
		}
		want("after the list", "a/1", "a/2")
		put("a/3")
		synctest.Wait()
		want("after a change", "a/1", "a/2", "a/3")

		twin.SetAway(true)
		time.Sleep(time.Minute)
		synctest.Wait()
		want("away", "a/1", "a/2", "a/3")
		if s := r.State(); s.Connected || s.Error == "" {
			t.Errorf("state while away: %+v", s)
		}

		twin.SetAway(false)
		if err := twin.Delete(ctx, "a/1"); err != nil {
			t.Fatal(err)
		}
		put("a/4")
		time.Sleep(10 * time.Second)
		synctest.Wait()
		want("back", "a/2", "a/3", "a/4")
		if s := r.State(); !s.Connected || s.Keys != 3 {
			t.Errorf("state when back: %+v", s)
		}
		cancel()
		<-done
	})
}

func TestAListThatIsNotTrustedChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		twin := storetest.New()
		_ = twin.Put(ctx, "a/cluster", []byte("x"))
		applied := 0
		r := reflector.New(reflector.Config{
			Prefix: "a/", Store: twin, Log: slog.New(slog.DiscardHandler),
			Apply: func(events []store.Event) { applied += len(events) },
			Trust: func(context.Context) error {
				if _, ok := twin.Value("a/cluster"); !ok {
					return errors.New("the store is empty")
				}
				return nil
			},
		})
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		<-r.Synced()
		twin.SetAway(true)
		time.Sleep(time.Second)
		twin.Forget()
		twin.SetAway(false)
		time.Sleep(time.Minute)
		synctest.Wait()
		if applied != 1 || r.State().Error == "" {
			t.Errorf("an empty list was applied: %d changes, state %+v", applied-1, r.State())
		}
		cancel()
		<-done
	})
}

// broken is a store whose lists work and whose watches do not.
type broken struct {
	*storetest.Store
	lists int
}

func (b *broken) List(ctx context.Context, prefix string) ([]store.KV, store.Point, error) {
	b.lists++
	return b.Store.List(ctx, prefix)
}

func (b *broken) Watch(context.Context, string, store.Point, func(store.Batch) error) error {
	return errors.New("permission denied")
}

// A store that refuses watches is not asked for one list after another.
func TestAWatchThatFailsAtOnceBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		twin := &broken{Store: storetest.New()}
		r := reflector.New(reflector.Config{Prefix: "a/", Store: twin, Log: slog.New(slog.DiscardHandler), Apply: func([]store.Event) {}})
		if err := r.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if twin.lists < 20 || twin.lists > 80 { // every 1 to 3 s in the end
			t.Errorf("%d lists in a minute", twin.lists)
		}
	})
}
