package storetest

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"github.com/weft-mesh/weft/store"
)

// Etcd is a whole etcd in memory: a Store with users, an alarm, and what only its API
// server asks for.
type Etcd struct {
	*Store
	Users
	full atomic.Bool
}

var (
	_ store.Users = (*Etcd)(nil)
	_ store.Alarm = (*Etcd)(nil)
)

// NewEtcd returns an empty etcd with no users but root. Its watches give a sign of life
// every 10 s.
func NewEtcd() *Etcd {
	e := &Etcd{Store: New()}
	e.SetSignOfLife(10 * time.Second)
	return e
}

// Copy is Store.Copy with the users.
func (e *Etcd) Copy() Copy {
	c := e.Store.Copy()
	c.users = e.all()
	return c
}

// PutBack is Store.PutBack with the users of a copy of an Etcd.
func (e *Etcd) PutBack(c Copy, without ...string) {
	e.set(c.users)
	e.Store.PutBack(c, without...)
}

// Lose is Store.Lose; the new store has no users either.
func (e *Etcd) Lose() {
	e.set(nil)
	e.Store.Lose()
}

// EnableAuth does nothing: As is how others than root connect.
func (e *Etcd) EnableAuth(context.Context) error { return nil }

// Count returns how many keys begin with prefix, and the revision.
func (e *Etcd) Count(ctx context.Context, prefix string) (n int, revision int64, err error) {
	kvs, at, err := e.List(ctx, prefix)
	return len(kvs), at.Revision, err
}

// Commit implements store.Store. While the alarm is on, only deletions are accepted.
func (e *Etcd) Commit(ctx context.Context, txn store.Txn) (int64, bool, error) {
	for _, op := range txn.Then {
		if e.full.Load() && !op.Delete {
			return 0, false, fmt.Errorf("put %s: %w", op.Key, store.ErrFull)
		}
	}
	return e.Store.Commit(ctx, txn)
}

// RaiseNoSpace implements store.Alarm.
func (e *Etcd) RaiseNoSpace(context.Context) error { e.full.Store(true); return nil }

// NoSpace implements store.Alarm.
func (e *Etcd) NoSpace(context.Context) (bool, error) { return e.full.Load(), nil }

// EndNoSpace implements store.Alarm.
func (e *Etcd) EndNoSpace(context.Context) error { e.full.Store(false); return nil }

// Usage returns the revision and how many bytes the keys and values have.
func (e *Etcd) Usage(ctx context.Context) (revision, inUse int64, err error) {
	kvs, at, err := e.List(ctx, "")
	for _, kv := range kvs {
		inUse += int64(len(kv.Key) + len(kv.Value))
	}
	return at.Revision, inUse, err
}

// Version returns what it calls itself and the bytes in use.
func (e *Etcd) Version(ctx context.Context) (version string, bytes int64, err error) {
	_, bytes, err = e.Usage(ctx)
	return "twin", bytes, err
}

// Compact drops history up to the current revision, whatever is asked for.
func (e *Etcd) Compact(context.Context, int64) error {
	e.Store.Compact()
	return nil
}

// Backup returns the keys and values as text.
func (e *Etcd) Backup(context.Context) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(strings.Join(e.Dump(""), "\n"))), nil
}

// As returns the store as one of its users sees it: whatever it has no right to is
// store.ErrDenied, and its watches end when its rights do.
func (e *Etcd) As(name string) *Client { return &Client{etcd: e, name: name} }

// Client is the connection of a user. Closing it does nothing.
type Client struct {
	etcd *Etcd
	name string
}

var (
	_ store.Store  = (*Client)(nil)
	_ store.Holder = (*Client)(nil)
)

// Close does nothing.
func (*Client) Close() error { return nil }

// may reports whether the user has a right to a key, or with prefix, to all keys that
// begin with it.
func (c *Client) may(write, prefix bool, key string) error {
	user, ok := c.etcd.User(c.name)
	entries := user.Write
	if !write {
		entries = append(entries[:len(entries):len(entries)], user.Read...)
	}
	for _, entry := range entries {
		begin, all := strings.CutSuffix(entry, "*")
		all = all || strings.HasSuffix(entry, "/")
		if all && strings.HasPrefix(key, begin) || key == entry && !prefix {
			return nil
		}
	}
	if !ok {
		return fmt.Errorf("no user %q: %w", c.name, store.ErrDenied)
	}
	return fmt.Errorf("%s for %s: %w", key, c.name, store.ErrDenied)
}

// Get implements store.Store.
func (c *Client) Get(ctx context.Context, key string) (store.KV, error) {
	if err := c.may(false, false, key); err != nil {
		return store.KV{}, err
	}
	return c.etcd.Get(ctx, key)
}

// GetMany implements store.Store.
func (c *Client) GetMany(ctx context.Context, keys ...string) ([]store.KV, error) {
	for _, key := range keys {
		if err := c.may(false, false, key); err != nil {
			return nil, err
		}
	}
	return c.etcd.GetMany(ctx, keys...)
}

// List implements store.Store.
func (c *Client) List(ctx context.Context, prefix string) ([]store.KV, store.Point, error) {
	if err := c.may(false, true, prefix); err != nil {
		return nil, store.Point{}, err
	}
	return c.etcd.List(ctx, prefix)
}

// Watch implements store.Store.
func (c *Client) Watch(ctx context.Context, prefix string, after store.Point, each func(store.Batch) error) error {
	if err := c.may(false, true, prefix); err != nil {
		return err
	}
	return c.etcd.Watch(ctx, prefix, after, func(b store.Batch) error {
		if err := c.may(false, true, prefix); err != nil {
			return err
		}
		return each(b)
	})
}

// Commit implements store.Store.
func (c *Client) Commit(ctx context.Context, txn store.Txn) (int64, bool, error) {
	for _, cond := range txn.If {
		if err := c.may(false, cond.Prefix, cond.Key); err != nil {
			return 0, false, err
		}
	}
	for _, op := range txn.Then {
		if err := c.may(true, op.Prefix, op.Key); err != nil {
			return 0, false, err
		}
	}
	return c.etcd.Commit(ctx, txn)
}

// Hold implements store.Holder.
func (c *Client) Hold(ctx context.Context, lease store.Lease, ttl time.Duration) error {
	return c.etcd.Hold(ctx, lease, ttl)
}

// Renew implements store.Holder.
func (c *Client) Renew(ctx context.Context, lease store.Lease) error { return c.etcd.Renew(ctx, lease) }
