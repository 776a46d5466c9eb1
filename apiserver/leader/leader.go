// Package leader elects one of a cluster's API servers to run the controllers, and keeps
// one that was deposed from writing. It also knows which servers there are.
//
// What the controllers are, and what servers that do not lead answer, is up to package
// apiserver.
//
//	        no leader that lives          another one leads
//	start ───────────────────────► leads ──────────────────► follows
//	                                 ▲   no leader that lives   │
//	                                 └──────────────────────────┘
//
// The leadership is a key without a lease: it stays with whoever took it last. Each server
// has a lease as the sign that it lives, by etcd's clock, and whoever finds the leader without
// one takes its place. So a leader that was too busy to keep its lease, and that nobody has
// succeeded, goes on under a new one: its controllers do not end, and do not begin by reading
// everything again, which would keep it just as busy. That a deposed one cannot write, whatever it
// knows, is up to the fence.
package leader

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// Store is what an election needs of a store.
type Store interface {
	store.Store
	store.Leases
}

// Config of an Election.
type Config struct {
	Store Store
	// Self is this server. No two processes have the same ID at the same time: whoever
	// leads under our ID is this server before a crash, and is succeeded at once.
	Self wire.Server
	// Lead runs the controllers until ctx ends, and returns only after they have ended.
	// They write through the given store alone. If it ends before ctx, Run ends too.
	Lead func(ctx context.Context, s store.Store) error
	// Stopped reports whether Run ends because somebody wants this server to stop.
	// Otherwise it remains known, as one that is missing.
	Stopped func() bool
	Log     *slog.Logger
}

// goodbyePatience bounds what a server that stops still writes.
const goodbyePatience = 2 * time.Second

// Election takes part in the election of the leader. Methods other than Run are safe for
// concurrent use at any time.
type Election struct {
	conf    Config
	changed chan struct{} // has one element when the leadership may be free
	known   chan struct{} // closed once the API servers are known
	listed  sync.Once     // closes known
	won     chan *term    // terms that begin

	mu       sync.Mutex // guards what follows
	servers  servers
	term     *term       // of this server; nil: it does not lead
	lease    store.Lease // of this session; 0: none
	problems []byte      // of this process; nil: none
	failed   error       // why there is no session; nil while there is one
}

// term is a time for which this server leads.
type term struct {
	began int64 // the revision of the leadership
	end   context.CancelCauseFunc
	ctx   context.Context // ends with the term
	over  chan struct{}   // closed when the controllers have ended
}

// New returns an Election.
func New(c Config) *Election {
	return &Election{conf: c, changed: make(chan struct{}, 1), known: make(chan struct{}), won: make(chan *term), servers: servers{rows: map[string]Row{}}}
}

// Run takes part until ctx ends, then resigns and returns nil.
func (e *Election) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return store.Persist(ctx, e.conf.Log, "following the API servers", func(ctx context.Context) error {
			return store.Follow(ctx, e.conf.Store, wire.ServersPrefix, func(b store.Batch) error {
				e.see(b)
				return nil
			})
		})
	})
	g.Go(func() error {
		return store.Persist(ctx, e.conf.Log, "taking part in the election of the leader", func(ctx context.Context) error {
			err := e.session(ctx)
			e.end(err)
			return err
		})
	})
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case t := <-e.won:
				if err := e.serve(t); err != nil {
					return err
				}
			}
		}
	})
	err := g.Wait()
	e.goodbye(ctx)
	return err
}

// session takes part under one lease, until ctx ends or the lease is lost. What this server
// leads goes on without it, as long as nobody else takes over.
func (e *Election) session(ctx context.Context) error {
	lease, err := e.grant(ctx)
	if err != nil {
		return fmt.Errorf("get a lease: %w", err)
	}
	whole := ctx
	ctx, end := context.WithCancelCause(ctx)
	var keeping sync.WaitGroup
	keeping.Go(func() {
		if err := e.conf.Store.KeepAlive(ctx, lease); err != nil {
			end(fmt.Errorf("keep the lease: %w", err))
		}
	})
	defer func() {
		end(nil)
		keeping.Wait()
		if whole.Err() == nil {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.lease = 0
		}
	}()
	if err := e.introduce(ctx, lease); err != nil {
		return fmt.Errorf("introduce this server: %w", err)
	}
	// Controllers tell agents and peers which API servers there are: to them, one that is not
	// known yet would be one that was deleted.
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-e.known:
	}
	// The events tell when the leadership is free. Asking from time to time as well
	// helps when those are late.
	tick := time.NewTicker(wire.ServerTTL)
	defer tick.Stop()
	for {
		err := e.stand(ctx, whole)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		}
		select {
		case <-ctx.Done():
		case <-e.changed:
		case <-tick.C:
		}
	}
}

// stand makes this server lead if no server that lives does, and ends what it leads if
// another server has taken over. Its term may last until whole ends.
func (e *Election) stand(ctx, whole context.Context) error {
	kv, err := e.conf.Store.Get(ctx, wire.LeaderKey)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("look who leads: %w", err)
	}
	if t := e.leading(); t != nil {
		if kv.Modified == t.began {
			return nil
		}
		t.end(ErrDeposed)
		select {
		case <-t.over:
		case <-ctx.Done():
			return nil
		}
	}
	began, err := e.campaign(ctx, kv)
	if err != nil || began == 0 {
		return err
	}
	t := &term{began: began, over: make(chan struct{})}
	t.ctx, t.end = context.WithCancelCause(whole)
	e.lead(t)
	select {
	case e.won <- t:
	case <-whole.Done():
		t.end(nil)
		e.lead(nil)
	}
	return nil
}

