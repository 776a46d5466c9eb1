package paths

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/internal/pace"
	"github.com/weft-mesh/weft/tunnel"
	"github.com/weft-mesh/weft/tunnel/gossip"
	"github.com/weft-mesh/weft/tunnel/probe"
	"github.com/weft-mesh/weft/wire"
)

// Liveness finds out which nodes and clusters can be reached, and writes that into the
// kernel at once, without waiting for any other loop.
type Liveness struct {
	cfg     Config
	follow  Follower
	tunnels *Tunnels

	// mu guards what others report: the nodes of the own cluster that gossip considers
	// dead, and the indexes of nodes that local pods talk to.
	mu       sync.Mutex
	gossiped map[string]bool
	flows    map[uint16]bool
	changed  chan struct{} // one element when there is something to do

	// applying is held from reading the prober's observations until they are written,
	// so that older ones never overwrite newer ones. It guards mesh and unprobed.
	applying sync.Mutex
	mesh     *Mesh
	unprobed map[string]bool // not told to Rows yet

	// telling guards what is reported about paths; see unwell.go.
	telling sync.Mutex
	unwell  []wire.NodePath // replaced, never modified
	news    chan struct{}   // closed when unwell changes

	// Of the loop alone.
	witnesses *probe.Witnesses
	targets   map[string]probe.Target
	own       tunnel.Own
	withFlows map[string]bool
	// dead are the nodes that gossip considers dead, by cluster; evidence is the same by
	// "cluster/node".
	dead     map[string]map[string]bool
	evidence map[string]probe.Evidence
}

const (
	// livenessTurn is how soon rows that could not be written are tried again.
	livenessTurn = 250 * time.Millisecond
	// livenessCheck is how often observations and rows are compared without a change.
	livenessCheck = 2 * time.Second
)

// NewLiveness returns the liveness of a node's paths.
func NewLiveness(cfg Config, follow Follower, tunnels *Tunnels) *Liveness {
	l := &Liveness{cfg: cfg, follow: follow, tunnels: tunnels, changed: make(chan struct{}, 1), news: make(chan struct{})}
	l.reset()
	return l
}

func (l *Liveness) reset() {
	l.witnesses, l.targets = probe.NewWitnesses(l.cfg.self()), map[string]probe.Target{}
	l.withFlows, l.dead, l.evidence = map[string]bool{}, map[string]map[string]bool{}, map[string]probe.Evidence{}
	l.unprobed = map[string]bool{}
}

// Ready waits until there is something to probe through, and until rows in the kernel may
// be changed.
func (l *Liveness) Ready(ctx context.Context) error {
	for _, ready := range []<-chan struct{}{l.tunnels.up, l.cfg.Start} {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ready:
		}
	}
	return nil
}

// Probe works until ctx ends or probes cannot be sent; then it may be called again. Its
// last results stay in the kernel.
func (l *Liveness) Probe(ctx context.Context) error {
	err := l.probe(ctx)
	if err != nil && ctx.Err() == nil {
		l.tell(nil) // what was found may no longer be true
	}
	return err
}

func (l *Liveness) probe(ctx context.Context) error {
	transport, err := l.cfg.Transport(l.cfg.internals()...)
	if err != nil {
		return err
	}
	if c, ok := transport.(interface{ Close() error }); ok {
		defer c.Close()
	}
	cfg := probe.Defaults()
	cfg.Log = l.cfg.Log
	var prober *probe.Prober
	cfg.OnChange = func(o probe.Observation) {
		l.apply(prober, nil)
		l.again() // a path that went down is silent first, and dead a little later
	}
	if prober, err = probe.New(cfg, transport); err != nil {
		return err
	}
	prober.SetEvidence(l.evidence)
	prober.Set(slices.Collect(maps.Values(l.targets)))
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return prober.Run(ctx) })
	g.Go(func() error { return l.loop(ctx, prober) })
	return g.Wait()
}

