package mirror

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

// cutOff breaks the link, has the peer change meanwhile, restores the link, and returns how
// many of the peer's folders were listed afterwards.
func (b *bench) cutOff(change func()) (lists int) {
	b.theirs.Fail(func(call, _ string) error {
		if call == "commit" { // their own writes
			return nil
		}
		return store.ErrUnavailable
	})
	b.wait()
	change()
	b.theirs.Fail(func(call, key string) error {
		if call == "list" && (strings.HasPrefix(key, wire.CiliumStatePrefix) || strings.HasPrefix(key, wire.ExportPrefix)) {
			lists++
		}
		return nil
	})
	b.wait()
	b.theirs.Fail(nil)
	return lists
}

// What a broken link costs once it is back is what changed meanwhile, not all that the
// peer exports.
func TestABrokenLinkCostsWhatChanged(t *testing.T) {
	for _, pods := range []int{10, 100} {
		run(t, func(b *bench) {
			for n := range pods {
				b.pod(10+n, 131073)
			}
			before := b.m.counts()
			lists := b.cutOff(func() {
				b.pod(2, 131074)
				b.pod(200, 131073)
				b.there(store.Delete(podKey(3)))
			})
			after := b.m.counts()
			if wrote, withdrew := after.written-before.written, after.withdrawn-before.withdrawn; lists != 0 || wrote != 2 || withdrew != 1 {
				t.Errorf("%d pods: %d lists, %d written, %d withdrawn", pods, lists, wrote, withdrew)
			}
			b.same()
			if s := b.state(); s.State != api.LinkUp {
				t.Errorf("control %+v", s)
			}
		})
	}
}

// Whatever puts the place in doubt has everything listed.
func TestInDoubtEverythingIsListed(t *testing.T) {
	for name, change := range map[string]func(b *bench, old storetest.Copy){
		"history is gone":     func(b *bench, _ storetest.Copy) { b.pod(2, 131074); b.theirs.Compact() },
		"the store went back": func(b *bench, old storetest.Copy) { b.theirs.PutBack(old); b.pod(2, 131074) },
		"it says something else of itself": func(b *bench, _ storetest.Copy) {
			b.there(store.Put("cilium/cluster-config/west", []byte(`{"id":2,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,"endpointSlicesExportMode":"endpointslices-only"}}`)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(b *bench) {
				old := b.theirs.Copy()
				b.pod(9, 131073)
				if lists := b.cutOff(func() { change(b, old) }); lists == 0 {
					t.Error("nothing was listed")
				}
				b.same()
			})
		})
	}
}

// A peer whose watches fail is listed in every other session.
func TestAPeerWithoutWatchesIsListed(t *testing.T) {
	run(t, func(b *bench) {
		b.theirs.Fail(func(call, _ string) error {
			if call == "watch" {
				return store.ErrUnavailable
			}
			return nil
		})
		b.wait()
		b.pod(7, 131073)
		b.wait()
		b.same()
		b.theirs.Fail(nil)
	})
}

// Changes that were queued but not copied when the link broke are not skipped.
func TestWhatWasQueuedIsReadAgain(t *testing.T) {
	run(t, func(b *bench) {
		b.limit(Rate{Changes: 1, Bytes: 1 << 20})
		for n := range 200 {
			b.pod(20+n, 131073) // far more than the rate allows
		}
		if n, _ := b.m.queue.oldest(); n == 0 {
			t.Fatal("nothing waits")
		}
		b.cutOff(func() { b.pod(2, 131074) })
		time.Sleep(10 * time.Minute)
		b.same()
	})
}

// cut is a peer's store behind a link that loses everything while it is cut. The kernel
// repeats what was lost, ever more seldom.
type cut struct {
	open
	is *atomic.Bool
}

func (c cut) Get(ctx context.Context, key string) (store.KV, error) {
	for gap := time.Second; c.is.Load(); gap *= 2 {
		if sleep(ctx, gap) != nil {
			return store.KV{}, fmt.Errorf("%w: %w", store.ErrUnavailable, ctx.Err())
		}
	}
	return c.open.Get(ctx, key)
}

// When a link is back, the others try at once, too.
func TestOneLinkRevivesTheOthers(t *testing.T) {
	slowest := func(t *testing.T, mirrors int) (after time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			isCut, revival := new(atomic.Bool), &Revival{}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, mirrors)
			var all []*Mirror
			var theirs []*storetest.Store
			for range mirrors {
				b := &bench{t: t, ours: storetest.New(), theirs: storetest.New()}
				b.fill("w1")
				m := New(Config{Own: east, Peer: westAsPeer, Store: b.ours, Revival: revival, Log: slog.New(slog.DiscardHandler),
					Dial: func() (Source, error) { return cut{open{b.theirs, DefaultLimit()}, isCut}, nil }})
				all, theirs = append(all, m), append(theirs, b.theirs)
				go func() { ended <- m.Run(ctx) }()
			}
			time.Sleep(time.Minute)
			isCut.Store(true)
			for _, s := range theirs {
				s.SetAway(true)
			}
			time.Sleep(time.Minute)
			for _, s := range theirs {
				s.SetAway(false)
			}
			isCut.Store(false)
			healed := time.Now()
			for _, m := range all {
				for !m.stateIs(api.LinkUp) {
					time.Sleep(10 * time.Millisecond)
				}
			}
			after = time.Since(healed)
			cancel()
			for range all {
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}
		})
		return after
	}
	if after := slowest(t, 50); after > 2*time.Second {
		t.Errorf("the last of 50 links was back after %v", after)
	}
}

// A peer whose link keeps breaking does not disturb the others.
func TestOnlySteadyLinksRevive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r Revival
		first := r.wait()
		r.tell(time.Now())
		select {
		case <-first:
		default:
			t.Error("nobody was told")
		}
		second := r.wait()
		r.tell(time.Now())
		select {
		case <-second:
			t.Error("told twice at once")
		default:
		}
		// A young attempt goes on, an old one is given up.
		for age, want := range map[time.Duration]error{revivalAge / 2: nil, 2 * revivalAge: errRevived} {
			time.Sleep(time.Minute)
			err := r.orRevival(t.Context(), func(ctx context.Context) error {
				time.Sleep(age)
				r.tell(time.Now())
				synctest.Wait()
				return ctx.Err()
			})
			if !errors.Is(err, want) {
				t.Errorf("an attempt of %v: %v", age, err)
			}
		}
	})
}
