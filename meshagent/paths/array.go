package paths

import (
	"fmt"
	"maps"

	"github.com/weft-mesh/weft/bpf"
)

// array carries wanted rows into one map: all that differ in one system call, and again
// with the next flush those that the kernel did not take. Rows found at the start come
// from an earlier agent; prune removes those that nobody has wanted since.
type array[V comparable] struct {
	table bpf.Table[uint32, V]
	// want is what the map should hold, have what it holds.
	want, have map[uint32]V
	// due are the rows that may differ, left those of an earlier agent.
	due, left map[uint32]bool
}

func newArray[V comparable](table bpf.Table[uint32, V]) (*array[V], error) {
	a := &array[V]{table: table, want: map[uint32]V{}, have: map[uint32]V{}, due: map[uint32]bool{}, left: map[uint32]bool{}}
	rows, failed := table.All()
	for i, v := range rows {
		a.have[i], a.left[i] = v, true
	}
	if err := failed(); err != nil {
		return nil, fmt.Errorf("read map %s: %w", table.Name(), err)
	}
	return a, nil
}

func (a *array[V]) update(i uint32, v V) {
	delete(a.left, i)
	a.want[i] = v
	a.due[i] = true
}

func (a *array[V]) delete(i uint32) {
	delete(a.left, i)
	delete(a.want, i)
	a.due[i] = true
}

func (a *array[V]) prune() {
	for i := range maps.Clone(a.left) {
		a.delete(i)
	}
}

// wants reports whether a row is wanted.
func (a *array[V]) wants(i uint32) bool {
	_, wanted := a.want[i]
	return wanted
}

// flush writes what is due and returns what the kernel did not take, by row.
func (a *array[V]) flush() map[uint32]error {
	rows := map[uint32]V{}
	for i := range a.due {
		want, wanted := a.want[i]
		if have, there := a.have[i]; wanted == there && have == want {
			delete(a.due, i)
			continue
		}
		rows[i] = want // an array has no row to delete: the zero row is none
	}
	if len(rows) > 1 && a.table.UpdateBatch(rows) == nil {
		for i := range rows {
			a.wrote(i)
		}
		return nil
	}
	// One by one, to know which row it is.
	var failed map[uint32]error
	for i, v := range rows {
		if err := a.table.Update(i, v); err != nil {
			if failed == nil {
				failed = map[uint32]error{}
			}
			failed[i] = err
			continue
		}
		a.wrote(i)
	}
	return failed
}

func (a *array[V]) wrote(i uint32) {
	delete(a.due, i)
	if want, wanted := a.want[i]; wanted {
		a.have[i] = want
	} else {
		delete(a.have, i)
	}
}
