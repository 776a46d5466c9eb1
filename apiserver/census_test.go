package apiserver

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/apiserver/sources/kubernetes"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/tunnel/gossip"
	"github.com/weft-mesh/weft/wire"
)

func entries(c *census) int {
	return len(c.gossiped) + len(c.standing) + len(c.seen) + len(c.claims) + len(c.deaths) + len(c.synced) + len(c.states) + len(c.unregistered) + len(c.problems) + len(c.paths) + len(c.whys)
}

// Anyone with the pool's key can make up names: they are forgotten unless they answer,
// and of those that do only so many are kept. Nodes of the register stay.
func TestInventedNodesAreForgotten(t *testing.T) {
	c := newCensus(nil, slog.New(slog.DiscardHandler))
	register := map[string]wire.Registration{"n1": {Name: "n1"}}
	start := time.Now()
	c.heard("n1", gossip.Dead, start)
	for i := range 5 * mostStrangers {
		name := fmt.Sprintf("made-up-%04d", i)
		kind := []gossip.Kind{gossip.Alive, gossip.Dead, gossip.Left}[i%3]
		c.heard(name, kind, start)
		c.stands(name, wire.StoreStanding{}, start)
	}
	c.strangers(start, register)
	got := c.strangers(start.Add(unregisteredLife), register)
	if len(got) != mostStrangers || len(c.standing) != mostStrangers || len(c.unregistered) != mostStrangers {
		t.Errorf("%d strangers, %d standings, %d names", len(got), len(c.standing), len(c.unregistered))
	}
	if dead := c.dead(); len(dead) != 1 || dead["n1"].IsZero() {
		t.Errorf("dead nodes %v", dead)
	}
	lines := strangerConcerns("east", got)
	if len(lines) != 1 || !strings.HasPrefix(lines[0].String(), "1000 nodes that are not registered in cluster east run agents, for example made-up-0000") {
		t.Errorf("lines %v", lines)
	}
	for name := range got {
		c.heard(name, gossip.Left, start)
	}
	c.strangers(start.Add(time.Minute), register)
	c.strangers(start.Add(2*time.Minute), register)
	if n := entries(c); n != 2 { // what gossip says of n1, and its death
		t.Errorf("%d entries are left", n)
	}
}

// A node that another API server removed is forgotten here too, with what it reported;
// one that was added a moment ago and is not in the register we read is not.
func TestRemovedNodesAreForgotten(t *testing.T) {
	c := newCensus(nil, slog.New(slog.DiscardHandler))
	register := map[string]wire.Registration{"n1": {Name: "n1"}}
	now := time.Now()
	c.apply(store.Batch{Events: []store.Event{
		{KV: store.KV{Key: wire.NodeKey("n1"), Value: wire.Marshal(wire.NodeState{Name: "n1", Epoch: 7})}},
		{KV: store.KV{Key: wire.NodeSyncedKey("n1"), Value: []byte("x")}},
		{KV: store.KV{Key: wire.NodeProblemsKey("n1"), Value: wire.Marshal(wire.NodeProblems{Problems: []wire.NodeProblem{{Table: "a"}}})}},
	}})
	c.strangers(now, nil) // read before it was added
	c.strangers(now.Add(sightingTurn), register)
	if row := c.statusAt(now, "east", register, nil, nil)[0]; row.Epoch != 7 || len(row.Problems) != 1 {
		t.Errorf("%+v", row)
	}
	c.strangers(now.Add(time.Hour), nil)
	if c.epoch() != 7 {
		t.Error("forgotten at once")
	}
	c.strangers(now.Add(time.Hour+unregisteredLife), nil)
	if n := entries(c); n != 0 {
		t.Errorf("%d entries are left", n)
	}
}

// The end of an agent's mark leaves nothing behind.
func TestMarksThatEndAreForgotten(t *testing.T) {
	c := newCensus(nil, slog.New(slog.DiscardHandler))
	mark := store.KV{Key: wire.NodeSyncedKey("n1"), Value: []byte("x")}
	c.apply(store.Batch{Events: []store.Event{{KV: mark}, {KV: mark, Deleted: true}}})
	if len(c.synced) != 0 {
		t.Errorf("%v", c.synced)
	}
}

// Peers are told when a dead node is removed, without another word of gossip.
func TestARemovedNodeIsNoLongerDead(t *testing.T) {
	c := newCensus(nil, slog.New(slog.DiscardHandler))
	c.heard("n1", gossip.Dead, time.Now())
	<-c.untold
	c.forget("n1")
	select {
	case <-c.untold:
	default:
		t.Error("nobody is told")
	}
	if len(c.dead()) != 0 {
		t.Errorf("%v", c.dead())
	}
}

// What Kubernetes is told of a node: only an agent that has reported all, reads the store and has
// no problem that concerns the whole node is ready.
func TestWhatIsKnownOfAnAgent(t *testing.T) {
	c := newCensus(nil, slog.New(slog.DiscardHandler))
	now := c.born
	is := func(when string, want kubernetes.Agent) {
		t.Helper()
		if got, known := c.agentsAt(now)["n1"]; got != want || !known {
			t.Errorf("%s: %v (known: %v), want %v", when, got, known, want)
		}
	}
	event := func(key string, value []byte) {
		c.apply(store.Batch{Events: []store.Event{{KV: store.KV{Key: key, Value: value}, Deleted: value == nil}}})
	}
	if len(c.agentsAt(now)) > 0 {
		t.Error("nobody has said anything")
	}
	event(wire.NodeKey("n1"), wire.Marshal(wire.NodeState{Name: "n1"}))
	is("without its mark", kubernetes.AgentAway)
	c.heard("n1", gossip.Alive, now)
	is("it starts", kubernetes.AgentUnsure)
	event(wire.NodeSyncedKey("n1"), []byte("start"))
	is("it has reported all", kubernetes.AgentReady)
	c.stands("n1", wire.StoreStanding{Cause: "no answer"}, now)
	is("it does not read the store", kubernetes.AgentUnsure)
	c.stands("n1", wire.StoreStanding{}, now)
	event(wire.NodeProblemsKey("n1"), wire.Marshal(wire.NodeProblems{Problems: []wire.NodeProblem{{Table: wire.ProblemTunnels, Error: "no device"}}}))
	is("its tunnels do not work", kubernetes.AgentUnsure)
	event(wire.NodeProblemsKey("n1"), nil)
	is("they do again", kubernetes.AgentReady)
	c.heard("n1", gossip.Dead, now)
	is("gossip gives it up, and its mark is still there", kubernetes.AgentAway)

	// A server that has just started has no gossip yet, or never gets any.
	delete(c.gossiped, "n1")
	is("just after a start", kubernetes.AgentUnsure)
	now = now.Add(gossipPatience)
	is("without gossip", kubernetes.AgentReady)
	event(wire.NodeSyncedKey("n1"), nil)
	is("without gossip and mark", kubernetes.AgentAway)
}
