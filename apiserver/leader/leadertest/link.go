// Package leadertest joins API servers in one process to the in-memory twin of a store,
// each by a link that can be cut.
//
// What the store does is up to package storetest; the link adds when its leases end.
package leadertest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
)

// Link is one server's way to the store. Its leases end as etcd's do: their TTL after the
// last sign of life that passed. It reads the clock, so use it in synctest bubbles.
type Link struct {
	store *storetest.Store

	mu      sync.Mutex // guards what follows
	cut     chan struct{}
	healed  chan struct{}
	writes  int
	expiry  map[store.Lease]*time.Timer
	ttl     map[store.Lease]time.Duration
	stopped bool // the process does not run: it notices nothing
}

// NewLink returns a link that works.
func NewLink(s *storetest.Store) *Link {
	return &Link{store: s, cut: make(chan struct{}), expiry: map[store.Lease]*time.Timer{}, ttl: map[store.Lease]time.Duration{}}
}

// Cut makes all requests fail and watches end.
func (l *Link) Cut() { l.sever(false) }

// Suspend makes the server hear nothing, not even that its lease has ended, as if its
// process were stopped.
func (l *Link) Suspend() { l.sever(true) }

func (l *Link) sever(suspend bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.healed != nil {
		return
	}
	l.healed, l.stopped = make(chan struct{}), suspend
	close(l.cut)
	for lease := range l.ttl {
		l.expiry[lease] = time.AfterFunc(l.ttl[lease], func() { l.store.Expire(lease) })
	}
}

// Heal ends a cut or a suspension.
func (l *Link) Heal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.healed == nil {
		return
	}
	close(l.healed)
	l.healed, l.cut, l.stopped = nil, make(chan struct{}), false
	for _, t := range l.expiry {
		t.Stop()
	}
}

// Writes counts the transactions that were committed over this link.
func (l *Link) Writes() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.writes
}

func (l *Link) works() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.healed != nil {
		return fmt.Errorf("link is cut: %w", store.ErrUnavailable)
	}
	return nil
}

// Get implements store.Store.
func (l *Link) Get(ctx context.Context, key string) (store.KV, error) {
	if err := l.works(); err != nil {
		return store.KV{}, err
	}
	return l.store.Get(ctx, key)
}

// GetMany implements store.Store.
func (l *Link) GetMany(ctx context.Context, keys ...string) ([]store.KV, error) {
	if err := l.works(); err != nil {
		return nil, err
	}
	return l.store.GetMany(ctx, keys...)
}

// List implements store.Store.
func (l *Link) List(ctx context.Context, prefix string) ([]store.KV, store.Point, error) {
	if err := l.works(); err != nil {
		return nil, store.Point{}, err
	}
	return l.store.List(ctx, prefix)
}

// Watch implements store.Store.
func (l *Link) Watch(ctx context.Context, prefix string, after store.Point, each func(store.Batch) error) error {
	if err := l.works(); err != nil {
		return err
	}
	l.mu.Lock()
	cut := l.cut
	l.mu.Unlock()
	watching, end := context.WithCancel(ctx)
	defer end()
	go func() {
		select {
		case <-cut:
			end()
		case <-watching.Done():
		}
	}()
	err := l.store.Watch(watching, prefix, after, func(b store.Batch) error {
		if err := l.works(); err != nil {
			return err
		}
		return each(b)
	})
	if ctx.Err() == nil && watching.Err() != nil {
		return store.ErrSilent
	}
	return err
}

// Commit implements store.Store.
func (l *Link) Commit(ctx context.Context, txn store.Txn) (int64, bool, error) {
	if err := l.works(); err != nil {
		return 0, false, err
	}
	revision, done, err := l.store.Commit(ctx, txn)
	if done {
		l.mu.Lock()
		l.writes++
		l.mu.Unlock()
	}
	return revision, done, err
}

// Grant implements store.Leases.
func (l *Link) Grant(ctx context.Context, ttl time.Duration) (store.Lease, error) {
	if err := l.works(); err != nil {
		return 0, err
	}
	lease, err := l.store.Grant(ctx, ttl)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ttl[lease] = ttl
	return lease, err
}

// KeepAlive implements store.Leases.
func (l *Link) KeepAlive(ctx context.Context, lease store.Lease) error {
	for ctx.Err() == nil {
		l.mu.Lock()
		cut, healed, suspended, ttl := l.cut, l.healed, l.stopped, l.ttl[lease]
		l.mu.Unlock()
		if healed == nil {
			alive, end := context.WithCancel(ctx)
			ended := make(chan error, 1)
			go func() { ended <- l.store.KeepAlive(alive, lease) }()
			select {
			case <-cut:
				end()
				<-ended
			case err := <-ended:
				end()
				return err
			}
			continue
		}
		over := time.NewTimer(ttl)
		if suspended {
			over.Stop() // notices nothing
		}
		select {
		case <-healed:
		case <-over.C:
			return fmt.Errorf("lease %d: %w", lease, store.ErrUnavailable)
		case <-ctx.Done():
		}
		over.Stop()
	}
	return nil
}

// Revoke implements store.Leases.
func (l *Link) Revoke(ctx context.Context, lease store.Lease) error {
	if err := l.works(); err != nil {
		return err
	}
	return l.store.Revoke(ctx, lease)
}
