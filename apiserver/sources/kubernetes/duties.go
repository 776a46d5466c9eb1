package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weft-mesh/weft/api"
)

// NotReadyTaint keeps pods from a node until its agent is ready. Whoever registers the node
// puts it there; it is taken away once, and never put back.
const NotReadyTaint = "node.weft.io/agent-not-ready"

// Reasons of the condition NetworkUnavailable.
const (
	agentIsUp   = "WeftIsUp"
	agentIsAway = "WeftAgentAway"
)

// Agent is what is known of the agent of a node.
type Agent int

const (
	// AgentUnsure has not said that it is ready, or says that something is wrong. What its
	// node is like stays.
	AgentUnsure Agent = iota
	// AgentReady can give pods their networks.
	AgentReady
	// AgentAway does not answer.
	AgentAway
)

const (
	dutyTurn = time.Second
	// awayAfter is how long an agent is away before the scheduler is told. Its pods keep their
	// network all that time and afterwards, but new ones wait on that node instead of starting
	// on another. An upgrade, with its image, is usually over earlier; a kubelet that is silent
	// is given 50 s, and its pods are evicted after another five minutes, which this never does.
	awayAfter = 2 * time.Minute
	// dutyPause is the pause after a write to a node: what somebody else sets back, or does not
	// accept, is not a request a second.
	dutyPause = 10 * time.Second
)

// duties are a node's, as Kubernetes shows it.
type duties struct {
	// tainted: it has our taint.
	tainted bool
	// network is its condition NetworkUnavailable; nil if it has none.
	network *corev1.NodeCondition
}

// due is what has to be written to a node; nothing if it is zero.
type due struct {
	untaint bool
	// network is the status of the condition; "" leaves it alone.
	network corev1.ConditionStatus
	reason  string
	message string
}

// decide says what a node's agent makes necessary. away is for how long it has been away, and
// believed says whether that is believed.
func decide(n duties, agent Agent, away time.Duration, believed bool) (d due) {
	switch {
	case agent == AgentReady:
		d.untaint = n.tainted
		if n.network == nil || n.network.Status != corev1.ConditionFalse {
			d.network, d.reason, d.message = corev1.ConditionFalse, agentIsUp, "Weft's agent on this node is ready"
		}
	case agent == AgentAway && believed && away >= awayAfter && n.network != nil && n.network.Status == corev1.ConditionFalse:
		// Only a node that had a network loses it.
		d.network, d.reason = corev1.ConditionTrue, agentIsAway
		d.message = "Weft's agent on this node does not answer: pods that run keep their network, new ones do not start"
	}
	return d
}

// believable says whether so many agents can be away. If more than half are, it is more likely
// that they are not heard, and where should pods go?
func believable(away, all int) bool { return all < 2 || 2*away <= all }

// dutiesOf reads a node that was stripped.
func dutiesOf(text []byte) (n duties, ok bool) {
	var node corev1.Node
	if json.Unmarshal(text, &node) != nil {
		return n, false
	}
	n.tainted = slices.ContainsFunc(node.Spec.Taints, ownTaint)
	for i, c := range node.Status.Conditions {
		if c.Type == corev1.NodeNetworkUnavailable {
			n.network = &node.Status.Conditions[i]
		}
	}
	return n, true
}

func ownTaint(t corev1.Taint) bool { return t.Key == NotReadyTaint }

// ownTaints and ownConditions are what is kept of a node's, without what changes by the clock.
func ownTaints(all []corev1.Taint) (own []corev1.Taint) {
	for _, t := range all {
		if ownTaint(t) {
			own = append(own, corev1.Taint{Key: t.Key, Effect: t.Effect})
		}
	}
	return own
}

func ownConditions(all []corev1.NodeCondition) (own []corev1.NodeCondition) {
	for _, c := range all {
		if c.Type == corev1.NodeNetworkUnavailable {
			own = append(own, corev1.NodeCondition{Type: c.Type, Status: c.Status, Reason: c.Reason})
		}
	}
	return own
}

