package export

import "time"

// The older format has all backends of a service in one value, which each change writes
// again, and which each of its readers reads again. A service is written at once; then it
// rests for as long as its value takes at this rate, and what changes meanwhile is written
// at the end of that.
const bytesPerSecond = 1_000_000

// leastPaced is the least value that has to rest: 600 backends or so.
const leastPaced = 64 << 10

// pace holds back services in the older format.
//
//	written ──► resting ──time──► not resting
//	              │ ▲ change
//	              ▼ │
//	            waiting ──time──► due
type pace struct {
	resting map[view]time.Time // until when
	waiting map[view]bool      // changed while it rests
}

func newPace() pace { return pace{map[view]time.Time{}, map[view]bool{}} }

// hold returns the views that are to be rebuilt now, and notes the others.
func (p pace) hold(d dirty, now time.Time) dirty {
	for of, at := range d {
		if at == inTime && now.Before(p.resting[of]) {
			p.waiting[of] = true
			delete(d, of)
		}
	}
	return d
}

// written notes that a view was rebuilt, to so many bytes.
func (p pace) written(of view, bytes int, now time.Time) {
	delete(p.waiting, of)
	delete(p.resting, of)
	if bytes >= leastPaced {
		p.resting[of] = now.Add(time.Duration(bytes) * time.Second / bytesPerSecond)
	}
}

// due returns the views that have waited long enough, and forgets those that have rested.
func (p pace) due(now time.Time) dirty {
	d := dirty{}
	for of, until := range p.resting {
		if now.Before(until) {
			continue
		}
		delete(p.resting, of)
		if p.waiting[of] {
			delete(p.waiting, of)
			d.add(of)
		}
	}
	return d
}

// next ticks when a view has rested; never if none rests.
func (p pace) next() <-chan time.Time {
	var first time.Time
	for _, until := range p.resting {
		if first.IsZero() || until.Before(first) {
			first = until
		}
	}
	if first.IsZero() {
		return nil
	}
	return time.After(time.Until(first))
}
