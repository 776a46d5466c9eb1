package apiserver

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/weft-mesh/weft/apiserver/api"
	"github.com/weft-mesh/weft/apiserver/nodes"
	"github.com/weft-mesh/weft/apiserver/store"
	"github.com/weft-mesh/weft/tunnel/gossip"
	"github.com/weft-mesh/weft/wire"
)

// census knows when each node's agent was last heard of, by the mark it keeps
// in the store under a lease and by gossip.
type census struct {
	store store.Store
	log   *slog.Logger

	mu       sync.Mutex // guards what follows
	claims   map[string]wire.NodeState
	problems map[string]wire.NodeProblems
	paths    map[string]wire.NodePaths
	whys     map[podOn]wire.EndpointState // of pods that are not ready and whose agent knows why
	synced   map[string]bool              // the mark is there: it has reported, and lives
	seen     map[string]time.Time         // last sign of life
	gossiped map[string]bool              // what gossip says, if anything
	deaths   map[string]time.Time         // when gossip gave it up
	states   map[string]stay              // as last shown
	removed  map[string]time.Time         // not registered any more, but its agent answers
	standing map[string]said              // how far each is with the store, as last heard
	changed  chan struct{}                // has one element when deaths changed
}

// podOn is a pod, as a node speaks of it.
type podOn struct{ node, pod string }

// why is what a node's agent says of a pod, namespace/name, that is not ready; the
// zero value if it does not know why.
func (c *census) why(node, pod string) wire.EndpointState {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.whys[podOn{node, pod}]
}

// stay is how long a node has been in a state.
type stay struct {
	state string
	since time.Time
}

// said is what an agent said of itself, and when.
type said struct {
	wire.StoreStanding
	at time.Time
}

// stands takes in how far an agent is with the store.
func (c *census) stands(node string, s wire.StoreStanding, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.standing[node] = said{s, at}
}

// store is how far the agent is, now. What was said a while ago by an agent that
// reads the store says nothing against it: it is pinged in turn with all others.
func (s said) store(now time.Time, alive bool) *api.NodeStore {
	seconds := func(v float64) time.Duration { return time.Duration(max(0, v) * float64(time.Second)) }
	out := &api.NodeStore{Revision: s.Revision, LagSeconds: max(0, s.HeardSeconds), Cause: s.Cause, Behind: s.Cause != ""}
	heard := s.at.Add(-seconds(s.HeardSeconds))
	if !s.Never {
		out.Read = heard
	}
	if out.Behind || !alive {
		out.LagSeconds = max(0, now.Sub(heard).Seconds())
	}
	if out.Behind {
		out.Since = s.at.Add(-seconds(s.LostSeconds))
	}
	return out
}

func newCensus(s store.Store, log *slog.Logger) *census {
	return &census{
		store: s, log: log, claims: map[string]wire.NodeState{}, problems: map[string]wire.NodeProblems{}, paths: map[string]wire.NodePaths{}, whys: map[podOn]wire.EndpointState{}, synced: map[string]bool{}, seen: map[string]time.Time{},
		gossiped: map[string]bool{}, deaths: map[string]time.Time{}, states: map[string]stay{}, removed: map[string]time.Time{}, standing: map[string]said{}, changed: make(chan struct{}, 1),
	}
}

// Run follows what agents say of their nodes, until ctx ends.
func (c *census) Run(ctx context.Context) error {
	return store.Persist(ctx, c.log, "following nodes", func(ctx context.Context) error {
		return store.Follow(ctx, c.store, wire.NodesPrefix, func(b store.Batch) error {
			c.apply(b)
			return nil
		})
	})
}

func (c *census) apply(b store.Batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b.Complete {
		clear(c.synced)
		clear(c.problems)
		clear(c.whys)
		clear(c.paths)
	}
	for _, ev := range b.Events {
		node, entry, namespace, pod, ok := wire.ParseNodesKey(ev.Key)
		if !ok {
			continue
		}
		if !ev.Deleted && !b.Complete {
			c.seen[node] = time.Now()
		}
		switch entry {
		case wire.NodeEntrySynced:
			c.synced[node] = !ev.Deleted
		case wire.NodeEntryNode:
			if ev.Deleted {
				continue // what it said last is still the best we know
			}
			if v, err := wire.Unmarshal[wire.NodeState](ev.Value); err == nil {
				c.claims[node] = v
			}
		case wire.NodeEntryProblems:
			delete(c.problems, node)
			if v, err := wire.Unmarshal[wire.NodeProblems](ev.Value); err == nil && !ev.Deleted {
				c.problems[node] = v
			}
		case wire.NodeEntryEndpoint:
			of := podOn{node, namespace + "/" + pod}
			delete(c.whys, of)
			if v, err := wire.Unmarshal[wire.EndpointState](ev.Value); err == nil && !ev.Deleted && v.Why != "" {
				c.whys[of] = v
			}
		case wire.NodeEntryPaths:
			delete(c.paths, node)
			if v, err := wire.Unmarshal[wire.NodePaths](ev.Value); err == nil && !ev.Deleted {
				c.paths[node] = v
			}
		}
	}
}

