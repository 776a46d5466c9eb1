package tables

import (
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/cilium/statedb"
)

// table describes a table. Whatever opens, shows, counts, fills or follows tables goes by
// this description.
type table[P keyed] struct {
	name string
	// imported tables are filled by package intake.
	imported bool
	// written tables are carried into the kernel: their rows have a status.
	written bool
	// hidden tables are not shown.
	hidden bool
	// indexes are those besides the one by key.
	indexes []statedb.Indexer[P]
	// columns and cells are how people see a row.
	columns []string
	cells   func(P) []string
	// several, if set, says what people see instead: rows hold several things each.
	several *several[P]
}

// several describes what rows hold: each yields what one does, has looks for one thing by
// its key, and count is how many there are in all.
type several[P any] struct {
	each  func(P) iter.Seq[shownRow]
	has   func(t *Tables, txn statedb.ReadTxn, key string) bool
	count func(*Tables) int
}

// keyed is implemented by the rows of every table.
type keyed interface{ Key() string }

// opened is a table as those see it that treat all tables alike.
type opened struct {
	name                      string
	imported, written, hidden bool
	columns                   []string
	meta                      statedb.TableMeta
	watch                     func(statedb.ReadTxn) <-chan struct{}
	// rows yields all rows, after those with a higher revision, has looks for one, and
	// count is how many there are.
	rows  func(statedb.ReadTxn) iter.Seq2[shownRow, statedb.Revision]
	after func(statedb.ReadTxn, statedb.Revision) iter.Seq[string]
	has   func(statedb.ReadTxn, string) bool
	count func(statedb.ReadTxn) int
}

// shownRow is a row as people see it; its cells are made when they are wanted.
type shownRow struct {
	key   string
	cells func() []string
}

// in opens the table, empty.
func (d table[P]) in(t *Tables) statedb.RWTable[P] {
	key := byKey(P.Key)
	of, err := statedb.NewTableAny(t.DB, d.name, func() []string { return d.columns }, d.cells, key, d.indexes...)
	if err != nil {
		panic(err) // two tables have one name
	}
	o := opened{
		name: d.name, imported: d.imported, written: d.written, hidden: d.hidden, columns: d.columns, meta: of,
		watch: func(txn statedb.ReadTxn) <-chan struct{} {
			_, changed := of.AllWatch(txn)
			return changed
		},
		rows: func(txn statedb.ReadTxn) iter.Seq2[shownRow, statedb.Revision] {
			return func(yield func(shownRow, statedb.Revision) bool) {
				for row, rev := range of.All(txn) {
					for one := range d.each(row) {
						if !yield(one, rev) {
							return
						}
					}
				}
			}
		},
		after: func(txn statedb.ReadTxn, rev statedb.Revision) iter.Seq[string] {
			return func(yield func(string) bool) {
				for row := range of.LowerBound(txn, statedb.ByRevision[P](rev+1)) {
					for one := range d.each(row) {
						if !yield(one.key) {
							return
						}
					}
				}
			}
		},
		has: func(txn statedb.ReadTxn, k string) bool {
			_, _, ok := of.Get(txn, key.Query(k))
			return ok
		},
		count: of.NumObjects,
	}
	if d.several != nil {
		o.has = func(txn statedb.ReadTxn, k string) bool { return d.several.has(t, txn, k) }
		o.count = func(statedb.ReadTxn) int { return d.several.count(t) }
	}
	t.all = append(t.all, o)
	return of
}

// each yields what people see of a row.
func (d table[P]) each(row P) iter.Seq[shownRow] {
	if d.several != nil {
		return d.several.each(row)
	}
	return func(yield func(shownRow) bool) { yield(shownRow{row.Key(), func() []string { return d.cells(row) }}) }
}

// Imported are the tables that package intake fills.
func (t *Tables) Imported() (all []statedb.TableMeta) {
	for _, o := range t.all {
		if o.imported {
			all = append(all, o.meta)
		}
	}
	return all
}

// WatchWritten adds the tables to ws that are carried into the kernel.
func (t *Tables) WatchWritten(txn statedb.ReadTxn, ws *statedb.WatchSet) {
	for _, o := range t.all {
		if o.written {
			ws.Add(o.watch(txn))
		}
	}
}

// WrittenRevision returns the revision of a table that is carried into the kernel, by
// name.
func (t *Tables) WrittenRevision(txn statedb.ReadTxn, name string) (statedb.Revision, bool) {
	for _, o := range t.all {
		if o.written && o.name == name {
			return o.meta.Revision(txn), true
		}
	}
	return 0, false
}

// Names lists all tables that can be shown.
func (t *Tables) Names() (names []string) {
	for _, o := range t.all {
		if !o.hidden {
			names = append(names, o.name)
		}
	}
	return names
}

// Shown is a table as text, with the status of each row.
type Shown struct {
	Columns []string
	Rows    [][]string
}

// Show lists one table, or returns false if there is none of that name.
func (t *Tables) Show(name string) (Shown, bool) {
	i := slices.IndexFunc(t.all, func(o opened) bool { return o.name == name && !o.hidden })
	if i < 0 {
		return Shown{}, false
	}
	o, txn := t.all[i], t.DB.ReadTxn()
	out := Shown{Columns: slices.Clone(o.columns)}
	done := t.done(txn, name)
	if o.written {
		out.Columns = append(out.Columns, "Status")
	}
	for row, rev := range o.rows(txn) {
		cells := row.cells()
		if o.written {
			cells = append(cells, status(t.problem(txn, name, row.key), rev <= done))
		}
		out.Rows = append(out.Rows, cells)
	}
	return out, true
}

// done is the revision up to which a table has been written to the kernel.
func (t *Tables) done(txn statedb.ReadTxn, table string) statedb.Revision {
	if p := Get(txn, t.Progress, table); p != nil {
		return p.Revision
	}
	return 0
}

// problem is why a row did not reach the kernel; nil if nothing is known against it.
func (t *Tables) problem(txn statedb.ReadTxn, table, row string) *Problem {
	return Get(txn, t.Problems, (&Problem{Table: table, Row: row}).Key())
}

func status(p *Problem, done bool) string {
	switch {
	case p != nil:
		return fmt.Sprintf("error: %s (for %v)", p.Error, time.Since(p.Since).Round(time.Second))
	case !done:
		return "pending"
	}
	return "done"
}

// Summary counts a table's rows by status.
type Summary struct {
	Name    string `json:"name"`
	Rows    int    `json:"rows"`
	Pending int    `json:"pending"`
	Errors  int    `json:"errors"`
}

// Summaries counts the rows of all tables. It looks only at rows that are pending or have
// a problem.
func (t *Tables) Summaries() (all []Summary) {
	txn := t.DB.ReadTxn()
	for _, o := range t.all {
		if o.hidden {
			continue
		}
		s := Summary{Name: o.name, Rows: o.count(txn)}
		if o.written {
			for key := range o.after(txn, t.done(txn, o.name)) {
				if t.problem(txn, o.name, key) == nil {
					s.Pending++
				}
			}
			for p := range ProblemsOf(txn, t, o.name) {
				if o.has(txn, p.Row) {
					s.Errors++
				}
			}
		}
		all = append(all, s)
	}
	return all
}
