package meshagent

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/wire"
)

// Who finds no room is named while that lasts and a little longer, in words that do
// not change with every look.
func TestWhoUsesUpItsShareIsNamed(t *testing.T) {
	d, tab := bpftest.NewDatapath(), tables.New()
	txn := tab.DB.WriteTxn(tab.Endpoints)
	tables.Put(txn, tab.Endpoints, &tables.Endpoint{Namespace: "shop", Pod: "noisy", Ifindex: 7})
	tables.Put(txn, tab.Endpoints, &tables.Endpoint{Namespace: "shop", Pod: "quiet", Ifindex: 8})
	txn.Commit()
	var log strings.Builder
	s := &shares{datapath: d, tables: tab, log: slog.New(slog.NewTextHandler(&log, nil))}

	holding := func(owner uint32, used int64, refused, evicted uint64) bpf.Holding {
		return bpf.Holding{Owner: owner, Sure: 100, Share: bpf.Share{Used: used, Refused: refused, Evicted: evicted}}
	}
	const tail = " of 524288 connections and may hold no more (its share is 100): new connections replace its unanswered ones or are refused"
	noisy := map[string]string{"shop/noisy": "holds 5000" + tail}
	for i, step := range []struct {
		what string
		all  []bpf.Holding
		want map[string]string
	}{
		{"before the first look nothing is new", []bpf.Holding{holding(7, 4000, 9, 9), holding(8, 10, 0, 0)}, nil},
		{"much, but not too much", []bpf.Holding{holding(7, 4500, 9, 9), holding(8, 10, 0, 0)}, nil},
		{"swaps its flows", []bpf.Holding{holding(7, 5000, 9, 10), holding(8, 10, 0, 0)}, noisy},
		{"still, with other numbers", []bpf.Holding{holding(7, 5001, 10, 10), holding(8, 10, 0, 0)}, noisy},
		{"calm once", []bpf.Holding{holding(7, 4999, 10, 10), holding(8, 10, 0, 0)}, noisy},
		{"calm twice", []bpf.Holding{holding(7, 4998, 10, 10), holding(8, 10, 0, 0)}, noisy},
		{"calm three times", []bpf.Holding{holding(7, 4997, 10, 10), holding(8, 10, 0, 0)}, nil},
		{"the node itself, and a pod that began since", []bpf.Holding{holding(7, 10, 10, 10), holding(0, 300, 1, 0), holding(8, 200, 5, 0)}, map[string]string{
			"": "holds 300" + tail, "shop/quiet": "holds 200" + tail,
		}},
		{"one that is gone has no name", []bpf.Holding{holding(0, 300, 2, 0), holding(9, 200, 5, 0)}, map[string]string{"": "holds 300" + tail}},
	} {
		d.SetHoldings(step.all...)
		if err := s.look(); err != nil {
			t.Fatal(err)
		}
		var got map[string]string
		for p := range tab.Problems.All(tab.DB.ReadTxn()) {
			if p.Table != wire.ProblemShares {
				t.Errorf("%s: problem of table %s", step.what, p.Table)
			}
			if got == nil {
				got = map[string]string{}
			}
			got[p.Row] = p.Error
		}
		if diff := cmp.Diff(step.want, got); diff != "" {
			t.Errorf("look %d, %s (- want, + got):\n%s", i, step.what, diff)
		}
	}
	for _, want := range []string{`level=WARN msg="share of table flows is used up" owner=shop/noisy rows=5000 share=100 limit=524288`, `msg="share of table flows suffices again" owner=shop/noisy`} {
		if strings.Count(log.String(), want) != 1 {
			t.Errorf("log says not once %s:\n%s", want, log.String())
		}
	}
}
