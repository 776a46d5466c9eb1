package wire

import "slices"

// Lineage tells the histories of a store apart. Every start of an embedded etcd adds
// itself before anyone but the API server can connect, so a client that has seen a
// revision can tell whether that revision is still part of the store:
//
//	start a ──► 100 ── 120 ── 150 ── 170     170 was seen, then a copy taken at 120 is restored
//	                    └─► start b, After 120   120 < 170: everything after 120 is gone
//
// Revisions alone cannot tell: a restored store that is written to reaches 170 again.
type Lineage struct {
	Starts []Start `json:"starts"` // the newest last
}

// Start is one start of a store.
type Start struct {
	ID string `json:"id"`
	// After is the store's revision before this start wrote anything.
	After int64 `json:"after"`
}

// lineageStarts is how many starts are kept. A client that missed more of them has to
// list again.
const lineageStarts = 64

// With returns the lineage extended by one start; l is unchanged.
func (l Lineage) With(s Start) Lineage {
	starts := append(slices.Clone(l.Starts), s)
	return Lineage{Starts: starts[max(0, len(starts)-lineageStarts):]}
}

// Last returns the ID of the newest start, or "" if there is none.
func (l Lineage) Last() string {
	if len(l.Starts) == 0 {
		return ""
	}
	return l.Starts[len(l.Starts)-1].ID
}

// Holds reports whether a revision seen during a start is still part of the store's
// history. If the start is not known, it is not.
func (l Lineage) Holds(start string, revision int64) bool {
	i := slices.IndexFunc(l.Starts, func(s Start) bool { return s.ID == start })
	switch {
	case i < 0:
		return false
	case i == len(l.Starts)-1:
		return true // that start is still running
	}
	return revision <= l.Starts[i+1].After
}