// loop tells the prober whom to probe, and writes rows that an earlier attempt could not
// write.
func (l *Liveness) loop(ctx context.Context, prober *probe.Prober) error {
	var next time.Time // when observations have to be looked at
	var cost pace.Pace // of those looks
	look := true
	for ctx.Err() == nil {
		begun := time.Now()
		txn := l.cfg.Tables.DB.ReadTxn()
		_, nodes := l.cfg.Tables.Nodes.AllWatch(txn)
		_, clusters := l.cfg.Tables.Clusters.AllWatch(txn)
		own, _, devices := l.tunnels.Own()
		mesh, change := l.follow.Follow(txn)
		gossip, freed := l.take(mesh, change, own, prober)
		if look = look || freed || len(gossip) > 0 || !begun.Before(next); look {
			observations, now, written := l.apply(prober, gossip)
			wait := livenessTurn
			if written {
				cost.Ran(time.Since(begun))
				wait = cost.Rest(livenessCheck, urgentRest)
			}
			next = now.Add(untilNext(observations, now, wait, l.cfg.Lasting))
		}
		look = false
		select {
		case <-ctx.Done():
		case <-nodes:
		case <-clusters:
		case <-devices:
		case <-l.cfg.Rows.forLiveness.news:
		case <-l.changed:
			look = true
		case <-time.After(time.Until(next)):
		}
	}
	return nil
}

// take takes up what has changed and tells the prober. It returns the nodes of which the
// table may not say what gossip does, and whether some are no longer probed.
func (l *Liveness) take(mesh *Mesh, change Changes, own tunnel.Own, prober *probe.Prober) (gossip map[string]bool, freed bool) {
	moved := l.cfg.Rows.take(&l.cfg.Rows.forLiveness)
	l.applying.Lock()
	defer l.applying.Unlock()
	l.mesh = mesh
	if mesh == nil {
		return nil, false
	}
	if change.All {
		targets := l.targets
		l.reset()
		l.targets = targets
		for key := range mesh.Remote.All() {
			moved[key] = true
		}
		for key := range targets {
			moved[key] = true
		}
		for name := range mesh.Members.All() {
			change.Clusters[name] = true
		}
	}
	for key := range change.Nodes {
		moved[key] = true
	}
	for key := range moved {
		cluster, _ := split(key)
		if n := mesh.Node(key); n == nil {
			l.witnesses.Drop(cluster, key)
		} else {
			lane, _, ok := l.cfg.Rows.Lane(key)
			// Where nothing can be sent, silence means nothing.
			l.witnesses.Put(cluster, key, ok && lane.Keyed && inCommon(l.cfg.internals(), n.Internals()).IsValid())
		}
	}
	doubted := l.doubt(change.Clusters)
	l.require(doubted)
	if own.Lanes != l.own.Lanes {
		l.own = own
		for key := range l.targets {
			moved[key] = true
		}
	}
	maps.Copy(moved, l.witnesses.Changed())
	if l.aim(moved) {
		prober.Set(slices.Collect(maps.Values(l.targets)))
	}
	if change.All || len(doubted) > 0 {
		prober.SetEvidence(l.evidence)
	}
	for key := range moved {
		if l.evidence[key].GossipDead {
			doubted[key] = true // it may have had no row before
		}
	}
	return doubted, len(l.unprobed) > 0
}

// aim settles which of some nodes are probed, and how. It says whether that has changed.
func (l *Liveness) aim(moved map[string]bool) (changed bool) {
	for key := range moved {
		cluster, _ := split(key)
		before, probed := l.targets[key]
		if !l.witnesses.Chosen(cluster, key) {
			delete(l.targets, key)
			if _, path, _ := l.cfg.Rows.Lane(key); probed || path != bpf.PathAlive {
				l.unprobed[key] = true
			}
			changed = changed || probed
			continue
		}
		n := l.mesh.Node(key)
		lane, _, _ := l.cfg.Rows.Lane(key)
		next := probe.Target{Cluster: cluster, Node: n.Name, Addr: inCommon(l.cfg.internals(), n.Internals()), Device: l.own.Lanes[lane.Lane&1].Ifindex, Size: l.cfg.MTU, Busy: l.witnesses.Needed(key)}
		delete(l.unprobed, key)
		l.targets[key] = next
		changed = changed || !probed || before != next
	}
	return changed
}

