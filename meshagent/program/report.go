package program

import (
	"slices"
	"time"

	"github.com/weft-mesh/weft/meshagent/tables"
)

// report collects the outcome for each row in one pass.
type report struct {
	view *view
	// stages are the tables that were written, with true for those written in full.
	stages map[string]bool
	// rows are the rows written of tables not written in full.
	rows   map[string]map[string]bool
	errs   map[string]map[string]string
	failed bool
}

func newReport(v *view) *report {
	return &report{view: v, stages: map[string]bool{}, rows: map[string]map[string]bool{}, errs: map[string]map[string]string{}}
}

// stage marks tables as being written in full.
func (r *report) stage(names ...string) {
	for _, name := range names {
		r.stages[name] = true
	}
}

// row marks a single row as being written; other rows of the table are untouched.
func (r *report) row(table, row string) {
	if r.rows[table] == nil {
		r.rows[table] = map[string]bool{}
	}
	r.rows[table][row] = true
	r.part(table)
}

// part marks a table of which all that has changed is being written.
func (r *report) part(table string) {
	if _, ok := r.stages[table]; !ok {
		r.stages[table] = false
	}
}

// judged marks a row of clusters or nodes, and says so if it is not believed.
func (r *report) judged(v *view, row rowName) {
	r.row(row.table, row.row)
	if why := v.why(row); why != "" {
		v.doubts = append(v.doubts, doubt{row.table, row.row, why})
	}
}

// fail notes that the kernel did not accept a row; row "" means the whole table.
func (r *report) fail(table, row string, err error) {
	r.failed = true
	r.note(table, row, err.Error())
}

func (r *report) note(table, row, text string) {
	if r.errs[table] == nil {
		r.errs[table] = map[string]string{}
	}
	r.errs[table][row] = text
	r.row(table, row)
}

// clean says whether all rows of these tables were written.
func (r *report) clean(names ...string) bool {
	for _, name := range names {
		if len(r.errs[name]) > 0 {
			return false
		}
	}
	return true
}

func (r *report) count() (n int) {
	for _, rows := range r.errs {
		n += len(rows)
	}
	return n
}

func (r *report) example() string {
	for table, rows := range r.errs {
		for row, text := range rows {
			return table + " " + row + ": " + text
		}
	}
	return ""
}

// publish writes problems and progress. Rows that are not believed are problems too,
// but retrying would not help them.
func (r *report) publish(t *tables.Tables) {
	for _, d := range r.view.doubts {
		r.note(d.table, d.row, d.why)
	}
	now := time.Now()
	txn := t.DB.WriteTxn(t.Problems, t.Progress)
	dirty := false
	settle := func(p *tables.Problem) {
		if _, still := r.errs[p.Table][p.Row]; p != nil && !still {
			tables.Drop(txn, t.Problems, p)
			dirty = true
		}
	}
	for table, full := range r.stages {
		if full {
			for _, p := range slices.Collect(tables.ProblemsOf(txn, t, table)) {
				settle(p)
			}
			continue
		}
		for row := range r.rows[table] {
			if p := tables.Get(txn, t.Problems, (&tables.Problem{Table: table, Row: row}).Key()); p != nil {
				settle(p)
			}
		}
	}
	for table, rows := range r.errs {
		for row, text := range rows {
			tables.Change(txn, t.Problems, &tables.Problem{Table: table, Row: row, Since: now}, func(p *tables.Problem) bool {
				p.Error = text
				p.Attempts++
				return true
			})
			dirty = true
		}
	}
	for table := range r.stages {
		if rev, ok := t.WrittenRevision(r.view.txn, table); ok {
			tables.Put(txn, t.Progress, &tables.Progress{Table: table, Revision: rev, At: now})
			dirty = true
		}
	}
	if !dirty {
		txn.Abort()
		return
	}
	txn.Commit()
}
