package mirror

import (
	"fmt"
	"time"
)

// Rate is how much of a peer's changes is copied per second. Beyond it changes wait,
// and only the last value of a key counts: this peer's changes arrive late, but no
// other peer's.
type Rate struct {
	// Changes counts keys written and deleted.
	Changes int
	// Bytes counts what becomes history of our store: entries that are replaced or
	// deleted. etcd keeps history for ten to twenty minutes.
	Bytes int
}

// DefaultRate is three times what a whole mesh of 250 clusters is expected to change.
// A peer that uses all of it leaves at most 300 MiB of history, less than a sixth of
// the embedded etcd's default quota.
func DefaultRate() Rate { return Rate{Changes: 1000, Bytes: 256 << 10} }

// burst is how much of its rate a peer may save up, so that rolling out a deployment
// passes without waiting.
const burst = 2 * time.Minute

// pace is a token bucket that lends: writes are paid for afterwards, and nothing more
// is written while something is owed.
type pace struct {
	rate           Rate
	changes, bytes float64 // saved; below zero: owed
	at             time.Time
}

func newPace(r Rate, now time.Time) *pace {
	return &pace{rate: r, changes: burst.Seconds() * float64(r.Changes), bytes: burst.Seconds() * float64(r.Bytes), at: now}
}

func (p *pace) pay(now time.Time) {
	passed := max(0, now.Sub(p.at).Seconds())
	p.at = now
	p.changes = min(p.changes+passed*float64(p.rate.Changes), burst.Seconds()*float64(p.rate.Changes))
	p.bytes = min(p.bytes+passed*float64(p.rate.Bytes), burst.Seconds()*float64(p.rate.Bytes))
}

func (p *pace) spend(now time.Time, changes, bytes int) {
	p.pay(now)
	p.changes -= float64(changes)
	p.bytes -= float64(bytes)
}

// wait returns how long it takes until nothing is owed.
func (p *pace) wait(now time.Time) time.Duration {
	p.pay(now)
	seconds := max(-p.changes/float64(p.rate.Changes), -p.bytes/float64(p.rate.Bytes), 0)
	return time.Duration(seconds * float64(time.Second))
}

// lateAfter is the age of a waiting change at which operators are told.
const lateAfter = 3 * time.Second

// late says that so many changes wait, the oldest for {age}, and what to do.
func (r Rate) late(waiting int) (message, next string) {
	return fmt.Sprintf("it changes more than %d entries or %d KiB a second: %d changes wait, the oldest for {age}", r.Changes, r.Bytes>>10, waiting),
		"ask its operator what rewrites them, or raise peerChanges and peerHistoryBytes (--peer-changes, --peer-history-bytes)"
}
