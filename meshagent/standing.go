package meshagent

import (
	"cmp"
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/weft-mesh/weft/meshagent/reflector"
	"github.com/weft-mesh/weft/tunnel/gossip"
	"github.com/weft-mesh/weft/wire"
)

// standing tracks how current this agent's copy of its store is, and why it is not more
// current. It logs that, and puts it into answers to gossip pings: an agent that cannot
// reach its store has no other way to report it.
type standing struct {
	states []func() reflector.State
	// diagnose finds out why the store's addresses do not answer; if nil, the errors of
	// the sources are reported.
	diagnose func(context.Context) string
	started  time.Time
	log      *slog.Logger

	mu  sync.Mutex // guards now
	now reading

	// Of the loop alone.
	told  time.Time     // when a loss was last logged; zero while the store is read
	pause time.Duration // until it is logged again
}

// reading sums up all sources.
type reading struct {
	revision int64
	heard    time.Time // zero: never
	lost     time.Time // zero: the store is read
	cause    string
}

const (
	// standingTurn is how often the sources are looked at.
	standingTurn = 500 * time.Millisecond
	// quietLimit is how long a store may be silent: two and a half signs of life.
	quietLimit = 25 * time.Second
	// diagnoseAgain is the pause between two diagnoses of one loss.
	diagnoseAgain = 5 * time.Second
	// The log repeats a loss after firstReminder, and then at twice the interval each
	// time, up to lastReminder.
	firstReminder = time.Minute
	lastReminder  = time.Hour
	// startPatience is how long reading the store may take at start.
	startPatience = time.Second
)

// read sums up the sources: the revision that all of them have, and why one of them
// fails. before is the last result, which tells when a loss began.
func read(states []reflector.State, before reading, started, now time.Time) reading {
	var r reading
	heardAll := true
	for i, s := range states {
		if i == 0 || s.Revision < r.revision {
			r.revision = s.Revision
		}
		if s.Heard.IsZero() {
			heardAll = false
		} else if r.heard.IsZero() || s.Heard.Before(r.heard) {
			r.heard = s.Heard
		}
		switch {
		case !s.Connected && s.Error != "":
			r.cause = cmp.Or(r.cause, s.Error)
		case s.Connected && now.Sub(s.Heard) > quietLimit:
			r.cause = cmp.Or(r.cause, "it does not answer")
		}
	}
	if !heardAll {
		r.heard = time.Time{}
		if r.cause == "" && now.Sub(started) > startPatience {
			r.cause = "it does not answer"
		}
	}
	if r.cause != "" {
		r.lost = before.lost
		if r.lost.IsZero() {
			r.lost = now
		}
	}
	return r
}

// Run works until ctx ends.
func (s *standing) Run(ctx context.Context) error {
	var asked time.Time
	var diagnosis string
	for ctx.Err() == nil {
		states := make([]reflector.State, len(s.states))
		for i, state := range s.states {
			states[i] = state()
		}
		next := read(states, s.last(), s.started, time.Now())
		if next.cause == "" {
			asked, diagnosis = time.Time{}, ""
		} else if s.diagnose != nil {
			if time.Since(asked) >= diagnoseAgain {
				diagnosis, asked = s.diagnose(ctx), time.Now()
			}
			next.cause = cmp.Or(diagnosis, next.cause)
		}
		s.set(next)
		s.tell(next, time.Now())
		select {
		case <-ctx.Done():
		case <-time.After(standingTurn):
		}
	}
	return nil
}

// tell logs a loss at once, then less and less often, and its end.
func (s *standing) tell(r reading, now time.Time) {
	switch {
	case r.cause == "" && s.told.IsZero():
	case r.cause == "":
		s.log.Info("the store can be read again", "revision", r.revision)
		s.told = time.Time{}
	case s.told.IsZero():
		s.log.Warn("the store cannot be read; keeping the last known state", "cause", r.cause, "revision", r.revision, "heard", r.heard)
		s.told, s.pause = now, firstReminder
	case now.Sub(s.told) >= s.pause:
		s.log.Warn("the store still cannot be read; keeping the last known state", "cause", r.cause, "revision", r.revision, "for", now.Sub(r.lost).Round(time.Second))
		s.told, s.pause = now, min(2*s.pause, lastReminder)
	}
}

func (s *standing) last() reading {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *standing) set(r reading) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = r
}

// maxCause bounds a cause, in bytes: the answer to a ping has room for 512.
const maxCause = 320

// Standing is what the agent reports to the cluster.
func (s *standing) Standing() wire.StoreStanding {
	r, now := s.last(), time.Now()
	out := wire.StoreStanding{Revision: r.revision, Never: r.heard.IsZero(), Cause: strings.ToValidUTF8(r.cause[:min(len(r.cause), maxCause)], "")}
	if out.Never {
		out.HeardSeconds = now.Sub(s.started).Seconds()
	} else {
		out.HeardSeconds = now.Sub(r.heard).Seconds()
	}
	if r.cause != "" {
		out.LostSeconds = now.Sub(r.lost).Seconds()
	}
	return out
}

// say is Standing as the answer to a ping. The cause is shortened until the encoded
// answer fits, escapes included: a truncated answer could not be decoded.
func (s *standing) say() []byte {
	for out := s.Standing(); ; {
		text := wire.Marshal(out)
		if len(text) <= gossip.MaxSaid || out.Cause == "" {
			return text
		}
		_, last := utf8.DecodeLastRuneInString(out.Cause)
		out.Cause = out.Cause[:len(out.Cause)-last]
	}
}
