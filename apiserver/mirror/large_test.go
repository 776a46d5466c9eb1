package mirror

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

// small is our store with a limit on values, counting transactions.
type small struct {
	*storetest.Store
	most    int
	commits int
}

func (s *small) Commit(ctx context.Context, txn store.Txn) (int64, bool, error) {
	s.commits++
	for _, op := range txn.Then {
		if len(op.Value) > s.most {
			return 0, false, store.ErrTooLarge
		}
	}
	return s.Store.Commit(ctx, txn)
}

// One value that is too large for our store is set aside; everything else of the list
// is written in as few transactions as without it.
func TestOneLargeValueDoesNotSplitTheSweep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours := storetest.New()
		b := &bench{t: t, ours: ours, theirs: storetest.New()}
		b.fill("w1")
		for n := 5; n < 255; n++ {
			b.pod(n, 131073)
		}
		b.there(store.Put(wire.IdentityStateKey(131090), fmt.Appendf(nil, "k8s:a=%s;k8s:io.cilium.k8s.policy.cluster=west;", strings.Repeat("x", 2000))))
		limited := &small{Store: ours, most: 1000}
		b.startOn(limited)
		if got := len(ours.Dump("cilium/cache/ip/")); got != 253 {
			t.Errorf("%d of 253 pods are copied", got)
		}
		if r := b.m.Status(time.Now()).Refused; len(r) != 1 || r[0].Reason != string(TooLarge) || r[0].Count != 1 {
			t.Errorf("refused %+v", r)
		}
		if limited.commits > 30 {
			t.Errorf("%d transactions for 260 entries", limited.commits)
		}
		b.stop()
	})
}

func TestTooLargeForOurStore(t *testing.T) {
	run(t, func(b *bench) {
		b.ours.Fail(func(call, key string) error {
			if call == "commit" && key == "cilium/cache/ip/v1/west/10.2.1.7" {
				return fmt.Errorf("put: %w", store.ErrTooLarge)
			}
			return nil
		})
		b.pod(7, 131073)
		b.pod(8, 131073)
		if b.state().State != api.LinkUp || len(b.ours.Dump("cilium/cache/ip/v1/west/10.2.1.8")) != 1 {
			t.Errorf("control %+v", b.state())
		}
		r := b.m.Status(time.Now()).Refused
		if len(r) != 1 || r[0].Reason != string(TooLarge) {
			t.Errorf("refused %+v", r)
		}
		b.there(store.Delete(podKey(7)))
		if got := b.refused(); got != "" {
			t.Errorf("withdrawn, and still refused: %s", got)
		}
	})
}
