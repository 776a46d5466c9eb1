package reconcile

// Wanted are the rows that a map should hold, for callers that learn of them one by one:
// Flush carries those that have changed into the map, and again those that it did not take.
// It is not safe for concurrent use.
type Wanted[K, V comparable] struct {
	to   *Reconciler[K, V]
	rows map[K]V
	due  map[K]bool // rows in which the map may differ
}

// NewWanted wants nothing yet; what the map holds stays until it is deleted or pruned.
func NewWanted[K, V comparable](to Map[K, V], batch int) (*Wanted[K, V], error) {
	r, err := New(to, batch, nil)
	if err != nil {
		return nil, err
	}
	return &Wanted[K, V]{to: r, rows: map[K]V{}, due: map[K]bool{}}, nil
}

// Row returns the row that is wanted.
func (w *Wanted[K, V]) Row(k K) (V, bool) {
	v, ok := w.rows[k]
	return v, ok
}

// Rows are the wanted rows; do not change them.
func (w *Wanted[K, V]) Rows() map[K]V { return w.rows }

// Map is what the map holds.
func (w *Wanted[K, V]) Map() *Reconciler[K, V] { return w.to }

// Update wants a row.
func (w *Wanted[K, V]) Update(k K, v V) { w.rows[k], w.due[k] = v, true }

// Delete wants no row with this key.
func (w *Wanted[K, V]) Delete(k K) {
	delete(w.rows, k)
	w.due[k] = true
}

// Prune wants no row of an earlier agent that has not been wanted since, and returns
// those.
func (w *Wanted[K, V]) Prune() (gone []K) {
	for k := range w.to.AllFound() {
		if _, wanted := w.rows[k]; !wanted {
			w.Delete(k)
			gone = append(gone, k)
		}
	}
	return gone
}

// Flush makes the map hold what is wanted, and returns what it did not take; the next call
// tries that again.
func (w *Wanted[K, V]) Flush() (failed map[K]error) {
	if len(w.due) == 0 {
		return nil
	}
	want, gone := map[K]V{}, []K{}
	for k := range w.due {
		if v, wanted := w.rows[k]; wanted {
			want[k] = v
		} else {
			gone = append(gone, k)
		}
	}
	note := func(k K, err error) {
		if failed == nil {
			failed = map[K]error{}
		}
		failed[k] = err
	}
	w.to.Update(want, note)
	w.to.Delete(gone, note)
	w.due = Left(w.due, failed)
	return failed
}

// Left are those of the rows that were due whose write failed, in a map of their size: one
// that has been large stays so.
func Left[K comparable](due map[K]bool, failed map[K]error) map[K]bool {
	left := map[K]bool{}
	for k := range failed {
		if due[k] {
			left[k] = true
		}
	}
	return left
}
