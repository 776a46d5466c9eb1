// Package probe finds out which nodes can be reached through the tunnel, by asking
// their kernels for an echo.
//
// It observes and judges. What to do about a dead path is decided in meshagent, and
// which nodes to probe by Witnesses and by the caller's flows.
package probe

import (
	"net/netip"
	"time"
)

// Target is one node to probe through the tunnel.
type Target struct {
	Cluster string
	Node    string
	// Addr is the node's internal address, answered by its kernel.
	Addr netip.Addr
	// Device is the ifindex of the lane to send on; 0: the routes decide.
	Device int
	// Size of the largest packet that the tunnel sends there, in bytes including
	// headers; 0: do not test whether it passes.
	Size int
	// Busy is set while packets flow to it: it has the whole pace, however many targets
	// there are.
	Busy bool
}

// Name is "cluster/node".
func (t Target) Name() string { return t.Cluster + "/" + t.Node }

// State of a path. A path that was not judged yet is Unknown and counts as alive.
//
//	        2 answers                 5 misses (3 with evidence)
//	Unknown ─────────▶ Up ─────────────────────────────▶ Down
//	   └────────────── 5 misses ──────────────────────────▲ │
//	                   Up ◀──────────── 2 answers ──────────┘
type State string

const (
	Unknown State = "unknown"
	Up      State = "up"
	Down    State = "down"
)

// Outcome of one probe whose answer time has passed.
type Outcome uint8

const (
	Void     Outcome = iota // says nothing, because we were stalled ourselves
	Answered                // in time
	Missed
)

// Thresholds are how many outcomes in a row change a state.
type Thresholds struct {
	// Down misses in a row make a path down.
	Down int
	// DownWithEvidence misses suffice if gossip considers the node dead as well.
	DownWithEvidence int
	// Up answers in a row make it up again.
	Up int
}

// Evidence is what else is known of a target.
type Evidence struct {
	// GossipDead is set while members of its cluster consider it dead.
	GossipDead bool
}

// Observation is what was seen of one target, and when.
type Observation struct {
	Target   Target
	State    State
	Since    time.Time     // of State
	Misses   int           // in a row, now
	Answers  int           // in a row, now
	RTT      time.Duration // smoothed; zero: never answered
	Answered time.Time     // the last answer; zero: never
	Evidence Evidence
	Reason   string // of the last change of State, in words
	// Limit is the largest packet that passes, in bytes, if it is smaller than
	// Target.Size; 0: packets of that size pass, or it is not known. LimitSince is
	// when the limit was found.
	Limit      int
	LimitSince time.Time
}