// grant gets a lease. A request that is not answered within its time is not waited for.
func (e *Election) grant(ctx context.Context) (store.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, wire.ServerTTL)
	defer cancel()
	return e.conf.Store.Grant(ctx, wire.ServerTTL)
}

// introduce makes the server known, and its lease the sign that it lives. What is left of
// servers whose place it takes goes, their leadership too.
func (e *Election) introduce(ctx context.Context, lease store.Lease) error {
	e.mu.Lock()
	self, problems := wire.Marshal(e.conf.Self), e.problems
	e.mu.Unlock()
	kvs, _, err := e.conf.Store.List(ctx, wire.ServersPrefix)
	if err != nil {
		return err
	}
	ops := []store.Op{
		store.Put(wire.ServerKnownKey(e.conf.Self.ID), self),
		{Key: wire.ServerAliveKey(e.conf.Self.ID), Value: self, Lease: lease},
	}
	var same []store.Cond
	for _, id := range succeeded(kvs, e.conf.Self) {
		ops = append(ops, store.Delete(wire.ServerKnownKey(id)), store.Delete(wire.ServerAliveKey(id)), store.Delete(wire.ServerProblemsKey(id)))
		for _, kv := range kvs {
			if held, err := wire.Unmarshal[wire.Leader](kv.Value); kv.Key == wire.LeaderKey && err == nil && held.Server.ID == id {
				same = append(same, store.Cond{Key: kv.Key, Modified: kv.Modified})
				ops = append(ops, store.Delete(kv.Key))
			}
		}
	}
	if problems != nil {
		ops = append(ops, store.Op{Key: wire.ServerProblemsKey(e.conf.Self.ID), Value: problems, Lease: lease})
	}
	_, done, err := e.conf.Store.Commit(ctx, store.Txn{If: same, Then: ops})
	if err == nil && !done {
		err = errors.New("another server has come to lead meanwhile")
	}
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lease, e.failed = lease, nil
	return nil
}

// campaign takes the leadership, which is as in kv, if nobody has it who lives. It returns the
// revision at which it did; 0 if somebody has it.
func (e *Election) campaign(ctx context.Context, kv store.KV) (began int64, err error) {
	same := []store.Cond{{Key: wire.LeaderKey, Modified: kv.Modified}}
	held, err := wire.Unmarshal[wire.Leader](kv.Value)
	// Our own is from before a crash. One that cannot be read is nobody's.
	if kv.Modified != 0 && err == nil && held.Server.ID != e.conf.Self.ID {
		alive := wire.ServerAliveKey(held.Server.ID)
		if _, err := e.conf.Store.Get(ctx, alive); !errors.Is(err, store.ErrNotFound) {
			if err != nil {
				return 0, fmt.Errorf("look whether %s lives, which leads: %w", held.Server.Name, err)
			}
			return 0, nil
		}
		same = append(same, store.Cond{Key: alive})
	}
	value := wire.Marshal(wire.Leader{Server: e.conf.Self, Since: time.Now().UTC()})
	revision, done, err := e.conf.Store.Commit(ctx, store.Txn{If: same, Then: []store.Op{store.Put(wire.LeaderKey, value)}})
	if err != nil {
		return 0, fmt.Errorf("take the leadership: %w", err)
	}
	if !done {
		return 0, nil
	}
	return revision, nil
}

// serve leads for one term. It returns nil if the term was ended from outside.
func (e *Election) serve(t *term) error {
	defer func() {
		t.end(nil)
		e.lead(nil)
		close(t.over)
	}()
	e.conf.Log.Info("this API server leads now: it runs the controllers", "term", t.began)
	err := e.conf.Lead(t.ctx, fenceOf(e.conf.Store, t.began, func() { t.end(ErrDeposed) }))
	if t.ctx.Err() == nil {
		if err == nil {
			err = errors.New("the controllers ended")
		}
		return err
	}
	e.conf.Log.Info("this API server no longer leads", "term", t.began, "because", context.Cause(t.ctx))
	return nil
}

// lead notes what this server leads from now on; nil: nothing.
func (e *Election) lead(t *term) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.term = t
}

// leading returns what this server leads; nil if it does not.
func (e *Election) leading() *term {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.term
}

// goodbye ends the lease, so that nobody has to wait until it expires to take over. If it
// fails, it expires.
func (e *Election) goodbye(ctx context.Context) {
	e.mu.Lock()
	lease := e.lease
	e.lease = 0
	e.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbyePatience)
	defer cancel()
	if e.conf.Stopped() {
		if err := store.Write(ctx, e.conf.Store, store.Delete(wire.ServerKnownKey(e.conf.Self.ID))); err != nil {
			e.conf.Log.Debug("deleting the record of this API server", "err", err)
		}
	}
	if lease == 0 {
		return
	}
	if err := e.conf.Store.Revoke(ctx, lease); err != nil {
		e.conf.Log.Debug("ending the lease of this API server", "err", err)
	}
}

// end notes how a session ended.
func (e *Election) end(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.failed = err
}

// Report makes these the problems of this process that other servers show; nil if there
// are none. Without a lease they are written once there is one.
func (e *Election) Report(ctx context.Context, problems []byte) error {
	e.mu.Lock()
	lease := e.lease
	e.problems = problems
	e.mu.Unlock()
	if lease == 0 {
		return nil
	}
	op := store.Op{Key: wire.ServerProblemsKey(e.conf.Self.ID), Value: problems, Lease: lease}
	if problems == nil {
		op = store.Delete(op.Key)
	}
	return store.Write(ctx, e.conf.Store, op)
}
