package identity

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
)

var (
	// ErrExhausted: every number of the cluster's range is taken.
	ErrExhausted = errors.New("no identity number is left")
	// ErrStale: the caller's own conditions do not hold, so its view is out of
	// date. Nothing was written; retrying is pointless until the caller has caught
	// up.
	ErrStale = errors.New("was overtaken by another writer")
	// ErrContended: other allocators kept changing what the allocation depends on.
	// Nothing was written.
	ErrContended = errors.New("kept being overtaken by other allocators")
)

// attempts bounds how often one call starts over.
const attempts = 20

// maxKnown bounds how many label sets an allocator remembers the number of.
const maxKnown = 4096

// Allocator maps labels to numbers: equal labels get the same number, and no number
// is given out twice, even with other allocators on the same store. It holds no
// locks in the store, so there are none to lose. What it remembers is only a hint
// where to look first. Safe for concurrent use.
type Allocator struct {
	store       Store
	first, last Number

	mu    sync.Mutex
	next  Number          // where to look for a free number
	taken map[Number]bool // as far as known; nil: list them first
	known map[string]pair // by the labels' text
}

// pair is a number and the revisions of the two keys that tie it to its labels.
type pair struct {
	n         Number
	value, id int64
}

// NewAllocator allocates from first to last, both included.
func NewAllocator(store Store, first, last Number) (*Allocator, error) {
	if first < FirstAllocatable || last < first || last.Scope() != ScopeGlobal {
		return nil, fmt.Errorf("identity range %d to %d is not inside a cluster's range; take it from Split.Range", first, last)
	}
	return &Allocator{store: store, first: first, last: last, known: map[string]pair{}}, nil
}

// Also returns the caller's own part of the transaction: it commits together with
// the allocation or not at all. It is called again for every attempt.
type Also func(n Number) Txn

// Request asks for the number of labels on behalf of an owner. Owner is any name the
// caller chooses, such as namespace/pod. Also may be nil.
type Request struct {
	Labels Labels
	Owner  string
	Also   Also
}

// Use is an owner's use of the number of these labels, to be released. Also commits
// with the release and may be empty.
type Use struct {
	Labels Labels
	Owner  string
	Also   Txn
}

// Result is the outcome of one Request or Use.
type Result struct {
	Number   Number
	Revision int64 // at which it was written
	Err      error
}

// Acquire is AcquireAll for one request.
func (a *Allocator) Acquire(ctx context.Context, labels Labels, owner string, also Also) (Number, error) {
	r := a.AcquireAll(ctx, []Request{{labels, owner, also}})[0]
	return r.Number, r.Err
}

// AcquireAll returns the number of each request's labels, allocating one if there is
// none, and records that the owner uses it. Requests share transactions, but one that
// fails does not hold up the others. It is safe to repeat, even after an error. A
// Result's error wraps ErrStale, ErrContended or ErrExhausted where they apply.
func (a *Allocator) AcquireAll(ctx context.Context, requests []Request) []Result {
	results := make([]Result, len(requests))
	var pending []int
	for i, r := range requests {
		if len(r.Labels) == 0 || r.Owner == "" {
			results[i].Err = errors.New("an identity needs labels and an owner")
			continue
		}
		pending = append(pending, i)
	}
	for failures := 0; len(pending) > 0 && failures < attempts; {
		var failed bool
		if pending, failed = a.round(ctx, requests, pending, results); failed {
			failures++
		}
	}
	for _, i := range pending {
		results[i].Err = ErrContended
	}
	for i := range results {
		if err := results[i].Err; err != nil {
			results[i] = Result{Err: fmt.Errorf("allocate an identity for %v: %w", requests[i].Labels, err)}
		}
	}
	return results
}

// round tries each pending request once and returns those to try again: the ones
// waiting for another request to allocate the same new labels, and the ones that
// failed because something changed in the meantime (failed is set for these).
func (a *Allocator) round(ctx context.Context, requests []Request, pending []int, results []Result) (left []int, failed bool) {
	plans := map[string]*plan{}
	var txns []Txn
	var tried []int
	for _, i := range pending {
		r := requests[i]
		text := r.Labels.String()
		p := plans[text]
		if p == nil {
			p = a.plan(ctx, text)
			plans[text] = p
		} else if p.creates {
			left = append(left, i)
			continue
		}
		if p.err != nil {
			results[i].Err = p.err
			continue
		}
		txn := Txn{If: p.txn.If, Then: slices.Concat(p.txn.Then, []Change{
			{Key: referencePrefix(text) + r.Owner, Value: []byte(decimal(p.n))},
			// A collector that saw the number unused has to look again.
			{Key: unusedKey(p.n), Delete: true},
		})}
		if r.Also != nil {
			txn = txn.and(r.Also(p.n))
		}
		txns, tried = append(txns, txn), append(tried, i)
	}
	for j, o := range a.store.CommitEach(ctx, txns) {
		i := tried[j]
		text := requests[i].Labels.String()
		p := plans[text]
		switch {
		case o.Err != nil:
			results[i].Err = o.Err
			a.forget(text)
		case o.Revision != 0:
			results[i] = Result{Number: p.n, Revision: o.Revision}
			a.remember(text, p, o.Revision)
		default:
			a.forget(text)
			again, err := a.missed(ctx, p, txns[j].If[len(p.txn.If):])
			results[i].Err = err
			if again {
				left, failed = append(left, i), true
			}
		}
	}
	return left, failed
}

