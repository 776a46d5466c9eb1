package mirror

import (
	"errors"
	"fmt"
	"time"
)

// Limit is how much of one peer is copied at most, what is held included. Beyond
// it nothing more is: our copy may only shrink, until there is less or the limit
// is raised. Beyond what Read allows it stays as it is, and keeps what the peer
// withdraws. So a peer cannot fill
// our store by what it has; how often it changes that is bounded by Rate.
type Limit struct {
	Entries int
	// Bytes are those of keys and values. etcd takes somewhat more.
	Bytes int
}

// Read is how much of a peer is read at most, in one listing as in all of them
// together, to find what it withdrew: twice the limit.
func (l Limit) Read() Limit { return Limit{Entries: 2 * l.Entries, Bytes: 2 * l.Bytes} }

// DefaultLimit is twice what a whole mesh is expected to have. An entry of a pod
// has about 250 bytes, so both bounds are reached at about the same size, at an
// eighth of the embedded etcd's default quota.
func DefaultLimit() Limit { return Limit{Entries: 1_000_000, Bytes: 256 << 20} }

// errOverLimit: the peer has more than we copy of one.
var errOverLimit = errors.New("over its limit")

// overLimitPause is the pause between two looks at a peer that is over its
// limit: each look reads up to four times what the limit allows.
const overLimitPause = time.Minute

// check says whether so much may be copied; nil if so.
func (l Limit) check(entries, bytes int) error {
	switch {
	case entries > l.Entries:
		return fmt.Errorf("%w of %d entries; raise peerEntries in the API server's configuration (--peer-entries), or ask its operator what it exports", errOverLimit, l.Entries)
	case bytes > l.Bytes:
		return fmt.Errorf("%w of %d bytes; raise peerBytes in the API server's configuration (--peer-bytes), or ask its operator what it exports", errOverLimit, l.Bytes)
	}
	return nil
}

// near warns before a peer is over its limit; "" while it is far from it.
func (l Limit) near(entries, bytes int) string {
	const share = 0.9
	switch {
	case float64(entries) > share*float64(l.Entries):
		return fmt.Sprintf("%d entries of at most %d are copied; raise peerEntries in the API server's configuration (--peer-entries) in time", entries, l.Entries)
	case float64(bytes) > share*float64(l.Bytes):
		return fmt.Sprintf("%d bytes of at most %d are copied; raise peerBytes in the API server's configuration (--peer-bytes) in time", bytes, l.Bytes)
	}
	return ""
}
