package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/internal/benchmesh/peers"
	"github.com/weft-mesh/weft/lab"
)

// plan is how thoroughly something is measured.
type plan struct {
	// shape is what each generated cluster has.
	shape peers.Shape
	// rounds is how many changes of each kind are made one by one.
	rounds int
	// rest is for how long nothing is changed, for late effects to show, and idle to see what
	// is used without changes, before those of each kind.
	rest, idle time.Duration
	// churn is for how long clusters change at their rates.
	churn time.Duration
	// partition is how long peers are out of reach, and changes how much they change.
	partition time.Duration
	changes   int
	// failovers is how often a machine and a cluster are lost.
	failovers int
	// patience is how long anything may take that is waited for.
	patience time.Duration
	// memory is how much the processes may take together, in bytes.
	memory uint64
	// profiles is a folder for profiles of agent and API server; empty: none are taken.
	profiles string
	binary   string
}

// efforts are the plans that -effort takes: for the page of results, for a look at a change,
// and to see that everything works.
var efforts = map[string]plan{
	"full": {
		shape: peers.PerCluster(), rounds: 70, rest: 3 * time.Second, idle: 4 * time.Second, churn: 20 * time.Second, partition: time.Minute, changes: 10_000,
		failovers: 10, patience: 2 * time.Minute,
	},
	"quick": {
		shape: peers.PerCluster(), rounds: 40, rest: 3 * time.Second, idle: 2 * time.Second, churn: 8 * time.Second, partition: 15 * time.Second, changes: 10_000,
		failovers: 3, patience: 40 * time.Second,
	},
	"check": {
		shape:  peers.Shape{Nodes: 5, Endpoints: 150, Identities: 20, Services: 3, Backends: 2, Large: 200},
		rounds: 2, rest: 200 * time.Millisecond, idle: time.Second, churn: time.Second, partition: time.Second, changes: 50,
		failovers: 1, patience: 40 * time.Second,
	},
}

// bench measures one agent and one API server in a mesh of one size.
type bench struct {
	plan
	wants    func(line string) bool
	print    func(figure)
	clusters int // of the mesh, the real one included

	lab    *lab.Lab
	hub    *hub
	node   *lab.Node // runs the agent and nothing else
	kernel *kernel
	// agentGroup and controlGroup are the cgroups of node and of the API server's machine.
	agentGroup, controlGroup string
	large                    netip.Addr // address of peers.LargeService
	// base is the cost of a change with one peer, by kind.
	base map[peers.Kind]float64
	// before is what the agent took before any peer, in bytes: itself and its maps.
	before uint64
	// stalled is the machine's CPU pressure at the last figure, and when that was.
	stalled   time.Duration
	stalledAt time.Time
}

// hubName is the real cluster of the mesh, whose ID is 1.
const hubName = "hub"

// topology is one cluster: its API server on n1, its agent on n2.
func topology(clusters int) lab.Topology {
	hub := lab.Cluster{Name: hubName, ID: 1, Nodes: []string{"n1", "n2"}}
	if splitOf(clusters) == identity.Split511 {
		hub.APIServer = []string{"--max-connected-clusters", "511"}
	}
	return lab.Topology{Clusters: []lab.Cluster{hub}}
}

// shapeOf is the generated clusters of a mesh with so many in all, whose first real ones
// have the IDs up to real.
func (p plan) shapeOf(clusters, real int) peers.Shape {
	s := p.shape
	s.Clusters, s.FirstID, s.Split = clusters-real, identity.ClusterID(real+1), splitOf(clusters)
	return s
}

// run raises a mesh of one size, measures in it and takes it down again.
func (b *bench) run(ctx context.Context, measure func(context.Context) error) (err error) {
	began := time.Now()
	world, err := peers.New(ctx, b.shapeOf(b.clusters, 1))
	if err != nil {
		return err
	}
	progress("%d clusters: generated %d endpoints in %v; they take %d MiB here", b.clusters, world.Shape.Known(), time.Since(began).Round(time.Millisecond), ownMemory()>>20)
	if b.lab, err = lab.Raise(ctx, lab.Config{Topology: topology(b.clusters), Binary: b.binary, File: "bench-mesh"}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.lab.Close()) }()
	if err := b.lab.Boot(ctx); err != nil {
		return err
	}
	if b.hub, err = newHub(ctx, b.lab, hubName, world); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.hub.Close()) }()
	if err := b.prepare(ctx); err != nil {
		return err
	}
	defer func() { b.kernel.Close() }()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go b.guard(ctx, b.lab, cancel)
	if err := measure(ctx); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return errors.Join(err, b.lab.Failures())
	}
	return b.lab.Failures()
}

// prepare finds the processes, stops the agent beside the API server and applies the
// hub's objects.
func (b *bench) prepare(ctx context.Context) (err error) {
	b.node = must(b.lab.Node(hubName + "/n2"))
	record, err := lab.ReadRecord(b.lab.ID)
	if err != nil {
		return err
	}
	b.agentGroup, b.controlGroup = record.Nodes[hubName+"/n2"].Cgroup, record.Nodes[hubName+"/n1"].Cgroup
	idle, err := b.lab.Refs("agent@" + hubName + "/n1")
	if err != nil {
		return err
	}
	if err := lab.Stop(idle); err != nil {
		return err
	}
	if b.kernel, err = openKernel(b.node); err != nil {
		return err
	}
	b.large = largeAddress
	if err := b.apply(ctx); err != nil {
		return err
	}
	if !await(ctx, b.patience, func() bool { _, ok := b.kernel.pod(); return ok }) {
		return errors.New("the hub's own pod does not get ready")
	}
	b.before, _, err = b.taken()
	return err
}

