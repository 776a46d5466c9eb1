package tables

import (
	"slices"
	"time"
)

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
