// Package store is an etcd behind one interface: a few calls over ordered keys with
// revisions, and the loop that follows a prefix for good.
//
// Package wire says what the keys mean. The in-memory twin is package storetest.
package store

import (
	"context"
	"errors"
	"time"

	"github.com/weft-mesh/weft/store/watch"
)

// Errors that callers act on. Others are passed on unchanged.
var (
	// ErrNotFound: the key does not exist.
	ErrNotFound = errors.New("not found")
	// ErrCompacted: the requested revision is no longer available; list again.
	ErrCompacted = errors.New("revision is compacted")
	// ErrSilent: a watch got no sign of life; the connection may be gone.
	ErrSilent = watch.ErrSilent
	// ErrWentBack: the store was restored from an older copy; list again.
	ErrWentBack = watch.ErrWentBack
	// ErrReconnected: nothing proves that the store still has the same history;
	// list again.
	ErrReconnected = watch.ErrReconnected
	// ErrDenied: our user in the store may not do this.
	ErrDenied = errors.New("permission denied by the store")
	// ErrFull: the store accepts no writes until space is freed.
	ErrFull = errors.New("the store is full")
	// ErrTooLarge: one value, or one transaction, is over the store's limit.
	ErrTooLarge = errors.New("too large for the store")
	// ErrTooMany: a list has more keys than DialConfig.MostKeys.
	ErrTooMany = errors.New("more keys than we read")
	// ErrTooMuch: a list has more bytes than DialConfig.MostBytes.
	ErrTooMuch = errors.New("more bytes than we read")
	// ErrLeaseEnded: the lease does not exist, so its keys do not either.
	ErrLeaseEnded = errors.New("the lease has ended")
	// ErrUnavailable: the store cannot be reached, or has no leader.
	ErrUnavailable = errors.New("the store cannot be reached")
)

// KV is one key with its value.
type KV struct {
	Key   string
	Value []byte
	// Created and Modified are the revisions of the key's creation and of its
	// last change. For a deletion, Modified is the revision of the deletion.
	Created, Modified int64
	// Lease is 0 for a key that stays until deleted.
	Lease Lease
}

// Point is a place in a store's history.
type Point = watch.Point

// Lease identifies a lease that keys can be tied to; 0 means none.
type Lease int64

// Event is one change of a key. A deletion has no Value.
type Event struct {
	KV
	Deleted bool
}

// Batch is what a watch or Follow passes on at once: the changes of one or several
// revisions, in order.
type Batch struct {
	// Revision up to which the receiver is current after the batch.
	Revision int64
	// Complete means that Events contains every existing key, as puts: whatever
	// else the receiver knew is gone. Only Follow makes such batches.
	Complete bool
	// Cause is why everything was read again: ErrCompacted, ErrWentBack or
	// ErrReconnected; nil in the first complete batch.
	Cause error
	// History is set in complete batches. As long as it stays the same, the store
	// has lost nothing that was written to it.
	History string
	// Events may be empty; then the batch is a sign of life.
	Events []Event
}

// Cond is a condition of a transaction: the key was last modified at exactly this
// revision, or with 0, does not exist.
type Cond struct {
	Key      string
	Modified int64
	// Prefix, with a Modified of 0, means that no key begins with Key.
	Prefix bool
}

// Op is a write: a put, or a deletion of a key or of a whole prefix.
type Op struct {
	Key    string
	Value  []byte
	Lease  Lease
	Delete bool
	// Prefix makes a deletion act on every key that begins with Key.
	Prefix bool
}

// Txn is a set of writes made together, if every condition holds. No key may be
// written twice.
type Txn struct {
	If   []Cond
	Then []Op
}

// Store is an etcd or its in-memory twin. Safe for concurrent use.
type Store interface {
	// Get reads one key; ErrNotFound if there is none.
	Get(ctx context.Context, key string) (KV, error)
	// GetMany reads keys, many per request, and returns a KV for each in their order;
	// its Modified is 0 if there is none. They need not be of one revision.
	GetMany(ctx context.Context, keys ...string) ([]KV, error)
	// List reads every key under prefix, in order, as of one point, which it
	// returns. It reads in pages, so there is no limit on size.
	List(ctx context.Context, prefix string) ([]KV, Point, error)
	// Watch calls each with the changes under prefix after a point. It ends when
	// ctx ends, each fails, or with ErrCompacted, ErrWentBack, ErrReconnected,
	// ErrSilent or another error of the store. It never returns nil.
	Watch(ctx context.Context, prefix string, after Point, each func(Batch) error) error
	// Commit makes all writes if every condition holds, and reports whether it
	// did. The revision is that of the writes, or the one that was compared.
	Commit(ctx context.Context, txn Txn) (revision int64, done bool, err error)
}

// Leases is the part of a store that ties keys to the life of their owner.
type Leases interface {
	// Grant makes a lease that expires ttl after it was last kept alive.
	Grant(ctx context.Context, ttl time.Duration) (Lease, error)
	// KeepAlive keeps a lease alive until ctx ends (nil) or the lease is lost.
	KeepAlive(ctx context.Context, lease Lease) error
	// Revoke ends the lease and deletes its keys.
	Revoke(ctx context.Context, lease Lease) error
}

// Holder is the part of a store with leases whose number their owner chooses, so that
// it keeps its lease when it restarts.
type Holder interface {
	// Hold makes sure that the lease exists, and that it expires ttl from now unless it
	// is renewed.
	Hold(ctx context.Context, lease Lease, ttl time.Duration) error
	// Renew makes a lease last for its ttl again; ErrLeaseEnded if there is none.
	Renew(ctx context.Context, lease Lease) error
}

// Put returns the op that writes one key.
func Put(key string, value []byte) Op { return Op{Key: key, Value: value} }

// Delete returns the op that deletes one key.
func Delete(key string) Op { return Op{Key: key, Delete: true} }

// DeletePrefix returns the op that deletes every key that begins with prefix.
func DeletePrefix(prefix string) Op { return Op{Key: prefix, Delete: true, Prefix: true} }
