package endpoints

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/apiserver/registry"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

// distant is a store that is heard of late, an event at a time, as an etcd with
// much to tell is. It counts transactions.
type distant struct {
	*storetest.Store
	commits, refused atomic.Int64
}

func (d *distant) Watch(ctx context.Context, prefix string, after store.Point, each func(store.Batch) error) error {
	return d.Store.Watch(ctx, prefix, after, func(b store.Batch) error {
		for _, ev := range b.Events {
			time.Sleep(time.Millisecond)
			if err := each(store.Batch{Revision: ev.Modified, Events: []store.Event{ev}}); err != nil {
				return err
			}
		}
		return nil
	})
}

func (d *distant) Commit(ctx context.Context, txn store.Txn) (int64, bool, error) {
	revision, done, err := d.Store.Commit(ctx, txn)
	d.commits.Add(1)
	if !done {
		d.refused.Add(1)
	}
	return revision, done, err
}

// In a burst each claim costs a decision or two, however many pods are waiting
// for the store to tell what was written, and nothing is tried in vain.
func TestABurstCostsWhatItsEventsCost(t *testing.T) {
	const pods = 60
	synctest.Test(t, func(t *testing.T) {
		s := storetest.New()
		d := &distant{Store: s}
		e := &east{t: t, store: s, registry: registry.New(s, registry.Config{Cluster: "east", ServiceCIDR: netip.MustParsePrefix("10.101.0.0/16")})}
		e.register(1)
		e.apply(shopService)
		for i := range pods {
			e.pod(fmt.Sprintf("web-%d", i), "n1", "web")
		}
		stop := e.startOn(d)
		time.Sleep(time.Second)
		d.commits.Store(0)
		for _, ready := range []bool{false, true} {
			for i := range pods {
				e.claim("n1", fmt.Sprintf("web-%d", i), fmt.Sprintf("10.1.1.%d", i+5), ready)
				time.Sleep(time.Millisecond)
			}
		}
		time.Sleep(time.Minute)
		if got := strings.Count(e.endpoints(), ": web, ready"); got != pods {
			t.Errorf("%d pods are ready", got)
		}
		if got := strings.Count(e.slices(), "10.1.1."); got != pods {
			t.Errorf("the service has %d endpoints", got)
		}
		// Two claims of each pod, each with its endpoint and its service's slice.
		if d.commits.Load() > 2*2*pods || d.refused.Load() > 0 {
			t.Errorf("%d transactions were tried for %d pods, %d of them in vain", d.commits.Load(), pods, d.refused.Load())
		}
		stop()
	})
}

// What another API server wrote meanwhile is waited for, and not fought.
func TestAnOvertakenWriteWaitsForTheEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.New()
		d := &distant{Store: s}
		e := &east{t: t, store: s, registry: registry.New(s, registry.Config{Cluster: "east", ServiceCIDR: netip.MustParsePrefix("10.101.0.0/16")})}
		e.register(1)
		e.pod("web-1", "n1", "web")
		stop := e.startOn(d)
		time.Sleep(time.Second)
		d.commits.Store(0)
		// The claim is heard of before the other server's endpoint.
		if err := store.Write(t.Context(), s,
			store.Put(wire.NodeEndpointKey("n1", "shop", "web-1"), wire.Marshal(wire.EndpointState{Namespace: "shop", Pod: "web-1", IP: netip.MustParseAddr("10.1.1.5"), Ready: true})),
			store.Put(wire.ObjectKey("namespaces", "", "other-1"), []byte("{}")), store.Put(wire.ObjectKey("namespaces", "", "other-2"), []byte("{}")),
			store.Put(wire.EndpointKey("shop", "web-1"), wire.Marshal(wire.Endpoint{Namespace: "shop", Pod: "web-1", Node: "n1", IP: netip.MustParseAddr("10.1.1.9")})),
		); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		e.want("endpoints", e.endpoints(), "web-1 on n1 (172.16.1.1) at 10.1.1.5: web, ready")
		if d.commits.Load() != 2 || d.refused.Load() != 1 {
			t.Errorf("%d transactions were tried, %d in vain; want one that comes too early and one that holds", d.commits.Load(), d.refused.Load())
		}
		stop()
	})
}