// serve tells Kubernetes which nodes can take pods, until ctx ends.
func (s *Source) serve(ctx context.Context, c *client) error {
	since := map[string]time.Time{} // agents that are away
	last := map[string]time.Time{}  // writes
	for {
		if !sleep(ctx, dutyTurn) {
			return nil
		}
		now, agents := time.Now(), s.conf.Agents()
		for node, agent := range agents {
			if _, away := since[node]; agent == AgentAway && !away {
				since[node] = now
			}
		}
		maps.DeleteFunc(since, func(node string, _ time.Time) bool { return agents[node] != AgentAway })
		believed := believable(len(since), len(agents))
		wanted := s.due(func(node string, n duties) due {
			if at, ok := last[node]; ok && now.Sub(at) < dutyPause {
				return due{}
			}
			return decide(n, agents[node], now.Sub(since[node]), believed)
		})
		failed := map[string]error{}
		for _, node := range slices.Sorted(maps.Keys(wanted)) {
			last[node] = now
			err := c.carryOut(ctx, node, wanted[node])
			switch {
			case ctx.Err() != nil:
				return nil
			case err == nil:
				s.conf.Log.Info("Kubernetes is told of a node's network", "node", node, "untainted", wanted[node].untaint, "reason", wanted[node].reason)
			case apierrors.IsConflict(err), apierrors.IsNotFound(err): // it has changed: the next turn looks again
				last[node] = now.Add(dutyTurn - dutyPause)
			default:
				failed[node] = err
			}
		}
		s.noteUntold(wanted, failed, agents)
	}
}

// due are the duties that have to be carried out, by node, as decided.
func (s *Source) due(decide func(string, duties) due) map[string]due {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]due{}
	if !s.begun {
		return out
	}
	for n, r := range s.mirrors[machines].rows {
		if r.text == nil {
			continue
		}
		if node, ok := dutiesOf(r.text); ok {
			if d := decide(n.name, node); d != (due{}) {
				out[n.name] = d
			}
		}
	}
	return out
}

// noteUntold keeps what could not be written: until it could be, or need not be any more.
func (s *Source) noteUntold(tried map[string]due, failed map[string]error, agents map[string]Agent) {
	s.mu.Lock()
	before := len(s.untold)
	for node := range s.untold {
		_, again := tried[node]
		if _, there := agents[node]; again || !there {
			delete(s.untold, node)
		}
	}
	for node, err := range failed {
		s.untold[node] = err
	}
	changed := before+len(s.untold) > 0
	s.mu.Unlock()
	if changed {
		signal(s.news)
	}
}

// untoldConcerns are nodes of which Kubernetes could not be told. The mutex is held.
func (s *Source) untoldConcerns() (out []api.Concern) {
	for _, node := range slices.Sorted(maps.Keys(s.untold)) {
		err := s.untold[node]
		next := "it is tried again"
		if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
			next = "give its account the role that the chart has for it (deploy/chart/templates/rbac.yaml)"
		}
		out = append(out, api.Concern{
			Object: "node " + node, Node: node, Reason: "NodeNotTold", Grace: nodeGrace,
			Message: fmt.Sprintf("Kubernetes cannot be told whether node %s has a network: %s; its scheduler uses what it knew before", node, cause(err)), Next: next,
		})
	}
	return shorten(out, "NodeNotTold", "nodes of which Kubernetes cannot be told whether they have a network")
}

// carryOut writes what is due to a node: the condition first, so that pods that come when the
// taint goes find a network.
func (c *client) carryOut(ctx context.Context, node string, d due) error {
	var object corev1.Node
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	if err := c.core.Get().Resource(machines).Name(node).Do(ctx).Into(&object); err != nil {
		return err
	}
	if d.network != "" {
		now := metav1.Now()
		condition := corev1.NodeCondition{
			Type: corev1.NodeNetworkUnavailable, Status: d.network, Reason: d.reason, Message: d.message, LastHeartbeatTime: now, LastTransitionTime: now,
		}
		patch := map[string]any{"metadata": map[string]any{"uid": object.UID}, "status": map[string]any{"conditions": []any{condition}}}
		if err := c.patchNode(ctx, node, types.StrategicMergePatchType, patch, "status"); err != nil {
			return err
		}
	}
	if !d.untaint {
		return nil
	}
	rest := slices.DeleteFunc(slices.Clone(object.Spec.Taints), ownTaint)
	if len(rest) == len(object.Spec.Taints) {
		return nil // somebody else was faster
	}
	// A list is replaced as a whole. The test is that nobody has changed it meanwhile.
	patch := []any{
		map[string]any{"op": "test", "path": "/metadata/uid", "value": object.UID},
		map[string]any{"op": "test", "path": "/spec/taints", "value": object.Spec.Taints},
		map[string]any{"op": "replace", "path": "/spec/taints", "value": rest},
	}
	err := c.patchNode(ctx, node, types.JSONPatchType, patch)
	if apierrors.IsInvalid(err) { // how a test that fails is answered
		return apierrors.NewConflict(corev1.Resource(machines), node, err)
	}
	return err
}

func (c *client) patchNode(ctx context.Context, node string, kind types.PatchType, patch any, sub ...string) error {
	text, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	return c.core.Patch(kind).Resource(machines).Name(node).SubResource(sub...).Body(text).Do(ctx).Error()
}
