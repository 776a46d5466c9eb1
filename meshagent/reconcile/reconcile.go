// Package reconcile carries wanted rows into one kernel map and remembers what the map
// holds.
//
// Every act may be repeated at any time: a row that is as wanted is not written again, one
// that the kernel did not take is written by the next call that asks for it. Which rows are
// wanted, and in which order maps are written, is decided by the callers; so is when
// everything is known and what nobody wants may go.
package reconcile

import (
	"fmt"
	"iter"
	"maps"
)

// Map is what a reconciler needs of a kernel map. A batch that fails may be written in
// part. To delete what is absent is no error.
type Map[K comparable, V any] interface {
	Name() string
	Update(K, V) error
	UpdateBatch(map[K]V) error
	Delete(K) error
	DeleteBatch([]K) error
	All() (iter.Seq2[K, V], func() error)
}

// Memory is where a reconciler keeps what its map holds.
type Memory[K, V any] interface {
	Get(K) (V, bool)
	Put(K, V)
	Delete(K)
	Len() int
	// All yields all rows. Nobody changes them meanwhile.
	All() iter.Seq2[K, V]
}

// plain is a Memory for maps of which nothing is known.
type plain[K comparable, V any] map[K]V

func (p plain[K, V]) Get(k K) (V, bool)    { v, ok := p[k]; return v, ok }
func (p plain[K, V]) Put(k K, v V)         { p[k] = v }
func (p plain[K, V]) Delete(k K)           { delete(p, k) }
func (p plain[K, V]) Len() int             { return len(p) }
func (p plain[K, V]) All() iter.Seq2[K, V] { return maps.All(p) }

// Reconciler is the only writer of one map. It is not safe for concurrent use.
//
// Rows found at the start come from an earlier agent: they are corrected if they are
// wanted differently, and stay otherwise until somebody deletes or prunes them.
type Reconciler[K, V comparable] struct {
	to    Map[K, V]
	batch int
	rows  Memory[K, V]
	found map[K]bool
	// unsure are rows of which a batch failed, and then their own write: the batch may
	// have come to them.
	unsure map[K]bool
	wrote  func(k K, was, is V, there bool)
}

// New reads what the map holds and changes nothing. From batch rows on, a change is one
// call of the map instead of one per row. wrote, if not nil, is called after a row was
// written (there) or removed, but not for the rows found now; a row that is absent is zero.
func New[K, V comparable](to Map[K, V], batch int, wrote func(k K, was, is V, there bool)) (*Reconciler[K, V], error) {
	return NewIn(plain[K, V]{}, to, batch, wrote)
}

// NewIn is New with a memory of the caller's, which is empty. It may need that no row is
// written or deleted while Rows yields.
func NewIn[K, V comparable](rows Memory[K, V], to Map[K, V], batch int, wrote func(k K, was, is V, there bool)) (*Reconciler[K, V], error) {
	r := &Reconciler[K, V]{to: to, batch: batch, rows: rows, found: map[K]bool{}, unsure: map[K]bool{}, wrote: wrote}
	all, failed := to.All()
	for k, v := range all {
		rows.Put(k, v)
		r.found[k] = true
	}
	if err := failed(); err != nil {
		return nil, fmt.Errorf("read map %s: %w", to.Name(), err)
	}
	return r, nil
}

// Row returns the row that the map holds.
func (r *Reconciler[K, V]) Row(k K) (V, bool) {
	return r.rows.Get(k)
}

// Rows yields the rows that the map holds. Rows may be written and deleted meanwhile, unless
// NewIn was given a memory that does not bear it.
func (r *Reconciler[K, V]) Rows() iter.Seq2[K, V] { return r.rows.All() }

// Found says whether a row is an earlier agent's that this one has never wanted.
func (r *Reconciler[K, V]) Found(k K) bool { return r.found[k] }

// AllFound yields the rows of an earlier agent that this one has never wanted.
func (r *Reconciler[K, V]) AllFound() iter.Seq[K] { return maps.Keys(r.found) }

// Failed is called for each row that the kernel did not take.
type Failed[K comparable] func(k K, err error)

