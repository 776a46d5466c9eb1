package kubernetes

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/manifest"
)

// patch changes a node: its taints as a JSON patch, or a condition of its status.
func (k *twin) patch(p []string, r *http.Request) (*http.Response, error) {
	text, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	status := p[len(p)-1] == "status"
	if status {
		p = p[:len(p)-1]
	}
	k.mu.Lock()
	if k.requests["patches"]++; k.forbidden["patches"] {
		k.mu.Unlock()
		return refusal(403, "Forbidden", "nodes is forbidden: User \"weft\" cannot patch resource"), nil
	}
	o := k.objects[p[len(p)-2]][name{"", p[len(p)-1]}]
	k.mu.Unlock()
	if o == nil {
		return refusal(404, "NotFound", "not found"), nil
	}
	o = clone(o)
	spec, is := o["spec"].(object), o["status"].(object)
	if status {
		var want struct {
			Metadata struct{ UID string }
			Status   struct{ Conditions []object }
		}
		if err := json.Unmarshal(text, &want); err != nil {
			return nil, err
		}
		if want.Metadata.UID != metaOf(o)["uid"] {
			return refusal(409, "Conflict", "the UID in the precondition does not match"), nil
		}
		have, _ := is["conditions"].([]any)
		for _, c := range want.Status.Conditions {
			have = slices.DeleteFunc(have, func(old any) bool { return old.(object)["type"] == c["type"] })
			have = append(have, c)
		}
		is["conditions"] = have
	} else {
		var ops []struct {
			Op, Path string
			Value    any
		}
		if err := json.Unmarshal(text, &ops); err != nil {
			return nil, err
		}
		for _, op := range ops {
			switch {
			case op.Op == "test" && op.Path == "/metadata/uid" && op.Value == metaOf(o)["uid"]:
			case op.Op == "test" && op.Path == "/spec/taints" && reflect.DeepEqual(op.Value, spec["taints"]):
			case op.Op == "replace" && op.Path == "/spec/taints":
				spec["taints"] = op.Value
			default:
				return refusal(422, "Invalid", "the server rejected our request due to an error in our request"), nil
			}
		}
	}
	k.put(p[len(p)-2], o)
	text, err = json.Marshal(o)
	return answer(200, "application/json", text), err
}

// shows is what a node looks like in Kubernetes: how many taints it has, whether one is ours,
// and its condition.
func (w *world) shows(node string) (taints int, ours bool, network, reason string) {
	w.kube.set(func() {
		o := w.kube.objects[machines][name{"", node}]
		all, _ := o["spec"].(object)["taints"].([]any)
		for _, t := range all {
			taints++
			ours = ours || t.(object)["key"] == NotReadyTaint
		}
		conditions, _ := o["status"].(object)["conditions"].([]any)
		for _, c := range conditions {
			if c := c.(object); c["type"] == "NetworkUnavailable" {
				network, reason = c["status"].(string), c["reason"].(string)
			}
		}
	})
	return taints, ours, network, reason
}

func (w *world) patches() (n int) {
	w.kube.set(func() { n = w.kube.requests["patches"] })
	return n
}

// tainted is a node that waits for its agent.
func tainted(name string, n int) object {
	o := node(name, n)
	spec := o["spec"].(object)
	spec["taints"] = append(spec["taints"].([]any), object{"key": NotReadyTaint, "effect": "NoExecute"})
	return o
}

func (w *world) expect(when, node string, taints int, ours bool, network, reason string) {
	w.Helper()
	if t, o, n, r := w.shows(node); t != taints || o != ours || n != network || r != reason {
		w.Errorf("%s: node %s has %d taints, ours %v, and NetworkUnavailable %q %q; want %d, %v, %q %q", when, node, t, o, n, r, taints, ours, network, reason)
	}
}

func TestANodeIsOpenedWhenItsAgentIsReady(t *testing.T) {
	follow(t, func(w *world) {
		w.kube.put(machines, tainted("n1", 1))
		w.after(time.Minute)
		w.expect("before its agent", "n1", 2, true, "", "")
		w.agent("n1", AgentUnsure)
		w.after(time.Minute)
		w.expect("an agent that starts", "n1", 2, true, "", "")
		if n := w.patches(); n != 0 {
			t.Errorf("%d patches", n)
		}
		w.agent("n1", AgentReady)
		w.after(2 * time.Second)
		w.expect("its agent is ready", "n1", 1, false, "False", agentIsUp)
		at := w.patches()
		w.after(10 * time.Minute)
		if n := w.patches(); n != at || at != 2 {
			t.Errorf("%d patches, then %d", at, n)
		}
		// Somebody else says otherwise: it is corrected, but not in a race.
		o := node("n1", 1)
		o["status"].(object)["conditions"] = []any{object{"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"}}
		for range 10 {
			w.kube.put(machines, clone(o))
			w.after(time.Second)
		}
		w.after(dutyPause)
		w.expect("somebody else", "n1", 1, false, "False", agentIsUp)
		if n := w.patches() - at; n > 3 {
			t.Errorf("%d patches in 20 s", n)
		}
	})
}

