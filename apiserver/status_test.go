package apiserver

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/apiserver/api"
)

func TestTheQuotaIsAProblemBeforeItIsReached(t *testing.T) {
	for _, test := range []struct {
		name  string
		bytes int64
		want  string
	}{
		{"new", 1 << 20, ""},
		{"far", 90 << 20, ""},
		{"near", 96 << 20, "96 of the 100 MiB"},
		{"beyond", 101 << 20, "raise --etcd-quota-bytes"},
	} {
		if got := quotaProblem(test.bytes, 100<<20); !strings.Contains(got, test.want) || test.want == "" && got != "" {
			t.Errorf("%s: %q", test.name, got)
		}
	}
}

// concernsOf are the lines of one reason, settling or not.
func concernsOf(s *api.Status, reason string) string {
	var lines []string
	for _, c := range slices.Concat(s.Concerns, s.Settling) {
		if c.Reason == reason {
			lines = append(lines, c.String())
		}
	}
	return strings.Join(lines, "\n")
}

func TestNodeConcernsNameObjectAgeAndNextStep(t *testing.T) {
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for _, test := range []struct {
		name              string
		node              api.NodeStatus
		concern, settling string
	}{
		{"ready", api.NodeStatus{State: api.NodeReady, Since: ago(time.Hour)}, "", ""},
		{"just added", api.NodeStatus{State: api.NodeNeverConnected, Since: ago(time.Second)}, "", "node e1 has never connected (1 s): start its agent"},
		{"added long ago", api.NodeStatus{State: api.NodeNeverConnected, Since: ago(5 * time.Minute)}, "node e1 has never connected (5 min): start its agent", ""},
		{"starting", api.NodeStatus{State: api.NodeStarting, Since: ago(9 * time.Second)}, "", "agent on e1 has been starting for 9 s: look at its log"},
		{"restarting", api.NodeStatus{State: api.NodeSilent, LastSeen: ago(2 * time.Second)}, "", "agent on e1 has not answered for 2 s (its traffic continues): start it, or `weft node delete e1` if the machine is gone"},
		{"away", api.NodeStatus{State: api.NodeSilent, LastSeen: ago(23 * time.Second)}, "agent on e1 has not answered for 23 s (its traffic continues): start it, or `weft node delete e1` if the machine is gone", ""},
	} {
		test.node.Name = "e1"
		concerns, settling := api.Judge(now, nodeConcerns([]api.NodeStatus{test.node}))
		s := &api.Status{Concerns: concerns, Settling: settling}
		var got [2]string
		for i, list := range [][]api.Concern{s.Concerns, s.Settling} {
			for _, c := range list {
				got[i] += c.String()
				if c.Object != "node e1" || c.Node != "e1" || c.Reason == "" || c.AgeSeconds == 0 {
					t.Errorf("%s: parts %+v", test.name, c)
				}
			}
		}
		if got != [2]string{test.concern, test.settling} {
			t.Errorf("%s: %q", test.name, got)
		}
	}
}