// Update creates and changes rows, and returns how many it wrote.
func (r *Reconciler[K, V]) Update(want map[K]V, failed Failed[K]) (changed int) {
	differ := want
	if r.rows.Len()+len(r.unsure) > 0 { // in an empty map all rows differ, and there may be very many
		differ = map[K]V{}
		for k, v := range want {
			r.wanted(k)
			if !r.as(k, v) {
				differ[k] = v
			}
		}
	}
	many := len(differ) >= r.batch
	batched := many && r.to.UpdateBatch(differ) == nil
	for k, v := range differ {
		// One by one, so that a row that does not fit or fails for its own reason does
		// not keep the others out.
		if !batched {
			if err := r.to.Update(k, v); err != nil {
				r.failed(many, k)
				failed(k, err)
				continue
			}
		}
		r.holds(k, v)
		changed++
	}
	return changed
}

// Delete removes rows, and returns how many it removed.
func (r *Reconciler[K, V]) Delete(keys []K, failed Failed[K]) (changed int) {
	var there []K
	for _, k := range keys {
		if r.there(k) {
			there = append(there, k)
		}
	}
	return r.remove(there, failed)
}

// Prune removes all rows except those to keep.
func (r *Reconciler[K, V]) Prune(keep func(K) bool, failed Failed[K]) (changed int) {
	var gone []K
	for k := range r.rows.All() {
		if !keep(k) {
			gone = append(gone, k)
		}
	}
	for k := range r.unsure {
		if _, ok := r.rows.Get(k); !ok && !keep(k) {
			gone = append(gone, k)
		}
	}
	return r.remove(gone, failed)
}

func (r *Reconciler[K, V]) remove(keys []K, failed Failed[K]) (changed int) {
	return Delete(r.to, r.batch, keys, r.lacks, func(k K, err error) {
		r.failed(len(keys) >= r.batch, k)
		failed(k, err)
	})
}

// failed records that a row was not written, after a batch with it had failed if there were
// many.
func (r *Reconciler[K, V]) failed(many bool, k K) {
	if many {
		r.unsure[k] = true
	}
}

// wanted takes a row over from an earlier agent.
func (r *Reconciler[K, V]) wanted(k K) {
	if len(r.found) == 0 {
		return
	}
	if delete(r.found, k); len(r.found) == 0 {
		r.found = map[K]bool{} // a map does not shrink
	}
}

// Put writes one row.
func (r *Reconciler[K, V]) Put(k K, v V) error {
	r.wanted(k)
	if r.as(k, v) {
		return nil
	}
	if err := r.to.Update(k, v); err != nil {
		return err
	}
	r.holds(k, v)
	return nil
}

// Drop removes one row.
func (r *Reconciler[K, V]) Drop(k K) error {
	if !r.there(k) {
		return nil
	}
	if err := r.to.Delete(k); err != nil {
		return err
	}
	r.lacks(k)
	return nil
}

// as says whether the map surely holds this row, there whether it may hold a row with this
// key.
func (r *Reconciler[K, V]) as(k K, v V) bool {
	have, ok := r.rows.Get(k)
	return ok && have == v && !r.unsure[k]
}

func (r *Reconciler[K, V]) there(k K) bool {
	_, ok := r.rows.Get(k)
	return ok || r.unsure[k]
}

// holds and lacks record what the map has come to.
func (r *Reconciler[K, V]) holds(k K, v V) {
	was, _ := r.rows.Get(k)
	r.rows.Put(k, v)
	delete(r.unsure, k)
	if r.wrote != nil {
		r.wrote(k, was, v, true)
	}
}

func (r *Reconciler[K, V]) lacks(k K) {
	was, _ := r.rows.Get(k)
	r.rows.Delete(k)
	r.wanted(k)
	delete(r.unsure, k)
	if r.wrote != nil {
		var none V
		r.wrote(k, was, none, false)
	}
}

// Delete removes rows from a map of which somebody else knows what it holds, and calls
// gone for each that is removed.
func Delete[K comparable, V any](from Map[K, V], batch int, keys []K, gone func(K), failed Failed[K]) (changed int) {
	batched := len(keys) >= batch && from.DeleteBatch(keys) == nil
	for _, k := range keys {
		if !batched {
			if err := from.Delete(k); err != nil {
				failed(k, err)
				continue
			}
		}
		gone(k)
		changed++
	}
	return changed
}

// First keeps the first error of several rows in err, unless there is one already.
func First[K comparable](err *error) Failed[K] {
	return func(_ K, e error) {
		if *err == nil {
			*err = e
		}
	}
}

// In keeps the rows that are wanted.
func In[K comparable, V any](want map[K]V) (keep func(K) bool) {
	return func(k K) bool {
		_, wanted := want[k]
		return wanted
	}
}
