package apiserver

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/wire"
)

func TestWhyAPodWaits(t *testing.T) {
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	long := now.Add(-5 * time.Minute)
	node := func(state string) *api.NodeStatus {
		return &api.NodeStatus{Cluster: "east", Name: "n1", State: state, Since: long, LastSeen: long}
	}
	lacks := func(row string, rows int) *api.NodeStatus {
		n := node(api.NodeReady)
		n.Problems = []api.NodeProblem{{Table: wire.ProblemPods, Row: row, Rows: rows, Error: "no address is left", Since: long}}
		return n
	}
	refused := &api.Concern{Reason: "TooLargeForStore", Message: "too large for the store", Next: "shorten its labels"}
	for _, test := range []struct {
		name         string
		node         *api.NodeStatus
		refused      *api.Concern
		says         wire.EndpointState
		reason, text string
	}{
		{"no such node", nil, nil, wire.EndpointState{}, "NodeNotRegistered", "node n1 is not registered: `weft node add n1` adds it"},
		{"nobody has started the agent", node(api.NodeNeverConnected), nil, wire.EndpointState{}, "NodeNeverConnected", "node n1 has never connected (5 min): start its agent"},
		{"the agent has ended", node(api.NodeSilent), refused, wire.EndpointState{Why: "old"}, "AgentSilent", "agent on n1 has not answered for 5 min (its traffic continues): start it, or `weft node delete n1` if the machine is gone"},
		{"the store does not take it", node(api.NodeReady), refused, wire.EndpointState{}, "TooLargeForStore", "too large for the store: shorten its labels"},
		{"its network fails", node(api.NodeReady), nil, wire.EndpointState{State: wire.EndpointCreating, Why: "write /a: no space left on device"}, "PodWithoutNetwork", "write /a: no space left on device"},
		{"its probe fails", node(api.NodeReady), nil, wire.EndpointState{State: wire.EndpointNotReady, Why: "readiness probe: connection refused"}, "NotReady", "readiness probe: connection refused"},
		{"it has no address", lacks("shop/web-1", 1), nil, wire.EndpointState{}, "PodWithoutNetwork", "pod shop/web-1 on node n1: its network is not ready: no address is left (5 min); correct that on n1; its agent keeps trying"},
		{"nor have others", lacks("shop/a", 3), nil, wire.EndpointState{}, "PodWithoutNetwork", "3 pods (for example shop/a) on node n1: its network is not ready: no address is left (5 min); correct that on n1; its agent keeps trying"},
		{"another has none", lacks("shop/a", 1), nil, wire.EndpointState{}, "Starting", "the agent on n1 is setting it up"},
		{"just applied", node(api.NodeReady), nil, wire.EndpointState{}, "Starting", "the agent on n1 is setting it up"},
	} {
		c := podWait("n1", "shop/web-1", test.node, test.refused, test.says)
		concerns, _ := api.Judge(now, []api.Concern{c})
		if len(concerns) != 1 || concerns[0].Reason != test.reason || concerns[0].String() != test.text {
			t.Errorf("%s: %q", test.name, concerns)
		}
	}
}

// What an agent says of a pod is in its status, for people and for programs.
func TestAPodsStatusSaysWhyItWaits(t *testing.T) {
	p := start(t, config(t))
	n1 := p.agent(join(t, p.admin(), 1))
	manifest := []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: web-1, namespace: shop}\nspec: {nodeName: n1, containers: [{name: a, image: a}]}\n")
	if _, err := p.admin().Apply(t.Context(), manifest, api.ManifestOptions{}); err != nil {
		t.Fatal(err)
	}
	says := func(reason, message string, phase corev1.PodPhase) func() error {
		return func() error {
			l, err := p.admin().Object(t.Context(), "pods", "shop", "web-1")
			if err != nil {
				return err
			}
			var pod corev1.Pod
			if err := json.Unmarshal(l.Items[0], &pod); err != nil {
				return err
			}
			if s := pod.Status; s.Reason != reason || s.Message != message || s.Phase != phase {
				return fmt.Errorf("status %+v", s)
			}
			return nil
		}
	}
	state := wire.EndpointState{Namespace: "shop", Pod: "web-1", IP: netip.MustParseAddr("10.1.1.7"), State: wire.EndpointNotReady, Why: "readiness probe: connection refused"}
	put := func() {
		t.Helper()
		for key, v := range map[string]any{wire.NodeKey("n1"): wire.NodeState{Name: "n1"}, wire.NodeSyncedKey("n1"): true, wire.NodeEndpointKey("n1", "shop", "web-1"): state} {
			if err := n1.put(key, v); err != nil {
				t.Fatal(err)
			}
		}
	}
	put()
	eventually(t, "the probe's failure", says("NotReady", state.Why, corev1.PodRunning))
	state.Ready, state.Why = true, ""
	put()
	eventually(t, "ready", says("", "", corev1.PodRunning))
}