// stages measures with one peer, then with all of them.
func (b *bench) stages(ctx context.Context) error {
	all := len(b.hub.world.Clusters)
	if b.wants("one-change") || b.wants("propagation") {
		if err := b.joinAll(ctx, 1); err != nil {
			return err
		}
		b.base = map[peers.Kind]float64{}
		if b.wants("one-change") {
			if err := b.oneChanges(ctx); err != nil {
				return err
			}
		}
		if b.wants("propagation") {
			if err := b.underChurn(ctx); err != nil {
				return err
			}
		}
	}
	if err := b.joinAll(ctx, all); err != nil {
		return err
	}
	for _, step := range []struct {
		lines []string
		do    func(context.Context) error
	}{
		{[]string{"memory"}, b.memoryLine},
		{[]string{"one-change", "traffic"}, b.oneChanges},
		{[]string{"propagation", "apiserver"}, b.underChurn},
		{[]string{"converge"}, b.converge},
		{[]string{"reconnect"}, b.reconnect},
		{[]string{"bootstrap"}, b.bootstrap},
	} {
		for _, line := range step.lines {
			if b.wants(line) {
				if err := step.do(ctx); err != nil {
					return err
				}
				break
			}
		}
	}
	return nil
}

// guard ends a run if the processes of its lab take too much memory.
func (b *bench) guard(ctx context.Context, l *lab.Lab, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var sum uint64
		for _, n := range l.Nodes() {
			for _, bytes := range n.Memory() {
				sum += bytes
			}
		}
		if sum += ownMemory(); sum > b.memory {
			cancel(fmt.Errorf("stopped: the processes took %d MiB, more than -memory allows", sum>>20))
			return
		}
	}
}

// ownMemory is what this process takes, with all generated clusters, in bytes.
func ownMemory() uint64 {
	var own runtime.MemStats
	runtime.ReadMemStats(&own)
	return own.Sys
}

// await looks until something holds; false if it does not in time.
func await(ctx context.Context, patience time.Duration, holds func() bool) bool {
	const pause = 200 * time.Microsecond
	for deadline := time.Now().Add(patience); ctx.Err() == nil; time.Sleep(pause) {
		if holds() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
	return false
}

// awaitRows waits until the kernel has the rows of all pods of the peers, and all backends
// of the large service. It returns an error that says what is missing.
func (b *bench) awaitRows(ctx context.Context) error {
	known := b.hub.known()
	want := known.LargeBackends()
	found, all := b.kernel.awaitPods(ctx, known, b.patience)
	in := found == all && await(ctx, b.patience, func() bool { return b.kernel.backends(b.large) >= want })
	if ctx.Err() != nil || in {
		return ctx.Err()
	}
	return fmt.Errorf("after %v the agent has %d of %d endpoints and %d of %d backends", b.patience, found, all, b.kernel.backends(b.large), want)
}

// check compares everything and returns an error that counts what differs.
func (b *bench) check() error {
	rows, err := b.kernel.rows()
	if err != nil {
		return err
	}
	if differ, absent := difference(b.hub.known(), rows); differ > 0 {
		return fmt.Errorf("%d rows of the agent's map differ from what the peers export; %d of them are absent", differ, absent)
	}
	return nil
}

// taken is the memory of the agent, and of its maps, in bytes.
func (b *bench) taken() (sum, maps uint64, err error) {
	agent, err := findProcess(b.agentGroup, "agent")
	if err != nil {
		return 0, 0, err
	}
	resident, err := agent.resident()
	maps = b.kernel.memory()
	return resident + maps, maps, err
}

// figure prints a figure of this size, in seconds if it has no target. Its details tell how
// busy the machine was since the one before: the share of time in which something waited for
// a CPU, be it of ours or not.
func (b *bench) figure(line, what string, value float64, failed error, detail map[string]float64) {
	if stalled, err := pressure(); err == nil {
		now := time.Now()
		if detail == nil {
			detail = map[string]float64{}
		}
		if passed := now.Sub(b.stalledAt); !b.stalledAt.IsZero() && passed > time.Second {
			detail["cpu_pressure"] = (stalled - b.stalled).Seconds() / passed.Seconds()
		}
		b.stalled, b.stalledAt = stalled, now
	}
	f := figure{Line: line, What: what, Clusters: b.hub.joined + 1, Known: b.hub.known().Shape.Known(), Value: value, Unit: "s", Detail: detail}
	if failed != nil {
		f.Error = failed.Error()
	}
	b.print(judged(f))
}

// profile takes profiles of agent and API server while something is measured, if that is
// wanted, which costs a little. Call the function it returns at the end.
func (b *bench) profile(ctx context.Context, name string) func() {
	return b.profileAt(ctx, name, b.hub.joined+1)
}

// profileAt is profile for a mesh that will have so many clusters at the end.
func (b *bench) profileAt(ctx context.Context, name string, clusters int) func() {
	if b.profiles == "" {
		return func() {}
	}
	return b.takeProfiles(ctx, filepath.Join(b.profiles, fmt.Sprintf("%s-%d", name, clusters)))
}

func writeFile(path string, text []byte) {
	if err := os.WriteFile(path, text, 0o600); err != nil {
		progress("%v", err)
	}
}
