package storetest

import (
	"context"
	"fmt"
	"time"

	"github.com/weft-mesh/weft/store"
)

// lease is one lease of a store.
type lease struct {
	ttl     time.Duration
	ended   chan struct{} // closed when it ends
	keepers int           // calls that keep it alive now
	turn    int           // of the timer that may end it
}

// TimeLeases makes leases end by the clock from now on, as etcd's do: their TTL after they
// were granted or last kept alive. Otherwise only Revoke and Expire end them, for tests in
// which hours pass while nobody keeps a lease.
func (s *Store) TimeLeases() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timed = true
	for id := range s.leases {
		s.windLocked(id)
	}
}

// windLocked gives a lease its whole TTL again.
func (s *Store) windLocked(id store.Lease) {
	l := s.leases[id]
	if l == nil || !s.timed {
		return
	}
	l.turn++
	if l.keepers > 0 {
		return
	}
	turn := l.turn
	time.AfterFunc(l.ttl, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.leases[id] == l && l.turn == turn {
			s.expireLocked(id)
		}
	})
}

func (s *Store) grantLocked(id store.Lease, ttl time.Duration) {
	if s.leases[id] == nil {
		s.leases[id] = &lease{ended: make(chan struct{})}
	}
	s.leases[id].ttl = ttl
	s.windLocked(id)
}

func (s *Store) putBackLeasesLocked(ttls map[store.Lease]time.Duration) {
	for id, l := range s.leases {
		if _, ok := ttls[id]; !ok {
			close(l.ended)
			delete(s.leases, id)
		}
	}
	for id, ttl := range ttls {
		s.grantLocked(id, ttl)
	}
}

// ttl returns a lease's TTL, 0 if it has ended.
func (s *Store) ttl(id store.Lease) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.leases[id]; l != nil {
		return l.ttl
	}
	return 0
}

// Hold implements store.Holder.
func (s *Store) Hold(ctx context.Context, id store.Lease, ttl time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.beforeLocked(ctx, "grant", ""); err != nil {
		return err
	}
	s.grantLocked(id, ttl)
	return nil
}

// Renew implements store.Holder.
func (s *Store) Renew(ctx context.Context, id store.Lease) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.beforeLocked(ctx, "renew", ""); err != nil {
		return err
	}
	if s.leases[id] == nil {
		return fmt.Errorf("lease %d: %w", id, store.ErrLeaseEnded)
	}
	s.windLocked(id)
	return nil
}

// Grant implements store.Leases.
func (s *Store) Grant(ctx context.Context, ttl time.Duration) (store.Lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.beforeLocked(ctx, "grant", ""); err != nil {
		return 0, err
	}
	s.lease++
	s.grantLocked(s.lease, ttl)
	return s.lease, nil
}

// KeepAlive implements store.Leases.
func (s *Store) KeepAlive(ctx context.Context, id store.Lease) error {
	s.mu.Lock()
	l := s.leases[id]
	if l != nil {
		l.keepers++
		l.turn++ // no timer ends it
	}
	s.mu.Unlock()
	if l != nil {
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			l.keepers--
			if s.leases[id] == l {
				s.windLocked(id)
			}
		}()
		select {
		case <-ctx.Done():
			return nil
		case <-l.ended:
		}
	}
	return fmt.Errorf("lease %d: %w", id, store.ErrUnavailable)
}

// Revoke implements store.Leases.
func (s *Store) Revoke(_ context.Context, id store.Lease) error {
	s.Expire(id)
	return nil
}

// Expire ends a lease as if its owner had gone silent.
func (s *Store) Expire(id store.Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expireLocked(id)
}

func (s *Store) expireLocked(id store.Lease) {
	l := s.leases[id]
	if l == nil {
		return
	}
	delete(s.leases, id)
	close(l.ended)
	var ops []store.Op
	for key, kv := range s.kvs {
		if kv.Lease == id {
			ops = append(ops, store.Delete(key))
		}
	}
	s.applyLocked(ops)
}
