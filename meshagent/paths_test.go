package meshagent

import (
	"fmt"
	"testing"
	"testing/synctest"
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
			if diff := cmp.Diff(c.want, unwell(c.seen, 1420, now)); diff != "" {
				t.Error(diff)
			}
		})
	}
	many := []probe.Observation{seen("west", "up", probe.Up, time.Hour)}
	for i := range 2 * mostPaths {
		many = append(many, seen("west", fmt.Sprint(i), probe.Down, time.Hour))
	}
	if got := unwell(many, 1420, now); len(got) != mostPaths {
		t.Errorf("%d paths are told, want %d", len(got), mostPaths)
	}
}

// A path that goes down is two writes: one when it has been so for a second, one
// when it is over. A path that is merely slow to come up is none.
func TestTheClusterIsToldOfPathsThatAreDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, east, _, _ := raise(t)
		key := wire.NodePathsKey(east.name)
		said := func() wire.NodePaths {
			text, ok := w.clusters["east"].store.Value(key)
			if !ok {
				return wire.NodePaths{}
			}
			v, err := wire.Unmarshal[wire.NodePaths](text)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		if v := said(); len(v.Paths) != 0 {
			t.Errorf("while all is well it says %+v", v)
		}
		w.setCut("west", true)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		v := said()
		if len(v.Paths) != 1 || v.Paths[0].Cluster != "west" || v.Paths[0].Node != "" || v.Paths[0].Probed != 1 || time.Since(v.Paths[0].Since) > 3*time.Second {
			t.Errorf("cut: %+v", v)
		}
		_, before, _ := w.clusters["east"].store.List(t.Context(), key)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if _, after, _ := w.clusters["east"].store.List(t.Context(), key); after != before {
			t.Errorf("nothing changed, and the store went from revision %d to %d", before.Revision, after.Revision)
		}
		w.setCut("west", false)
		time.Sleep(time.Second)
		synctest.Wait()
		if v := said(); len(v.Paths) != 0 {
			t.Errorf("healed: %+v", v)
		}
	})
}
