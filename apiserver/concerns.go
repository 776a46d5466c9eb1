package apiserver

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/weft-mesh/weft/apiserver/api"
)

// differences is everything that is not as wanted, in whatever state it is;
// api.Judge decides what of it concerns an operator. A new kind of concern is one
// more function here: from what the status shows to concerns, free of clocks, locks
// and the store. more is what is known elsewhere.
func (s *server) differences(out *api.Status, more []api.Concern) []api.Concern {
	all := slices.Concat(more, nodeConcerns(out.Nodes), peerConcerns(out.Peers), refusalConcerns(out))
	for i := range all {
		all[i].Cluster = s.cluster.Name
	}
	return all
}

// problems are the concerns of the server's own parts.
func (s *server) problems() []api.Concern {
	derived := s.endpoints.Status()
	all := slices.Concat(
		sentences("cluster "+s.cluster.Name, "StoreEmptied", s.memory.problems()),
		sentences("endpoints", "NotDerived", derived.Problems),
		sentences("peers", "PeerProblem", s.peering.Problems()),
	)
	for key, problem := range s.exporter.Status().Problems {
		all = append(all, api.Concern{Object: "export", Reason: "NotExported", Message: fmt.Sprintf("export of %s: %s", key, problem)})
	}
	if problem := s.space.problem(); problem != "" {
		all = append(all, api.Concern{Object: "store", Reason: "DiskNearlyFull", Message: problem})
	}
	if held := s.census.holding(); len(held) > 0 {
		all = append(all, api.Concern{
			Object: "cluster " + s.cluster.Name, Reason: "StoreRebuilt",
			Message: fmt.Sprintf("held: %s keep what they have from the store before this one", strings.Join(held, ", ")),
			Next:    "apply everything that belongs here, then `weft node release` makes them accept it",
		})
	}
	slices.SortFunc(all, func(a, b api.Concern) int {
		return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.Message, b.Message))
	})
	return all
}

func sentences(object, reason string, messages []string) (out []api.Concern) {
	for _, m := range messages {
		out = append(out, api.Concern{Object: object, Reason: reason, Message: m})
	}
	return out
}

// Graces of nodes. An agent that restarts is away for a second or two; one that
// starts reads everything first.
const (
	silentGrace   = 5 * time.Second
	startingGrace = 10 * time.Second
)

func nodeConcerns(nodes []api.NodeStatus) (out []api.Concern) {
	for _, n := range nodes {
		c := api.Concern{Object: "node " + n.Name, Node: n.Name}
		switch n.State {
		case api.NodeNeverConnected:
			c.Reason, c.Since, c.Grace = "NodeNeverConnected", n.Since, startingGrace
			c.Message, c.Next = fmt.Sprintf("node %s has never connected", n.Name), "start its agent"
			out = append(out, c)
		case api.NodeStarting:
			c.Reason, c.Since, c.Grace = "AgentStarting", n.Since, startingGrace
			c.Message, c.Next = fmt.Sprintf("agent on %s has been starting for {age}", n.Name), "look at its log"
			out = append(out, c)
		case api.NodeSilent:
			c.Reason, c.Since, c.Grace = "AgentSilent", n.LastSeen, silentGrace
			c.Message, c.Next = fmt.Sprintf("agent on %s has not answered for {age} (its traffic continues)", n.Name), "start it, or `weft node delete "+n.Name+"` if the machine is gone"
			out = append(out, c)
		}
		for _, p := range n.Problems {
			out = append(out, nodeProblem(n.Name, p))
		}
	}
	return out
}

// nodeProblem says what a node's kernel lacks, and where all of it is listed:
// some tables hold no row that could be looked at.
func nodeProblem(node string, p api.NodeProblem) api.Concern {
	what := p.Table + ": "
	switch {
	case p.Rows > 1:
		what = fmt.Sprintf("%d rows of %s are not in the kernel (for example %s): ", p.Rows, p.Table, p.Row)
	case p.Row != "":
		what = fmt.Sprintf("%s %s is not in the kernel: ", p.Table, p.Row)
	}
	return api.Concern{
		Object: "node " + node, Node: node, Reason: "NotInKernel",
		Message: fmt.Sprintf("node %s: %s%s", node, what, p.Error), Next: "`weft debug table problems --node " + node + "` lists them",
	}
}

func peerConcerns(peers []api.PeerStatus) (out []api.Concern) {
	for _, p := range peers {
		object := "peer " + p.Name
		if p.Control.State != api.LinkUp {
			c := api.Concern{Object: object, Reason: "ControlLink", Since: p.Control.Since, Message: fmt.Sprintf("control link to %s is %s", p.Name, p.Control.State)}
			if p.Control.Error != "" {
				c.Message += ": " + p.Control.Error
			}
			out = append(out, c)
		}
		for _, m := range p.Mirrors {
			if m.Held > 0 {
				out = append(out, api.Concern{
					Object: object, Reason: "DeletionsHeld", Message: fmt.Sprintf("peer %s wants to delete %d of %d %s at once, which is held", p.Name, m.Held, m.Entries, m.Resource),
					Next: "look, then `weft peer release " + p.Name + "`",
				})
			}
			if !m.Synced && p.Control.State == api.LinkUp {
				out = append(out, api.Concern{Object: object, Reason: "MirrorIncomplete", Since: p.Control.Since, Message: fmt.Sprintf("%s of peer %s are not complete yet", m.Resource, p.Name)})
			}
		}
		if len(p.DeadNodes) > 0 {
			out = append(out, api.Concern{Object: object, Reason: "PeerAgentsSilent", Message: fmt.Sprintf("%s's agent on %s does not answer", p.Name, strings.Join(p.DeadNodes, ", "))})
		}
	}
	return out
}

func refusalConcerns(s *api.Status) (out []api.Concern) {
	add := func(from, node string, r api.Refusal) {
		out = append(out, api.Concern{
			Object: from, Node: node, Reason: "ClaimRefused",
			Message: fmt.Sprintf("%s: %d × %s refused: %s (for example %s)", from, r.Count, r.Resource, r.Reason, r.Example),
		})
	}
	for _, r := range s.Refused {
		add("node "+r.Node, r.Node, r)
	}
	for _, p := range s.Peers {
		for _, r := range p.Refused {
			add("peer "+r.Cluster, "", r)
		}
	}
	return out
}
