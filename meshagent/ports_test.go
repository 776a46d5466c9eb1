package meshagent

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/wire"
)

// That ports are lacking is said while it goes on and a little longer, and not of what was
// before the agent began.
func TestThatPortsAreLackingIsSaid(t *testing.T) {
	d, tab := bpftest.NewDatapath(), tables.New()
	var log strings.Builder
	p := ports{datapath: d, tables: tab, log: slog.New(slog.NewTextHandler(&log, nil))}
	for i, step := range []struct {
		dropped uint64
		said    bool
	}{
		{900, false}, {900, false}, {901, true}, {950, true}, {950, true}, {950, true}, {950, false}, {950, false}, {951, true},
	} {
		d.SetCounters([]bpf.Counter{
			{Reason: bpf.ReasonNoPort, Dir: bpf.Egress, Packets: step.dropped},
			{Reason: bpf.ReasonPolicyDenied, Dir: bpf.Egress, Packets: uint64(i)},
		})
		if err := p.look(); err != nil {
			t.Fatal(err)
		}
		all := 0
		for problem := range tab.Problems.All(tab.DB.ReadTxn()) {
			if all++; problem.Table != wire.ProblemMasquerades || problem.Row != "" || !strings.Contains(problem.Error, "no-port") {
				t.Errorf("look %d: %+v", i, problem)
			}
		}
		if all > 1 || all == 1 != step.said {
			t.Errorf("look %d: %d problems", i, all)
		}
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 2 || !strings.Contains(log.String(), "dropped=1\n") {
		t.Errorf("%d warnings:\n%s", n, log.String())
	}
}
