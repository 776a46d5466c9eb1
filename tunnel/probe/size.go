package probe

// Sizing is the search for the largest packet that a path carries. Its zero
// value searches nothing; Want makes it begin.
//
//	full size passes ──▶ nothing else is tried
//	      │ 4 misses in a row, while small probes are answered
//	      ▼
//	halve the gap between Pass and Fail until it is one step ──▶ limited
//	      ▲                                                       │
//	      └── one of them no longer holds ◀── try each in turn ───┘
type Sizing struct {
	// Want is the largest packet that the tunnel sends, in bytes.
	Want int
	// Pass is the largest that has passed, Fail the smallest that has not. 0:
	// none yet.
	Pass, Fail int

	misses int // in a row, of the size that Next says
	turn   int // which size of a limited path is tried next
}

// A network that loses one packet in five loses sizeMisses of them in a row once
// in 600 times, and the next round corrects it.
const sizeMisses = 4

// SizeStep is how exactly sizes are told apart: WireGuard pads to this, so that
// everything in between is the same packet underneath.
const SizeStep = 16

// sizeFloor passes whenever anything does: it is the size of an ordinary probe,
// in whole steps.
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

// Limit is the largest size that passes, once it is known to be below Want; 0:
// it is not.
func (s Sizing) Limit() int {
	if !s.limited() {
		return 0
	}
	return s.Pass
}

// Searching says that the next size is to be tried soon.
func (s Sizing) Searching() bool {
	return !s.limited() && (s.Fail > 0 || s.misses > 0 || s.Pass == 0)
}

// After is the search after an outcome of Next.
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
			s.Fail = s.Want // wider than it was
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
		s.turn++ // as known
	case size > s.Pass:
		s.Pass, s.Fail = max(s.Pass, sizeFloor), size
	default:
		s.Pass, s.Fail = sizeFloor, size // narrower than it was
	}
	return s
}
