package identities

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
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
	store       store.Store
	first, last identity.Number

	mu    sync.Mutex
	next  identity.Number          // where to look for a free number
	taken map[identity.Number]bool // as far as known; nil: list them first
	known map[string]pair          // by the labels' text
}

// pair is a number and the revisions of the two keys that tie it to its labels.
type pair struct {
	n         identity.Number
	value, id int64
}

// NewAllocator allocates from first to last, both included.
func NewAllocator(s store.Store, first, last identity.Number) (*Allocator, error) {
	if first < identity.FirstAllocatable || last < first || last.Scope() != identity.ScopeGlobal {
		return nil, fmt.Errorf("identity range %d to %d is not inside a cluster's range; take it from Split.Range", first, last)
	}
	return &Allocator{store: s, first: first, last: last, known: map[string]pair{}}, nil
}

// Also returns the caller's own part of the transaction: it commits together with
// the allocation or not at all. It is called again for every attempt.
type Also func(n identity.Number) store.Txn

// Request asks for the number of labels on behalf of an owner. Owner is any name the
// caller chooses, such as namespace/pod. Also may be nil.
type Request struct {
	Labels identity.Labels
	Owner  string
	Also   Also
}

// Use is an owner's use of the number of these labels, to be released. Also commits
// with the release and may be empty.
type Use struct {
	Labels identity.Labels
	Owner  string
	Also   store.Txn
}

// Result is the outcome of one Request or Use.
type Result struct {
	Number   identity.Number
	Revision int64 // at which it was written
	Err      error
}

