package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/weft-mesh/weft/internal/benchmesh/peers"
	"github.com/weft-mesh/weft/lab"
	"github.com/weft-mesh/weft/lab/traffic"
)

// joinAll adds peers until there are n and waits until the agent has all they export.
func (b *bench) joinAll(ctx context.Context, n int) error {
	if b.hub.joined >= n {
		return nil
	}
	began := time.Now()
	defer b.profileAt(ctx, "join", n+1)()
	if err := b.hub.join(ctx, n); err != nil {
		return err
	}
	added := time.Since(began)
	err := b.awaitRows(ctx)
	took := time.Since(began)
	b.figure("join", "", took.Seconds(), err, map[string]float64{"added_s": added.Seconds()})
	progress("%d clusters: joined after %v", b.hub.joined+1, took.Round(time.Millisecond))
	return err
}

// usage is what was used up to a moment.
type usage struct {
	at             time.Time
	agent, server  time.Duration
	received, sent float64 // bytes: by the agent's machine, from generated clusters
}

func (b *bench) usage() (u usage, err error) {
	agent, err := findProcess(b.agentGroup, "agent")
	if err != nil {
		return u, err
	}
	server, err := findProcess(b.controlGroup, "apiserver")
	if err != nil {
		return u, err
	}
	var errs [3]error
	var received uint64
	u.agent, errs[0] = agent.cpu()
	u.server, errs[1] = server.cpu()
	received, errs[2] = agent.received("eth0")
	u.received, u.sent, u.at = float64(received), float64(b.hub.sent.Load()), time.Now()
	return u, errors.Join(errs[:]...)
}

// since is the usage per second since an earlier moment.
func (u usage) since(v usage) (agent, server, received, sent float64) {
	s := u.at.Sub(v.at).Seconds()
	return (u.agent - v.agent).Seconds() / s, (u.server - v.server).Seconds() / s, (u.received - v.received) / s, (u.sent - v.sent) / s
}

// oneChanges makes changes one by one, each after the one before has reached the kernel,
// and measures the agent's CPU time beyond what it uses without changes.
func (b *bench) oneChanges(ctx context.Context) error {
	if err := b.calm(ctx); err != nil {
		return err
	}
	for _, kind := range []peers.Kind{peers.Address, peers.Identity, peers.Backend, peers.Node} {
		if !b.wants("one-change") && kind != peers.Backend {
			continue
		}
		// Before each kind, because a large process is not idle in the same way for long.
		idle, err := b.usageOver(ctx, b.idle)
		if err != nil {
			return err
		}
		if err := b.oneChange(ctx, kind, idle); err != nil {
			return err
		}
	}
	return nil
}

// calm waits until the agent's usage no longer falls: after a join it still sets up tunnels.
func (b *bench) calm(ctx context.Context) error {
	last := math.Inf(1)
	for deadline := time.Now().Add(b.patience); time.Now().Before(deadline); {
		u, err := b.usageOver(ctx, max(b.rest/3, 100*time.Millisecond))
		if err != nil {
			return err
		}
		if used := u.agent.Seconds(); used > 0.8*last {
			return nil
		} else {
			last = max(used, 0.01)
		}
	}
	return nil
}

