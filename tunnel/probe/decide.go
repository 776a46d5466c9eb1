package probe

import (
	"fmt"
	"time"
)

// Decide judges one path: given its state and the outcomes of its probes, oldest first,
// it returns the state that the path should have, and the reason in words if that is
// another one. Void outcomes neither count nor interrupt a row.
func Decide(now State, outcomes []Outcome, evidence Evidence, limits Thresholds) (State, string) {
	misses, answers := Row(outcomes)
	enough := limits.Down
	if evidence.GossipDead {
		enough = min(enough, limits.DownWithEvidence)
	}
	switch {
	case now != Down && misses >= enough && evidence.GossipDead:
		return Down, fmt.Sprintf("%d probes in a row unanswered, and gossip reports it dead", misses)
	case now != Down && misses >= enough:
		return Down, fmt.Sprintf("%d probes in a row unanswered", misses)
	case now != Up && answers >= limits.Up:
		return Up, fmt.Sprintf("%d probes in a row answered", answers)
	}
	return now, ""
}

// Row counts the misses, or the answers, at the end of outcomes. At most one of
// the two is not zero.
func Row(outcomes []Outcome) (misses, answers int) {
	for i := len(outcomes) - 1; i >= 0; i-- {
		switch {
		case outcomes[i] == Answered && misses == 0:
			answers++
		case outcomes[i] == Missed && answers == 0:
			misses++
		case outcomes[i] != Void:
			return misses, answers
		}
	}
	return misses, answers
}

// Standing is how a path may be used, in increasing order: Clusters takes the maximum.
type Standing uint8

const (
	Unjudged Standing = iota // not known yet: change nothing
	Dead                     // reset open connections
	Silent                   // down for less than DoubtTime: begin elsewhere, reset nothing
	Alive
)

// DoubtTime is how long a path must be down to be dead. A tunnel process or a node that
// gets no processor for a moment is as silent as a dead one, but comes back with all
// its connections.
const DoubtTime = 500 * time.Millisecond

// Standing is the path's standing at now. Gossip does not shorten DoubtTime: it reports
// on the agent, which may only be restarting.
func (o Observation) Standing(now time.Time) Standing {
	switch {
	case o.State == Up:
		return Alive
	case o.State != Down:
		return Unjudged
	case now.Before(o.Since.Add(DoubtTime)):
		return Silent
	}
	return Dead
}

// Clusters judges each cluster by its best path. One answering node shows that the
// cluster can be reached; one that was only just added shows nothing.
func Clusters(observations []Observation, now time.Time) map[string]Standing {
	standings := map[string]Standing{}
	for _, o := range observations {
		standings[o.Target.Cluster] = max(standings[o.Target.Cluster], o.Standing(now))
	}
	return standings
}
