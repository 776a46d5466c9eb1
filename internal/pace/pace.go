// Package pace lets work that is done again and again take only a share of the time,
// however long it takes.
package pace

import "time"

// Pace knows what the last two runs of such work took. The zero value is one that has not
// run yet. It is not safe for concurrent use.
type Pace struct{ last, before time.Duration }

// Ran notes that a run took so long.
func (p *Pace) Ran(took time.Duration) { p.last, p.before = took, p.last }

// Rest returns how long to wait after the last run: at least least, and n times what such
// a run takes by itself, so that runs take one part in n of the time. That is the shorter
// of the last two: the longer one may have waited for the machine or a lock, and one slow
// run, or a slow first one, must not put off the next.
func (p *Pace) Rest(least time.Duration, n int) time.Duration {
	return max(least, time.Duration(n)*min(p.last, p.before))
}
