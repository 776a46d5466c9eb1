package tunnel_test

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/tunnel"
)

func TestBothSidesNameTheSameLane(t *testing.T) {
	for mine := range uint64(20) {
		for theirs := range uint64(20) {
			if a, b := tunnel.Lane(mine, theirs), tunnel.Lane(theirs, mine); a != b || a < 0 || a >= tunnel.LaneCount {
				t.Errorf("epochs %d and %d: lanes %d and %d", mine, theirs, a, b)
			}
		}
	}
}

func TestChoose(t *testing.T) {
	none, both := [2]bool{}, [2]bool{true, true}
	for name, c := range map[string]struct {
		mine, theirs uint64
		used         int
		shaken       [2]bool
		want         int
	}{
		"at first the lane that the epochs name":           {0, 0, -1, none, 0},
		"at first a lane that works beats one that may":    {0, 0, -1, [2]bool{false, true}, 1},
		"nothing changed keeps the lane":                   {4, 4, 0, both, 0},
		"only we rotated keeps the lane":                   {5, 4, 0, both, 0},
		"only they rotated keeps the lane":                 {4, 5, 0, both, 0},
		"both rotated, no handshake yet keeps the lane":    {5, 5, 0, [2]bool{true, false}, 0},
		"both rotated and shaken hands moves it":           {5, 5, 0, both, 1},
		"no handshake anywhere keeps the lane":             {5, 5, 0, none, 0},
		"back to where it was, still with a session there": {6, 6, 1, both, 0},
	} {
		t.Run(name, func(t *testing.T) {
			if got := tunnel.Choose(c.mine, c.theirs, c.used, c.shaken); got != c.want {
				t.Errorf("lane %d, want %d", got, c.want)
			}
		})
	}
}

func TestMayRotate(t *testing.T) {
	level := map[string]uint64{"east/n2": 4, "west/n1": 5}
	for name, c := range map[string]struct {
		to         uint64
		peers      map[string]uint64
		age, quiet time.Duration
		refused    string // "" for allowed
	}{
		"everybody is here, the lane is quiet": {5, level, time.Minute, time.Minute, ""},
		"nobody else is there":                 {5, nil, time.Minute, time.Minute, ""},
		"one is an epoch behind":               {5, map[string]uint64{"west/n1": 3, "west/n2": 4}, time.Minute, time.Minute, "west/n1 at 3"},
		"the epoch is young":                   {5, level, 4 * time.Second, time.Minute, "4s old"},
		"data came a second ago":               {5, level, time.Minute, time.Second, "received data 1s ago"},
		"a jump of three over peers far ahead": {7, map[string]uint64{"west/n1": 9}, time.Minute, time.Minute, ""},
		"a jump of three past one":             {7, map[string]uint64{"west/n1": 5}, time.Minute, time.Minute, "west/n1 at 5"},
		"an even step rekeys the lane in use":  {6, nil, time.Minute, time.Minute, "odd"},
		"backwards":                            {3, nil, time.Minute, time.Minute, "upwards"},
		"the same again":                       {4, nil, time.Minute, time.Minute, "upwards"},
	} {
		t.Run(name, func(t *testing.T) {
			err := tunnel.MayRotate(4, c.to, c.peers, c.age, c.quiet)
			switch {
			case c.refused == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.refused != "" && (err == nil || !strings.Contains(err.Error(), c.refused)):
				t.Errorf("want a word of %q, got: %v", c.refused, err)
			}
			if waiting := c.refused != "" && c.to > 4 && c.to%2 == 1; waiting != errors.Is(err, tunnel.ErrNotYet) {
				t.Errorf("ErrNotYet is for what waiting helps against: %v", err)
			}
		})
	}
}

func TestTwoStepsReachAnyEpoch(t *testing.T) {
	for mine := range uint64(12) {
		for wanted := range uint64(12) {
			at, steps := mine, 0
			for next := tunnel.NextEpoch(at, wanted); next != at; next = tunnel.NextEpoch(at, wanted) {
				if (next-at)%2 != 1 || next > wanted {
					t.Fatalf("from %d towards %d: step to %d", at, wanted, next)
				}
				at = next
				steps++
			}
			if at != max(mine, wanted) || steps > 2 {
				t.Errorf("from %d towards %d: at %d after %d steps", mine, wanted, at, steps)
			}
		}
	}
}

// A whole mesh rotates in any order that MayRotate allows, and no rotation ever
// touches a lane that some pair is using.
func TestRotationNeverTouchesALaneInUse(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	const nodes = 5
	epochs := [nodes]uint64{0, 0, 3, 0, 1}
	for range 2000 {
		i := random.IntN(nodes)
		wanted := epochs[random.IntN(nodes)]
		if random.IntN(10) == 0 {
			wanted++
		}
		to := tunnel.NextEpoch(epochs[i], wanted)
		peers := map[string]uint64{}
		var busy [tunnel.LaneCount]bool
		for j, e := range epochs {
			if j != i {
				peers[string(rune('a'+j))] = e
				busy[tunnel.Lane(epochs[i], e)] = true
			}
		}
		quiet := time.Minute
		if busy[to%tunnel.LaneCount] {
			quiet = 0 // some node is sending there
		}
		if to == epochs[i] || tunnel.MayRotate(epochs[i], to, peers, time.Minute, quiet) != nil {
			continue
		}
		epochs[i] = to
		for j, e := range epochs {
			if j != i && tunnel.Lane(to, e) == int(to%tunnel.LaneCount) && e < to {
				t.Fatalf("rotated to %d while a peer at %d stays on that lane", to, e)
			}
		}
	}
	if lowest := min(epochs[0], epochs[1], epochs[2], epochs[3], epochs[4]); lowest < 20 {
		t.Errorf("the mesh got stuck: %v", epochs)
	}
}