func TestANodeIsClosedWhenItsAgentIsAwayForLong(t *testing.T) {
	follow(t, func(w *world) {
		for i, n := range []string{"n1", "n2", "n3"} {
			w.kube.put(machines, node(n, 1+i))
			w.agent(n, AgentReady)
		}
		w.kube.put(machines, node("n4", 4)) // never had an agent
		w.agent("n4", AgentAway)
		w.after(2 * time.Second)
		w.agent("n1", AgentAway)
		w.after(awayAfter - 2*time.Second)
		w.expect("an upgrade", "n1", 1, false, "False", agentIsUp)
		w.agent("n1", AgentReady)
		w.after(2 * time.Second)
		w.agent("n1", AgentAway)
		w.after(awayAfter - 2*time.Second)
		w.expect("away again", "n1", 1, false, "False", agentIsUp)
		w.after(5 * time.Second)
		w.expect("away for long", "n1", 1, false, "True", agentIsAway)
		w.expect("never there", "n4", 1, false, "", "")

		// Most of them at once: it is not believed.
		for _, n := range []string{"n2", "n3"} {
			w.agent(n, AgentAway)
		}
		w.after(10 * time.Minute)
		w.expect("all are away", "n2", 1, false, "False", agentIsUp)
		w.agent("n1", AgentReady)
		w.after(2 * time.Second)
		w.expect("back", "n1", 1, false, "False", agentIsUp)
		w.agent("n2", AgentUnsure)
		w.after(10 * time.Minute)
		w.expect("it starts", "n2", 1, false, "False", agentIsUp)
	})
}

func TestKubernetesCannotBeToldOfANode(t *testing.T) {
	follow(t, func(w *world) {
		w.kube.set(func() { w.kube.forbidden["patches"] = true })
		w.kube.put(machines, tainted("n1", 1))
		w.agent("n1", AgentReady)
		w.after(time.Minute)
		w.says("it may not", "Kubernetes cannot be told whether node n1 has a network")
		if n := w.patches(); n < 5 || n > 7 {
			t.Errorf("%d tries in a minute", n)
		}
		w.kube.set(func() { w.kube.forbidden["patches"] = false })
		w.after(time.Minute)
		w.says("it may")
		w.expect("it may", "n1", 1, false, "False", agentIsUp)
		w.kube.put(manifest.Pods, pod("web", "n1"))
		w.settle()
		w.has("and all else goes on", "pods/default/web")
	})
}

func TestDuties(t *testing.T) {
	down := &corev1.NodeCondition{Status: corev1.ConditionTrue}
	up := &corev1.NodeCondition{Status: corev1.ConditionFalse}
	for _, c := range []struct {
		name     string
		node     duties
		agent    Agent
		away     time.Duration
		believed bool
		untaint  bool
		network  corev1.ConditionStatus
	}{
		{"unsure changes nothing", duties{true, down}, AgentUnsure, time.Hour, true, false, ""},
		{"ready", duties{true, down}, AgentReady, 0, true, true, corev1.ConditionFalse},
		{"ready, and so it says", duties{false, up}, AgentReady, 0, true, false, ""},
		{"a cloud has not said", duties{false, nil}, AgentReady, 0, true, false, corev1.ConditionFalse},
		{"away", duties{false, up}, AgentAway, awayAfter - 1, true, false, ""},
		{"away for long", duties{false, up}, AgentAway, awayAfter, true, false, corev1.ConditionTrue},
		{"away for long, with most others", duties{false, up}, AgentAway, awayAfter, false, false, ""},
		{"away for long, and so it says", duties{false, down}, AgentAway, awayAfter, true, false, ""},
		{"never there", duties{true, nil}, AgentAway, awayAfter, true, false, ""},
	} {
		d := decide(c.node, c.agent, c.away, c.believed)
		if d.untaint != c.untaint || d.network != c.network {
			t.Errorf("%s: %+v", c.name, d)
		}
	}
}

// The entity kube-apiserver is who answers for Kubernetes.
func TestKubernetesItself(t *testing.T) {
	follow(t, func(w *world) {
		is := func(when, want string) {
			t.Helper()
			addrs, known := w.source.APIServers()
			if got := fmt.Sprint(addrs); got != want || known != (want != "[]") {
				t.Errorf("%s: %s (known: %v), want %s", when, got, known, want)
			}
		}
		is("before it is listed", "[]")
		w.kube.put(manifest.EndpointSlices, slice("kubernetes", "kubernetes", "172.16.1.1"))
		w.settle()
		is("listed", "[172.16.1.1]")
		w.kube.leave()
		w.after(time.Minute)
		is("while it is away", "[172.16.1.1]")
		w.stop()
		w.start("")
		w.settle()
		is("in a new term, while it is away", "[]") // what was told before stays
		w.kube.comeBack()
		w.after(15 * time.Second)
		is("back", "[172.16.1.1]")
		w.kube.put(manifest.EndpointSlices, slice("kubernetes", "other", "192.0.2.9"))
		w.settle()
		is("somebody else's slice of that name", "[]")
	})
}
