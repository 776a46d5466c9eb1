package probe

import "fmt"

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
		return Down, fmt.Sprintf("%d probes in a row unanswered, and gossip holds it for dead", misses)
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

// Clusters judges each cluster by its paths: up when any is up, down when every
// path that was judged is down, unknown while none was. One answering node
// shows that the way into the cluster is there; one that was only just added
// shows nothing.
func Clusters(observations []Observation) map[string]State {
	states := map[string]State{}
	for _, o := range observations {
		was, seen := states[o.Target.Cluster]
		if !seen || was == Unknown || o.State == Up {
			states[o.Target.Cluster] = o.State
		}
	}
	return states
}
