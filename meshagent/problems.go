package meshagent

import (
	"cmp"
	"context"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cilium/statedb"
	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/wire"
)

// lastingAfter is how long a row must have failed before it is reported. A problem that
// the next attempt solves would cost two writes to etcd, which every agent receives.
const lastingAfter = time.Second

// mostProblems bounds the causes that are reported; the node itself shows all.
const mostProblems = 8

// lasting sums up what has been failing for a while by cause, most rows first, and says
// when to look again: after leaseTurn if no younger problem is about to be reported.
func lasting(all iter.Seq2[*tables.Problem, statedb.Revision], now time.Time) (causes []wire.NodeProblem, due time.Duration) {
	due = leaseTurn
	type cause struct{ table, text string }
	at := map[cause]int{}
	for p := range all {
		if left := p.Since.Add(lastingAfter).Sub(now); left > 0 {
			due = min(due, left)
			continue
		}
		c := cause{p.Table, short(p.Error)}
		i, ok := at[c]
		if !ok {
			i = len(causes)
			at[c] = i
			causes = append(causes, wire.NodeProblem{Table: p.Table, Row: p.Row, Error: c.text, Since: p.Since.UTC()})
		}
		causes[i].Rows++
		if p.Since.Before(causes[i].Since) {
			causes[i].Since = p.Since.UTC()
		}
	}
	// The rows come in order of key, so the result is the same each time.
	slices.SortStableFunc(causes, func(a, b wire.NodeProblem) int { return cmp.Compare(b.Rows, a.Rows) })
	return causes[:min(len(causes), mostProblems)], due
}

// maxError is how much of a problem's error the cluster is told, in bytes: some join
// the errors of thousands of rows, and etcd refuses what is too large.
const maxError = 1024

func short(text string) string {
	if len(text) <= maxError {
		return text
	}
	return strings.ToValidUTF8(text[:maxError], "") + "…"
}

// setProblem makes text the problem of one row, "" if it has none.
func setProblem(t *tables.Tables, table, row, text string) {
	txn := t.DB.WriteTxn(t.Problems)
	blank := &tables.Problem{Table: table, Row: row, Since: time.Now()}
	switch old := tables.Get(txn, t.Problems, blank.Key()); {
	case old == nil && text == "", old != nil && old.Error == text:
		txn.Abort()
		return
	case text == "":
		tables.Drop(txn, t.Problems, blank)
	default:
		tables.Change(txn, t.Problems, blank, func(p *tables.Problem) bool {
			p.Error = text
			p.Attempts++
			return true
		})
	}
	txn.Commit()
}

// trouble tells operators of a part of the agent that keeps failing: it is a problem of
// the node meanwhile, and the log gets a line when it begins and when it is over. Several
// goroutines may use it.
type trouble struct {
	tables *tables.Tables
	// table and row are those of the problem.
	table, row string
	what       string // what does not work, such as "flow events cannot be read"
	log        *slog.Logger

	mu   sync.Mutex // guards last
	last string
}

// partTrouble is the trouble of a part that has no table of problems of its own.
func partTrouble(t *tables.Tables, part, what string, log *slog.Logger) *trouble {
	return &trouble{tables: t, table: wire.ProblemParts, row: part, what: what, log: log}
}

// tell takes the result of the latest attempt.
func (t *trouble) tell(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := ""
	if err != nil {
		text = err.Error()
		if t.table == wire.ProblemParts { // others say by their table what does not work
			text = t.what + ": " + text
		}
	}
	if text == t.last {
		return
	}
	switch {
	case t.last == "":
		t.log.Warn(t.what+"; retrying", "error", err)
	case text == "":
		t.log.Info("resolved: " + t.what)
	}
	t.last = text
	setProblem(t.tables, t.table, t.row, text)
}

const (
	// retryPause is how long a part that failed waits before it starts again.
	retryPause = time.Second
	// steadyAfter is how long it must have run to count as working. It is more than
	// lastingAfter: a part that fails soon after each start is told as failing.
	steadyAfter = 2 * lastingAfter
)

// retry runs a part again and again until ctx ends: at once when it returned nil,
// after a pause when it failed.
func (t *trouble) retry(ctx context.Context, run func(context.Context) error) {
	for ctx.Err() == nil {
		g, running := errgroup.WithContext(ctx)
		running, stop := context.WithCancel(running)
		g.Go(func() error {
			defer stop()
			return run(running)
		})
		g.Go(func() error {
			select {
			case <-running.Done():
			case <-time.After(steadyAfter):
				t.tell(nil)
			}
			return nil
		})
		err := g.Wait()
		if err == nil || ctx.Err() != nil {
			continue
		}
		t.tell(err)
		select {
		case <-ctx.Done():
		case <-time.After(retryPause):
		}
	}
}
