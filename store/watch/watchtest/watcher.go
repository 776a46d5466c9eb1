// Package watchtest is the watching part of an etcd client, in memory. It can fall
// silent, reconnect, and find another history there.
package watchtest

import (
	"context"
	"slices"
	"sync"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/stats"

	"github.com/weft-mesh/weft/store/watch"
	"github.com/weft-mesh/weft/wire"
)

// Watcher is a clientv3.Watcher that also returns the lineage. It sends every change
// to every watch, whatever its prefix. Safe for concurrent use.
type Watcher struct {
	// mu guards what follows.
	mu       sync.Mutex
	stuck    bool
	opened   int
	asked    int
	revision int64
	watches  map[chan clientv3.WatchResponse]bool
	history  []*clientv3.Event
	lineage  wire.Lineage
	link     watch.Link
}

// New returns a Watcher at a revision, for a store that was started once, as "1".
func New(revision int64) *Watcher {
	w := &Watcher{revision: revision, watches: map[chan clientv3.WatchResponse]bool{}}
	w.SetLineage(wire.Lineage{Starts: []wire.Start{{ID: "1"}}})
	return w
}

// Link counts the connections of this client.
func (w *Watcher) Link() *watch.Link { return &w.link }

// SetLineage sets the lineage that the store returns from the next connection on.
func (w *Watcher) SetLineage(l wire.Lineage) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lineage = l
}

// Reconnect makes a new connection to a store at a revision. The watches continue
// with what comes next, as those of etcd's client do.
func (w *Watcher) Reconnect(revision int64) {
	w.mu.Lock()
	w.revision = revision
	w.history = slices.DeleteFunc(w.history, func(e *clientv3.Event) bool { return e.Kv.ModRevision > revision })
	w.mu.Unlock()
	w.link.HandleConn(context.Background(), &stats.ConnBegin{Client: true})
}

// Get answers with the lineage, whatever the key.
func (w *Watcher) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	resp := &clientv3.GetResponse{Header: &etcdserverpb.ResponseHeader{Revision: w.revision}}
	if len(w.lineage.Starts) > 0 {
		resp.Kvs = []*mvccpb.KeyValue{{Key: []byte(key), Value: wire.Marshal(w.lineage), ModRevision: 1}}
	}
	return resp, nil
}

// Silence silences all open watches for good, as on a half-open connection. Watches
// opened later work.
func (w *Watcher) Silence() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.watches)
}

// SetStuck makes every request for progress hang, as while a client reconnects.
func (w *Watcher) SetStuck(stuck bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stuck = stuck
}

// Opened returns how many watches were opened.
func (w *Watcher) Opened() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.opened
}

// Asked returns how often progress was requested.
func (w *Watcher) Asked() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked
}

// Put sends a change at the next revision.
func (w *Watcher) Put(key, value string) {
	w.mu.Lock()
	w.revision++
	w.mu.Unlock()
	w.Repeat(key, value)
}

// Repeat sends a change at the current revision.
func (w *Watcher) Repeat(key, value string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := &clientv3.Event{Type: clientv3.EventTypePut, Kv: &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), ModRevision: w.revision}}
	w.history = append(w.history, e)
	w.tellLocked(e)
}

func (w *Watcher) tellLocked(events ...*clientv3.Event) {
	for ch := range w.watches {
		ch <- clientv3.WatchResponse{Header: &etcdserverpb.ResponseHeader{Revision: w.revision}, Events: events}
	}
}

// Watch implements clientv3.Watcher.
func (w *Watcher) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.opened++
	ch := make(chan clientv3.WatchResponse, 64) // a test reads them before there are more
	w.watches[ch] = true
	from, since := clientv3.OpGet(key, opts...).Rev(), w.history
	for len(since) > 0 && since[0].Kv.ModRevision < from {
		since = since[1:]
	}
	if len(since) > 0 {
		ch <- clientv3.WatchResponse{Header: &etcdserverpb.ResponseHeader{Revision: w.revision}, Events: slices.Clone(since)}
	}
	context.AfterFunc(ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.watches, ch)
		close(ch)
	})
	return ch
}

// RequestProgress implements clientv3.Watcher.
func (w *Watcher) RequestProgress(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked++
	if w.stuck {
		w.mu.Unlock()
		<-ctx.Done()
		w.mu.Lock()
		return ctx.Err()
	}
	w.tellLocked()
	return nil
}

// Close implements clientv3.Watcher.
func (w *Watcher) Close() error { return nil }
