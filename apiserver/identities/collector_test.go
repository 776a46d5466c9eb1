package identities_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/apiserver/identities"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

func acquire(t testing.TB, a *identities.Allocator, labels identity.Labels, owner string) identity.Number {
	t.Helper()
	n, err := a.Acquire(t.Context(), labels, owner, run(owner, labels))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func release(t testing.TB, a *identities.Allocator, labels identity.Labels, owner string) {
	t.Helper()
	err := a.Release(t.Context(), labels, owner, store.Txn{Then: []store.Op{store.Delete("pods/" + owner)}})
	if err != nil {
		t.Fatal(err)
	}
}

func taken(t testing.TB, a *identities.Allocator, n identity.Number) bool {
	t.Helper()
	all, err := a.All(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, ok := all[n]
	return ok
}

func TestUnusedNumberIsFreedAfterGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTwin()
		a := allocator(t, s, first, last)
		used, unused := acquire(t, a, app(1), "one"), acquire(t, a, app(2), "two")
		release(t, a, app(2), "two")

		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- identities.NewCollector(a, identities.DefaultCollectorConfig()).Run(ctx) }()

		// Marked at once, seen marked after a minute, freed after Grace.
		time.Sleep(16*time.Minute - time.Second)
		if !taken(t, a, unused) {
			t.Error("freed too early")
		}
		time.Sleep(2 * time.Second)
		if taken(t, a, unused) {
			t.Error("not freed")
		}
		if !taken(t, a, used) {
			t.Error("freed a number in use")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		sound(t, s.dump())
		if got := len(s.dump()); got != 4 {
			t.Errorf("left behind: %v", s.dump())
		}
	})
}

func TestNumberThatIsUsedAgainStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTwin()
		a := allocator(t, s, first, last)
		c := identities.NewCollector(a, identities.CollectorConfig{Grace: time.Hour})
		n := acquire(t, a, app(1), "one")
		release(t, a, app(1), "one")
		collect(t, c, 0)
		collect(t, c, 0)
		time.Sleep(59 * time.Minute)
		acquire(t, a, app(1), "two")
		release(t, a, app(1), "two")
		time.Sleep(2 * time.Minute)
		collect(t, c, 0) // it was used in between: the grace period starts again
		collect(t, c, 0)
		time.Sleep(59 * time.Minute)
		collect(t, c, 0)
		time.Sleep(2 * time.Minute)
		collect(t, c, 1)
		if taken(t, a, n) {
			t.Error("not freed")
		}
	})
}

func collect(t testing.TB, c *identities.Collector, want int) {
	t.Helper()
	freed, err := c.Collect(t.Context())
	if err != nil || len(freed) != want {
		t.Errorf("freed %v, %v; want %d", freed, err, want)
	}
}

// An owner takes the number between the collector's look and its transaction.
func TestOwnerComesBetweenLookAndAct(t *testing.T) {
	for round, what := range []string{"mark", "free"} {
		t.Run(what, func(t *testing.T) {
			s := newTwin()
			a := allocator(t, s, first, last)
			c := identities.NewCollector(a, identities.CollectorConfig{})
			n := acquire(t, a, app(1), "one")
			release(t, a, app(1), "one")
			for range round {
				collect(t, c, 0)
			}
			inside := false
			s.before = func(call string) error {
				if call == "commit" && !inside {
					inside = true
					acquire(t, a, app(1), "two")
				}
				return nil
			}
			collect(t, c, 0)
			for key := range s.dump() {
				if strings.HasPrefix(key, wire.IdentityUnusedPrefix) {
					t.Errorf("%s stands although the number is in use", key)
				}
			}
			collect(t, c, 0)
			if !inside || !taken(t, a, n) {
				t.Errorf("interleaved: %v, taken: %v", inside, taken(t, a, n))
			}
			sound(t, s.dump())
		})
	}
}

func TestLostReferencesFreeNothingInUse(t *testing.T) {
	s := newTwin()
	a := allocator(t, s, first, last)
	n := acquire(t, a, app(1), "one")
	use := map[identity.Number]bool{n: true}
	c := identities.NewCollector(a, identities.CollectorConfig{
		InUse: func(context.Context) (map[identity.Number]bool, error) { return use, nil },
	})
	if s.lose(func(key string) bool { return key == wire.IdentityOwnerKey(app(1).String(), "one") }) != 1 {
		t.Fatal("nothing was lost")
	}
	for range 3 {
		collect(t, c, 0)
	}
	if again := acquire(t, a, app(1), "one"); again != n {
		t.Errorf("got %v, want %v again", again, n)
	}
	sound(t, s.dump())

	release(t, a, app(1), "one")
	clear(use)
	collect(t, c, 0)
	collect(t, c, 1)
}

