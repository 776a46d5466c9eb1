// Package journal makes changes of any size to the store, all or nothing.
//
// What a change writes is decided by its caller, package registry.
package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// A change that fits into one transaction is one. A larger one goes through the store:
//
//	draft/ID, parts/ID/0, parts/ID/1, …   prepare: the writes are stored, nobody reads them
//	committed = ID  (deletes draft/ID)    commit: one transaction decides
//	writes…, committed = ID at write n    carry out: in order, one transaction per step
//	last writes, committed and parts go
//
// Before the commit, a crash leaves a draft, which Run sweeps away. After it, the change
// is carried out by whoever comes first: the server that committed it, another one that
// wants to change something, or Run of any server. The key "committed" counts the writes
// made, and each step is conditional on it, so each is made once and in order, however
// many servers are at it.
//
// Until a committed change is carried out, no other change is made: each is conditional
// on there being none. Readers may see the writes made so far. Their order is the
// caller's.
//
// A change's conditions may be more than a transaction takes. Each change also writes the
// key "turn", with its commit and with its last write. The commit is conditional on nobody
// having written it since the conditions were found to hold.

// Limit is what one transaction takes.
type Limit struct{ Ops, Bytes int }

// Limits that are tried in turn. Which of them holds is learned from the store's answers.
var (
	// Largest is what our embedded etcd takes.
	Largest = Limit{Ops: 4096, Bytes: 8 << 20}
	// usual is what etcd takes by default.
	usual = Limit{Ops: 128, Bytes: 3 << 19}
	// least is where remembering smaller limits ends. Steps shrink further if they must.
	least = Limit{Ops: 16, Bytes: 128 << 10}
)

// smaller returns the limit to try after one that was too large.
func (l Limit) smaller() Limit {
	if l.Ops > usual.Ops || l.Bytes > usual.Bytes {
		return Limit{min(l.Ops, usual.Ops), min(l.Bytes, usual.Bytes)}
	}
	return Limit{max(l.Ops/2, least.Ops), max(l.Bytes/2, least.Bytes)}
}

// overhead bounds what a condition or a write takes in a request beside key and value,
// and what the request itself does.
const overhead = 40

// slack is left in a request for what the journal itself writes along with a change.
const slack = 4 << 10

func (l Limit) takes(txn store.Txn) bool {
	size := overhead
	for _, c := range txn.If {
		size += overhead + len(c.Key)
	}
	for _, op := range txn.Then {
		size += overhead + len(op.Key) + len(op.Value)
	}
	return len(txn.If) <= l.Ops && len(txn.Then) <= l.Ops && size <= l.Bytes
}

// Config of a Journal.
type Config struct {
	Store store.Store
	// Turns are keys that others write whenever they change a key that conditions are
	// about.
	Turns []string
	// Audit is called for each write that was made and has an action, by the server that
	// made it.
	Audit func(user string, w wire.Write)
	Log   *slog.Logger
}

// Journal makes changes. Several goroutines, in several API servers, may use it.
type Journal struct {
	conf Config
	// carrying is held by whoever carries out a change: in one process, two would only
	// compete. It guards unsure.
	carrying chan struct{}
	unsure   unsure

	mu    sync.Mutex // guards what follows
	limit Limit
	stuck stuck
}

