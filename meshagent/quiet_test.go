package meshagent

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/tunnel/probe"
	"github.com/weft-mesh/weft/wire"
)

// Reading the tunnels costs time for every node of the mesh, so an agent at rest does it
// rarely. While a handshake or a rotation is awaited, it looks often.
func TestTunnelsAreReadRarelyAtRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, east, _, _ := raise(t)
		reads := func(d time.Duration) int {
			before := east.lanes.Reads()
			time.Sleep(d)
			synctest.Wait()
			return east.lanes.Reads() - before
		}
		reads(10 * time.Second)
		if n := reads(time.Minute); n < 20 || n > 31 {
			t.Errorf("at rest: %d reads in a minute, want one every %v", n, laneCheck)
		}
		// A rotation that waits for the other node.
		w.clusters["east"].put(t, wire.RotationKey, wire.Rotation{Epoch: 3})
		if n := reads(time.Minute); n < 110 {
			t.Errorf("with a rotation awaited: %d reads in a minute, want one every %v", n, laneTurn)
		}
		w.clusters["east"].put(t, wire.RotationKey, wire.Rotation{})
		reads(time.Second)
		if n := reads(time.Minute); n > 31 {
			t.Errorf("after it: %d reads in a minute, want one every %v", n, laneCheck)
		}
	})
}

func TestUntilNext(t *testing.T) {
	now := time.Now()
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for name, c := range map[string]struct {
		seen probe.Observation
		want time.Duration
	}{
		"up":                            {probe.Observation{State: probe.Up, Since: ago(time.Hour)}, livenessCheck},
		"silent":                        {probe.Observation{State: probe.Down, Since: ago(probe.DoubtTime / 2)}, probe.DoubtTime / 2},
		"down, not reported yet":        {probe.Observation{State: probe.Down, Since: ago(lastingAfter * 3 / 4)}, lastingAfter / 4},
		"down for long":                 {probe.Observation{State: probe.Down, Since: ago(time.Hour)}, livenessCheck},
		"limited, not reported yet":     {probe.Observation{State: probe.Up, Since: ago(time.Hour), Limit: 1400, LimitSince: ago(lastingAfter / 2)}, lastingAfter / 2},
		"limited for long":              {probe.Observation{State: probe.Up, Since: ago(time.Hour), Limit: 1400, LimitSince: ago(time.Hour)}, livenessCheck},
		"not answered since it started": {probe.Observation{State: probe.Unknown, Since: now}, livenessCheck},
	} {
		t.Run(name, func(t *testing.T) {
			all := []probe.Observation{{State: probe.Up, Since: ago(time.Hour)}, c.seen}
			if got := untilNext(all, now, livenessCheck); got != c.want {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}
