package meshagent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/meshagent/program"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/tunnel/gossip"
	"github.com/weft-mesh/weft/tunnel/probe"
	"github.com/weft-mesh/weft/wire"
)

// liveness finds out which nodes and clusters can be reached, and writes that into the
// kernel at once, without waiting for any other loop.
type liveness struct {
	node     node
	edges    *Edges
	tables   *tables.Tables
	ways     *program.Ways
	meshes   *program.Meshes
	lanes    *lanes
	internal netip.Addr
	// start is closed once rows in the kernel may be changed.
	start <-chan struct{}
	log   *slog.Logger

	// mu guards gossiped: nodes of the own cluster that gossip considers dead.
	mu       sync.Mutex
	gossiped map[string]bool
	changed  chan struct{} // one element when it changed

	// applying is held from reading the prober's observations until they are written,
	// so that older ones never overwrite newer ones.
	applying sync.Mutex
	kernel   *trouble // to write what was observed

	// telling guards what is reported about paths; see paths.go.
	telling sync.Mutex
	unwell  []wire.NodePath // replaced, never modified
	news    chan struct{}   // closed when unwell changes
}

// smallCluster is the size up to which every node of a cluster is probed; in larger ones,
// a few witnesses and the nodes with flows are.
const smallCluster = 8

const (
	// livenessTurn is how soon rows that could not be written are tried again.
	livenessTurn = 250 * time.Millisecond
	// livenessCheck is how often targets and rows are compared without a change.
	livenessCheck = 2 * time.Second
)

// Run works until ctx ends. Its last results stay in the kernel.
func (l *liveness) Run(ctx context.Context) error {
	for _, ready := range []<-chan struct{}{l.lanes.up, l.start} {
		select {
		case <-ctx.Done():
			return nil
		case <-ready:
		}
	}
	probing := &trouble{tables: l.tables, table: wire.ProblemProbes, what: "paths are not probed", log: l.log}
	l.kernel = &trouble{tables: l.tables, table: wire.ProblemPaths, what: "probe results do not reach the kernel", log: l.log}
	probing.retry(ctx, func(ctx context.Context) error {
		err := l.probe(ctx)
		if err != nil && ctx.Err() == nil {
			l.tell(nil) // what was found may no longer be true
		}
		return err
	})
	return nil
}

func (l *liveness) probe(ctx context.Context) error {
	transport, err := l.edges.Transport(l.internal)
	if err != nil {
		return err
	}
	if c, ok := transport.(interface{ Close() error }); ok {
		defer c.Close()
	}
	cfg := probe.Defaults()
	cfg.Log = l.log
	var prober *probe.Prober
	cfg.OnChange = func(o probe.Observation) {
		l.apply(prober)
		l.again() // a path that went down is silent first, and dead a little later
	}
	if prober, err = probe.New(cfg, transport); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return prober.Run(ctx) })
	g.Go(func() error { return l.targets(ctx, prober) })
	return g.Wait()
}

// targets tells the prober whom to probe, and writes rows that an earlier attempt could
// not write.
func (l *liveness) targets(ctx context.Context, prober *probe.Prober) error {
	var flows map[uint16]bool
	var count time.Time
	for ctx.Err() == nil {
		if begun := time.Now(); !begun.Before(count) {
			flows = l.nodesWithFlows()
			count = begun.Add(rest(livenessCheck, time.Since(begun)))
		}
		begun := time.Now()
		txn := l.tables.DB.ReadTxn()
		_, nodes := l.tables.Nodes.AllWatch(txn)
		_, clusters := l.tables.Clusters.AllWatch(txn)
		_, _, lanes := l.lanes.Own()
		if mesh := l.meshes.Of(txn); mesh != nil {
			evidence := l.evidence(mesh)
			prober.Set(l.choose(mesh, flows, evidence))
			prober.SetEvidence(evidence)
		}
		observations, now, written := l.apply(prober)
		wait := livenessTurn
		if written {
			wait = rest(livenessCheck, time.Since(begun))
		}
		select {
		case <-ctx.Done():
		case <-nodes:
		case <-clusters:
		case <-lanes:
		case <-l.changed:
		case <-time.After(untilNext(observations, now, wait)):
		}
	}
	return nil
}

// untilNext is how long until time alone changes what is written or reported of a path,
// wait at most: a silent one is dead, or one has been down or limited for long enough.
func untilNext(observations []probe.Observation, now time.Time, wait time.Duration) time.Duration {
	for _, o := range observations {
		var next time.Time
		switch {
		case o.Standing(now) == probe.Silent:
			next = o.Since.Add(probe.DoubtTime)
		case o.State == probe.Down:
			next = o.Since.Add(lastingAfter)
		case o.Limit > 0:
			next = o.LimitSince.Add(lastingAfter)
		}
		if next.After(now) {
			wait = min(wait, next.Sub(now))
		}
	}
	return wait
}

