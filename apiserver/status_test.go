package apiserver

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/tunnel/gossip"
	"github.com/weft-mesh/weft/wire"
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
		c, near := quotaConcern(test.bytes, 100<<20)
		if near != (test.want != "") || near && !strings.Contains(c.String(), test.want) {
			t.Errorf("%s: %v, %q", test.name, near, c)
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
		{"starting", api.NodeStatus{State: api.NodeStarting, Since: ago(9 * time.Second)}, "", "agent on e1 has been starting for 9 s: check its log"},
		{"restarting", api.NodeStatus{State: api.NodeSilent, LastSeen: ago(2 * time.Second)}, "", "agent on e1 has not answered for 2 s (its traffic continues): start it, or `weft node delete e1` if the machine is gone"},
		{"away", api.NodeStatus{State: api.NodeSilent, LastSeen: ago(23 * time.Second)}, "agent on e1 has not answered for 23 s (its traffic continues): start it, or `weft node delete e1` if the machine is gone", ""},
	} {
		test.node.Name = "e1"
		concerns, settling := api.Judge(now, nodeConcerns([]api.NodeStatus{test.node}, reach{}))
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

func TestAnAgentThatLivesMayNotReadItsStore(t *testing.T) {
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	register := map[string]wire.Registration{"e2": {Name: "e2"}}
	for _, test := range []struct {
		name  string
		said  *wire.StoreStanding
		ago   time.Duration // since it was said
		alive bool
		state string
		lag   float64
		line  string // starts so
	}{
		{"has said nothing", nil, 0, true, api.NodeReady, 0, ""},
		{"reads it", &wire.StoreStanding{Revision: 40, HeardSeconds: 2}, time.Minute, true, api.NodeReady, 2, ""},
		{"another cluster's certificate", &wire.StoreStanding{Revision: 40, HeardSeconds: 230, LostSeconds: 225, Cause: "certificate of cluster west"}, 10 * time.Second, true, api.NodeNotReady, 240,
			"node e2 cannot read its store (certificate of cluster west): its policies are 4 min old; give it a new join bundle with `weft node add e2 "},
		{"never since its start", &wire.StoreStanding{HeardSeconds: 50, Never: true, LostSeconds: 50, Cause: "172.16.1.1:2378 refuses connections"}, 10 * time.Second, true, api.NodeNotReady, 60,
			"node e2 cannot read its store (172.16.1.1:2378 refuses connections): its policies are more than 60 s old; is TCP 2379 open"},
		{"only for a moment", &wire.StoreStanding{Revision: 40, HeardSeconds: 9, LostSeconds: 1, Cause: "it does not answer"}, time.Second, true, api.NodeNotReady, 10, ""},
		{"died since", &wire.StoreStanding{Revision: 40, HeardSeconds: 3, LostSeconds: 3, Cause: "it does not answer"}, time.Hour, false, api.NodeSilent, 3603, ""},
	} {
		c := newCensus(nil, nil)
		c.claims["e2"], c.synced["e2"] = wire.NodeState{Name: "e2"}, true
		c.gossiped["e2"] = test.alive
		if test.said != nil {
			c.standing["e2"] = said{*test.said, now.Add(-test.ago)}
		}
		rows := c.statusAt(now, "east", register, nil, nil)
		if rows[0].State != test.state {
			t.Errorf("%s: state %s", test.name, rows[0].State)
		}
		if s := rows[0].Store; (s == nil) != (test.said == nil) || s != nil && s.LagSeconds != test.lag {
			t.Errorf("%s: store %+v", test.name, s)
		}
		var line string
		concerns, _ := api.Judge(now, nodeConcerns(rows, reach{}))
		for _, c := range concerns {
			if c.Reason == "StoreNotRead" {
				line = c.String()
			}
		}
		if (line == "") != (test.line == "") || !strings.HasPrefix(line, test.line) {
			t.Errorf("%s: %q", test.name, line)
		}
	}
}

// An agent that has read more than the store holds reads a store that is gone.
func TestANodeAheadOfItsStoreIsAConcern(t *testing.T) {
	at := func(revision int64) []api.NodeStatus {
		return []api.NodeStatus{{Name: "e1", State: api.NodeReady, Store: &api.NodeStore{Revision: revision}}}
	}
	if got := aheadConcerns(at(431), 431); len(got) != 0 {
		t.Errorf("level with it: %v", got)
	}
	got := aheadConcerns(at(500), 431)
	if len(got) != 1 || !strings.HasPrefix(got[0].String(), "node e1 is at revision 500 but its store is only at 431: ") {
		t.Errorf("ahead: %v", got)
	}
}

// A removed node whose agent goes on is told to be stopped, until it is; it is no
// dead node of the cluster's.
func TestARemovedNodeThatAnswersIsAConcern(t *testing.T) {
	c := newCensus(nil, nil)
	register := map[string]wire.Registration{"e1": {Name: "e1"}}
	for _, name := range []string{"e1", "e2"} {
		c.heard(name, gossip.Alive, time.Now())
	}
	if got := strangerConcerns("east", c.strangers(time.Now(), map[string]wire.Registration{"e1": {}, "e2": {}})); len(got) != 0 {
		t.Errorf("both are registered: %v", got)
	}
	c.forget("e2")
	got := strangerConcerns("east", c.strangers(time.Now(), register))
	if len(got) != 1 || got[0].String() != "e2 was removed from cluster east and still runs: stop its agent" || got[0].Since.IsZero() {
		t.Errorf("removed: %v", got)
	}
	c.heard("e2", gossip.Dead, time.Now())
	if got := c.strangers(time.Now(), register); len(got) != 0 || len(c.dead()) != 0 {
		t.Errorf("killed: %v, dead %v", got, c.dead())
	}
	c.heard("e2", gossip.Alive, time.Now()) // this API server was not there when it was removed
	if got := c.strangers(time.Now(), register); len(got) != 1 {
		t.Errorf("started again: %v", got)
	}
	if got := c.strangers(time.Now(), map[string]wire.Registration{"e2": {}}); got["e2"] != (time.Time{}) {
		t.Errorf("added again: %v", got)
	}
}

func TestProblemsOfNodesReadLikeSentences(t *testing.T) {
	for _, test := range []struct {
		p      api.NodeProblem
		object string
		want   string
		ready  bool
	}{
		{api.NodeProblem{Table: "services", Row: "west/shop/web", Rows: 2, Error: "table services is full at 3 rows; raise limits.services"}, "node n1",
			"node n1: 2 rows of services are not in the kernel (for example west/shop/web): table services is full at 3 rows; raise limits.services; `weft debug table problems --node n1` lists them", true},
		{api.NodeProblem{Table: "ips", Row: "10.2.1.9", Rows: 1, Error: "not now"}, "node n1", "node n1: ips 10.2.1.9 is not in the kernel: not now; `weft debug table problems --node n1` lists them", true},
		{api.NodeProblem{Table: "policies", Rows: 1, Error: "full"}, "node n1", "node n1: policies: full; `weft debug table problems --node n1` lists them", true},
		{api.NodeProblem{Table: wire.ProblemTunnels, Row: "east/n1", Rows: 1, Error: "no WireGuard"}, "node n1", "tunnel on n1 is down: no WireGuard; correct that on n1; its agent keeps trying", false},
		{api.NodeProblem{Table: wire.ProblemPaths, Rows: 1, Error: "not permitted"}, "node n1", "node n1 does not probe its paths, so traffic is not moved away from dead nodes: not permitted; correct that on n1; its agent keeps trying", false},
		{api.NodeProblem{Table: wire.ProblemProbes, Rows: 1, Error: "not permitted"}, "node n1", "node n1 does not probe its paths, so traffic is not moved away from dead nodes: not permitted; correct that on n1; its agent keeps trying", false},
		{api.NodeProblem{Table: wire.ProblemPeers, Row: "east/n1", Rows: 1, Error: "no space left on device"}, "node n1", "tunnel on n1 is not brought up to date: no space left on device; correct that on n1; its agent keeps trying", true},
		{api.NodeProblem{Table: wire.ProblemFiles, Row: "/a", Rows: 1, Error: "write /a: read-only file system"}, "node n1", "node n1: write /a: read-only file system; correct that on n1; its agent keeps trying", true},
		{api.NodeProblem{Table: wire.ProblemParts, Row: "events", Rows: 1, Error: "flow events cannot be read: not permitted"}, "node n1", "agent on n1: flow events cannot be read: not permitted; correct that on n1; its agent keeps trying", true},
		{api.NodeProblem{Table: wire.ProblemMasquerades, Rows: 1, Error: "no port is free"}, "node n1", "node n1: no port is free; see to which addresses with `weft observe --reason no-port`; let pods keep connections open, or spread over more addresses or nodes", true},
		{api.NodeProblem{Table: wire.ProblemValues, Row: "weft/state/x", Rows: 1, Error: "no JSON"}, "node n1", "node n1 cannot use weft/state/x of its store: no JSON; is the agent older than its API server? `weft debug table rejected --node n1` lists them", true},
		{api.NodeProblem{Table: wire.ProblemValues, Row: "weft/state/x", Rows: 2, Error: "no JSON"}, "node n1", "node n1 cannot use 2 values of its store (for example weft/state/x): no JSON; is the agent older than its API server? `weft debug table rejected --node n1` lists them", true},
		{api.NodeProblem{Table: wire.ProblemPods, Row: "shop/web", Rows: 1, Error: "disk full"}, "pod shop/web", "pod shop/web on node n1: its network is not ready: disk full; correct that on n1; its agent keeps trying", true},
		{api.NodeProblem{Table: "nodes", Row: "east/n2", Rows: 1, Error: wire.NotRegistered}, "node n2", "n2 was removed from cluster east and still runs: stop its agent", true},
	} {
		c := nodeProblem("east", "n1", test.p)
		if c.String() != test.want || c.Object != test.object || c.Reason == "" || unready(test.p) == test.ready {
			t.Errorf("%+v: %q, %+v", test.p, c, c)
		}
	}
}

func TestAShareThatIsUsedUpNamesWhose(t *testing.T) {
	const text = "holds 5 of 9 rows of table flows and may hold no more (its share is 2): it waits"
	for _, test := range []struct {
		problem      api.NodeProblem
		object, want string
	}{
		{
			api.NodeProblem{Table: wire.ProblemShares, Row: "shop/noisy", Rows: 1, Error: text}, "pod shop/noisy",
			"pod shop/noisy on node e1 " + text + "; see what it sends and receives: `weft observe --from-pod shop/noisy`, `--to-pod shop/noisy`",
		},
		{
			api.NodeProblem{Table: wire.ProblemShares, Row: "shop/noisy", Rows: 3, Error: text}, "pod shop/noisy",
			"3 pods on node e1 have each used up their shares, for example shop/noisy, which " + text + "; see what it sends and receives: `weft observe --from-pod shop/noisy`, `--to-pod shop/noisy`",
		},
		{
			api.NodeProblem{Table: wire.ProblemShares, Rows: 1, Error: text}, "node e1",
			"node e1 " + text + "; see which of its processes connect to pods",
		},
	} {
		all := nodeConcerns([]api.NodeStatus{{Name: "e1", State: api.NodeReady, Problems: []api.NodeProblem{test.problem}}}, reach{})
		if len(all) != 1 || all[0].String() != test.want || all[0].Object != test.object || all[0].Node != "e1" || all[0].Reason != "ShareUsedUp" {
			t.Errorf("%+v: %+v", test.problem, all)
		}
	}
}
