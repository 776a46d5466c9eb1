package identity

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
)

var (
	// ErrExhausted: every number of the cluster's range is taken.
	ErrExhausted = errors.New("no identity number is left")
	// ErrContended: others kept changing what the transaction depends on, or
	// the caller's own conditions do not hold. Nothing was written.
	ErrContended = errors.New("kept being overtaken by other writers")
)

// attempts bounds how often one call starts over.
const attempts = 20

// Allocator gives numbers to labels, one number to equal labels and no number
// twice, whoever else allocates from the same store. It takes no locks in the
// store and so loses none; what it remembers only says where to look first.
// Safe for concurrent use.
type Allocator struct {
	store       Store
	first, last Number

	mu    sync.Mutex
	next  Number          // where to look for a free number
	taken map[Number]bool // as far as known; nil: to be listed
}

// NewAllocator allocates from first to last, both included.
func NewAllocator(store Store, first, last Number) (*Allocator, error) {
	if first < FirstAllocatable || last < first || last.Scope() != ScopeGlobal {
		return nil, fmt.Errorf("identity range %d to %d is not inside a cluster's range; take it from Split.Range", first, last)
	}
	return &Allocator{store: store, first: first, last: last}, nil
}

// Also is a part of the caller's own that commits together with an
// allocation, or not at all. It is asked anew at every attempt.
type Also func(n Number) Txn

// Acquire returns the number of the labels and records that owner uses it,
// after allocating one if there is none. Owners are the caller's own names,
// such as namespace/pod. Repeating it is harmless, also after an error. also
// may be nil.
func (a *Allocator) Acquire(ctx context.Context, labels Labels, owner string, also Also) (Number, error) {
	if len(labels) == 0 || owner == "" {
		return 0, errors.New("an identity needs labels and an owner")
	}
	for range attempts {
		n, ok, err := a.acquire(ctx, labels.String(), owner, also)
		if err != nil {
			return 0, fmt.Errorf("allocate an identity for %v: %w", labels, err)
		}
		if ok {
			return n, nil
		}
	}
	return 0, fmt.Errorf("allocate an identity for %v: %w", labels, ErrContended)
}

