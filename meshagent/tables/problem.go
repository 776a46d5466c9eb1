package tables

import (
	"iter"
	"slices"
	"strconv"
	"time"

	"github.com/cilium/statedb"
)

// Problem is a row that was refused by the kernel or by something else it needs.
type Problem struct {
	Table, Row string
	Error      string
	// Since is when it first failed, Attempts how many times.
	Since    time.Time
	Attempts int
}

// Key is "table row".
func (p *Problem) Key() string { return p.Table + " " + p.Row }

var problems = table[*Problem]{
	name:    "problems",
	columns: []string{"Table", "Row", "Since", "Attempts", "Error"},
	cells: func(p *Problem) []string {
		return []string{p.Table, p.Row, stamp(p.Since), strconv.Itoa(p.Attempts), p.Error}
	},
}

// SetProblems makes these, by row, the only problems of a table. Rows that do not change
// are left alone.
func SetProblems(t *Tables, table string, now map[string]string) {
	txn := t.DB.WriteTxn(t.Problems)
	changed := false
	for _, p := range slices.Collect(ProblemsOf(txn, t, table)) {
		if now[p.Row] == "" {
			Drop(txn, t.Problems, p)
			changed = true
		}
	}
	for row, text := range now {
		blank := &Problem{Table: table, Row: row, Since: time.Now()}
		if old := Get(txn, t.Problems, blank.Key()); old != nil && old.Error == text {
			continue
		}
		Change(txn, t.Problems, blank, func(p *Problem) bool {
			p.Error = text
			p.Attempts++
			return true
		})
		changed = true
	}
	if !changed {
		txn.Abort()
		return
	}
	txn.Commit()
}

// ProblemsOf yields the problems of a table.
func ProblemsOf(txn statedb.ReadTxn, t *Tables, table string) iter.Seq[*Problem] {
	return prefixed(txn, t.Problems, (&Problem{Table: table}).Key())
}
