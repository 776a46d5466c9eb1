package mirror

import "fmt"

// The brake. One relist may delete brakeEntries, or brakeShare of our copy if that is
// more: rolling out a deployment in a small cluster passes, losing a store does not.
// Holding costs stale entries until an operator acts; not holding may cost every
// connection to the peer. So when in doubt, it holds.
const (
	brakeEntries = 10
	brakeShare   = 0.3
)

// relist summarizes a complete list of a peer's export.
type relist struct {
	// Have is how many entries we have, Missing how many of them the list lacks.
	Have, Missing int
	// Nodes and MissingNodes are the same for nodes only.
	Nodes, MissingNodes int
	// Generation is that of the store our copy is from, Listed that of the store
	// that was listed; "" if the peer does not say.
	Generation, Listed string
}

// hold says why missing entries are kept; "" means that they are deleted.
func hold(r relist) string {
	limit := max(brakeEntries, int(brakeShare*float64(r.Have)))
	switch {
	case r.Missing == 0:
		return ""
	case r.Generation != "" && r.Listed != r.Generation:
		// A rebuilt store lacks entries without having withdrawn them.
		return fmt.Sprintf("the peer's store was rebuilt and lacks %d of %d entries", r.Missing, r.Have)
	case r.Nodes > 0 && r.MissingNodes == r.Nodes:
		return fmt.Sprintf("the peer's list no longer has any of its %d nodes", r.Nodes)
	case r.Missing > limit:
		return fmt.Sprintf("the peer's list lacks %d of %d entries, more than %d", r.Missing, r.Have, limit)
	}
	return ""
}
