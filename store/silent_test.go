package store

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weft-mesh/weft/store/watch"
	"github.com/weft-mesh/weft/store/watch/watchtest"
	"github.com/weft-mesh/weft/wire"
)

// lists is a store that answers lists, and may have lost everything.
type lists struct {
	clientv3.KV
	mu   sync.Mutex
	keys []string
}

func (l *lists) set(keys ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keys = keys
}

func (l *lists) Get(_ context.Context, key string, _ ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if key == wire.LineageKey {
		return &clientv3.GetResponse{Header: &etcdserverpb.ResponseHeader{Revision: 1}}, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	resp := &clientv3.GetResponse{Header: &etcdserverpb.ResponseHeader{Revision: 1}}
	for _, k := range l.keys {
		resp.Kvs = append(resp.Kvs, &mvccpb.KeyValue{Key: []byte(k), ModRevision: 1})
	}
	return resp, nil
}

// A watch that stops delivering without breaking is renewed, and nothing is said to be
// deleted meanwhile.
func TestASilentWatchIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		watches, keys := watchtest.New(1), &lists{}
		keys.set("a/1", "a/2")
		client := clientv3.NewCtxClient(ctx)
		client.Watcher, client.KV = watches, keys
		etcd := &Etcd{client: client, watched: &watch.Store{Client: client, Link: watches.Link(), Lineage: wire.LineageKey, Interval: 10 * time.Second}}
		rows, deleted, complete, heard := map[string]bool{}, 0, 0, time.Time{}
		done := make(chan error, 1)
		go func() {
			done <- Persist(ctx, slog.New(slog.DiscardHandler), "following", func(ctx context.Context) error {
				return Follow(ctx, etcd, "a/", func(b Batch) error {
					heard = time.Now()
					if b.Complete {
						complete++
					}
					for _, e := range b.Events {
						rows[e.Key] = true
						if e.Deleted {
							deleted++
						}
					}
					return nil
				})
			})
		}()
		time.Sleep(time.Hour)
		synctest.Wait()
		if watches.Opened() != 1 || complete != 1 || time.Since(heard) > time.Minute {
			t.Errorf("quiet: %d watches, %d lists, heard %v ago", watches.Opened(), complete, time.Since(heard))
		}

		watches.Silence()
		keys.set("a/1", "a/2", "a/3") // unheard
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if watches.Opened() != 2 || complete != 2 || !rows["a/3"] || deleted != 0 {
			t.Errorf("after silence: %d watches, %d lists, %d deletions, rows %v", watches.Opened(), complete, deleted, rows)
		}
		watches.Put("a/4", "")
		synctest.Wait()
		if !rows["a/4"] {
			t.Error("the new watch is not followed")
		}
		cancel()
		<-done
	})
}
