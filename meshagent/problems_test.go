package meshagent

import (
	"fmt"
	"iter"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cilium/statedb"
	"github.com/google/go-cmp/cmp"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/wire"
)

func TestOnlyWhatLastsIsToldByCause(t *testing.T) {
	now := time.Unix(1000, 0)
	problem := func(table, row, text string, old time.Duration) *tables.Problem {
		return &tables.Problem{Table: table, Row: row, Error: text, Since: now.Add(-old)}
	}
	var many []*tables.Problem
	for i := range 2 * mostProblems {
		many = append(many, problem("ips", fmt.Sprint(i), fmt.Sprint("cause ", i), time.Minute))
	}
	for _, test := range []struct {
		name  string
		all   []*tables.Problem
		want  []wire.NodeProblem
		due   time.Duration
		count int
	}{
		{name: "nothing", due: leaseTurn},
		{name: "too young", all: []*tables.Problem{problem("ips", "a", "full", 300*time.Millisecond)}, due: 700 * time.Millisecond},
		{
			name: "rows of one cause are one, the most first",
			all: []*tables.Problem{
				problem("ips", "", "refused", time.Minute), problem("services", "a", "full", lastingAfter), problem("services", "b", "full", time.Hour),
				problem("services", "c", "full", 0),
			},
			want: []wire.NodeProblem{{Table: "services", Row: "a", Rows: 2, Error: "full", Since: now.Add(-time.Hour).UTC()}, {Table: "ips", Rows: 1, Error: "refused", Since: now.Add(-time.Minute).UTC()}},
			due:  lastingAfter, count: 2,
		},
		{
			name: "a long error is cut", all: []*tables.Problem{problem("paths", "", strings.Repeat("ü", maxError), time.Minute)},
			want: []wire.NodeProblem{{Table: "paths", Rows: 1, Error: strings.Repeat("ü", maxError/2) + "…", Since: now.Add(-time.Minute).UTC()}}, due: leaseTurn, count: 1,
		},
		{name: "not all there are", all: many, due: leaseTurn, count: mostProblems},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, due := lasting(rows(test.all), now)
			if due != test.due || len(got) != test.count {
				t.Errorf("%d causes, look again in %v; want %d, %v", len(got), due, test.count, test.due)
			}
			if diff := cmp.Diff(test.want, got); test.want != nil && diff != "" {
				t.Error(diff)
			}
		})
	}
}

func rows(all []*tables.Problem) iter.Seq2[*tables.Problem, statedb.Revision] {
	return func(yield func(*tables.Problem, statedb.Revision) bool) {
		for i, p := range all {
			if !yield(p, statedb.Revision(i)) {
				return
			}
		}
	}
}

func TestTheClusterIsToldWhichTableIsFullUntilItIsNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, east, _, _ := raise(t)
		said := func() (wire.NodeProblems, bool) {
			text, ok := w.clusters["east"].store.Value(wire.NodeProblemsKey(east.name))
			if !ok {
				return wire.NodeProblems{}, false
			}
			v, err := wire.Unmarshal[wire.NodeProblems](text)
			if err != nil {
				t.Fatal(err)
			}
			return v, true
		}
		if v, ok := said(); ok {
			t.Errorf("without a problem it says %+v", v)
		}

		full := &bpf.FullError{Table: "services", Limit: 3}
		services := east.maps().Services.(*bpftest.Table[bpf.ServiceKey, bpf.Service])
		services.Fail(func(string, bpf.ServiceKey) error { return full })
		w.clusters["east"].web(t, nil) // not global any more: another row
		w.step()
		w.step()
		v, ok := said()
		if len(v.Problems) != 1 || v.Problems[0].Table != "services" || v.Problems[0].Rows != 1 || v.Problems[0].Row == "" {
			t.Errorf("a full table is told as %+v, %v", v, ok)
		}

		services.Fail(nil)
		w.step()
		w.step()
		if v, ok := said(); ok {
			t.Errorf("when it fits again it says %+v", v)
		}
	})
}
