package probe_test

import (
	"testing"
	"time"

	"github.com/weft-mesh/weft/tunnel/probe"
)

// settle simulates a path that passes what carries says, and counts the probes until the
// search ends.
func settle(t *testing.T, s probe.Sizing, carries func(int) bool) (probe.Sizing, int) {
	t.Helper()
	for n := range 200 {
		if n > 0 && !s.Searching() {
			return s, n
		}
		s = s.After(outcomeOf(carries(s.Next())))
	}
	t.Fatalf("the search does not end: %+v", s)
	return s, 0
}

func outcomeOf(passed bool) probe.Outcome {
	if passed {
		return probe.Answered
	}
	return probe.Missed
}

// For every limit that a path may have, the search ends at most one step below it, in
// less than 40 probes, and notices when the limit is gone.
func TestSizingFindsEveryLimit(t *testing.T) {
	const want = 1420
	for limit := 48; limit <= want+1; limit++ {
		s, n := settle(t, probe.Sizing{Want: want}, func(size int) bool { return size <= limit })
		got := s.Limit()
		if limit >= want {
			if got != 0 || n != 1 {
				t.Errorf("limit %d: found %d after %d probes, want none after one", limit, got, n)
			}
			continue
		}
		if got > limit || got+probe.SizeStep < min(limit, want) || n > 40 {
			t.Fatalf("limit %d: found %d after %d probes", limit, got, n)
		}
		for range 3 * 4 {
			s = s.After(outcomeOf(true)) // healed
		}
		if s.Limit() != 0 || s.Searching() || s.Next() != want {
			t.Fatalf("limit %d: healed, and still %+v", limit, s)
		}
	}
}

func TestSizingFollowsALimitThatMoves(t *testing.T) {
	limit := 1388
	carries := func(size int) bool { return size <= limit }
	play := func(s probe.Sizing) probe.Sizing {
		for range 60 {
			s = s.After(outcomeOf(carries(s.Next())))
		}
		return s
	}
	s := probe.Sizing{Want: 1420}
	for _, limit = range []int{1388, 1300, 1330, 900, 1400} {
		s = play(s)
		if got := s.Limit(); got > limit || got+probe.SizeStep <= limit {
			t.Errorf("limit %d: found %d", limit, got)
		}
	}
}

func TestSizingIsNotFooledByLoss(t *testing.T) {
	s := probe.Sizing{Want: 1420}.After(probe.Answered)
	for range 3 {
		s = s.After(probe.Missed)
	}
	if s.Fail != 0 {
		t.Errorf("three lost packets make %+v", s)
	}
	for range 100 {
		s = s.After(probe.Void)
	}
	if s = s.After(probe.Answered); s.Searching() || s.Limit() != 0 {
		t.Errorf("after an answer: %+v", s)
	}
	if n := (probe.Sizing{}).Next(); n != 0 {
		t.Errorf("nothing wanted, and %d is tried", n)
	}
}

func TestPathThatSwallowsLargePackets(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		big := n1
		big.Size = 1420
		b.network.Answer(n1.Addr, time.Millisecond)
		b.Set([]probe.Target{big})
		if o, _ := b.next(t, time.Second); o.State != probe.Up {
			t.Fatalf("%+v", o)
		}
		b.quiet(t, time.Minute)
		b.network.Limit(n1.Addr, 1340)
		o, after := b.next(t, time.Minute)
		if o.State != probe.Up || o.Limit != 1328 || after > 10*time.Second {
			t.Errorf("%s, limit %d after %v; want up, 1328 within 10 s", o.State, o.Limit, after)
		}
		b.quiet(t, time.Minute)
		b.network.Limit(n1.Addr, 0)
		if o, after := b.next(t, time.Minute); o.Limit != 0 || after > 15*time.Second {
			t.Errorf("limit %d after %v; want none within 15 s", o.Limit, after)
		}
		// A path that is down says nothing about sizes.
		b.network.Cut(n1.Addr)
		if o, _ := b.next(t, time.Minute); o.State != probe.Down || o.Limit != 0 {
			t.Errorf("cut: %+v", o)
		}
		b.quiet(t, time.Minute)
		b.network.Answer(n1.Addr, time.Millisecond)
		if o, _ := b.next(t, time.Minute); o.State != probe.Up || o.Limit != 0 {
			t.Errorf("healed: %+v", o)
		}
		// Nothing is concluded on a busy machine.
		b.network.Hold(5 * time.Second)
		b.quiet(t, time.Minute)
	})
}

// One large probe every two seconds, beside the small ones.
func TestFullSizeIsProbedRarely(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.network.Answer(n1.Addr, time.Millisecond)
		b.Set([]probe.Target{n1})
		b.next(t, time.Second)
		begun := b.network.Sent()
		b.quiet(t, time.Minute)
		small := b.network.Sent() - begun
		big := n1
		big.Size = 1420
		b.Set([]probe.Target{big})
		b.quiet(t, time.Minute)
		if extra := b.network.Sent() - begun - 2*small; extra < 28 || extra > 32 {
			t.Errorf("%d large probes in a minute, want 30", extra)
		}
	})
}