// acquire tries once; false if something changed meanwhile.
func (a *Allocator) acquire(ctx context.Context, text, owner string, also Also) (Number, bool, error) {
	n, txn, fresh, err := a.plan(ctx, text)
	if err != nil {
		return 0, false, err
	}
	number := []byte(decimal(n))
	txn.Then = append(txn.Then,
		Change{Key: referencePrefix(text) + owner, Value: number},
		// Whoever saw the number unused has to look again.
		Change{Key: unusedKey(n), Delete: true})
	if also != nil {
		txn = txn.and(also(n))
	}
	ok, err := a.store.Commit(ctx, txn)
	if err != nil || ok || !fresh {
		return n, ok, err
	}
	_, there, err := a.store.Get(ctx, IDKey(n))
	if err != nil {
		return 0, false, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if there {
		// Another allocator takes numbers here, likely many in a row: look
		// again which are taken, and from elsewhere.
		a.taken = nil
	} else {
		delete(a.taken, n)
	}
	return 0, false, nil
}

// plan decides which number the labels get and what must hold for that. A
// fresh number is one chosen here.
func (a *Allocator) plan(ctx context.Context, text string) (n Number, txn Txn, fresh bool, err error) {
	value, there, err := a.store.Get(ctx, valueKey(text))
	if err != nil {
		return 0, Txn{}, false, err
	}
	unchanged := Condition{Key: valueKey(text), Revision: value.Revision} // 0 if absent
	if there {
		n, err := parseDecimal(string(value.Value), "")
		if err != nil {
			return 0, Txn{}, false, fmt.Errorf("%s: %w", value.Key, err)
		}
		id, taken, err := a.store.Get(ctx, IDKey(n))
		switch {
		case err != nil:
			return 0, Txn{}, false, err
		case taken && string(id.Value) == text:
			return n, Txn{If: []Condition{unchanged, {Key: id.Key, Revision: id.Revision}}}, false, nil
		case !taken && a.inRange(n):
			// Half of the pair is gone, which no transaction of ours does.
			return n, Txn{
				If:   []Condition{unchanged, {Key: IDKey(n)}},
				Then: []Change{{Key: IDKey(n), Value: []byte(text)}},
			}, false, nil
		}
	}
	n, err = a.free(ctx)
	if err != nil {
		return 0, Txn{}, false, err
	}
	return n, Txn{
		If: []Condition{unchanged, {Key: IDKey(n)}},
		Then: []Change{
			{Key: IDKey(n), Value: []byte(text)},
			{Key: valueKey(text), Value: []byte(decimal(n))},
		},
	}, true, nil
}

// free proposes a number that is probably free; another goroutine of this
// allocator gets it proposed only if numbers were looked at anew since. They go
// round the range, so that one that was freed rests long, and begin anywhere
// after each meeting with another allocator.
func (a *Allocator) free(ctx context.Context) (Number, error) {
	a.mu.Lock()
	n, ok := a.proposeLocked()
	a.mu.Unlock()
	if ok {
		return n, nil
	}
	rows, err := a.store.List(ctx, prefixID)
	if err != nil {
		return 0, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.taken == nil {
		a.next = a.first + Number(rand.Uint32N(uint32(a.last-a.first+1)))
	}
	a.taken = make(map[Number]bool, len(rows))
	for _, row := range rows {
		if n, err := parseDecimal(row.Key, prefixID); err == nil && a.inRange(n) {
			a.taken[n] = true
		}
	}
	if n, ok := a.proposeLocked(); ok {
		return n, nil
	}
	return 0, fmt.Errorf("all %d from %d to %d are taken: %w; take labels that differ from workload to workload out of the pods, or wait for unused identities to be collected",
		a.last-a.first+1, a.first, a.last, ErrExhausted)
}

func (a *Allocator) proposeLocked() (Number, bool) {
	size := int(a.last-a.first) + 1
	if a.taken == nil || len(a.taken) >= size {
		return 0, false
	}
	for range size {
		n := a.next
		a.next++
		if a.next > a.last {
			a.next = a.first
		}
		if !a.taken[n] {
			a.taken[n] = true
			return n, true
		}
	}
	return 0, false
}

func (a *Allocator) inRange(n Number) bool { return a.first <= n && n <= a.last }

// Release records that owner no longer uses the number of these labels, and
// commits also with it, which may be empty. The number itself stays until a
// Collector finds that no one uses it. Nil if the owner did not use it.
func (a *Allocator) Release(ctx context.Context, labels Labels, owner string, also Txn) error {
	txn := Txn{Then: []Change{{Key: ReferenceKey(labels, owner), Delete: true}}}.and(also)
	ok, err := a.store.Commit(ctx, txn)
	if err == nil && !ok {
		err = ErrContended
	}
	if err != nil {
		return fmt.Errorf("release identity %v of %s: %w", labels, owner, err)
	}
	return nil
}

// ReleaseOthers drops the references of every owner that keep refuses. Only
// for whoever holds a complete list of owners; one that is added meanwhile
// must be known to keep.
func (a *Allocator) ReleaseOthers(ctx context.Context, keep func(owner string) bool) (released int, err error) {
	rows, err := a.store.List(ctx, prefixValue)
	if err != nil {
		return 0, fmt.Errorf("list owners of identities: %w", err)
	}
	for _, row := range rows {
		_, owner, ok := splitReference(row.Key)
		if !ok || keep(owner) {
			continue
		}
		ok, err := a.store.Commit(ctx, Txn{
			If:   []Condition{{Key: row.Key, Revision: row.Revision}},
			Then: []Change{{Key: row.Key, Delete: true}},
		})
		if err != nil {
			return released, fmt.Errorf("release what %s used: %w", owner, err)
		}
		if ok {
			released++
		}
	}
	return released, nil
}

// All are the numbers that are taken, with their labels.
func (a *Allocator) All(ctx context.Context) (map[Number]Labels, error) {
	rows, err := a.store.List(ctx, prefixID)
	if err != nil {
		return nil, fmt.Errorf("list identities: %w", err)
	}
	all := make(map[Number]Labels, len(rows))
	for _, row := range rows {
		n, labels, err := ParseIDRow(row.Key, row.Value)
		if err != nil {
			return nil, fmt.Errorf("list identities: %w", err)
		}
		all[n] = labels
	}
	return all, nil
}

func decimal(n Number) string { return strconv.FormatUint(uint64(n), 10) }

// parseDecimal reads a number behind a prefix.
func parseDecimal(text, prefix string) (Number, error) {
	v, err := strconv.ParseUint(strings.TrimPrefix(text, prefix), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%q does not end in an identity's number", text)
	}
	return Number(v), nil
}

// splitReference reads a key under prefixValue; false if it names no owner.
func splitReference(key string) (labels, owner string, ok bool) {
	text, found := strings.CutPrefix(key, prefixValue)
	if !found {
		return "", "", false
	}
	i := strings.Index(text, ";/")
	if i < 0 {
		return text, "", false
	}
	return text[:i+1], text[i+2:], true
}