// Acquire is AcquireAll for one request.
func (a *Allocator) Acquire(ctx context.Context, labels identity.Labels, owner string, also Also) (identity.Number, error) {
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
	var txns []store.Txn
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
		txn := and(p.txn, store.Txn{Then: []store.Op{
			store.Put(wire.IdentityOwnerKey(text, r.Owner), wire.NumberText(p.n)),
			// A collector that saw the number unused has to look again.
			store.Delete(wire.IdentityUnusedKey(p.n)),
		}})
		if r.Also != nil {
			txn = and(txn, r.Also(p.n))
		}
		txns, tried = append(txns, txn), append(tried, i)
	}
	for j, o := range store.CommitEach(ctx, a.store, txns) {
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
func (a *Allocator) missed(ctx context.Context, p *plan, own []store.Cond) (again bool, err error) {
	for _, c := range own {
		kv, _, err := get(ctx, a.store, c.Key)
		if err != nil {
			return false, err
		}
		if !c.Prefix && kv.Modified != c.Modified {
			return false, ErrStale
		}
	}
	if !p.fresh {
		return true, nil
	}
	_, there, err := get(ctx, a.store, wire.IdentityIDKey(p.n))
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
	n         identity.Number
	txn       store.Txn
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
	value, there, err := get(ctx, a.store, wire.IdentityTextKey(text))
	if err != nil {
		return &plan{err: err}
	}
	unchanged := store.Cond{Key: wire.IdentityTextKey(text), Modified: value.Modified} // 0 if absent
	if there {
		n, err := wire.ParseNumberText(value.Value)
		if err != nil {
			return &plan{err: fmt.Errorf("%s: %w", value.Key, err)}
		}
		id, taken, err := get(ctx, a.store, wire.IdentityIDKey(n))
		switch {
		case err != nil:
			return &plan{err: err}
		case taken && string(id.Value) == text:
			return pair{n, value.Modified, id.Modified}.plan(text)
		case !taken && a.inRange(n):
			// Half of the pair is gone. No transaction of ours does that, so
			// write it again.
			return &plan{n: n, value: value.Modified, creates: true, txn: store.Txn{
				If:   []store.Cond{unchanged, {Key: wire.IdentityIDKey(n)}},
				Then: []store.Op{store.Put(wire.IdentityIDKey(n), []byte(text))},
			}}
		}
	}
	n, err := a.free(ctx)
	if err != nil {
		return &plan{err: err}
	}
	return &plan{n: n, creates: true, fresh: true, txn: store.Txn{
		If: []store.Cond{unchanged, {Key: wire.IdentityIDKey(n)}},
		Then: []store.Op{
			store.Put(wire.IdentityIDKey(n), []byte(text)),
			store.Put(wire.IdentityTextKey(text), wire.NumberText(n)),
		},
	}}
}

// plan is the plan for labels that have a number: both keys must stay as they are.
func (p pair) plan(text string) *plan {
	return &plan{n: p.n, value: p.value, id: p.id, txn: store.Txn{
		If: []store.Cond{{Key: wire.IdentityTextKey(text), Modified: p.value}, {Key: wire.IdentityIDKey(p.n), Modified: p.id}},
	}}
}

// free proposes a number that is probably free. It does not propose the same number
// again until the taken numbers have been listed again. Proposals go round the range,
// so that a freed number stays unused as long as possible; after a collision with
// another allocator they continue from a random place.
func (a *Allocator) free(ctx context.Context) (identity.Number, error) {
	a.mu.Lock()
	n, ok := a.proposeLocked()
	a.mu.Unlock()
	if ok {
		return n, nil
	}
	kvs, _, err := a.store.List(ctx, wire.IdentityIDPrefix)
	if err != nil {
		return 0, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.taken == nil {
		a.next = a.first + identity.Number(rand.Uint32N(uint32(a.last-a.first+1)))
	}
	a.taken = make(map[identity.Number]bool, len(kvs))
	for _, kv := range kvs {
		if n, ok := wire.ParseIdentityIDKey(kv.Key); ok && a.inRange(n) {
			a.taken[n] = true
		}
	}
	if n, ok := a.proposeLocked(); ok {
		return n, nil
	}
	return 0, fmt.Errorf("all %d from %d to %d are taken: %w; take labels that differ from workload to workload out of the pods, or wait for unused identities to be collected",
		a.last-a.first+1, a.first, a.last, ErrExhausted)
}

func (a *Allocator) proposeLocked() (identity.Number, bool) {
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

func (a *Allocator) inRange(n identity.Number) bool { return a.first <= n && n <= a.last }

// Release is ReleaseAll for one use.
func (a *Allocator) Release(ctx context.Context, labels identity.Labels, owner string, also store.Txn) error {
	return a.ReleaseAll(ctx, []Use{{labels, owner, also}})[0].Err
}

// ReleaseAll records that owners no longer use the numbers of these labels. The
// numbers stay taken until a Collector finds them unused. Releasing a number the
// owner did not use is not an error. ErrStale means that Also's conditions do not
// hold.
func (a *Allocator) ReleaseAll(ctx context.Context, uses []Use) []Result {
	txns := make([]store.Txn, len(uses))
	for i, u := range uses {
		txns[i] = and(store.Txn{Then: []store.Op{store.Delete(wire.IdentityOwnerKey(u.Labels.String(), u.Owner))}}, u.Also)
	}
	results := make([]Result, len(uses))
	for i, o := range store.CommitEach(ctx, a.store, txns) {
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
	kvs, _, err := a.store.List(ctx, wire.IdentityTextPrefix)
	if err != nil {
		return 0, fmt.Errorf("list owners of identities: %w", err)
	}
	for _, kv := range kvs {
		_, owner, ok := wire.ParseIdentityTextKey(kv.Key)
		if !ok || owner == "" || keep(owner) {
			continue
		}
		_, done, err := a.store.Commit(ctx, store.Txn{
			If:   []store.Cond{{Key: kv.Key, Modified: kv.Modified}},
			Then: []store.Op{store.Delete(kv.Key)},
		})
		if err != nil {
			return released, fmt.Errorf("release what %s used: %w", owner, err)
		}
		if done {
			released++
		}
	}
	return released, nil
}

// All returns the taken numbers with their labels.
func (a *Allocator) All(ctx context.Context) (map[identity.Number]identity.Labels, error) {
	kvs, _, err := a.store.List(ctx, wire.IdentityIDPrefix)
	if err != nil {
		return nil, fmt.Errorf("list identities: %w", err)
	}
	all := make(map[identity.Number]identity.Labels, len(kvs))
	for _, kv := range kvs {
		n, ok := wire.ParseIdentityIDKey(kv.Key)
		if !ok {
			return nil, fmt.Errorf("list identities: %q does not end in an identity's number", kv.Key)
		}
		if all[n], err = identity.ParseLabels(string(kv.Value)); err != nil {
			return nil, fmt.Errorf("list identities: %s: %w", kv.Key, err)
		}
	}
	return all, nil
}

// get reads one key; false if it is absent.
func get(ctx context.Context, s store.Store, key string) (kv store.KV, there bool, err error) {
	kv, err = s.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return store.KV{}, false, nil
	}
	return kv, err == nil, err
}

// and returns one transaction that does what two do.
func and(a, b store.Txn) store.Txn {
	return store.Txn{If: slices.Concat(a.If, b.If), Then: slices.Concat(a.Then, b.Then)}
}
