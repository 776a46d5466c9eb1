package wire

// StoreStanding says how current an agent's copy of its store is. The agent sends it
// in answers to gossip pings, so that it can report a store it cannot reach, without
// writing anything. Times are ages in seconds, because clocks differ.
type StoreStanding struct {
	// Revision is the store revision up to which the agent has read everything; 0
	// means nothing yet.
	Revision int64 `json:"rev"`
	// HeardSeconds is how long ago the store last proved that Revision was
	// current, or if it never did, how long ago the agent started.
	HeardSeconds float64 `json:"heard"`
	// Never is set until the agent has read the whole store once.
	Never bool `json:"never,omitempty"`
	// Cause is why the store cannot be read, "" if it can; LostSeconds is for how
	// long.
	Cause       string  `json:"cause,omitempty"`
	LostSeconds float64 `json:"lost,omitempty"`
}
