package storetest

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/weft-mesh/weft/store"
)

// Fault is what is wrong with a Link.
type Fault int

// Faults of a Link. Each way may be lost alone.
const (
	// Works: nothing is wrong.
	Works Fault = iota
	// Cut: nothing passes. Requests fail at once and watches end.
	Cut
	// Unheard: what the client sends is lost. Requests fail after patience, leases are
	// not kept alive, and watches report changes until they are given up as silent.
	Unheard
	// Unanswered: what the store sends is lost. Requests are carried out, fail after
	// patience all the same, and watches report nothing until they are given up.
	Unanswered
	// Suspended: the client's process stands still. What it asks and what it hears waits
	// until that has ended; it notices nothing, not even that its lease has ended.
	Suspended
)

// patience is how long a client waits for an answer, silence how long a watch may give no
// sign of life.
const (
	patience = 5 * time.Second
	silence  = 15 * time.Second
)

var (
	errCut    = fmt.Errorf("link is cut: %w", store.ErrUnavailable)
	errAnswer = fmt.Errorf("no answer in time: %w", store.ErrUnavailable)
)

// Link is the way from one client to an etcd, which may be faulty while those of others
// work. All connections over it share its fate.
type Link struct {
	etcd *Etcd

	mu      sync.Mutex // guards what follows
	fault   Fault
	changed chan struct{} // closed and replaced whenever fault changes
	fail    func(call, key string) error
	commits int
}

// NewLink returns a link that works.
func NewLink(e *Etcd) *Link { return &Link{etcd: e, changed: make(chan struct{})} }

// Set makes a fault begin, or end with Works.
func (l *Link) Set(f Fault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f == l.fault {
		return
	}
	l.fault = f
	close(l.changed)
	l.changed = make(chan struct{})
}

// Fail is Store.Fail for this client alone. Running watches go on.
func (l *Link) Fail(fail func(call, key string) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fail = fail
}

// Commits counts the transactions that were committed over this link.
func (l *Link) Commits() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.commits
}

func (l *Link) now() (Fault, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fault, l.changed
}