func TestNothingIsFreedWithoutTheSecondOpinion(t *testing.T) {
	s := newTwin()
	a := allocator(t, s, first, last)
	acquire(t, a, app(1), "one")
	release(t, a, app(1), "one")
	c := identities.NewCollector(a, identities.CollectorConfig{
		InUse: func(context.Context) (map[identity.Number]bool, error) { return nil, errInjected },
	})
	for range 3 {
		if freed, err := c.Collect(t.Context()); !errors.Is(err, errInjected) || freed != nil {
			t.Errorf("freed %v, %v", freed, err)
		}
	}
}

func TestOtherRangesAreLeftAlone(t *testing.T) {
	s := newTwin()
	other := allocator(t, s, 1<<17, 1<<17+9)
	n := acquire(t, other, app(1), "one")
	release(t, other, app(1), "one")
	c := identities.NewCollector(allocator(t, s, first, last), identities.CollectorConfig{})
	for range 3 {
		collect(t, c, 0)
	}
	if !taken(t, other, n) {
		t.Error("freed")
	}
}

func TestFreedNumberRests(t *testing.T) {
	s := newTwin()
	a := allocator(t, s, first, first+9)
	c := identities.NewCollector(a, identities.CollectorConfig{})
	n := acquire(t, a, app(0), "pod")
	release(t, a, app(0), "pod")
	collect(t, c, 0)
	collect(t, c, 1)
	for i := 1; i < 10; i++ {
		if got := acquire(t, a, app(i), "pod"); got == n {
			t.Errorf("%v was reused after %d others", n, i-1)
		}
	}
	if got := acquire(t, a, app(10), "pod"); got != n {
		t.Errorf("got %v, want the last one left, %v", got, n)
	}
}

// Allocators, releases, impatient collectors, failing stores and lost
// references all at once: no pod ever runs under a number that is not its.
func TestAllAtOnce(t *testing.T) {
	for name, lossy := range map[string]bool{"owners are kept": false, "owners are lost": true} {
		t.Run(name, func(t *testing.T) {
			s := newTwin()
			flaky := func(string) error {
				if rand.IntN(3) == 0 {
					runtime.Gosched()
				}
				if rand.IntN(20) == 0 {
					return errInjected
				}
				return nil
			}
			s.before = flaky
			s.after = func(call string) error {
				if call == "commit" {
					rows := s.dump()
					if lossy { // references are incomplete then
						for key := range rows {
							if strings.Contains(key, ";/") {
								delete(rows, key)
							}
						}
					}
					sound(t, rows)
				}
				return flaky(call)
			}
			inUse := func(ctx context.Context) (map[identity.Number]bool, error) {
				rows, _, err := s.List(ctx, "pods/")
				out := map[identity.Number]bool{}
				for _, row := range rows {
					text, _, _ := strings.Cut(string(row.Value), " ")
					n, _ := identity.ParseNumber(text)
					out[n] = true
				}
				return out, err
			}
			ctx, cancel := context.WithCancel(context.Background())
			var workers, collectors sync.WaitGroup
			for range 2 {
				c := identities.NewCollector(allocator(t, s, first, first+11), identities.CollectorConfig{InUse: inUse})
				collectors.Go(func() {
					for ctx.Err() == nil {
						c.Collect(ctx)
						if lossy {
							s.lose(func(key string) bool { return strings.Contains(key, ";/") && rand.IntN(4) == 0 })
						}
					}
				})
			}
			for i := range 4 {
				a := allocator(t, s, first, first+11)
				workers.Go(func() { work(t, a, fmt.Sprint("pod-", i)) })
			}
			workers.Wait()
			cancel()
			collectors.Wait()
			t.Logf("%d commits", s.commits.Load())
		})
	}
}

// work starts and stops a pod 150 times under changing labels, retrying on the
// expected errors.
func work(t *testing.T, a *identities.Allocator, pod string) {
	ctx := context.Background()
	stop := store.Txn{Then: []store.Op{store.Delete("pods/" + pod)}}
	for range 150 {
		labels := app(rand.IntN(8))
		for {
			_, err := a.Acquire(ctx, labels, pod, run(pod, labels))
			if err == nil {
				break
			}
			if !errors.Is(err, errInjected) && !errors.Is(err, identities.ErrExhausted) && !errors.Is(err, identities.ErrContended) {
				t.Error(err)
				return
			}
		}
		for a.Release(ctx, labels, pod, stop) != nil {
		}
	}
}
