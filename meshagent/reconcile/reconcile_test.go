package reconcile

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// kernel is a map that counts calls and fails on purpose.
type kernel struct {
	rows  map[int]string
	calls []string
	fail  func(k int) error
}

func (m *kernel) call(name string, keys ...int) error {
	m.calls = append(m.calls, name)
	for _, k := range keys {
		if m.fail != nil {
			if err := m.fail(k); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *kernel) Name() string { return "words" }

func (m *kernel) Update(k int, v string) error {
	err := m.call("update", k)
	if err == nil {
		m.rows[k] = v
	}
	return err
}

func (m *kernel) UpdateBatch(rows map[int]string) error {
	m.calls = append(m.calls, "update batch")
	for k, v := range rows {
		if m.fail != nil {
			if err := m.fail(k); err != nil {
				return err
			}
		}
		m.rows[k] = v // a batch that fails is written in part
	}
	return nil
}

func (m *kernel) Delete(k int) error {
	err := m.call("delete", k)
	if err == nil {
		delete(m.rows, k)
	}
	return err
}

func (m *kernel) DeleteBatch(keys []int) error {
	err := m.call("delete batch", keys...)
	if err == nil {
		for _, k := range keys {
			delete(m.rows, k)
		}
	}
	return err
}

func (m *kernel) All() (iter.Seq2[int, string], func() error) {
	return maps.All(maps.Clone(m.rows)), func() error { return m.call("all", -1) }
}

// made are the calls since the last time.
func (m *kernel) made() []string {
	calls := m.calls
	m.calls = nil
	return calls
}

var errKernel = errors.New("no memory")

func failing(keys ...int) func(int) error {
	return func(k int) error {
		if slices.Contains(keys, k) {
			return errKernel
		}
		return nil
	}
}

func start(t *testing.T, m *kernel, batch int, wrote func(k int, was, is string, there bool)) *Reconciler[int, string] {
	t.Helper()
	r, err := New(m, batch, wrote)
	if err != nil {
		t.Fatal(err)
	}
	m.made()
	return r
}

func TestRowsAsWantedAreNotWrittenAgain(t *testing.T) {
	m := &kernel{rows: map[int]string{1: "one", 2: "zwei", 3: "three"}}
	told := map[int]string{}
	r := start(t, m, 10, func(k int, was, is string, there bool) { told[k] = fmt.Sprint(was, "-", is, there) })
	if n := r.Update(map[int]string{1: "one", 2: "two"}, nil); n != 1 || !slices.Equal(m.made(), []string{"update"}) {
		t.Errorf("%d rows changed, want the one that differs", n)
	}
	if err := errors.Join(r.Put(1, "one"), r.Drop(9)); err != nil || len(m.made()) != 0 {
		t.Errorf("what is as wanted was written: %v", err)
	}
	if n := r.Delete([]int{9, 2}, nil); n != 1 || !slices.Equal(m.made(), []string{"delete"}) {
		t.Errorf("%d rows deleted, want the one that is there", n)
	}
	if want := map[int]string{2: "two-false"}; !maps.Equal(told, want) {
		t.Errorf("told of %v, want %v", told, want)
	}
	if want := map[int]string{1: "one", 3: "three"}; !maps.Equal(m.rows, want) || !maps.Equal(maps.Collect(r.Rows()), want) {
		t.Errorf("the map holds %v, is said to hold %v, want %v", m.rows, maps.Collect(r.Rows()), want)
	}
}

func TestWhatAnEarlierAgentLeftStaysUntilPruned(t *testing.T) {
	m := &kernel{rows: map[int]string{1: "one", 2: "two", 3: "three"}}
	r := start(t, m, 10, nil)
	r.Update(map[int]string{1: "one"}, nil)
	if err := r.Drop(3); err != nil {
		t.Fatal(err)
	}
	if found := slices.Collect(r.AllFound()); !slices.Equal(found, []int{2}) || r.Found(1) || !r.Found(2) {
		t.Errorf("found %v, want 2", found)
	}
	if n := r.Prune(In(map[int]bool{1: true}), nil); n != 1 || !maps.Equal(m.rows, map[int]string{1: "one"}) {
		t.Errorf("%d rows pruned, %v is left", n, m.rows)
	}
	if found := slices.Collect(r.AllFound()); len(found) > 0 {
		t.Errorf("found %v after all is gone", found)
	}
}

func TestManyRowsAreOneCall(t *testing.T) {
	many := map[int]string{}
	for k := range 5 {
		many[k] = "row"
	}
	for _, c := range []struct {
		name         string
		batch        int
		failing      []int
		update, gone []string
		failed, rows int
	}{
		{name: "from the batch on", batch: 5, update: []string{"update batch"}, gone: []string{"delete batch"}, rows: 5},
		{name: "below it", batch: 6, update: slices.Repeat([]string{"update"}, 5), gone: slices.Repeat([]string{"delete"}, 5), rows: 5},
		{name: "a row that fails keeps no other out", batch: 5, failing: []int{3}, failed: 1, rows: 4,
			update: append([]string{"update batch"}, slices.Repeat([]string{"update"}, 5)...), gone: append([]string{"delete batch"}, slices.Repeat([]string{"delete"}, 5)...)},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := &kernel{rows: map[int]string{}, fail: failing(c.failing...)}
			r := start(t, m, c.batch, nil)
			var err error
			failed := 0
			note := func(k int, e error) {
				failed++
				First[int](&err)(k, e)
			}
			if n := r.Update(many, note); n != c.rows || failed != c.failed || len(m.rows) < c.rows {
				t.Errorf("%d rows written, %d failed; want %d and %d", n, failed, c.rows, c.failed)
			}
			if calls := m.made(); !slices.Equal(calls, c.update) {
				t.Errorf("calls %v, want %v", calls, c.update)
			}
			if errors.Is(err, errKernel) != (c.failed > 0) {
				t.Errorf("error %v", err)
			}
			if n := r.Delete([]int{0, 1, 2, 3, 4}, note); n != c.rows || failed != 2*c.failed {
				t.Errorf("%d rows deleted, want %d", n, c.rows)
			}
			if calls := m.made(); !slices.Equal(calls, c.gone) {
				t.Errorf("calls %v, want %v", calls, c.gone)
			}
		})
	}
}

