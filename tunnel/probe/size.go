package probe

// Sizing is the search for the largest packet that a path carries. The zero value does
// nothing; setting Want starts it.
//
//	full size passes ──▶ only the full size is tried
//	      │ 4 misses in a row, while small probes are answered
//	      ▼
//	halve the gap between Pass and Fail until it is one step ──▶ limited
//	      ▲                                                       │
//	      └── one of them no longer holds ◀── try each in turn ───┘
type Sizing struct {
	// Want is the largest packet that the tunnel sends, in bytes.
	Want int
	// Pass is the largest size that has passed, Fail the smallest that has not; 0:
	// none yet.
	Pass, Fail int

	misses int // in a row, of the size that Next returns
	turn   int // which size to try next on a limited path
}

// sizeMisses in a row make a size fail. A network that loses one packet in five does
// so by chance once in 600 times, and the next round corrects it.
const sizeMisses = 4

// SizeStep is the resolution of sizes, in bytes: WireGuard pads packets to multiples of
// it, so sizes in between make no difference.
const SizeStep = 16

// sizeFloor is the size of an ordinary probe, in whole steps, which passes whenever
// anything does.
const sizeFloor = 3 * SizeStep

// Next is the size to try; 0 if there is nothing to search.
func (s Sizing) Next() int {
	switch {
	case s.Want <= sizeFloor:
		return 0
	case s.Fail == 0:
		return s.Want
	case s.limited():
		return [...]int{s.Want, s.Fail, s.Pass}[s.turn%3]
	}
	return max((s.Pass+s.Fail)/2/SizeStep*SizeStep, s.Pass+SizeStep)
}

func (s Sizing) limited() bool { return s.Fail > 0 && s.Fail-s.Pass <= SizeStep }

// Limit is the largest size that passes if it is known and smaller than Want; 0
// otherwise.
func (s Sizing) Limit() int {
	if !s.limited() {
		return 0
	}
	return s.Pass
}

// Searching reports whether the next size should be tried soon.
func (s Sizing) Searching() bool {
	return !s.limited() && (s.Fail > 0 || s.misses > 0 || s.Pass == 0)
}

// After is the search after a probe of size Next had this outcome.
func (s Sizing) After(outcome Outcome) Sizing {
	size := s.Next()
	if outcome == Void || size == 0 {
		return s
	}
	if outcome == Answered {
		s.misses, s.turn = 0, s.turn+1
		switch {
		case size == s.Want:
			return Sizing{Want: s.Want, Pass: s.Want}
		case size >= s.Fail:
			s.Fail = s.Want // the path carries more than before
		}
		s.Pass = max(s.Pass, size)
		return s
	}
	if s.misses++; s.misses < sizeMisses {
		return s
	}
	s.misses = 0
	switch {
	case size > s.Pass && s.limited():
		s.turn++ // as before
	case size > s.Pass:
		s.Pass, s.Fail = max(s.Pass, sizeFloor), size
	default:
		s.Pass, s.Fail = sizeFloor, size // the path carries less than before
	}
	return s
}
