// Package probe finds out which nodes can be reached through the tunnel, by
// asking their kernels for an echo.
//
// It observes and judges. What is done about a dead path is decided in
// meshagent, and who is worth asking by Witnesses and the flows the caller has.
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
	// Device is the ifindex of the lane to send on; 0: as the routes say.
	Device int
	// Size of the largest packet that the tunnel sends there, in bytes, headers
	// included; 0: whether it passes is not asked.
	Size int
}

// Name is "cluster/node".
func (t Target) Name() string { return t.Cluster + "/" + t.Node }

// State of a path. A path not judged yet is Unknown and counts as alive:
// nothing is taken away on a guess.
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
	Void     Outcome = iota // nothing can be concluded: we were stalled ourselves
	Answered                // in time
	Missed
)

// Thresholds are how many outcomes in a row change a state.
type Thresholds struct {
	// Down misses in a row make a path down.
	Down int
	// DownWithEvidence does when gossip holds the node for dead as well.
	DownWithEvidence int
	// Up answers in a row make it up again.
	Up int
}

// Evidence is what else is known of a target.
type Evidence struct {
	// GossipDead: members of its cluster hold it for dead.
	GossipDead bool
}

// Observation is a row: what was seen, of whom, and when.
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
	// Limit is the largest packet that passes, in bytes, if that is less than
	// Target.Size; 0: that passes, or is not known. LimitSince is when it was
	// found out.
	Limit      int
	LimitSince time.Time
}