// missed finds out why a transaction did not commit: either the caller's own
// conditions do not hold, which is final, or another allocator interfered.
func (a *Allocator) missed(ctx context.Context, p *plan, own []Condition) (again bool, err error) {
	for _, c := range own {
		row, _, err := a.store.Get(ctx, c.Key)
		if err != nil {
			return false, err
		}
		if !c.Prefix && row.Revision != c.Revision {
			return false, ErrStale
		}
	}
	if !p.fresh {
		return true, nil
	}
	_, there, err := a.store.Get(ctx, IDKey(p.n))
	if err != nil {
		return false, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if there {
		// Another allocator is taking numbers here, probably many in a row: list
		// the taken ones again and continue from a random place.
		a.taken = nil
	} else {
		delete(a.taken, p.n)
	}
	return true, nil
}

// remember records what a committed transaction says about the labels.
func (a *Allocator) remember(text string, p *plan, revision int64) {
	known := pair{p.n, p.value, p.id}
	if known.value == 0 {
		known.value = revision
	}
	if known.id == 0 {
		known.id = revision
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.known) >= maxKnown {
		clear(a.known)
	}
	a.known[text] = known
}

func (a *Allocator) forget(text string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.known, text)
}

// plan is the number that labels get, and the transaction that assigns it.
type plan struct {
	n         Number
	txn       Txn
	value, id int64 // revisions of the two keys; 0: the transaction writes the key
	creates   bool  // the transaction writes at least one of them
	fresh     bool  // free chose the number
	err       error
}

// plan decides which number the labels get and on what conditions.
func (a *Allocator) plan(ctx context.Context, text string) *plan {
	a.mu.Lock()
	known, ok := a.known[text]
	a.mu.Unlock()
	if ok {
		return known.plan(text)
	}
	value, there, err := a.store.Get(ctx, valueKey(text))
	if err != nil {
		return &plan{err: err}
	}
	unchanged := Condition{Key: valueKey(text), Revision: value.Revision} // 0 if absent
	if there {
		n, err := parseDecimal(string(value.Value), "")
		if err != nil {
			return &plan{err: fmt.Errorf("%s: %w", value.Key, err)}
		}
		id, taken, err := a.store.Get(ctx, IDKey(n))
		switch {
		case err != nil:
			return &plan{err: err}
		case taken && string(id.Value) == text:
			return pair{n, value.Revision, id.Revision}.plan(text)
		case !taken && a.inRange(n):
			// Half of the pair is gone. No transaction of ours does that, so
			// write it again.
			return &plan{n: n, value: value.Revision, creates: true, txn: Txn{
				If:   []Condition{unchanged, {Key: IDKey(n)}},
				Then: []Change{{Key: IDKey(n), Value: []byte(text)}},
			}}
		}
	}
	n, err := a.free(ctx)
	if err != nil {
		return &plan{err: err}
	}
	return &plan{n: n, creates: true, fresh: true, txn: Txn{
		If: []Condition{unchanged, {Key: IDKey(n)}},
		Then: []Change{
			{Key: IDKey(n), Value: []byte(text)},
			{Key: valueKey(text), Value: []byte(decimal(n))},
		},
	}}
}

// plan is the plan for labels that have a number: both keys must stay as they are.
func (p pair) plan(text string) *plan {
	return &plan{n: p.n, value: p.value, id: p.id, txn: Txn{
		If: []Condition{{Key: valueKey(text), Revision: p.value}, {Key: IDKey(p.n), Revision: p.id}},
	}}
}

// free proposes a number that is probably free. It does not propose the same number
// again until the taken numbers have been listed again. Proposals go round the range,
// so that a freed number stays unused as long as possible; after a collision with
// another allocator they continue from a random place.
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

// Release is ReleaseAll for one use.
func (a *Allocator) Release(ctx context.Context, labels Labels, owner string, also Txn) error {
	return a.ReleaseAll(ctx, []Use{{labels, owner, also}})[0].Err
}

// ReleaseAll records that owners no longer use the numbers of these labels. The
// numbers stay taken until a Collector finds them unused. Releasing a number the
// owner did not use is not an error. ErrStale means that Also's conditions do not
// hold.
func (a *Allocator) ReleaseAll(ctx context.Context, uses []Use) []Result {
	txns := make([]Txn, len(uses))
	for i, u := range uses {
		txns[i] = Txn{Then: []Change{{Key: ReferenceKey(u.Labels, u.Owner), Delete: true}}}.and(u.Also)
	}
	results := make([]Result, len(uses))
	for i, o := range a.store.CommitEach(ctx, txns) {
		results[i] = Result{Revision: o.Revision, Err: o.Err}
		if o.Err == nil && o.Revision == 0 {
			results[i].Err = ErrStale
		}
		if err := results[i].Err; err != nil {
			results[i].Err = fmt.Errorf("release identity %v of %s: %w", uses[i].Labels, uses[i].Owner, err)
		}
	}
	return results
}

// ReleaseOthers drops the references of every owner for which keep returns false.
// Only callers with a complete list of owners may use it, and keep must know owners
// that are added while it runs.
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

// All returns the taken numbers with their labels.
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

// parseDecimal reads the number after a prefix.
func parseDecimal(text, prefix string) (Number, error) {
	v, err := strconv.ParseUint(strings.TrimPrefix(text, prefix), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%q does not end in an identity's number", text)
	}
	return Number(v), nil
}

// splitReference splits a key under prefixValue into labels and owner; ok is false
// if it names no owner.
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
