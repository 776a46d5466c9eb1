package wire

// StoreStanding is how far an agent is with its store, in an answer to a ping of
// its cluster's gossip: an agent that cannot reach the store can still say so
// there, and saying it costs no write. Times are ages, because clocks differ.
type StoreStanding struct {
	// Revision is that of the store up to which the agent has read everything; 0:
	// nothing yet.
	Revision int64 `json:"rev"`
	// HeardSeconds is how long ago the store last proved that this was current, or
	// if it never did, how long ago the agent started.
	HeardSeconds float64 `json:"heard"`
	// Never is set until the store was read in full once.
	Never bool `json:"never,omitempty"`
	// Cause is why the store is not read, "" if it is; LostSeconds is since when.
	Cause       string  `json:"cause,omitempty"`
	LostSeconds float64 `json:"lost,omitempty"`
}
