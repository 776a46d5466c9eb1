// Package store is the API server's view of an etcd: a few calls over ordered
// keys with revisions, and the loop that follows a prefix for good.
//
// What the keys mean is said in package wire. The in-memory twin is package
// storetest.
package store

import (
	"context"
	"errors"
	"time"

	"github.com/weft-mesh/weft/wire/watch"
)

// Errors a caller decides something by. Others are passed on as they come.
var (
	// ErrNotFound: the key does not exist.
	ErrNotFound = errors.New("not found")
	// ErrCompacted: the revision asked for is no longer kept; list again.
	ErrCompacted = errors.New("revision is compacted")
	// ErrSilent: a watch got no sign of life; the connection may be gone.
	ErrSilent = watch.ErrSilent
	// ErrWentBack: the store was restored from an older copy; list again.
	ErrWentBack = watch.ErrWentBack
	// ErrReconnected: nothing proves that the store is still what it was; list
	// again.
	ErrReconnected = watch.ErrReconnected
	// ErrDenied: the store's user may not do this.
	ErrDenied = errors.New("permission denied by the store")
	// ErrFull: the store takes no more writes until space is made.
	ErrFull = errors.New("the store is full")
	// ErrTooLarge: one value, or one transaction, is over the store's limit.
	ErrTooLarge = errors.New("too large for the store")
	// ErrTooMany: a listing has more keys than it was to have.
	ErrTooMany = errors.New("more keys than were asked for")
	// ErrTooMuch: a listing has more bytes than it was to have.
	ErrTooMuch = errors.New("more bytes than were asked for")
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

// Lease is a span of life that keys can be tied to.
type Lease int64

// Event is one change of a key. A deletion has no Value.
type Event struct {
	KV
	Deleted bool
}

// Batch is what a watch or Follow hands over at once: the changes of one
// revision or of several, in order.
type Batch struct {
	// Revision up to which the receiver is current after the batch.
	Revision int64
	// Complete means that Events are all keys there are, as puts: whatever the
	// receiver knew besides is gone. Only Follow makes such batches.
	Complete bool
	// History is of a complete batch: while it stays the same, the store has
	// everything that was written to it.
	History string
	// Events may be empty: the batch is then a sign of life.
	Events []Event
}

// Cond is a condition of a transaction: the key was last modified at exactly
// this revision; 0 means that the key does not exist.
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

// Store is an etcd, or its twin in memory. Several goroutines may use it.
type Store interface {
	// Get reads one key; ErrNotFound if there is none.
	Get(ctx context.Context, key string) (KV, error)
	// List reads every key under prefix, in order, as of one point, which it
	// returns. It reads in pages, so that size is no obstacle.
	List(ctx context.Context, prefix string) ([]KV, Point, error)
	// Watch calls each with what happens under prefix after the point, until ctx
	// or each ends, or it fails: ErrCompacted, ErrWentBack, ErrReconnected, ErrSilent.
	Watch(ctx context.Context, prefix string, after Point, each func(Batch) error) error
	// Commit makes the writes if the conditions hold and says whether it did.
	// The revision is that of the writes, or the one that was compared.
	Commit(ctx context.Context, txn Txn) (revision int64, done bool, err error)
}

// Leases is the part of a store that keeps keys only as long as their owner.
type Leases interface {
	// Grant makes a lease that ends ttl after its last sign of life.
	Grant(ctx context.Context, ttl time.Duration) (Lease, error)
	// KeepAlive gives signs of life until ctx ends (nil) or the lease is lost.
	KeepAlive(ctx context.Context, lease Lease) error
	// Revoke ends the lease and deletes its keys.
	Revoke(ctx context.Context, lease Lease) error
}

// Put makes the write of one op.
func Put(key string, value []byte) Op { return Op{Key: key, Value: value} }

// Delete makes the deletion of one key.
func Delete(key string) Op { return Op{Key: key, Delete: true} }

// DeletePrefix makes the deletion of every key that begins with prefix.
func DeletePrefix(prefix string) Op { return Op{Key: prefix, Delete: true, Prefix: true} }
