package wire

import "slices"

// Lineage tells one history of a store from another. Every start of an embedded
// etcd adds itself before anybody but the API server is let in, so whoever has seen
// a revision can tell whether that revision is still part of the store:
//
//	start a ──► 100 ── 150 ── 170            170 was seen, then a copy of 120 is put back
//	            └─ 120 ─► start b, After 120   120 < 170: what was seen from 121 on is gone
//
// Revisions alone cannot tell: a restored store that is written to reaches 170
// again.
type Lineage struct {
	Starts []Start `json:"starts"` // the newest last
}

// Start is one start of a store.
type Start struct {
	ID string `json:"id"`
	// After is the revision that the store had before this start wrote anything.
	After int64 `json:"after"`
}

// lineageStarts is how many starts are kept. Who was away for more lists again.
const lineageStarts = 64

// With is the lineage after one more start.
func (l Lineage) With(s Start) Lineage {
	starts := append(slices.Clone(l.Starts), s)
	return Lineage{Starts: starts[max(0, len(starts)-lineageStarts):]}
}

// Last is the ID of the newest start; "" if there is none.
func (l Lineage) Last() string {
	if len(l.Starts) == 0 {
		return ""
	}
	return l.Starts[len(l.Starts)-1].ID
}

// Holds says whether a revision that was seen under a start is part of the
// store's history. It is not if nothing is known about that start.
func (l Lineage) Holds(start string, revision int64) bool {
	i := slices.IndexFunc(l.Starts, func(s Start) bool { return s.ID == start })
	switch {
	case i < 0:
		return false
	case i == len(l.Starts)-1:
		return true // it still runs
	}
	return revision <= l.Starts[i+1].After
}