// doubt takes up what gossip says: our own about our nodes, and every peer's about its
// own. It returns the nodes about which it says something else.
func (l *Liveness) doubt(clusters map[string]bool) map[string]bool {
	l.mu.Lock()
	ours := l.gossiped
	l.mu.Unlock()
	said := map[string]map[string]bool{l.cfg.Cluster: nil}
	for name := range clusters {
		said[name] = nil
	}
	for name := range said {
		dead := map[string]bool{}
		if c := l.mesh.Member(name); c != nil && c.Liveness != nil {
			for n := range c.Liveness.Dead {
				dead[n] = true
			}
		}
		if name == l.cfg.Cluster {
			maps.Copy(dead, ours)
		}
		said[name] = dead
	}
	changed := map[string]bool{}
	for name, dead := range said {
		for n := range dead {
			if !l.dead[name][n] {
				changed[name+"/"+n] = true
				l.evidence[name+"/"+n] = probe.Evidence{GossipDead: true}
			}
		}
		for n := range l.dead[name] {
			if !dead[n] {
				changed[name+"/"+n] = false
				delete(l.evidence, name+"/"+n)
			}
		}
		l.dead[name] = dead
	}
	return changed
}

// require has those nodes probed that gossip considers dead and those that local pods
// talk to.
func (l *Liveness) require(doubted map[string]bool) {
	l.mu.Lock()
	flows := l.cfg.Rows.named(l.flows)
	l.mu.Unlock()
	for key := range l.withFlows {
		if !flows[key] {
			l.witnesses.Must(key, l.evidence[key].GossipDead)
		}
	}
	for key := range flows {
		l.witnesses.Must(key, true)
	}
	for key, dead := range doubted {
		l.witnesses.Must(key, dead || flows[key])
	}
	l.withFlows = flows
}

// untilNext is how long until time alone changes what is written or reported of a path,
// wait at most: a silent one is dead, or one has been down or limited for long enough.
func untilNext(observations []probe.Observation, now time.Time, wait, lasting time.Duration) time.Duration {
	for _, o := range observations {
		var next time.Time
		switch {
		case o.Standing(now) == probe.Silent:
			next = o.Since.Add(probe.DoubtTime)
		case o.State == probe.Down:
			next = o.Since.Add(lasting)
		case o.Limit > 0:
			next = o.LimitSince.Add(lasting)
		}
		if next.After(now) {
			wait = min(wait, next.Sub(now))
		}
	}
	return wait
}

// again has the loop look at once.
func (l *Liveness) again() {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// Flows takes the indexes of the nodes that local pods talk to.
func (l *Liveness) Flows(nodes map[uint16]bool) {
	l.mu.Lock()
	same := maps.Equal(nodes, l.flows)
	l.flows = nodes
	l.mu.Unlock()
	if !same {
		l.again()
	}
}

// Heard handles a gossip event.
func (l *Liveness) Heard(e gossip.Event) {
	if e.Member.Role != gossip.Agent || e.Member.Cluster != l.cfg.Cluster {
		return
	}
	l.mu.Lock()
	next := maps.Clone(l.gossiped)
	if next == nil {
		next = map[string]bool{}
	}
	// An agent that left on purpose was stopped; its node keeps running.
	if e.Kind == gossip.Dead {
		next[e.Member.Name] = true
	} else {
		delete(next, e.Member.Name)
	}
	l.gossiped = next
	l.mu.Unlock()
	l.again()
}

// endpoint is where the tunnel to a node ends.
func (l *Liveness) endpoint(key string) netip.Addr {
	if n := l.mesh.Node(key); n != nil {
		return endpointOf(l.cfg.Addresses, n.Addresses())
	}
	return netip.Addr{}
}

// apply writes what the prober has observed into the kernel and the table. It returns
// the observations, when they were made, and whether all of them were written.
func (l *Liveness) apply(prober *probe.Prober, gossip map[string]bool) (observations []probe.Observation, now time.Time, written bool) {
	l.applying.Lock()
	defer l.applying.Unlock()
	observations, now = prober.Observations(), time.Now()
	if l.mesh == nil {
		return observations, now, true
	}
	seen := Seen{At: now, Observations: observations, Gossip: gossip, Clusters: map[identity.ClusterID]probe.Standing{}}
	for name, standing := range probe.Clusters(observations, now) {
		if c := l.mesh.Member(name); c != nil && name != l.cfg.Cluster {
			seen.Clusters[c.ID()] = standing
		}
	}
	seen.Unprobed, l.unprobed = l.unprobed, map[string]bool{}
	err := l.cfg.Rows.See(seen)
	l.cfg.Unwritten(err)
	l.tell(unwell(observations, l.cfg.MTU, l.endpoint, now, l.cfg.Lasting))
	return observations, now, err == nil
}
