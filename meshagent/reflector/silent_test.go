package reflector_test

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

	"github.com/weft-mesh/weft/meshagent/reflector"
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

// A watch that stops delivering without breaking is renewed, and nothing is
// deleted meanwhile.
func TestASilentWatchIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		watches, keys := watchtest.New(1), &lists{}
		keys.set("a/1", "a/2")
		client := clientv3.NewCtxClient(ctx)
		client.Watcher, client.KV = watches, keys
		rows, deleted := map[string]bool{}, 0
		r := reflector.New(reflector.Config{
			Prefix: "a/", Source: reflector.NewEtcd("n1", client, watches.Link()), Log: slog.New(slog.DiscardHandler),
			Apply: func(events []reflector.Event) {
				for _, e := range events {
					rows[e.Key] = true
					if e.Deleted {
						deleted++
					}
				}
			},
		})
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		time.Sleep(time.Hour)
		synctest.Wait()
		if watches.Opened() != 1 || time.Since(r.State().Heard) > time.Minute {
			t.Errorf("quiet: %d watches, %+v", watches.Opened(), r.State())
		}

		watches.Silence()
		keys.set("a/1", "a/2", "a/3") // unheard
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if watches.Opened() != 2 || !rows["a/3"] || deleted != 0 || !r.State().Connected {
			t.Errorf("after silence: %d watches, %d deletions, rows %v, %+v", watches.Opened(), deleted, rows, r.State())
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
