package apiserver

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/sources/kubernetes"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/tunnel/gossip"
	"github.com/weft-mesh/weft/wire"
)

// census knows when each node's agent was last heard from: by the mark that it keeps in
// the store under a lease, and by gossip.
type census struct {
	store store.Store
	log   *slog.Logger
	born  time.Time

	mu       sync.Mutex // guards what follows
	claims   map[string]wire.NodeState
	problems map[string]wire.NodeProblems
	paths    map[string]wire.NodePaths
	whys     map[podOn]wire.EndpointState // of pods that are not ready and whose agent knows why
	synced   map[string]bool              // the mark is there: the agent has reported and lives
	seen     map[string]time.Time         // last sign of life
	gossiped map[string]bool              // whether gossip says that it is alive, if it says anything
	deaths   map[string]time.Time         // when gossip gave it up
	states   map[string]stay              // as last shown
	standing map[string]said              // how far each is with the store, as last heard
	// unstored and untold have one element when deaths changed: for who stores them,
	// and for who tells the peers.
	unstored, untold chan struct{}
	// registered is the register when strangers last looked at it; nil before that.
	registered map[string]wire.Registration
	// unregistered are names that are not in the register, and since when that is
	// known. All above is kept for them only for a while.
	unregistered map[string]time.Time
}

// Anyone with the pool's key can make up names of nodes, and removed nodes leave theirs.
const (
	// unregisteredLife is how long a name is kept that neither answers nor is
	// registered. A node that was just added may not be in the register we look at.
	unregisteredLife = 2 * sightingTurn
	// mostStrangers is how many unregistered agents that answer are kept.
	mostStrangers = 1000
)

// gossipPatience is how soon gossip has heard of every agent after a start.
const gossipPatience = 30 * time.Second

// podOn is a pod with the node that reports it.
type podOn struct{ node, pod string }

// why returns what a node's agent says about a pod (namespace/name) that is not ready;
// the zero value if it does not know why.
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

// said is what an agent said about itself, and when.
type said struct {
	wire.StoreStanding
	at time.Time
}

// stands records how far an agent is with the store.
func (c *census) stands(node string, s wire.StoreStanding, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.standing[node] = said{s, at}
}

// store returns how far the agent is now. An agent that reads the store may have said so
// a while ago, because agents are pinged in turn: that does not count against it.
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
		store: s, log: log, born: time.Now(), claims: map[string]wire.NodeState{}, problems: map[string]wire.NodeProblems{}, paths: map[string]wire.NodePaths{}, whys: map[podOn]wire.EndpointState{}, synced: map[string]bool{}, seen: map[string]time.Time{},
		gossiped: map[string]bool{}, deaths: map[string]time.Time{}, states: map[string]stay{}, unregistered: map[string]time.Time{}, standing: map[string]said{}, unstored: make(chan struct{}, 1), untold: make(chan struct{}, 1),
	}
}