// heard takes in what gossip says of a node's agent. An agent that has said
// goodbye is silent, but its node is not dead: it may only be starting again.
func (c *census) heard(node string, what gossip.Kind, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	alive := what == gossip.Alive
	if _, ok := c.removed[node]; ok && !alive {
		c.forgetLocked(node) // it was removed before, and is no dead node of ours
		return
	}
	if alive || c.gossiped[node] {
		c.seen[node] = at
	}
	delete(c.deaths, node)
	if what == gossip.Dead {
		c.deaths[node] = at
	}
	c.gossiped[node] = alive
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// forget drops a node that was removed.
func (c *census) forget(node string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	alive := c.gossiped[node]
	c.forgetLocked(node)
	if alive {
		c.gossiped[node], c.removed[node] = true, time.Now()
	}
}

func (c *census) forgetLocked(node string) {
	delete(c.removed, node)
	delete(c.claims, node)
	delete(c.problems, node)
	delete(c.paths, node)
	maps.DeleteFunc(c.whys, func(of podOn, _ wire.EndpointState) bool { return of.node == node })
	delete(c.synced, node)
	delete(c.seen, node)
	delete(c.gossiped, node)
	delete(c.deaths, node)
	delete(c.states, node)
	delete(c.standing, node)
}

// strangers are agents that answer without being registered, and since when that
// is known.
func (c *census) strangers(register map[string]nodes.Registration) map[string]time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	for node := range c.removed {
		if _, ok := register[node]; ok {
			delete(c.removed, node) // added again
		}
	}
	for node, alive := range c.gossiped {
		if _, ok := register[node]; !ok && alive && c.removed[node].IsZero() {
			c.removed[node] = time.Now()
		}
	}
	return maps.Clone(c.removed)
}

// dead are the nodes whose agents gossip has given up, and when.
func (c *census) dead() map[string]time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.deaths)
}

// epoch is the highest key epoch of any node.
func (c *census) epoch() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	var highest uint64
	for _, v := range c.claims {
		highest = max(highest, v.Epoch)
	}
	return highest
}

// holding are the nodes that keep what they have from a store before this one,
// in order of name.
func (c *census) holding() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	nodes := []string{}
	for name, v := range c.claims {
		if v.Holding != "" {
			nodes = append(nodes, name)
		}
	}
	slices.Sort(nodes)
	return nodes
}

// status is one line per registered node, in order of name. endpoints and
// refused are counts by node.
func (c *census) status(cluster string, register map[string]nodes.Registration, endpoints map[string]int, refused map[string]uint64) []api.NodeStatus {
	return c.statusAt(time.Now(), cluster, register, endpoints, refused)
}

func (c *census) statusAt(now time.Time, cluster string, register map[string]nodes.Registration, endpoints map[string]int, refused map[string]uint64) []api.NodeStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]api.NodeStatus, 0, len(register))
	for _, name := range slices.Sorted(maps.Keys(register)) {
		r := register[name]
		s := api.NodeStatus{
			Cluster: cluster, Name: name, State: api.NodeReady, Addresses: r.Addresses, Internal: r.Internal(), PodCIDRs: r.PodCIDRs,
			Endpoints: endpoints[name], Epoch: c.claims[name].Epoch, LastSeen: c.seen[name], Refused: refused[name],
		}
		for _, p := range c.problems[name].Problems {
			s.Problems = append(s.Problems, api.NodeProblem(p))
		}
		alive, known := c.gossiped[name]
		if known {
			s.Alive = &alive
		}
		if alive {
			s.LastSeen = now
		}
		_, claimed := c.claims[name]
		switch {
		case !claimed && s.LastSeen.IsZero():
			s.State = api.NodeNeverConnected
		case known && !alive, !known && !c.synced[name]:
			s.State = api.NodeSilent
		case !c.synced[name]:
			s.State = api.NodeStarting
		}
		if said, ok := c.standing[name]; ok && s.State != api.NodeNeverConnected {
			s.Store = said.store(now, alive)
		}
		unwell := s.Store != nil && s.Store.Behind || slices.ContainsFunc(s.Problems, unready)
		if unwell && s.State != api.NodeSilent && s.State != api.NodeNeverConnected {
			s.State = api.NodeNotReady
		}
		if s.State != api.NodeSilent {
			for _, p := range c.paths[name].Paths {
				s.Paths = append(s.Paths, api.NodePath(p))
			}
		}
		if !s.LastSeen.IsZero() {
			s.AgeSeconds = max(0, now.Sub(s.LastSeen).Seconds())
		}
		if c.states[name].state != s.State {
			c.states[name] = stay{s.State, now}
		}
		s.Since = c.states[name].since
		if s.State == api.NodeNeverConnected {
			s.Since = r.Added
		}
		out = append(out, s)
	}
	slices.SortStableFunc(out, func(a, b api.NodeStatus) int { return cmp.Compare(a.Name, b.Name) })
	return out
}
