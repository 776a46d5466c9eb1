package probe

import (
	"fmt"
	"time"
)

// Decide is the judgement of one path: from the state it has and the outcomes
// since, oldest first, to the state it should have, with the reason in words
// when it changes. Void outcomes neither count nor interrupt a row.
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

// Standing is what may be done over a path, from the least that is known to the
// best.
type Standing uint8

const (
	Unjudged Standing = iota // nothing is taken away on a guess
	Dead                     // what is open over it is to be ended
	Silent                   // down for less than DoubtTime: begin elsewhere, end nothing
	Alive
)

// DoubtTime is how long a path may be down before it is dead. A tunnel process
// or a node that gets no processor for a moment is silent like a dead one, but
// comes back with everything that was open.
const DoubtTime = 500 * time.Millisecond

// Standing of the path at a time. What gossip says of the node does not end the
// doubt: it speaks of the agent, which may only be restarting.
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

// Clusters judges each cluster by the best of its paths that was judged. One
// answering node shows that the way into the cluster is there; one that was only
// just added shows nothing.
func Clusters(observations []Observation, now time.Time) map[string]Standing {
	standings := map[string]Standing{}
	for _, o := range observations {
		standings[o.Target.Cluster] = max(standings[o.Target.Cluster], o.Standing(now))
	}
	return standings
}
