package program

import (
	"fmt"

	"github.com/weft-mesh/weft/bpf"
)

// mirror writes the wanted rows to one map and remembers what the map holds.
//
// Rows found at the start come from an earlier agent: they are corrected if they
// should be different, and removed only if prune says that nobody wants what is not
// listed.
type mirror[K comparable, V comparable] struct {
	table bpf.Table[K, V]
	have  map[K]V
	// found are the rows of an earlier agent that this one has never wanted.
	found map[K]bool
	// wrote, if set, is called after a row was written (there) or removed.
	wrote func(k K, v V, there bool)
}

func newMirror[K comparable, V comparable](table bpf.Table[K, V]) (*mirror[K, V], error) {
	m := &mirror[K, V]{table: table, have: map[K]V{}, found: map[K]bool{}}
	rows, failed := table.All()
	for k, v := range rows {
		m.have[k], m.found[k] = v, true
	}
	if err := failed(); err != nil {
		return nil, fmt.Errorf("read map %s: %w", table.Name(), err)
	}
	return m, nil
}

// refused is called for each row that the kernel did not accept.
type refused[K comparable] func(k K, err error)

// batchFrom is the number of changed rows from which building a batch for one system
// call pays off.
const batchFrom = 64

// set makes the map hold want. It returns how many rows it changed; the next call
// retries rows that failed.
func (m *mirror[K, V]) set(want map[K]V, prune bool, failed refused[K]) (changed int) {
	return m.update(want, failed) + m.remove(want, prune, failed)
}

// update creates and changes rows but removes none.
func (m *mirror[K, V]) update(want map[K]V, failed refused[K]) (changed int) {
	diff := map[K]V{}
	for k, v := range want {
		delete(m.found, k)
		if have, ok := m.have[k]; !ok || have != v {
			diff[k] = v
		}
	}
	if len(diff) >= batchFrom && m.table.UpdateBatch(diff) == nil {
		for k, v := range diff {
			m.holds(k, v)
		}
		return len(diff)
	}
	// One by one, so that a row that does not fit or fails for its own reason does not
	// keep the others out.
	for k, v := range diff {
		if err := m.table.Update(k, v); err != nil {
			failed(k, err)
			continue
		}
		m.holds(k, v)
		changed++
	}
	return changed
}

// remove deletes rows that are not in want.
func (m *mirror[K, V]) remove(want map[K]V, prune bool, failed refused[K]) (changed int) {
	return m.removeBut(want, prune, func(K) bool { return false }, failed)
}

// removeBut deletes rows that are neither in want nor kept.
func (m *mirror[K, V]) removeBut(want map[K]V, prune bool, kept func(K) bool, failed refused[K]) (changed int) {
	var gone []K
	for k := range m.have {
		if _, ok := want[k]; !ok && (prune || !m.found[k]) && !kept(k) {
			gone = append(gone, k)
		}
	}
	return m.dropAll(gone, failed)
}

// dropAll deletes the given rows. It returns how many of them existed.
func (m *mirror[K, V]) dropAll(keys []K, failed refused[K]) (changed int) {
	batched := len(keys) >= batchFrom && m.table.DeleteBatch(keys) == nil
	for _, k := range keys {
		if _, ok := m.have[k]; !ok {
			continue
		}
		if !batched {
			if err := m.table.Delete(k); err != nil {
				failed(k, err)
				continue
			}
		}
		m.lacks(k)
		changed++
	}
	return changed
}

// put writes one row immediately.
func (m *mirror[K, V]) put(k K, v V) error {
	delete(m.found, k)
	if have, ok := m.have[k]; ok && have == v {
		return nil
	}
	if err := m.table.Update(k, v); err != nil {
		return err
	}
	m.holds(k, v)
	return nil
}

// drop deletes one row immediately.
func (m *mirror[K, V]) drop(k K) error {
	if _, ok := m.have[k]; !ok {
		return nil
	}
	if err := m.table.Delete(k); err != nil {
		return err
	}
	m.lacks(k)
	return nil
}

// holds and lacks record what the map has come to.
func (m *mirror[K, V]) holds(k K, v V) {
	m.have[k] = v
	if m.wrote != nil {
		m.wrote(k, v, true)
	}
}

func (m *mirror[K, V]) lacks(k K) {
	v := m.have[k]
	delete(m.have, k)
	delete(m.found, k)
	if m.wrote != nil {
		m.wrote(k, v, false)
	}
}