// Awake waits while the client is suspended: others get no answer from it.
func (l *Link) Awake(ctx context.Context) error {
	for {
		fault, changed := l.now()
		if fault != Suspended {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *Link) failing(call, key string) error {
	l.mu.Lock()
	fail := l.fail
	l.mu.Unlock()
	if fail == nil {
		return nil
	}
	return fail(call, key)
}

// Root connects as the user who may do everything.
func (l *Link) Root() *Conn { return &Conn{link: l, client: l.etcd, holder: l.etcd} }

// As connects as another user.
func (l *Link) As(user string) *Conn {
	c := l.etcd.As(user)
	return &Conn{link: l, client: c, holder: c}
}

// Conn is a connection over a link. Closing it does nothing.
type Conn struct {
	link   *Link
	client store.Store
	holder store.Holder
}

var (
	_ store.Store  = (*Conn)(nil)
	_ store.Holder = (*Conn)(nil)
	_ store.Leases = (*Conn)(nil)
	_ store.Users  = (*Conn)(nil)
	_ store.Alarm  = (*Conn)(nil)
)

// call makes a request pass the link.
func call[T any](ctx context.Context, c *Conn, name, key string, do func() (T, error)) (none T, _ error) {
	l := c.link
	for {
		fault, _ := l.now()
		switch fault {
		case Works:
			if err := l.failing(name, key); err != nil {
				return none, err
			}
			return do()
		case Suspended:
			if err := l.Awake(ctx); err != nil {
				return none, err
			}
			continue
		case Cut:
			return none, errCut
		case Unanswered:
			_, _ = do() // nobody hears how it ended
		}
		select {
		case <-time.After(patience):
			return none, errAnswer
		case <-ctx.Done():
			return none, ctx.Err()
		}
	}
}

// do is call for requests that return nothing.
func (c *Conn) do(ctx context.Context, name, key string, do func() error) error {
	_, err := call(ctx, c, name, key, func() (struct{}, error) { return struct{}{}, do() })
	return err
}

// Close does nothing.
func (*Conn) Close() error { return nil }

// Ping makes a request that asks for nothing.
func (c *Conn) Ping(ctx context.Context) error {
	return c.do(ctx, "ping", "", func() error { return nil })
}

// Get implements store.Store.
func (c *Conn) Get(ctx context.Context, key string) (store.KV, error) {
	return call(ctx, c, "get", key, func() (store.KV, error) { return c.client.Get(ctx, key) })
}

// GetMany implements store.Store.
func (c *Conn) GetMany(ctx context.Context, keys ...string) ([]store.KV, error) {
	first := ""
	if len(keys) > 0 {
		first = keys[0]
	}
	return call(ctx, c, "get", first, func() ([]store.KV, error) { return c.client.GetMany(ctx, keys...) })
}

// List implements store.Store.
func (c *Conn) List(ctx context.Context, prefix string) ([]store.KV, store.Point, error) {
	var at store.Point
	kvs, err := call(ctx, c, "list", prefix, func() (kvs []store.KV, err error) {
		kvs, at, err = c.client.List(ctx, prefix)
		return kvs, err
	})
	return kvs, at, err
}

// Commit implements store.Store.
func (c *Conn) Commit(ctx context.Context, txn store.Txn) (int64, bool, error) {
	key, done := "", false
	if len(txn.Then) > 0 {
		key = txn.Then[0].Key
	}
	revision, err := call(ctx, c, "commit", key, func() (revision int64, err error) {
		revision, done, err = c.client.Commit(ctx, txn)
		if done {
			c.link.mu.Lock()
			c.link.commits++
			c.link.mu.Unlock()
		}
		return revision, err
	})
	return revision, done && err == nil, err
}

// Watch implements store.Store.
func (c *Conn) Watch(ctx context.Context, prefix string, after store.Point, each func(store.Batch) error) error {
	if err := c.do(ctx, "watch", prefix, func() error { return nil }); err != nil {
		return err
	}
	watching, end := context.WithCancelCause(ctx)
	var guard sync.WaitGroup
	guard.Go(func() { c.link.guard(watching, end) })
	err := c.client.Watch(watching, prefix, after, func(b store.Batch) error {
		if err := c.link.hear(watching); err != nil {
			return err
		}
		return each(b)
	})
	cause := context.Cause(watching)
	end(nil)
	guard.Wait()
	if ctx.Err() == nil && cause != nil {
		return cause
	}
	return err
}

// guard ends a watch when its link is cut, or after too long a silence.
func (l *Link) guard(ctx context.Context, end context.CancelCauseFunc) {
	for ctx.Err() == nil {
		fault, changed := l.now()
		var silent <-chan time.Time // never
		switch fault {
		case Cut:
			end(errCut)
		case Unheard, Unanswered:
			timer := time.NewTimer(silence)
			defer timer.Stop()
			silent = timer.C
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-silent:
			end(store.ErrSilent)
		}
	}
}

// hear waits until something that the store says arrives.
func (l *Link) hear(ctx context.Context) error {
	for {
		fault, changed := l.now()
		if fault == Works || fault == Unheard {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		}
	}
}

// Hold implements store.Holder.
func (c *Conn) Hold(ctx context.Context, id store.Lease, ttl time.Duration) error {
	return c.do(ctx, "grant", "", func() error { return c.holder.Hold(ctx, id, ttl) })
}

// Renew implements store.Holder.
func (c *Conn) Renew(ctx context.Context, id store.Lease) error {
	return c.do(ctx, "renew", "", func() error { return c.holder.Renew(ctx, id) })
}

// Grant implements store.Leases.
func (c *Conn) Grant(ctx context.Context, ttl time.Duration) (store.Lease, error) {
	return call(ctx, c, "grant", "", func() (store.Lease, error) { return c.link.etcd.Grant(ctx, ttl) })
}

// KeepAlive implements store.Leases. A client that hears no answer for the lease's TTL
// considers it lost.
func (c *Conn) KeepAlive(ctx context.Context, id store.Lease) error {
	ttl := c.link.etcd.ttl(id)
	for ctx.Err() == nil {
		fault, changed := c.link.now()
		keeping, end := context.WithCancel(ctx)
		ended := make(chan error, 1)
		if fault == Works || fault == Unanswered { // the store hears the client
			go func() { ended <- c.link.etcd.KeepAlive(keeping, id) }()
		} else {
			go func() { <-keeping.Done(); ended <- nil }()
		}
		given := time.NewTimer(ttl)
		if fault == Works || fault == Suspended {
			given.Stop()
		}
		var err error
		select {
		case <-changed:
		case <-given.C:
			err = fmt.Errorf("lease %d: %w", id, store.ErrUnavailable)
		case err = <-ended:
			if fault == Unanswered { // it has ended, which the client does not hear
				err = nil
				select {
				case <-changed:
				case <-ctx.Done():
				case <-given.C:
					err = fmt.Errorf("lease %d: %w", id, store.ErrUnavailable)
				}
			}
			ended <- nil
		}
		given.Stop()
		end()
		<-ended
		if err != nil {
			return err
		}
	}
	return nil
}

// Revoke implements store.Leases.
func (c *Conn) Revoke(ctx context.Context, id store.Lease) error {
	return c.do(ctx, "revoke", "", func() error { return c.link.etcd.Revoke(ctx, id) })
}

// SetUser implements store.Users.
func (c *Conn) SetUser(ctx context.Context, u store.User) error {
	return c.do(ctx, "user", u.Name, func() error { return c.link.etcd.SetUser(ctx, u) })
}

// RemoveUser implements store.Users.
func (c *Conn) RemoveUser(ctx context.Context, name string) error {
	return c.do(ctx, "user", name, func() error { return c.link.etcd.RemoveUser(ctx, name) })
}

// RaiseNoSpace implements store.Alarm.
func (c *Conn) RaiseNoSpace(ctx context.Context) error {
	return c.do(ctx, "alarm", "", func() error { return c.link.etcd.RaiseNoSpace(ctx) })
}

// NoSpace implements store.Alarm.
func (c *Conn) NoSpace(ctx context.Context) (bool, error) {
	return call(ctx, c, "alarm", "", func() (bool, error) { return c.link.etcd.NoSpace(ctx) })
}

// EndNoSpace implements store.Alarm.
func (c *Conn) EndNoSpace(ctx context.Context) error {
	return c.do(ctx, "alarm", "", func() error { return c.link.etcd.EndNoSpace(ctx) })
}

// EnableAuth is Etcd.EnableAuth.
func (c *Conn) EnableAuth(ctx context.Context) error {
	return c.do(ctx, "auth", "", func() error { return c.link.etcd.EnableAuth(ctx) })
}

// Count is Etcd.Count.
func (c *Conn) Count(ctx context.Context, prefix string) (n int, revision int64, err error) {
	n, err = call(ctx, c, "list", prefix, func() (n int, err error) {
		n, revision, err = c.link.etcd.Count(ctx, prefix)
		return n, err
	})
	return n, revision, err
}

// Version is Etcd.Version.
func (c *Conn) Version(ctx context.Context) (version string, bytes int64, err error) {
	version, err = call(ctx, c, "version", "", func() (version string, err error) {
		version, bytes, err = c.link.etcd.Version(ctx)
		return version, err
	})
	return version, bytes, err
}

// Usage is Etcd.Usage.
func (c *Conn) Usage(ctx context.Context) (revision, inUse int64, err error) {
	revision, err = call(ctx, c, "version", "", func() (revision int64, err error) {
		revision, inUse, err = c.link.etcd.Usage(ctx)
		return revision, err
	})
	return revision, inUse, err
}

// Compact is Etcd.Compact.
func (c *Conn) Compact(ctx context.Context, revision int64) error {
	return c.do(ctx, "compact", "", func() error { return c.link.etcd.Compact(ctx, revision) })
}

// Backup is Etcd.Backup.
func (c *Conn) Backup(ctx context.Context) (io.ReadCloser, error) {
	return call(ctx, c, "backup", "", func() (io.ReadCloser, error) { return c.link.etcd.Backup(ctx) })
}
