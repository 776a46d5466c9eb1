// Package watchtest is the watching part of an etcd client in memory, which can
// fall silent.
package watchtest

import (
	"context"
	"sync"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Watcher is a clientv3.Watcher. Several goroutines may use it; it tells every
// watch of every change, whatever its prefix.
type Watcher struct {
	// mu guards what follows.
	mu       sync.Mutex
	stuck    bool
	opened   int
	revision int64
	watches  map[chan clientv3.WatchResponse]bool
}

// New makes a Watcher at a revision.
func New(revision int64) *Watcher {
	return &Watcher{revision: revision, watches: map[chan clientv3.WatchResponse]bool{}}
}

// Silence makes the watches of now say nothing any more, for good, as on a
// connection that is half open. Later ones work.
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

// Opened counts watches.
func (w *Watcher) Opened() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.opened
}

// Put tells of a change.
func (w *Watcher) Put(key, value string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.revision++
	w.tellLocked(&clientv3.Event{Type: clientv3.EventTypePut, Kv: &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), ModRevision: w.revision}})
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
