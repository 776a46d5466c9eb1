package apiserver

import (
	"context"
	"fmt"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/wire"
)

// waits returns a function that says why a pod of any node is not ready now.
func (s *server) waits(ctx context.Context) (func(node, namespace, pod string) (reason, message string), error) {
	rows, err := s.nodeStatus(ctx)
	if err != nil {
		return nil, err
	}
	byName := make(map[string]*api.NodeStatus, len(rows))
	for i := range rows {
		byName[rows[i].Name] = &rows[i]
	}
	now, problems := time.Now(), s.problemRows()
	return func(node, namespace, pod string) (string, string) {
		told := problems.Pod(namespace, pod)
		c := podWait(node, namespace+"/"+pod, byName[node], told, s.census.why(node, namespace+"/"+pod))
		concerns, settling := api.Judge(now, []api.Concern{c})
		for _, c := range append(concerns, settling...) {
			return c.Reason, c.String()
		}
		return "", ""
	}, nil
}

// podWait says why a pod is not ready. What is wrong with its node comes first, then why
// the API server does not write its endpoint (refused, if not nil), then what its agent says
// about it. row is nil for a node that is not registered.
func podWait(node, pod string, row *api.NodeStatus, refused *api.Concern, says wire.EndpointState) api.Concern {
	if row == nil {
		return api.Concern{Reason: "NodeNotRegistered", Message: fmt.Sprintf("node %s is not registered", node), Next: "`weft node add " + node + "` adds it"}
	}
	for _, c := range nodeConcerns([]api.NodeStatus{*row}, reach{}) {
		switch c.Reason {
		case "NodeNeverConnected", "AgentStarting", "AgentSilent", "StoreNotRead":
			return c
		}
	}
	if refused != nil {
		return *refused
	}
	if says.Why != "" {
		c := api.Concern{Reason: "NotReady"}
		if says.State == wire.EndpointCreating {
			c.Reason = "PodWithoutNetwork"
		}
		c.Message, c.Next = api.Advice(says.Why)
		return c
	}
	for _, p := range row.Problems {
		// The agent names one of several pods with the same cause.
		if p.Table == wire.ProblemPods && (p.Row == pod || p.Rows > 1) {
			return nodeProblem(row.Cluster, node, p)
		}
	}
	return api.Concern{Reason: "Starting", Message: "the agent on " + node + " is setting it up"}
}
