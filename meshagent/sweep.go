package meshagent

import (
	"context"
	"time"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/internal/pace"
)

// flowSweep is the pause between two sweeps of the flow table. A closed connection keeps
// its row at most that much longer, and a node that a pod begins to talk to is probed that
// soon.
const flowSweep = 2 * time.Second

// sweepRest is how much longer than a sweep that pause is, however many flows there are.
const sweepRest = 20

// sweep deletes flows that have ended or gone silent, until ctx ends. It calls nodes with
// the nodes that flows go to, and told with the result of each sweep.
func sweep(ctx context.Context, d Datapath, nodes func(map[uint16]bool), told func(error)) error {
	var cost pace.Pace
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(cost.Rest(flowSweep, sweepRest)):
		}
		begun := time.Now()
		s, err := d.Sweep(bpf.Now())
		cost.Ran(time.Since(begun))
		if ctx.Err() != nil {
			return nil
		}
		told(err)
		if err == nil {
			nodes(s.Nodes)
		}
	}
}