// Run follows what agents say about their nodes, until ctx ends.
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
			if c.synced[node] = true; ev.Deleted {
				delete(c.synced, node)
			}
		case wire.NodeEntryNode:
			if ev.Deleted {
				continue // what it last said is still the best we know
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

// heard takes in what gossip says about a node's agent. An agent that said goodbye is
// silent, but its node is not dead: the agent may only be restarting.
func (c *census) heard(node string, what gossip.Kind, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	alive := what == gossip.Alive
	if _, ok := c.unregistered[node]; ok && !alive {
		c.forgetLocked(node) // it was removed before, and is not a dead node of ours
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
	c.signal()
}

func (c *census) signal() {
	for _, to := range []chan struct{}{c.unstored, c.untold} {
		select {
		case to <- struct{}{}:
		default:
		}
	}
}

// forget drops a node that was removed.
func (c *census) forget(node string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	alive := c.gossiped[node]
	c.forgetLocked(node)
	if alive {
		c.gossiped[node], c.unregistered[node] = true, time.Now()
	}
}

func (c *census) forgetLocked(node string) {
	if _, dead := c.deaths[node]; dead {
		c.signal()
	}
	delete(c.unregistered, node)
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

// strangers returns the agents that answer although their nodes are not registered, and
// since when that is known. What is neither registered nor answers is forgotten.
func (c *census) strangers(now time.Time, register map[string]wire.Registration) map[string]time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.registered = register; len(c.deaths) > 0 {
		c.signal()
	}
	maps.DeleteFunc(c.unregistered, func(node string, _ time.Time) bool {
		_, added := register[node]
		return added
	})
	notice := func(node string) {
		if _, registered := register[node]; !registered && c.unregistered[node].IsZero() {
			c.unregistered[node] = now
		}
	}
	for node := range c.gossiped {
		notice(node)
	}
	for node := range c.seen {
		notice(node)
	}
	for node := range c.claims {
		notice(node)
	}
	for node := range c.standing {
		notice(node)
	}
	for node := range c.states {
		notice(node)
	}
	out := map[string]time.Time{}
	oldest := slices.SortedFunc(maps.Keys(c.unregistered), func(a, b string) int {
		return cmp.Or(c.unregistered[a].Compare(c.unregistered[b]), cmp.Compare(a, b))
	})
	for _, node := range oldest {
		since := c.unregistered[node]
		switch {
		case c.gossiped[node] && len(out) < mostStrangers:
			out[node] = since
		case c.gossiped[node], now.Sub(since) >= unregisteredLife:
			c.forgetLocked(node)
		}
	}
	return out
}

// dead returns the nodes whose agents gossip considers dead, and since when. Names that
// are not registered are left out: peers refuse a report with too many.
func (c *census) dead() map[string]time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]time.Time{}
	for node, since := range c.deaths {
		if _, registered := c.registered[node]; registered || c.registered == nil {
			out[node] = since
		}
	}
	return out
}

// epoch returns the highest key epoch of any node.
func (c *census) epoch() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	var highest uint64
	for _, v := range c.claims {
		highest = max(highest, v.Epoch)
	}
	return highest
}

// holding returns the nodes that keep what they have from an earlier store, in order of
// name.
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

// status returns one row per registered node, in order of name. endpoints and refused
// are counts by node.
func (c *census) status(cluster string, register map[string]wire.Registration, endpoints map[string]int, refused map[string]uint64) []api.NodeStatus {
	return c.statusAt(time.Now(), cluster, register, endpoints, refused)
}

// agents says what is known of each node's agent, for those who tell Kubernetes.
func (c *census) agents() map[string]kubernetes.Agent { return c.agentsAt(time.Now()) }

func (c *census) agentsAt(now time.Time) map[string]kubernetes.Agent {
	c.mu.Lock()
	defer c.mu.Unlock()
	// Without gossip, or before it has heard of an agent, the mark in the store counts. Just after
	// a start that may be one of an agent that has died since.
	marked := now.Sub(c.born) >= gossipPatience
	out := make(map[string]kubernetes.Agent, len(c.claims))
	for node := range c.claims {
		problems := slices.ContainsFunc(c.problems[node].Problems, func(p wire.NodeProblem) bool { return unready(api.NodeProblem(p)) })
		switch alive, known := c.gossiped[node]; {
		case c.awayLocked(node):
			out[node] = kubernetes.AgentAway
		case c.synced[node] && (alive || !known && marked) && c.standing[node].Cause == "" && !problems:
			out[node] = kubernetes.AgentReady
		default:
			out[node] = kubernetes.AgentUnsure
		}
	}
	return out
}

// awayLocked reports whether a node's agent does not answer: by gossip, or if that has not
// heard of it yet, by the mark that it keeps.
func (c *census) awayLocked(node string) bool {
	alive, known := c.gossiped[node]
	return known && !alive || !known && !c.synced[node]
}

func (c *census) statusAt(now time.Time, cluster string, register map[string]wire.Registration, endpoints map[string]int, refused map[string]uint64) []api.NodeStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]api.NodeStatus, 0, len(register))
	for _, name := range slices.Sorted(maps.Keys(register)) {
		r := register[name]
		s := api.NodeStatus{
			Cluster: cluster, Name: name, State: api.NodeReady, Addresses: r.Addresses, Internals: r.Internals(), PodCIDRs: r.PodCIDRs,
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
		case c.awayLocked(name):
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