// again has targets and rows compared at once.
func (l *liveness) again() {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// nodesWithFlows are the indexes of nodes that local pods talk to. If an error leaves
// some out, they are judged by their cluster.
func (l *liveness) nodesWithFlows() map[uint16]bool {
	out := map[uint16]bool{}
	rows, _ := l.edges.Datapath.Maps().Flows.All()
	for _, f := range rows {
		if f.Node != 0 {
			out[f.Node] = true
		}
	}
	return out
}

func (l *liveness) choose(mesh *program.Mesh, flows map[uint16]bool, evidence map[string]probe.Evidence) []probe.Target {
	own, _, _ := l.lanes.Own()
	size := map[string]int{}
	for _, n := range mesh.Remote {
		size[n.Cluster]++
	}
	var all []probe.Target
	must := map[string]bool{}
	for key, n := range mesh.Remote {
		row, index := l.ways.Row(key)
		if index == 0 || row.Keyed == 0 {
			continue // nothing can be sent there, so silence means nothing
		}
		all = append(all, probe.Target{Cluster: n.Cluster, Node: n.Name, Addr: n.Internal(), Device: own.Lanes[row.Lane&1].Ifindex, Size: l.edges.MTU})
		if flows[index] || evidence[key].GossipDead || size[n.Cluster] <= smallCluster {
			must[key] = true
		}
	}
	return probe.Witnesses(l.node.key(), all, must, probe.MaxWitnesses)
}

// evidence is what gossip says: our own about our nodes, and every peer's about its own.
func (l *liveness) evidence(mesh *program.Mesh) map[string]probe.Evidence {
	out := map[string]probe.Evidence{}
	for name, c := range mesh.Members {
		if c.Liveness == nil {
			continue
		}
		for n := range c.Liveness.Dead {
			out[name+"/"+n] = probe.Evidence{GossipDead: true}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for n := range l.gossiped {
		out[l.node.cluster+"/"+n] = probe.Evidence{GossipDead: true}
	}
	return out
}

// heard handles a gossip event.
func (l *liveness) heard(e gossip.Event) {
	if e.Member.Role != gossip.Agent || e.Member.Cluster != l.node.cluster {
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

// paths are the kernel's values for the standing of a path.
var paths = map[probe.Standing]bpf.Path{probe.Dead: bpf.PathDead, probe.Silent: bpf.PathSilent, probe.Alive: bpf.PathAlive}

// apply writes what the prober has observed into the kernel, then into the table. It
// returns the observations, when they were made, and whether all of them were written.
func (l *liveness) apply(prober *probe.Prober) (observations []probe.Observation, now time.Time, written bool) {
	l.applying.Lock()
	defer l.applying.Unlock()
	observations, now = prober.Observations(), time.Now()
	return observations, now, l.write(observations, now)
}

func (l *liveness) write(observations []probe.Observation, now time.Time) bool {
	txn := l.tables.DB.ReadTxn()
	mesh := l.meshes.Of(txn)
	if mesh == nil {
		return true
	}
	var errs []error
	// Clusters first: one write helps every service at once.
	standings := probe.Clusters(observations, now)
	for name, c := range mesh.Members {
		// A cluster that has not been judged since this agent started stays as it was.
		if path, judged := paths[standings[name]]; judged && c != mesh.Own {
			if path == bpf.PathAlive {
				l.ways.Answered(c.ID())
			}
			if err := l.ways.SetCluster(c.ID(), path); err != nil {
				errs = append(errs, err)
			}
		}
	}
	seen := map[string]probe.Observation{}
	for _, o := range observations {
		seen[o.Target.Name()] = o
		path, judged := paths[o.Standing(now)]
		if !judged {
			continue
		}
		if err := l.ways.SetPath(o.Target.Name(), path); err != nil {
			errs = append(errs, err)
		}
	}
	for key := range mesh.Remote {
		if _, asked := seen[key]; asked {
			continue
		}
		// It is no longer probed, so its last state would never change.
		if row, i := l.ways.Row(key); i != 0 && row.Path != bpf.PathAlive && row.Keyed == 1 {
			errs = append(errs, l.ways.SetPath(key, bpf.PathAlive))
		}
	}
	err := errors.Join(errs...)
	l.kernel.tell(err)
	l.publish(mesh, seen)
	l.tell(unwell(observations, l.edges.MTU, now))
	return err == nil
}

// publish writes the table of paths. A row that differs only in the time of its last
// answer is left alone.
func (l *liveness) publish(mesh *program.Mesh, seen map[string]probe.Observation) {
	evidence := l.evidence(mesh)
	txn := l.tables.DB.WriteTxn(l.tables.Paths)
	changed := false
	for row := range l.tables.Paths.All(txn) {
		if mesh.Remote[row.Key()] == nil {
			tables.Drop(txn, l.tables.Paths, row)
			changed = true
		}
	}
	for key, n := range mesh.Remote {
		kernel, index := l.ways.Row(key)
		row := &tables.Path{
			Cluster: n.Cluster, Node: n.Name, Index: index, Alive: kernel.Path == bpf.PathAlive, Lane: int(kernel.Lane), Keyed: kernel.Keyed == 1,
			Observation: seen[key], GossipDead: evidence[key].GossipDead,
		}
		old := tables.Get(txn, l.tables.Paths, key)
		if old != nil && samePath(old, row) {
			continue
		}
		tables.Put(txn, l.tables.Paths, row)
		changed = true
	}
	if !changed {
		txn.Abort()
		return
	}
	txn.Commit()
}

// pathAge is how old the figures in the row of an unchanged path may become.
const pathAge = 5 * time.Second

func samePath(a, b *tables.Path) bool {
	if b.Observation.Answered.Sub(a.Observation.Answered) > pathAge {
		return false
	}
	x, y := *a, *b
	x.Observation, y.Observation = probe.Observation{}, probe.Observation{}
	return x == y && a.Observation.State == b.Observation.State && a.Observation.Since.Equal(b.Observation.Since) && a.Observation.Limit == b.Observation.Limit
}

// sweep deletes flows that have ended or gone silent, until ctx ends, and calls told with
// the result of each sweep.
func sweep(ctx context.Context, d Datapath, every time.Duration, told func(error)) error {
	wait := every
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		begun := time.Now()
		_, err := d.Sweep(bpf.Now())
		wait = rest(every, time.Since(begun))
		if ctx.Err() == nil {
			told(err)
		}
	}
}

// rest is the pause after work that took this long: at most a twentieth of the time is
// spent working, however many flows there are.
func rest(every, took time.Duration) time.Duration { return max(every, 20*took) }
