package paths

import (
	"testing"
	"time"
)

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
