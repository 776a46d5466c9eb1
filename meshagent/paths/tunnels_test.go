package paths

import (
	"testing"
	"time"
)

func TestOneSlowLookDoesNotPutOffTheNext(t *testing.T) {
	end := time.Unix(1000, 0)
	for name, c := range map[string]struct {
		took, before time.Duration
		awaited      bool
		want         time.Duration
	}{
		"the first, however long":          {took: 3 * time.Second, want: laneCheck},
		"short ones":                       {took: time.Millisecond, before: time.Millisecond, want: laneCheck},
		"one that waited":                  {took: 3 * time.Second, before: time.Millisecond, want: laneCheck},
		"one after it":                     {took: time.Millisecond, before: 3 * time.Second, want: laneCheck},
		"a large mesh":                     {took: 500 * time.Millisecond, before: 400 * time.Millisecond, want: 40 * time.Second},
		"something awaited":                {took: time.Millisecond, before: time.Millisecond, awaited: true, want: laneTurn},
		"something awaited in a large one": {took: 500 * time.Millisecond, before: 400 * time.Millisecond, awaited: true, want: 8 * time.Second},
	} {
		l := look{end: end, took: c.took, before: c.before}
		if got := l.next(c.awaited).Sub(end); got != c.want {
			t.Errorf("%s: the next look is after %v, want %v", name, got, c.want)
		}
	}
}
