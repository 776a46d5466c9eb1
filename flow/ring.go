package flow

import (
	"context"
	"sync"
)

// Ring keeps the most recent flows and serves any number of readers. Writing never waits
// for a reader: a reader that falls behind by more than the ring holds loses the oldest
// flows and learns how many.
//
// All methods are safe for concurrent use.
type Ring struct {
	// mu guards everything below. It is held while flows are copied, never while a
	// reader works.
	mu    sync.Mutex
	slots []entry
	seen  uint64 // flows ever added; the next one has this number
	lost  uint64 // by the source, ever
	added chan struct{}
}

// entry records how many flows its source had lost before it.
type entry struct {
	flow Flow
	lost uint64
}

// NewRing returns a ring for size flows, at least one.
func NewRing(size int) *Ring {
	return &Ring{slots: make([]entry, max(size, 1)), added: make(chan struct{})}
}

// Add appends a flow and wakes waiting readers.
func (r *Ring) Add(f Flow) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.slots[r.seen%uint64(len(r.slots))] = entry{flow: f, lost: r.lost}
	r.seen++
	close(r.added)
	r.added = make(chan struct{})
}

// Missed records that the source itself lost n flows, because the kernel's buffer was
// full. Readers learn of it with their next flow.
func (r *Ring) Missed(n uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lost += n
}

// Stats says how many flows have passed through a ring.
type Stats struct {
	Seen     uint64 `json:"seen"`     // flows ever added
	Lost     uint64 `json:"lost"`     // lost by the source, ever
	Kept     int    `json:"kept"`     // readable now
	Capacity int    `json:"capacity"` // readable at most
}

// Stats returns the current counts.
func (r *Ring) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return Stats{Seen: r.seen, Lost: r.lost, Kept: int(r.seen - r.oldestLocked()), Capacity: len(r.slots)}
}

func (r *Ring) oldestLocked() uint64 {
	if n := uint64(len(r.slots)); r.seen > n {
		return r.seen - n
	}
	return 0
}

// Last returns up to n of the most recent flows that match, oldest first. A
// nil match accepts all; n below 0 means all that are kept.
func (r *Ring) Last(n int, match func(*Flow) bool) []Flow {
	flows, _, _ := r.last(n, match)
	return flows
}

// last also returns where a follower continues.
func (r *Ring) last(n int, match func(*Flow) bool) (flows []Flow, next, lost uint64) {
	r.mu.Lock()
	kept := make([]entry, 0, r.seen-r.oldestLocked())
	for i := r.oldestLocked(); i < r.seen; i++ {
		kept = append(kept, r.slots[i%uint64(len(r.slots))])
	}
	next, lost = r.seen, r.lost
	r.mu.Unlock()

	var chosen []entry
	for i := len(kept) - 1; i >= 0 && (n < 0 || len(chosen) < n); i-- {
		if match == nil || match(&kept[i].flow) {
			chosen = append(chosen, kept[i])
		}
	}
	for i := len(chosen) - 1; i >= 0; i-- {
		f := chosen[i].flow
		if i+1 < len(chosen) {
			f.Lost += chosen[i].lost - chosen[i+1].lost
		}
		flows = append(flows, f)
	}
	return flows, next, lost
}

// Follow calls yield with up to last matching flows that are kept (counted as in Last),
// then with every matching flow as it is added, until yield fails or ctx ends, and
// returns that error. A flow's Lost says what this reader missed directly before it.
func (r *Ring) Follow(ctx context.Context, last int, match func(*Flow) bool, yield func(Flow) error) error {
	flows, next, lost := r.last(last, match)
	for _, f := range flows {
		if err := yield(f); err != nil {
			return err
		}
	}
	const batch = 256
	buf := make([]entry, 0, batch)
	var missed uint64 // by this reader since the last flow it was given
	for {
		r.mu.Lock()
		if oldest := r.oldestLocked(); next < oldest {
			missed += oldest - next
			next = oldest
		}
		buf = buf[:0]
		for ; next < r.seen && len(buf) < batch; next++ {
			buf = append(buf, r.slots[next%uint64(len(r.slots))])
		}
		added := r.added
		r.mu.Unlock()

		for i := range buf {
			if match != nil && !match(&buf[i].flow) {
				continue
			}
			f := buf[i].flow
			// An overtaken reader skips entries. It sees their losses in the entry where
			// it continues, because the counts only ever grow.
			f.Lost += missed + buf[i].lost - lost
			missed, lost = 0, buf[i].lost
			if err := yield(f); err != nil {
				return err
			}
		}
		if len(buf) > 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-added:
		}
	}
}
