package meshagent

import (
	"cmp"
	"iter"
	"slices"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/wire"
)

// lastingAfter is how long a row must have failed before the cluster is told.
// What the next attempt mends is nobody's business: it would be two writes to
// etcd, which every agent of the cluster hears of.
const lastingAfter = time.Second

// mostProblems is how many causes are told; whoever asks the node sees all.
const mostProblems = 8

// lasting sums up what has been failing for a while, by cause, the most rows
// first, and says when to look again: after leaseTurn if nothing is about to
// last.
func lasting(all iter.Seq2[*tables.Problem, statedb.Revision], now time.Time) (causes []wire.NodeProblem, due time.Duration) {
	due = leaseTurn
	type cause struct{ table, text string }
	at := map[cause]int{}
	for p := range all {
		if left := p.Since.Add(lastingAfter).Sub(now); left > 0 {
			due = min(due, left)
			continue
		}
		c := cause{p.Table, p.Error}
		i, ok := at[c]
		if !ok {
			i = len(causes)
			at[c] = i
			causes = append(causes, wire.NodeProblem{Table: p.Table, Row: p.Row, Error: p.Error, Since: p.Since.UTC()})
		}
		causes[i].Rows++
		if p.Since.Before(causes[i].Since) {
			causes[i].Since = p.Since.UTC()
		}
	}
	// In order of key before, and so each time alike.
	slices.SortStableFunc(causes, func(a, b wire.NodeProblem) int { return cmp.Compare(b.Rows, a.Rows) })
	return causes[:min(len(causes), mostProblems)], due
}
