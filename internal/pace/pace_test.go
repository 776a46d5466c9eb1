package pace

import (
	"testing"
	"time"
)

func TestOneSlowRunDoesNotPutOffTheNext(t *testing.T) {
	const least = 2 * time.Second
	for name, c := range map[string]struct {
		took []time.Duration
		n    int
		want time.Duration
	}{
		"none yet":                {n: 20, want: least},
		"the first, however long": {took: []time.Duration{3 * time.Second}, n: 20, want: least},
		"short ones":              {took: []time.Duration{time.Millisecond, time.Millisecond}, n: 20, want: least},
		"one that waited":         {took: []time.Duration{time.Millisecond, 3 * time.Second}, n: 20, want: least},
		"one after it":            {took: []time.Duration{3 * time.Second, time.Millisecond}, n: 20, want: least},
		"a large mesh":            {took: []time.Duration{time.Millisecond, 400 * time.Millisecond, 500 * time.Millisecond}, n: 20, want: 8 * time.Second},
		"of which less is wanted": {took: []time.Duration{500 * time.Millisecond, 400 * time.Millisecond}, n: 100, want: 40 * time.Second},
	} {
		var p Pace
		for _, took := range c.took {
			p.Ran(took)
		}
		if got := p.Rest(least, c.n); got != c.want {
			t.Errorf("%s: the next run is after %v, want %v", name, got, c.want)
		}
	}
}
