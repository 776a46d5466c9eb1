package declared

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/problems"
	"github.com/weft-mesh/weft/wire"
)

// Condition of an object; see the definition of Peer.
type Condition struct {
	Type    string `json:"type"`
	Status  string `json:"status"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// Status of an object.
type Status struct {
	ID         uint32
	PodCIDRs   []string
	Conditions []Condition
}

func (s Status) equal(o Status) bool {
	return s.ID == o.ID && slices.Equal(s.PodCIDRs, o.PodCIDRs) && slices.Equal(s.Conditions, o.Conditions)
}

// alike says whether they differ in messages at most.
func (s Status) alike(o Status) bool {
	return s.ID == o.ID && slices.EqualFunc(s.Conditions, o.Conditions, func(a, b Condition) bool {
		return a.Type == b.Type && a.Status == b.Status && a.Reason == b.Reason
	})
}

const (
	yes     = "True"
	no      = "False"
	unknown = "Unknown"
)

// judge says how it is with the object of a peer.
func judge(own, name string, record wire.Peer, link api.PeerStatus, failed *failure) Status {
	s := Status{ID: uint32(record.ID)}
	for _, p := range record.PodCIDRs {
		s.PodCIDRs = append(s.PodCIDRs, p.String())
	}
	joined := Condition{"Joined", no, "Joining", "cluster " + name + " is being asked"}
	switch {
	case record.Removing:
		joined.Reason, joined.Message = "Removing", "the peer is still being removed"
	case record.Name != "" && !record.Declared:
		joined.Reason = "JoinedByCommand"
		joined.Message = fmt.Sprintf("cluster %s was joined or invited by command (weft peer): this object changes nothing, and deleting it parts nothing. `weft peer remove %s --both` hands it over", name, name)
		if record.Connected {
			joined.Status = yes
		}
	case record.Connected:
		joined.Status, joined.Reason, joined.Message = yes, "Joined", fmt.Sprintf("this cluster reads cluster %s", name)
		if failed != nil && link.Control.State != api.LinkUp {
			joined.Message += "; it was asked again: " + failed.message
		}
	case failed != nil:
		joined.Reason, joined.Message = failed.reason, failed.message
	}
	mutual := Condition{"Mutual", unknown, "NotKnown", "cluster " + name + " cannot be asked while the link is not up"}
	switch {
	case link.AddedUs == nil:
	case *link.AddedUs:
		mutual.Status, mutual.Reason, mutual.Message = yes, "Mutual", fmt.Sprintf("cluster %s reads this one too", name)
	default:
		mutual.Status, mutual.Reason, mutual.Message = no, "NotAddedThere", fmt.Sprintf("cluster %s has not added this one: it needs a Peer named %s", name, own)
	}
	reachable := Condition{"Reachable", no, "NotJoined", "there is no link before the clusters are joined"}
	if record.Connected {
		switch link.Control.State {
		case api.LinkUp:
			reachable.Status, reachable.Reason, reachable.Message = yes, "Up", "the link to its API servers is up"
		case api.LinkRefused:
			reachable.Reason, reachable.Message = "Refused", link.Control.Error
		case api.LinkDown:
			reachable.Reason, reachable.Message = "Down", link.Control.Error
		default:
			reachable.Reason, reachable.Message = "Connecting", "the link is being set up"
		}
	}
	s.Conditions = []Condition{joined, mutual, reachable}
	return s
}

// Changed implements problems.Source.
func (j *Joiner) Changed() <-chan struct{} { return j.news }

// joinGrace is how long joining may take without being a problem.
const joinGrace = 15 * time.Second

// Problems implements problems.Source: objects that are not as they say. How links are is in
// the status without them.
func (j *Joiner) Problems() (problems.Rows, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	var all []api.Concern
	for _, name := range slices.Sorted(maps.Keys(j.objects)) {
		o := j.objects[name]
		if len(o.status.Conditions) == 0 {
			continue
		}
		c := o.status.Conditions[0]
		if c.Status == yes && c.Reason == "Joined" {
			continue
		}
		all = append(all, api.Concern{
			Object: "peer " + name, Reason: "PeerObject" + c.Reason, Grace: joinGrace,
			Message: fmt.Sprintf("Peer %s of Kubernetes is not as it should be: %s", name, c.Message),
			Next:    "correct it there, or delete it: `kubectl describe peers.weft.io " + name + "`; it is tried again",
		})
	}
	if len(all) == 0 {
		return problems.Rows{}, j.told
	}
	return problems.Rows{wire.SourceProblemsKey(ProblemsOf): wire.Marshal(all)}, j.told
}

// ProblemsOf is the source of the problems.
const ProblemsOf = "peers"