// usageOver is the usage per second over some time.
func (b *bench) usageOver(ctx context.Context, d time.Duration) (perSecond usage, err error) {
	from, err := b.usage()
	if err != nil {
		return usage{}, err
	}
	if err := sleep(ctx, d); err != nil {
		return usage{}, err
	}
	to, err := b.usage()
	agent, server, received, sent := to.since(from)
	second := float64(time.Second)
	return usage{agent: time.Duration(agent * second), server: time.Duration(server * second), received: received, sent: sent}, err
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// kindPatience bounds how long one kind of change is measured.
const kindPatience = 20 * time.Second

func (b *bench) oneChange(ctx context.Context, kind peers.Kind, idle usage) error {
	defer b.profile(ctx, "one-change-"+kind.String())()
	from, err := b.usage()
	if err != nil {
		return err
	}
	var late []float64
	var failed error
	made := 0
	for began := time.Now(); made < b.rounds && (made == 0 || time.Since(began) < kindPatience) && failed == nil; made++ {
		c, err := b.hub.world.Add(0, kind)
		if err != nil {
			return err
		}
		if !await(ctx, b.patience, func() bool { return b.kernel.holds(c, b.large) }) {
			failed = fmt.Errorf("a change did not reach the kernel within %v", b.patience)
		}
		late = append(late, millis(time.Since(c.At)))
		// What follows from the change beyond its row counts too.
		if err := sleep(ctx, 30*time.Millisecond); err != nil {
			return err
		}
	}
	to, err := b.usage()
	if err != nil {
		return err
	}
	seconds, n := to.at.Sub(from.at).Seconds(), float64(made)
	beyond := func(total, perSecond float64) float64 { return max(0, total-perSecond*seconds) / n }
	cpu := beyond(millis(to.agent-from.agent), millis(idle.agent))
	received, sent := beyond(to.received-from.received, idle.received), beyond(to.sent-from.sent, idle.sent)
	if b.wants("one-change") {
		b.figure("one-change", kind.String(), cpu, failed, map[string]float64{
			"changes": n, "apiserver_ms": beyond(millis(to.server-from.server), millis(idle.server)), "idle_cores": idle.agent.Seconds(),
			"latency_p50_ms": traffic.Percentile(late, 0.5), "received_bytes": received, "sent_bytes": sent,
			"interval_bytes": (to.received - from.received) / n, // what came for other reasons meanwhile included
		})
	}
	switch base := b.base[kind]; {
	case b.hub.joined == 1 && b.base != nil && failed == nil:
		b.base[kind] = cpu
	case b.hub.joined > 1 && base > 0 && b.wants("one-change"):
		b.figure("flat", kind.String(), cpu/base, failed, map[string]float64{"at_one_peer_ms": base, "now_ms": cpu})
	}
	if kind == peers.Backend && b.wants("traffic") && b.hub.joined == len(b.hub.world.Clusters) && failed == nil {
		b.trafficLine(received, sent)
	}
	return nil
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// The mesh of Cilium's own calculation of the bytes that one change costs.
const (
	trafficClusters = 11
	trafficNodes    = 1000
)

// trafficLine computes what one changed backend costs a whole mesh: each other cluster's
// API server receives it once, and each agent of the mesh once from its own.
func (b *bench) trafficLine(perAgent, perPeer float64) {
	const megabyte = 1e6
	bytes := (trafficClusters-1)*perPeer + trafficClusters*trafficNodes*perAgent
	f := figure{
		Line: "traffic", Clusters: b.hub.joined + 1, Known: b.hub.known().Shape.Known(), Value: bytes / megabyte,
		Basis:  fmt.Sprintf("computed for %d clusters of %d nodes from measured messages", trafficClusters, trafficNodes),
		Detail: map[string]float64{"agent_bytes": perAgent, "peer_bytes": perPeer, "backends": float64(b.hub.known().LargeBackends())},
	}
	b.print(judged(f))
}

// memoryLine is what an agent takes for each endpoint of its peers.
func (b *bench) memoryLine(ctx context.Context) error {
	if err := sleep(ctx, b.rest); err != nil {
		return err
	}
	sum, maps, err := b.taken()
	if err != nil {
		return err
	}
	tunnel := b.node.Memory()["tunnel"]
	server, err := findProcess(b.controlGroup, "apiserver")
	if err != nil {
		return err
	}
	resident, err := server.resident()
	if err != nil {
		return err
	}
	known := float64(b.hub.known().Shape.Known())
	b.figure("memory", "", (float64(sum)-float64(b.before))/known, b.check(), map[string]float64{
		"agent_mib": mib(sum - maps), "maps_mib": mib(maps), "before_mib": mib(b.before), "tunnel_mib": mib(tunnel), "apiserver_mib": mib(resident),
	})
	return nil
}

func mib(bytes uint64) float64 { return float64(bytes) / (1 << 20) }

// underChurn lets all peers change at their rates, and measures how long single changes
// take into the kernel meanwhile, and what API server and agent use.
func (b *bench) underChurn(ctx context.Context) error {
	known := b.hub.known()
	churning, stop := context.WithCancel(ctx)
	made := make(chan int, 1)
	go func() { made <- known.Churn(churning, peers.ScaleTest(), 1, nil) }()
	defer stop()
	defer b.profile(ctx, "churn")()
	if err := sleep(ctx, b.rest); err != nil {
		return err
	}
	from, err := b.usage()
	if err != nil {
		return err
	}
	var took []float64
	var failed error
	r := rand.New(rand.NewPCG(1, 1))
	for began := time.Now(); time.Since(began) < b.churn && failed == nil; {
		c, err := b.hub.world.Add(r.IntN(b.hub.joined), peers.Address)
		if err != nil {
			return err
		}
		// Another identity counts as well, because the pod may have been given one; a pod
		// that is gone already is no sample.
		gone := false
		in := await(ctx, b.patience, func() bool {
			_, there := b.kernel.address(c.Addr)
			gone = !there && !c.Cluster.Has(c.Addr)
			return there || gone
		})
		if !in {
			failed = fmt.Errorf("a change did not reach the kernel within %v", b.patience)
		}
		if !gone {
			took = append(took, millis(time.Since(c.At)))
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	to, err := b.usage()
	if err != nil {
		return err
	}
	stop()
	changes := float64(<-made) / (to.at.Sub(from.at) + b.rest).Seconds()
	agent, server, received, _ := to.since(from)
	p, err := findProcess(b.controlGroup, "apiserver")
	if err != nil {
		return err
	}
	resident, err := p.resident()
	if err != nil {
		return err
	}
	caught := b.caughtUp(ctx)
	detail := map[string]float64{"changes_per_second": changes, "agent_cores": agent, "received_bytes_per_second": received}
	if b.wants("propagation") {
		b.figure("propagation", "", traffic.Percentile(took, 0.99), errors.Join(failed, caught), map[string]float64{
			"samples": float64(len(took)), "p50_ms": traffic.Percentile(took, 0.5), "max_ms": traffic.Percentile(took, 1),
			"changes_per_second": changes, "agent_cores": agent,
		})
	}
	if b.wants("apiserver") && b.hub.joined == len(b.hub.world.Clusters) {
		b.figure("apiserver", "cpu", server, nil, detail)
		b.figure("apiserver", "rss", mib(resident), nil, detail)
	}
	return nil
}

// caughtUp waits until nothing differs any longer between what is exported and the map.
func (b *bench) caughtUp(ctx context.Context) (err error) {
	for deadline := time.Now().Add(b.patience); ; {
		if err = b.check(); err == nil || ctx.Err() != nil || time.Now().After(deadline) {
			return err
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}

// converge cuts the API server off from all peers, has them change, and measures how long
// it takes after the cut until the kernel has all of it.
func (b *bench) converge(ctx context.Context) error {
	control, known := b.hub.control(), b.hub.known()
	// Where peers are few, more would be a large part of all they have, and be held back.
	changes := min(b.changes, known.Shape.Known()/5)
	began := time.Now()
	if err := control.Block(b.hub.addr, nil, true); err != nil {
		return err
	}
	last := map[netip.Addr]peers.Change{}
	r := rand.New(rand.NewPCG(2, 2))
	for range changes {
		c := known.Random(r, peers.Address)
		last[c.Addr] = c
	}
	if err := sleep(ctx, b.partition-time.Since(began)); err != nil {
		return err
	}
	defer b.profile(ctx, "converge")()
	healed := time.Now()
	if err := control.Unblock(); err != nil {
		return err
	}
	waiting := make([]peers.Change, 0, len(last))
	for _, c := range last {
		waiting = append(waiting, c)
	}
	all := len(waiting)
	first := time.Duration(0)
	in := await(ctx, b.patience, func() bool {
		for len(waiting) > 0 && b.kernel.holds(waiting[0], b.large) {
			waiting = waiting[1:]
		}
		if first == 0 && len(waiting) < all {
			first = time.Since(healed)
		}
		return len(waiting) == 0
	})
	took := time.Since(healed)
	failed := ctx.Err()
	if failed == nil && !in {
		waiting = slices.DeleteFunc(waiting, func(c peers.Change) bool { return b.kernel.holds(c, b.large) })
		up, err := b.hub.up(ctx)
		failed = errors.Join(fmt.Errorf("after %v %d of %d changed rows are not there, and %d of %d links are up", b.patience, len(waiting), all, up, b.hub.joined), err)
	}
	if failed == nil {
		failed = b.caughtUp(ctx)
	}
	b.figure("converge", "", took.Seconds(), failed, map[string]float64{
		"changes": float64(changes), "partition_s": b.partition.Seconds(), "first_s": first.Seconds(),
	})
	return ctx.Err()
}

// reconnect kills the API server and starts it again, and measures how long it takes until
// every link to a peer is up again, and how many rows the kernel lacked meanwhile.
func (b *bench) reconnect(ctx context.Context) error {
	refs, err := b.lab.Refs("apiserver@" + hubName + "/n1")
	if err != nil {
		return err
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	lost := make(chan int, 1)
	go func() { lost <- b.mostAbsent(watching) }()
	began := time.Now()
	if err := lab.Kill(refs); err != nil {
		return err
	}
	if err := lab.Start(refs); err != nil {
		return err
	}
	defer b.profile(ctx, "reconnect")()
	up := 0
	var failed error
	for deadline := began.Add(b.patience); up < b.hub.joined && failed == nil; {
		if up, err = b.hub.up(ctx); ctx.Err() != nil {
			return ctx.Err()
		} else if time.Now().After(deadline) {
			failed = fmt.Errorf("after %v %d of %d links are up: %w", b.patience, up, b.hub.joined, errors.Join(err))
		}
		if up < b.hub.joined {
			if err := sleep(ctx, 100*time.Millisecond); err != nil {
				return err
			}
		}
	}
	took := time.Since(began)
	// What a resynchronised peer would have withdrawn by mistake is gone by now.
	if err := sleep(ctx, b.rest); err != nil {
		return err
	}
	stop()
	b.figure("reconnect", "", took.Seconds(), failed, map[string]float64{"peers": float64(up)})
	b.figure("reconnect", "deletions", float64(<-lost), b.check(), nil)
	return nil
}

// mostAbsent counts all rows again and again until ctx ends, and returns by how many there
// were fewer than at first. No peer may change meanwhile.
func (b *bench) mostAbsent(ctx context.Context) (most int) {
	first, err := b.kernel.count()
	for err == nil && sleep(ctx, 500*time.Millisecond) == nil {
		var now int
		if now, err = b.kernel.count(); err == nil {
			most = max(most, first-now)
		}
	}
	if err != nil {
		return math.MaxInt32
	}
	return most
}

// tunnelState is where `weft tunnel` keeps the peers of its devices.
const tunnelState = "/var/lib/weft/tunnel"

// bootstrap takes the power of the agent's machine, whose kernel then has nothing, starts
// it again, and measures how long a new agent takes until its maps hold everything.
func (b *bench) bootstrap(ctx context.Context) error {
	if err := b.node.PowerOff(); err != nil {
		return err
	}
	// A new machine has no tunnels from before.
	if err := os.RemoveAll(b.node.Path(tunnelState)); err != nil {
		return err
	}
	if err := b.node.PowerOn(); err != nil {
		return err
	}
	if err := b.hub.reach(b.node); err != nil {
		return err
	}
	b.kernel.Close()
	began := time.Now()
	if err := b.lab.StartAgent(b.node); err != nil {
		return err
	}
	defer b.profile(ctx, "bootstrap")()
	opened := await(ctx, b.patience, func() bool {
		k, err := openKernel(b.node)
		if err == nil {
			b.kernel = k
		}
		return err == nil
	})
	if !opened {
		b.figure("bootstrap", "", time.Since(began).Seconds(), fmt.Errorf("a new agent has no maps after %v", b.patience), nil)
		return ctx.Err()
	}
	loaded := time.Since(began)
	failed := b.awaitRows(ctx)
	took := time.Since(began)
	if failed == nil {
		failed = b.check()
	}
	u, err := b.usage()
	if err != nil {
		return err
	}
	b.figure("bootstrap", "", took.Seconds(), failed, map[string]float64{"agent_cpu_s": u.agent.Seconds(), "maps_s": loaded.Seconds()})
	return ctx.Err()
}