// A batch that fails may have written a row that fails on its own a moment later. What such
// a row holds is not known, so it is written even if the old one is wanted again, or none.
func TestAHalfWrittenBatchIsNotForgotten(t *testing.T) {
	for _, known := range []bool{true, false} {
		m := &kernel{rows: map[int]string{}}
		if known {
			m.rows[1] = "old"
		}
		r := start(t, m, 2, nil)
		m.fail = failing(1, 2)
		r.Update(map[int]string{1: "new", 2: "two"}, func(int, error) {})
		m.rows[1], m.fail = "new", nil // as the batch left it
		want := map[int]string{}
		if known {
			want[1] = "old"
			r.Update(want, nil)
		} else {
			r.Prune(In(want), nil)
		}
		if !maps.Equal(m.rows, want) {
			t.Errorf("the map holds %v, want %v", m.rows, want)
		}
	}
}

func TestAMapThatCannotBeReadIsNotTakenForEmpty(t *testing.T) {
	m := &kernel{rows: map[int]string{}, fail: failing(-1)}
	if _, err := New(m, 10, nil); !errors.Is(err, errKernel) {
		t.Errorf("error %v", err)
	}
	if _, err := NewWanted(m, 10); !errors.Is(err, errKernel) {
		t.Errorf("error %v", err)
	}
}

func TestWhatTheMapDidNotTakeIsTriedAgain(t *testing.T) {
	m := &kernel{rows: map[int]string{7: "left"}}
	w, err := NewWanted(m, 2)
	if err != nil {
		t.Fatal(err)
	}
	m.made()
	w.Update(1, "one")
	w.Update(2, "two")
	m.fail = failing(2)
	for range 2 {
		if failed := w.Flush(); len(failed) != 1 || !errors.Is(failed[2], errKernel) {
			t.Errorf("failed: %v", failed)
		}
	}
	m.fail = nil
	m.made()
	if failed := w.Flush(); failed != nil || !slices.Equal(m.made(), []string{"update"}) {
		t.Errorf("failed: %v", failed)
	}
	if failed := w.Flush(); failed != nil || len(m.made()) > 0 {
		t.Errorf("written again though nothing has changed: %v", failed)
	}
	m.fail = failing(1)
	w.Delete(1)
	if row, wanted := w.Row(1); wanted {
		t.Errorf("%q is wanted", row)
	}
	if row, there := w.Map().Row(1); !there || row != "one" {
		t.Error("the map is said not to hold a row that it holds")
	}
	for range 2 {
		if failed := w.Flush(); !errors.Is(failed[1], errKernel) {
			t.Errorf("failed: %v", failed)
		}
	}
	w.Update(1, "one") // wanted after all
	if failed := w.Flush(); failed != nil {
		t.Errorf("failed: %v", failed)
	}
	m.fail = nil
	if gone := w.Prune(); !slices.Equal(gone, []int{7}) || len(w.Flush()) > 0 {
		t.Errorf("pruned %v, want 7", gone)
	}
	if want := map[int]string{1: "one", 2: "two"}; !maps.Equal(m.rows, want) || !maps.Equal(w.Rows(), want) {
		t.Errorf("the map holds %v, want %v", m.rows, want)
	}
}

// Whatever is asked, whatever fails and whenever the agent starts again: in the end the map
// holds what is wanted, and until then it holds what the reconciler says.
func TestTheMapComesToHoldWhatIsWanted(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		m, want := &kernel{rows: map[int]string{}}, map[int]string{}
		batch := 1 + rnd.IntN(8)
		w, err := NewWanted(m, batch)
		if err != nil {
			t.Fatal(err)
		}
		failed := map[int]error{}
		for range 100 {
			switch rnd.IntN(6) {
			case 0, 1:
				k := rnd.IntN(10)
				want[k] = fmt.Sprint(rnd.IntN(3))
				w.Update(k, want[k])
			case 2:
				k := rnd.IntN(10)
				delete(want, k)
				w.Delete(k)
			case 3, 4:
				m.fail = func(int) error {
					if rnd.IntN(4) == 0 {
						return errKernel
					}
					return nil
				}
				failed = w.Flush()
				m.fail = nil
				for k, row := range w.Map().Rows() {
					// A batch that failed may have written what is told as failed.
					if m.rows[k] != row && failed[k] == nil {
						t.Fatalf("seed %d: row %d is %q, said to be %q", seed, k, m.rows[k], row)
					}
				}
			case 5:
				if w, err = NewWanted(m, batch); err != nil {
					t.Fatal(err)
				}
				for k, v := range want {
					w.Update(k, v)
				}
				w.Prune()
			}
		}
		if failed := w.Flush(); failed != nil || !maps.Equal(m.rows, want) {
			t.Fatalf("seed %d: the map holds %v, want %v (failed: %v)", seed, m.rows, want, failed)
		}
	}
}
