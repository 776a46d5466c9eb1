package flow

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
)

func numbered(n int) Flow { return Flow{Reason: fmt.Sprint(n)} }

func reasons(flows []Flow) string {
	var s []string
	for _, f := range flows {
		text := f.Reason
		if f.Lost > 0 {
			text = fmt.Sprintf("(%d lost) %s", f.Lost, text)
		}
		s = append(s, text)
	}
	return strings.Join(s, " ")
}

func TestLast(t *testing.T) {
	odd := func(f *Flow) bool { return strings.ContainsAny(f.Reason[len(f.Reason)-1:], "13579") }
	for _, test := range []struct {
		name   string
		size   int
		add    int
		missed map[int]uint64 // by number of flows before
		n      int
		match  func(*Flow) bool
		want   string
	}{
		{"empty ring", 4, 0, nil, -1, nil, ""},
		{"fewer than it holds", 4, 3, nil, -1, nil, "1 2 3"},
		{"the oldest make room", 4, 6, nil, -1, nil, "3 4 5 6"},
		{"the last two", 4, 6, nil, 2, nil, "5 6"},
		{"none asked for", 4, 6, nil, 0, nil, ""},
		{"the last two that match", 8, 8, nil, 2, odd, "5 7"},
		{"size zero holds one", 0, 3, nil, -1, nil, "3"},
		{"loss stands before the flow after it", 4, 4, map[int]uint64{2: 7}, -1, nil, "1 2 (7 lost) 3 4"},
		{"losses between two matches add up", 8, 5, map[int]uint64{1: 1, 2: 2, 4: 4}, -1, odd, "1 (3 lost) 3 (4 lost) 5"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := NewRing(test.size)
			for i := 1; i <= test.add; i++ {
				r.Add(numbered(i))
				r.Missed(test.missed[i])
			}
			if got := reasons(r.Last(test.n, test.match)); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestStats(t *testing.T) {
	r := NewRing(4)
	for i := range 6 {
		r.Add(numbered(i))
	}
	r.Missed(3)
	if got, want := r.Stats(), (Stats{Seen: 6, Lost: 3, Kept: 4, Capacity: 4}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

var errEnough = errors.New("enough")

// take reads n flows from a ring in the background.
func take(ctx context.Context, r *Ring, last, n int, each func()) (got *[]Flow, wait func() error) {
	got = new([]Flow)
	done := make(chan error, 1)
	go func() {
		done <- r.Follow(ctx, last, nil, func(f Flow) error {
			*got = append(*got, f)
			if each != nil {
				each()
			}
			if len(*got) == n {
				return errEnough
			}
			return nil
		})
	}()
	return got, func() error { return <-done }
}

func TestFollowGoesOnWhereLastEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRing(8)
		for i := 1; i <= 4; i++ {
			r.Add(numbered(i))
		}
		got, wait := take(t.Context(), r, 2, 4, nil)
		synctest.Wait()
		r.Add(numbered(5))
		synctest.Wait()
		r.Missed(9)
		r.Add(numbered(6))
		if err := wait(); !errors.Is(err, errEnough) {
			t.Fatal(err)
		}
		if got, want := reasons(*got), "3 4 5 (9 lost) 6"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestSlowReaderIsToldWhatItLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRing(4)
		resume := make(chan struct{})
		got, wait := take(t.Context(), r, 0, 5, sync.OnceFunc(func() { <-resume }))
		synctest.Wait()
		for i := 1; i <= 10; i++ {
			r.Add(numbered(i))
			if i == 1 {
				synctest.Wait() // the reader holds flow 1
			}
			if i == 3 {
				r.Missed(2) // by the source, among those the reader misses too
			}
		}
		close(resume)
		if err := wait(); !errors.Is(err, errEnough) {
			t.Fatal(err)
		}
		if got, want := reasons(*got), "1 (7 lost) 7 8 9 10"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestFollowEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		_, wait := take(ctx, NewRing(4), -1, 1, nil)
		synctest.Wait()
		cancel()
		if err := wait(); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want context.Canceled", err)
		}
	})
}

// At any pace, each reader sees growing numbers, and what it saw plus what it was told it
// lost is everything before the last flow it saw.
func TestNothingIsLostUncounted(t *testing.T) {
	const flows = 20000
	r := NewRing(64)
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			var seen uint64
			_ = r.Follow(t.Context(), -1, nil, func(f Flow) error {
				number, _ := strconv.ParseUint(f.Reason, 10, 64)
				if seen += 1 + f.Lost; seen == 1 {
					seen = number // what came before it started is not its loss
				}
				if number != seen {
					t.Errorf("flow %s, but %d seen or lost", f.Reason, seen)
					return errEnough
				}
				if seen == flows {
					return errEnough
				}
				return nil
			})
		})
	}
	for i := 1; i <= flows; i++ {
		r.Add(numbered(i))
	}
	readers.Wait()
}
