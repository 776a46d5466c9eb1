package paths

import (
	"testing"
	"time"

	"github.com/weft-mesh/weft/tunnel"
)

// This node's new key ends the sessions of its tunnel, also those with peers whose own new
// keys came first. News of a peer in between do not move traffic there.
func TestANewKeyOfOurOwnEndsSessions(t *testing.T) {
	w := worldOf(t, 0)
	before, n := nodeOf(0, 0), nodeOf(0, 1)
	before.Cluster, n.Cluster = "own", "own"
	w.put(before, true)
	w.turn(t)
	keys := w.tunnels.peerOf(n).Keys
	shaken := tunnel.PeerStatus{Cluster: n.Cluster, Node: n.Name}
	for i := range shaken.Lanes {
		shaken.Lanes[i] = tunnel.PeerLane{Key: keys[i], Handshake: time.Now().Add(-tunnel.Settle)}
	}
	w.lanes.peers = []tunnel.PeerStatus{shaken}
	lane := func() int {
		row, _, ok := w.rows.Lane(n.Key())
		if !ok || !row.Keyed {
			t.Fatalf("%s has no tunnel: %+v", n.Key(), row)
		}
		return row.Lane
	}

	w.put(n, true) // has a new key, and this node follows
	w.turn(t)
	if w.lanes.own.Epoch != 1 {
		t.Fatalf("this node is at epoch %d", w.lanes.own.Epoch)
	}
	w.put(n, true) // any change of the node tells this again
	w.turn(t)
	if got := lane(); got != 0 {
		t.Errorf("traffic is on tunnel %d before a handshake with the new key", got)
	}

	look := func(handshake time.Time) {
		w.lanes.peers[0].Lanes[1].Handshake = handshake
		w.tunnels.checked.end = time.Time{}
		w.turn(t)
	}
	look(time.Now().Add(time.Minute))
	if got := lane(); got != 0 {
		t.Errorf("traffic is on tunnel %d before the handshake has settled", got)
	}
	if !w.tunnels.awaited[n.Key()] {
		t.Error("nobody looks again soon")
	}
	look(time.Now().Add(-tunnel.Settle))
	if got := lane(); got != 1 {
		t.Errorf("traffic is on tunnel %d after the handshake", got)
	}
}

func TestLooksAtTheDevicesTakeAShareOfTheTime(t *testing.T) {
	end := time.Unix(1000, 0)
	for name, c := range map[string]struct {
		took    time.Duration
		awaited bool
		want    time.Duration
	}{
		"a small mesh":                     {took: time.Millisecond, want: laneCheck},
		"a large one":                      {took: 400 * time.Millisecond, want: 40 * time.Second},
		"something awaited":                {took: time.Millisecond, awaited: true, want: laneTurn},
		"something awaited in a large one": {took: 400 * time.Millisecond, awaited: true, want: 8 * time.Second},
	} {
		l := look{end: end}
		for range 2 {
			l.cost.Ran(c.took)
		}
		if got := l.next(c.awaited).Sub(end); got != c.want {
			t.Errorf("%s: the next look is after %v, want %v", name, got, c.want)
		}
	}
}
