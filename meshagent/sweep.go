package meshagent

import (
	"context"
	"time"

	"github.com/weft-mesh/weft/bpf"
)

// flowSweep is the pause between two sweeps of the flow table. A closed connection keeps
// its row at most that much longer, and a node that a pod begins to talk to is probed that
// soon.
const flowSweep = 2 * time.Second

// sweep deletes flows that have ended or gone silent, until ctx ends. It calls nodes with
// the nodes that flows go to, and told with the result of each sweep.
func sweep(ctx context.Context, d Datapath, nodes func(map[uint16]bool), told func(error)) error {
	wait := flowSweep
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		begun := time.Now()
		s, err := d.Sweep(bpf.Now())
		// At most a twentieth of the time, however many flows there are.
		wait = max(flowSweep, 20*time.Since(begun))
		if ctx.Err() != nil {
			return nil
		}
		told(err)
		if err == nil {
			nodes(s.Nodes)
		}
	}
}