// New makes a Journal.
func New(c Config) *Journal {
	if c.Audit == nil {
		c.Audit = func(string, wire.Write) {}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Journal{conf: c, carrying: make(chan struct{}, 1), limit: Largest}
}

// Change is a set of writes.
type Change struct {
	User string
	// If has the conditions, on single keys. They are decided when the change is
	// committed.
	If []store.Cond
	// Then has the writes, in the order in which they are made if one transaction does
	// not take them all. No key may be written twice.
	Then []wire.Write
	// Since is what Turn returned before the conditions were read; nil if it is not known.
	Since Turn
	// Progress, if not nil, is called while a change is carried out in several steps.
	Progress func(made, of int)
}

// Turn is a moment after which every change can be noticed.
type Turn []store.Cond

// known reports whether every key of the turn exists. One that does not may have been
// deleted any number of times since.
func (t Turn) known() bool {
	return len(t) > 0 && !slices.ContainsFunc(t, func(c store.Cond) bool { return c.Modified == 0 })
}

// Turn returns the current one.
func (j *Journal) Turn(ctx context.Context) (Turn, error) {
	kvs, err := j.conf.Store.GetMany(ctx, append([]string{wire.ChangeTurnKey}, j.conf.Turns...)...)
	if err != nil {
		return nil, err
	}
	turn := make(Turn, len(kvs))
	for i, kv := range kvs {
		turn[i] = store.Cond{Key: kv.Key, Modified: kv.Modified}
	}
	return turn, nil
}

// Unfinished is the error of a change that is committed, but not carried out completely
// yet. Run of any server carries it out.
type Unfinished struct {
	Made, Writes int
	Err          error
}

func (u *Unfinished) Error() string {
	return fmt.Sprintf("the change is committed, but only %d of its %d writes are made: %v", u.Made, u.Writes, u.Err)
}

func (u *Unfinished) Unwrap() error { return u.Err }

// NotMade is the error of a change of which nothing was made, nor will be.
type NotMade struct{ Err error }

func (n *NotMade) Error() string { return "nothing was changed: " + n.Err.Error() }

func (n *NotMade) Unwrap() error { return n.Err }

// Make makes a change, all of it or nothing, and reports whether it did; it did not if a
// condition does not hold. With an error it was not made, except that *Unfinished says
// that it will be, and that an error of the store that is not a *NotMade leaves it open.
func (j *Journal) Make(ctx context.Context, c Change) (done bool, err error) {
	c.If = once(c.If)
	txn := c.transaction()
	for j.currentLimit().takes(txn) {
		tried := j.currentLimit()
		_, done, err := j.conf.Store.Commit(ctx, txn)
		if errors.Is(err, store.ErrFull) && c.deletes() {
			// A full store takes deletions only. They make space, so the turn is deleted
			// instead of written: that too is noticed.
			txn.Then[len(c.Then)] = store.Delete(wire.ChangeTurnKey)
			_, done, err = j.conf.Store.Commit(ctx, txn)
		}
		switch {
		case errors.Is(err, store.ErrTooLarge):
			if len(c.Then) == 1 {
				return false, &NotMade{tooLarge(c.Then[0].Key, err)}
			}
			j.learn(tried.smaller())
			return j.makeLarge(ctx, c)
		case err != nil:
			return false, err
		case done:
			j.audit(c.User, c.Then)
			return true, nil
		}
		carried, err := j.settle(ctx)
		if err != nil {
			return false, &NotMade{err}
		}
		if !carried {
			return false, nil
		}
	}
	return j.makeLarge(ctx, c)
}

// transaction returns the change as a single transaction.
func (c *Change) transaction() store.Txn {
	return store.Txn{
		If:   append(c.If[:len(c.If):len(c.If)], store.Cond{Key: wire.ChangeKey}),
		Then: append(ops(c.Then), store.Put(wire.ChangeTurnKey, []byte(c.User))),
	}
}

// deletes reports whether the change consists of deletions only.
func (c *Change) deletes() bool {
	return !slices.ContainsFunc(c.Then, func(w wire.Write) bool { return !w.Delete })
}

func ops(writes []wire.Write) []store.Op {
	all := make([]store.Op, len(writes), len(writes)+beside)
	for i, w := range writes {
		all[i] = store.Op{Key: w.Key, Value: w.Value, Delete: w.Delete}
	}
	return all
}

// once returns the conditions without repetitions.
func once(conds []store.Cond) []store.Cond {
	seen, out := make(map[store.Cond]bool, len(conds)), make([]store.Cond, 0, len(conds))
	for _, c := range conds {
		if !seen[c] {
			seen[c] = true
			out = append(out, c)
		}
	}
	return out
}

func tooLarge(key string, err error) error {
	return fmt.Errorf("write %s: %w", key, err)
}

func (j *Journal) audit(user string, writes []wire.Write) {
	for _, w := range writes {
		if w.Action != "" {
			j.conf.Audit(user, w)
		}
	}
}

// unsure is a step whose answer was lost; it may have been made. Its zero value is none.
type unsure struct {
	change wire.Change // before the step
	writes []wire.Write
}

// confirm audits the unsure step if the committed change is now beyond it. at is zero if
// there is none. If another server has made the step at the same moment, both audit it:
// twice is better than never.
func (j *Journal) confirm(at wire.Change) {
	was, writes := j.unsure.change, j.unsure.writes
	switch {
	case was.ID == "":
		return
	case at.ID == was.ID && at.Made == was.Made:
		return // it is tried again, or made yet
	case at.ID == was.ID:
		writes = writes[:min(len(writes), at.Made-was.Made)]
	}
	j.unsure = unsure{}
	j.audit(was.User, writes)
}

func (j *Journal) currentLimit() Limit {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.limit
}

// learn remembers a limit that is smaller than the current one.
func (j *Journal) learn(l Limit) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.limit = Limit{min(j.limit.Ops, l.Ops), min(j.limit.Bytes, l.Bytes)}
}

// pause waits, and returns ctx's error if it ends first.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
