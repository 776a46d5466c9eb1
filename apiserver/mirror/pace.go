package mirror

import (
	"fmt"
	"time"
)

// Rate is how much of what a peer changes is carried over a second. Beyond it
// changes wait, and of a key that is written again meanwhile only the last value
// counts: the peer's changes arrive late here, and nobody else's do.
type Rate struct {
	// Changes counts keys written and deleted.
	Changes int
	// Bytes are those that become history of our store: of what is replaced or
	// deleted. etcd keeps them for ten to twenty minutes.
	Bytes int
}

// DefaultRate is three times what a whole mesh of 250 clusters is expected to
// change. A peer that does nothing else leaves 300 MiB of history at most, less
// than a sixth of the embedded etcd's default quota.
func DefaultRate() Rate { return Rate{Changes: 1000, Bytes: 256 << 10} }

// burst is how much of its rate a peer may save up: a deployment that is rolled
// out passes without waiting.
const burst = 2 * time.Minute

// pace lends. What was written is paid for afterwards, and nothing more is written
// while something is owed.
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

// wait is how long it takes until nothing is owed.
func (p *pace) wait(now time.Time) time.Duration {
	p.pay(now)
	seconds := max(-p.changes/float64(p.rate.Changes), -p.bytes/float64(p.rate.Bytes), 0)
	return time.Duration(seconds * float64(time.Second))
}

// lateAfter is the age of a waiting change from which on an operator is told.
const lateAfter = 3 * time.Second

// late says so; "" if nothing waits for long.
func (r Rate) late(waiting int, oldest time.Duration) string {
	if waiting == 0 || oldest < lateAfter {
		return ""
	}
	return fmt.Sprintf("it changes more than %d entries or %d KiB a second: %d changes wait, the oldest for %v; ask its operator what rewrites them, or raise peerChanges and peerHistoryBytes (--peer-changes, --peer-history-bytes)",
		r.Changes, r.Bytes>>10, waiting, oldest.Round(time.Second))
}
