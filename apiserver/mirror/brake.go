package mirror

import "fmt"

// The brake. One relist may take away brakeEntries, or brakeShare of what we
// hold of the peer if that is more: rolling a deployment of a small cluster
// passes, losing a store does not. The price of holding is stale entries for as
// long as an operator needs; the price of not holding is every connection to the
// peer. So in doubt it holds.
const (
	brakeEntries = 10
	brakeShare   = 0.3
)

// relist is what a complete list of a peer's export says, by count.
type relist struct {
	// Have is how many entries we hold, Missing how many of them the list lacks.
	Have, Missing int
	// Nodes and MissingNodes are the same, of nodes alone.
	Nodes, MissingNodes int
	// Generation is that of the store we hold a copy of, Listed that of the one
	// that was listed; "" for a peer that does not say.
	Generation, Listed string
}

// hold says why what is missing is kept; "" means that it goes.
func hold(r relist) string {
	limit := max(brakeEntries, int(brakeShare*float64(r.Have)))
	switch {
	case r.Missing == 0:
		return ""
	case r.Generation != "" && r.Listed != r.Generation:
		// A rebuilt store has not withdrawn anything: it does not know.
		return fmt.Sprintf("the peer's store was rebuilt and lacks %d of %d entries", r.Missing, r.Have)
	case r.Nodes > 0 && r.MissingNodes == r.Nodes:
		return fmt.Sprintf("the peer's list has none of its %d nodes any more", r.Nodes)
	case r.Missing > limit:
		return fmt.Sprintf("the peer's list lacks %d of %d entries, more than %d", r.Missing, r.Have, limit)
	}
	return ""
}
