package paths

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-mesh/weft/tunnel/probe"
	"github.com/weft-mesh/weft/wire"
)

func TestUnwellPaths(t *testing.T) {
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	seen := func(cluster, node string, state probe.State, since time.Duration) probe.Observation {
		return probe.Observation{Target: probe.Target{Cluster: cluster, Node: node}, State: state, Since: ago(since)}
	}
	limited := seen("west", "w1", probe.Up, time.Hour)
	limited.Limit, limited.LimitSince = 1328, ago(time.Minute)
	limited6 := limited
	limited6.Target.Node = "w6"
	endpoint := func(key string) netip.Addr {
		if key == "west/w6" {
			return netip.MustParseAddr("fd00:172:16:2::6")
		}
		return netip.MustParseAddr("172.16.2.1")
	}
	limitedOnceDown := limited
	limitedOnceDown.State, limitedOnceDown.Since = probe.Down, ago(2*time.Second)
	for name, c := range map[string]struct {
		seen []probe.Observation
		want []wire.NodePath
	}{
		"nothing probed": {},
		"all is well":    {seen: []probe.Observation{seen("west", "w1", probe.Up, time.Hour)}},
		"not judged yet": {seen: []probe.Observation{seen("west", "w1", probe.Unknown, time.Hour)}},
		"down for less than a second": {
			seen: []probe.Observation{seen("west", "w1", probe.Down, 900*time.Millisecond), seen("west", "w2", probe.Up, time.Hour)},
		},
		"one of two down": {
			seen: []probe.Observation{seen("west", "w1", probe.Down, time.Second), seen("west", "w2", probe.Up, time.Hour)},
			want: []wire.NodePath{{Cluster: "west", Node: "w1", Since: ago(time.Second)}},
		},
		"one of two down, the other not judged": {
			seen: []probe.Observation{seen("west", "w1", probe.Down, time.Second), seen("west", "w2", probe.Unknown, time.Hour)},
			want: []wire.NodePath{{Cluster: "west", Node: "w1", Since: ago(time.Second)}},
		},
		"all down is one entry, since the last went": {
			seen: []probe.Observation{seen("west", "w1", probe.Down, time.Hour), seen("west", "w2", probe.Down, time.Minute), seen("north", "a", probe.Up, time.Hour)},
			want: []wire.NodePath{{Cluster: "west", Probed: 2, Since: ago(time.Minute)}},
		},
		"all down, the last only just": {
			seen: []probe.Observation{seen("west", "w1", probe.Down, time.Hour), seen("west", "w2", probe.Down, time.Millisecond)},
			want: []wire.NodePath{{Cluster: "west", Node: "w1", Since: ago(time.Hour)}},
		},
		"limited, in bytes outside of the tunnel": {
			seen: []probe.Observation{limited},
			want: []wire.NodePath{{Cluster: "west", Node: "w1", Limit: 1388, Sends: 1480, Since: ago(time.Minute)}},
		},
		"limited, over IPv6": {
			seen: []probe.Observation{limited6},
			want: []wire.NodePath{{Cluster: "west", Node: "w6", Limit: 1408, Sends: 1500, Since: ago(time.Minute)}},
		},
		"down is down, whatever its limit was": {
			seen: []probe.Observation{limitedOnceDown, seen("west", "w2", probe.Up, time.Hour)},
			want: []wire.NodePath{{Cluster: "west", Node: "w1", Since: ago(2 * time.Second)}},
		},
		"the oldest first": {
			seen: []probe.Observation{seen("west", "w1", probe.Down, time.Minute), seen("west", "w2", probe.Down, time.Hour), seen("west", "w3", probe.Up, time.Hour)},
			want: []wire.NodePath{{Cluster: "west", Node: "w2", Since: ago(time.Hour)}, {Cluster: "west", Node: "w1", Since: ago(time.Minute)}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, unwell(c.seen, 1420, endpoint, now, time.Second)); diff != "" {
				t.Error(diff)
			}
		})
	}
	many := []probe.Observation{seen("west", "up", probe.Up, time.Hour)}
	for i := range 2 * mostPaths {
		many = append(many, seen("west", fmt.Sprint(i), probe.Down, time.Hour))
	}
	if got := unwell(many, 1420, endpoint, now, time.Second); len(got) != mostPaths {
		t.Errorf("%d paths are told, want %d", len(got), mostPaths)
	}
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
		"down, not reported yet":        {probe.Observation{State: probe.Down, Since: ago(time.Second * 3 / 4)}, time.Second / 4},
		"down for long":                 {probe.Observation{State: probe.Down, Since: ago(time.Hour)}, livenessCheck},
		"limited, not reported yet":     {probe.Observation{State: probe.Up, Since: ago(time.Hour), Limit: 1400, LimitSince: ago(time.Second / 2)}, time.Second / 2},
		"limited for long":              {probe.Observation{State: probe.Up, Since: ago(time.Hour), Limit: 1400, LimitSince: ago(time.Hour)}, livenessCheck},
		"not answered since it started": {probe.Observation{State: probe.Unknown, Since: now}, livenessCheck},
	} {
		t.Run(name, func(t *testing.T) {
			all := []probe.Observation{{State: probe.Up, Since: ago(time.Hour)}, c.seen}
			if got := untilNext(all, now, livenessCheck, time.Second); got != c.want {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}
