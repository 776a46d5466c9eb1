package mirror

import (
	"errors"
	"fmt"
	"time"
)

// Limit is the most we copy from one peer, held entries included, so that a peer
// cannot fill our store. A peer over its limit can only shrink our copy, until it has
// less or the limit is raised. A peer over Read is no longer read to the end, so our
// copy stays as it is. Rate bounds how fast the copy changes.
type Limit struct {
	Entries int
	// Bytes counts keys and values. etcd needs somewhat more.
	Bytes int
}

// Read is the most we read from a peer, in one list and in all of them together: twice
// the limit, to find out what a peer over its limit has withdrawn.
func (l Limit) Read() Limit { return Limit{Entries: 2 * l.Entries, Bytes: 2 * l.Bytes} }

// DefaultLimit is twice what a whole mesh is expected to have. A pod's entry has about
// 250 bytes, so both bounds are reached at about the same size, an eighth of the
// embedded etcd's default quota.
func DefaultLimit() Limit { return Limit{Entries: 1_000_000, Bytes: 256 << 20} }

// errOverLimit: the peer has more than we copy from one peer.
var errOverLimit = errors.New("over its limit")

// overLimitPause is the pause between two attempts to read a peer that is over its
// limit. Each attempt reads up to four times the limit.
const overLimitPause = time.Minute

// check returns an error if this much must not be copied.
func (l Limit) check(entries, bytes int) error {
	switch {
	case entries > l.Entries:
		return fmt.Errorf("%w of %d entries; raise peerEntries in the API server's configuration (--peer-entries), or ask its operator what it exports", errOverLimit, l.Entries)
	case bytes > l.Bytes:
		return fmt.Errorf("%w of %d bytes; raise peerBytes in the API server's configuration (--peer-bytes), or ask its operator what it exports", errOverLimit, l.Bytes)
	}
	return nil
}

// near warns about a peer close to its limit and says what to do; "" if it is not.
func (l Limit) near(entries, bytes int) (warning, next string) {
	const share = 0.9
	switch {
	case float64(entries) > share*float64(l.Entries):
		return fmt.Sprintf("%d of at most %d entries are copied", entries, l.Entries), "raise peerEntries in the API server's configuration (--peer-entries) in time"
	case float64(bytes) > share*float64(l.Bytes):
		return fmt.Sprintf("%d of at most %d bytes are copied", bytes, l.Bytes), "raise peerBytes in the API server's configuration (--peer-bytes) in time"
	}
	return "", ""
}
