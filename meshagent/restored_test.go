package meshagent

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// A copy of the same store that is put back is the truth, at once and in full:
// what came after it is gone, and what is written to it now counts. An agent that
// goes on then has what one that starts has.
func TestAStoreThatWentBackIsBelieved(t *testing.T) {
	for name, writes := range map[string]int{"quiet": 0, "past its old revision before anybody looks": 100} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, east, west, _ := raise(t)
				east.pod("stays", "web")
				w.step()
				cluster, copied := east.cluster, east.cluster.store.Copy()
				ids, next := maps.Clone(cluster.ids), cluster.next

				// After the copy a pod comes, one goes, and a service is deleted.
				east.pod("lost", "lost")
				_ = cluster.store.Delete(context.Background(), wire.ObjectKey("pods", "shop", "stays"))
				w.step()
				lost, stays := netip.MustParseAddr("10.1.1.4"), netip.MustParseAddr("10.1.1.3")
				if _, ok, _ := east.maps().Endpoints.Lookup(bpf.AddrOf(lost)); !ok {
					t.Fatalf("endpoints before: %v", rowsOf(t, east.maps().Endpoints))
				}

				cluster.ids, cluster.next = ids, next
				cluster.store.PutBack(copied)
				for i := range writes {
					cluster.putRaw(wire.ObjectKey("ciliumcidrgroups", "", fmt.Sprint("c-", i)), []byte("{}"))
				}
				east.pod("new", "new")
				w.step()
				time.Sleep(5 * time.Second)
				w.step()

				pods := map[string]bool{}
				for key := range list[wire.EndpointState](t, cluster, wire.NodeEndpointsPrefix(east.name)) {
					pods[key] = true
				}
				for _, pod := range []string{"client", "stays", "new"} {
					if !pods[wire.NodeEndpointKey(east.name, "shop", pod)] {
						t.Errorf("the store does not know of pod %s: %v", pod, pods)
					}
				}
				if len(pods) != 3 {
					t.Errorf("pods %v", pods)
				}
				if rows := rowsOf(t, east.maps().Endpoints); len(rows) != 3 {
					t.Errorf("endpoints after: %v", rows)
				}
				if row, ok, _ := east.maps().Endpoints.Lookup(bpf.AddrOf(stays)); ok && row.Held != 0 {
					t.Errorf("the pod that came back: %+v", row)
				}
				now := kernel(t, east)
				east.stop()
				east.run()
				w.step()
				sameKernel(t, "restarted", kernel(t, east), now)
				for _, s := range east.agent.Status().Sources {
					if s.Error != "" || !s.Connected {
						t.Errorf("source %+v", s)
					}
				}
				east.stop()
				west.stop()
			})
		})
	}
}

// What an agent wrote of itself and somebody deleted is written again.
func TestWhatANodeSaidIsSaidAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, east, west, _ := raise(t)
		for _, key := range []string{wire.NodeKey(east.name), wire.NodeSyncedKey(east.name), wire.NodeEndpointKey(east.name, "shop", "client")} {
			before, ok := east.cluster.store.Value(key)
			if err := east.cluster.store.Delete(context.Background(), key); err != nil || !ok {
				t.Fatalf("%s: %v, %v", key, ok, err)
			}
			time.Sleep(time.Second)
			synctest.Wait()
			if after, _ := east.cluster.store.Value(key); string(after) != string(before) {
				t.Errorf("%s: %q, before %q", key, after, before)
			}
		}
		w.step()
		east.stop()
		west.stop()
	})
}

// overtaken is a store in which a key is deleted while a list is on its way.
type overtaken struct {
	Store
	lists  int
	before func()
}

func (o *overtaken) List(context.Context, string) ([]store.KV, store.Point, error) {
	if o.lists++; o.lists == 1 {
		o.before()
		return []store.KV{{Key: wire.NodeKey("n1"), Value: []byte("{}")}}, store.Point{}, nil
	}
	return nil, store.Point{}, nil
}

// A list may be older than what was heard while it was read. Taken for the truth, it
// would hide for good that a key is missing.
func TestAListThatWasOvertakenIsReadAgain(t *testing.T) {
	twin := &overtaken{}
	p := &publisher{node: node{name: "n1"}, edges: &Edges{Store: twin}, lost: make(chan struct{}, 1)}
	twin.before = func() {
		p.heard([]store.Event{{KV: store.KV{Key: wire.NodeKey("other")}, Deleted: true}, {KV: store.KV{Key: wire.NodeKey("n1")}, Deleted: true}})
	}
	if have, err := p.recall(t.Context()); err == nil {
		t.Errorf("believed a list that was overtaken: %v", have)
	}
	for range 2 {
		if have, err := p.recall(t.Context()); err != nil || len(have) > 0 {
			t.Errorf("then it has %v, %v", have, err)
		}
	}
	if twin.lists != 2 {
		t.Errorf("%d lists, want 2", twin.lists)
	}
}
