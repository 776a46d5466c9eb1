// Package meshagent is the agent of a node: it turns the state in the cluster's etcd
// into datapath rows, tunnels and pod networks, and reports what only this node knows.
//
// It combines libraries and leaves decisions to them: package policy decides who may
// talk to whom, package service what is behind a service, package paths which way leads
// to a node. Nothing that a packet needs lives in this process, so stopping it removes
// nothing. Nor does losing the store: the agent keeps its state until an operator
// releases it to the rebuilt one.
//
//	etcd ─► reflector ─► intake ─► tables ─► program ─► maps
//	                                 │  ▲        paths ─► WireGuard, routes, maps
//	                                 │  ├─ endpoints ◄─ requests (socket, requester)
//	                                 │  └─ readiness
//	                                 └─► publisher ─► etcd
package meshagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/flow"
	"github.com/weft-mesh/weft/meshagent/endpoint"
	"github.com/weft-mesh/weft/meshagent/intake"
	"github.com/weft-mesh/weft/meshagent/paths"
	"github.com/weft-mesh/weft/meshagent/program"
	"github.com/weft-mesh/weft/meshagent/reflector"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/meshagent/trust"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/tunnel/gossip"
	"github.com/weft-mesh/weft/wire"
)

// Agent holds all parts of an agent.
type Agent struct {
	Tables *tables.Tables

	cfg     Config
	node    node
	edges   *Edges
	log     *slog.Logger
	started time.Time

	trust       *trust.Trust
	intake      *intake.Intake
	reflectors  []*reflector.Reflector
	rows        *paths.Rows
	program     *program.Program
	endpoints   *endpoint.Endpoints
	requester   *requester
	readiness   *readiness
	meshes      *program.Meshes
	tunnels     *paths.Tunnels
	liveness    *paths.Liveness
	publisher   *publisher
	hosts       *hosts
	names       *names
	observer    *observer
	standing    *standing
	shares      *shares
	sockets     *sockets // of the node's processes
	connections *sockets // of pods
	attachments *attachments
	masquerade  *masquerade
	access      *access
	health      *healthChecks
	plugin      *plugin
	files       *files
	ring        *flow.Ring

	listed chan struct{} // closed once every prefix has been read in full
	start  chan struct{} // closed once rows in the kernel may be changed
	open   chan struct{} // closed once this node may answer probes
	booted bool          // the kernel has nothing from a previous agent
}

func (a *Agent) membersPath() string { return filepath.Join(a.cfg.StateDir, "members") }

// part is something that runs until ctx ends.
type part interface {
	Run(ctx context.Context) error
}

// New returns the agent of the node that a join bundle is for, which meets the world at the
// given edges. It marks the mesh's CIDRs in the kernel's maps, so that nothing for them
// leaves unencrypted before the rest is known.
func New(cfg Config, b *api.JoinBundle, edges *Edges) (*Agent, error) {
	n, err := whoAmI(cfg, b)
	if err != nil {
		return nil, err
	}
	t := tables.New()
	a, err := newAgent(cfg, n, t, newFiles(t, cfg.StateDir, cfg.CNISpoolDir, cfg.Log), edges)
	if err != nil {
		return nil, err
	}
	return a, a.guard()
}

// Run works until ctx ends or a part fails. When it returns, nothing that it started is
// still running, and the kernel keeps what it has.
func (a *Agent) Run(ctx context.Context) error { return a.run(ctx) }

// newAgent builds all parts and starts none. It reads the kernel's maps.
func newAgent(cfg Config, n node, t *tables.Tables, f *files, edges *Edges) (*Agent, error) {
	log := cfg.Log.With("cluster", n.cluster, "node", n.name)
	a := &Agent{
		Tables: t, files: f, cfg: cfg, node: n, edges: edges, log: log, started: time.Now(),
		ring: flow.NewRing(cfg.KeepFlows), listed: make(chan struct{}), start: make(chan struct{}), open: make(chan struct{}),
	}
	internals := wire.Internals(n.cidrs)
	var err error
	if a.trust, err = trust.New(n.cluster, filepath.Join(cfg.StateDir, "generation"), edges.Store, f.tell, log); err != nil {
		return nil, err
	}
	a.intake = intake.New(n.cluster, a.Tables)
	var copies []*reflector.Reflector
	for _, prefix := range intake.Prefixes {
		conf := reflector.Config{
			Prefix: prefix, Store: edges.Store, Trust: a.trust.Judge, Incomplete: a.trust.Incomplete, Log: log,
			Apply: func(events []store.Event) {
				a.intake.Apply(events)
				a.publisher.heard(events)
			},
		}
		if prefix == wire.CiliumSyncedPrefix {
			conf.After = copies
		}
		r := reflector.New(conf)
		if prefix == wire.CachePrefix || prefix == wire.CiliumCachePrefix {
			copies = append(copies, r)
		}
		a.reflectors = append(a.reflectors, r)
	}
	a.standing = &standing{diagnose: edges.Diagnose, started: a.started, log: log}
	for _, r := range a.reflectors {
		a.standing.states = append(a.standing.states, r.State)
	}
	settings, _, err := edges.Datapath.Maps().Settings.Lookup(0)
	if err != nil {
		return nil, fmt.Errorf("read settings: %w", err)
	}
	if a.booted = settings.Revision == 0; !a.booted {
		close(a.open)
	}
	if a.rows, err = paths.NewRows(a.Tables, edges.Datapath.Maps()); err != nil {
		return nil, err
	}
	a.access = newAccess(n.bundle, net.DefaultResolver.LookupNetIP, a.Tables, edges.Reach, partTrouble(a.Tables, "access", "the join bundle does not follow the API servers", log))
	a.health = newHealthChecks(edges.HealthCheck, a.Tables, log)
	a.program, err = program.New(program.Config{
		Self: n.name, APIServers: a.access.servers, Ports: cfg.ports(), Tables: a.Tables, Maps: edges.Datapath.Maps(), Rows: a.rows, Start: a.start, Trace: cfg.Trace, Log: log, Outside: edges.Outside != nil,
		Remember: membersFile(a.membersPath()).write, Health: a.health.set,
	})
	if err != nil {
		return nil, err
	}
	var spool api.EndpointSpool
	if cfg.PodsFrom == Requests {
		spool = api.EndpointSpool(cfg.CNISpoolDir)
	}
	noAddress := partTrouble(a.Tables, "addresses", "pods get no address", log)
	a.endpoints, err = endpoint.New(endpoint.Config{
		Spool: spool, TellSpool: partTrouble(a.Tables, "removals", "pods that were deleted while the agent was away keep their network", log).tell,
		TellPool: func(why string) {
			var err error
			if why != "" {
				err = errors.New(why)
			}
			noAddress.tell(err)
		},
		CIDRs: n.cidrs, MTU: edges.MTU, Tables: a.Tables, Datapath: edges.Datapath, Plumbing: edges.Plumbing, Dir: endpoint.Dir(filepath.Join(cfg.StateDir, "endpoints")),
		Sockets: edges.Cgroup != nil && !cfg.SocketLBHostNamespaceOnly,
		Tell:    func(pod, why string) { setProblem(t, wire.ProblemPods, pod, why) }, Log: log,
	})
	if err != nil {
		return nil, err
	}
	a.requester = newRequester(n, cfg.PodsFrom, a.booted, a.Tables, a.endpoints, a.listed)
	a.readiness = &readiness{tables: a.Tables, endpoints: a.endpoints, first: a.requester.first, settled: make(chan struct{}), probes: map[string]*probing{}}
	if a.meshes, err = program.NewMeshes(a.Tables, n.name); err != nil {
		return nil, err
	}
	ways := paths.Config{
		Cluster: n.cluster, Node: n.name, Addresses: n.addrs, CIDRs: n.cidrs, Members: n.members, Internal: internals[0], MTU: edges.MTU,
		Tables: a.Tables, Rows: a.rows, Lanes: edges.Lanes, Host: edges.Host, Attach: edges.Datapath.AttachTunnel, Transport: edges.Transport,
		Start: a.start, Open: a.open, Lasting: lastingAfter, Log: log,
		Devices:   func(ifindex [2]uint32) { a.program.SetTunnels(ifindex, internals...) },
		Unwritten: (&trouble{tables: a.Tables, table: wire.ProblemPaths, what: "probe results do not reach the kernel", log: log}).tell,
	}
	if len(internals) > 1 {
		ways.Second = internals[1]
	}
	// After a boot first who is where: no packet uses a tunnel before that is known, and
	// handshakes with thousands of nodes take all CPUs where WireGuard is in user space.
	after := ways
	if a.booted {
		after.Start = a.program.Tried()
	}
	a.tunnels = paths.NewTunnels(after, a.meshes.Follower())
	a.liveness = paths.NewLiveness(ways, a.meshes.Follower(), a.tunnels)
	a.publisher = &publisher{node: n, edges: edges, tables: a.Tables, tunnels: a.tunnels, paths: a.liveness, trust: a.trust, settled: a.readiness.settled, told: make(chan struct{}), lost: make(chan struct{}, 1), trouble: partTrouble(a.Tables, "publisher", "the store does not take this node's state", log)}
	a.names = &names{own: n.cluster, tables: a.Tables, listed: a.listed}
	a.hosts = &hosts{path: cfg.Hosts, dns: cfg.ClusterDNS, domain: cfg.ClusterDomain, tell: f.tell, own: n.cluster, tables: a.Tables, listed: a.listed}
	a.observer = &observer{node: n, datapath: edges.Datapath, tables: a.Tables, explain: a.program.Explain, identity: a.program.Identity, ring: a.ring,
		trouble: partTrouble(a.Tables, "events", "flow events cannot be read", log)}
	a.shares = &shares{datapath: edges.Datapath, tables: a.Tables, trouble: partTrouble(a.Tables, "shares", "shares of the flow table cannot be read", log), log: log}
	a.masquerade = &masquerade{conf: cfg, node: n.addrs, maps: edges.Datapath.Maps(), outside: edges.Outside, expose: a.program.SetAddresses, trouble: partTrouble(a.Tables, "masquerade", "pods may not reach the world", log),
		ports: ports{datapath: edges.Datapath, tables: a.Tables, log: log}}
	endStranded := func(context.Context) (ended, doubtful int, err error) { return edges.Datapath.EndStranded() }
	a.sockets = &sockets{look: endStranded, what: "sockets of the node", paths: true, longest: socketPause, tables: a.Tables, log: log, written: a.program.Passed(),
		trouble: partTrouble(a.Tables, "sockets", "sockets of the node keep backends that are lost", log)}
	ofPods := &connections{maps: edges.Datapath.Maps(), pods: a.endpoints}
	a.connections = &sockets{look: ofPods.look, what: "connections of pods", tables: a.Tables, log: log, written: a.program.Passed(),
		trouble: partTrouble(a.Tables, "connections", "pods that only wait keep connections with backends that are gone", log)}
	a.plugin = newPlugin(cfg, a.program.Passed(), partTrouble(a.Tables, "cni", "the CNI plugin is not installed as it should be", log))
	a.attachments = &attachments{datapath: edges.Datapath, device: edges.Device, cgroup: edges.Cgroup, tables: a.Tables, log: log}
	return a, nil
}

// run is Run with more parts.
func (a *Agent) run(ctx context.Context, more ...part) error {
	defer a.meshes.Close()
	if err := a.Tables.DB.Start(); err != nil {
		return fmt.Errorf("start tables: %w", err)
	}
	defer func() { _ = a.Tables.DB.Stop() }()
	g, ctx := errgroup.WithContext(ctx)
	if a.edges.Cgroup != nil {
		more = append(more, a.sockets)
	}
	parts := []part{a.endpoints, a.requester, a.readiness, a.program, a.tunnels, a.publisher, a.hosts, a.observer, a.standing, a.shares, a.files, a.attachments, a.masquerade, a.connections, a.access, a.health, a.plugin}
	for _, r := range a.reflectors {
		parts = append(parts, r)
	}
	for _, p := range append(parts, more...) {
		g.Go(func() error { return p.Run(ctx) })
	}
	g.Go(func() error { return a.probe(ctx) })
	g.Go(func() error { return a.gossip(ctx) })
	g.Go(func() error {
		return sweep(ctx, a.edges.Datapath, a.liveness.Flows, partTrouble(a.Tables, "flows", "flows that have ended stay in their table", a.log).tell)
	})
	g.Go(func() error { return a.order(ctx) })
	return g.Wait()
}

// order opens the gates. Rows in the kernel may be changed once every source has been
// read in full and the previous agent's pods have been taken over. After a boot, this
// node answers probes only once it has reported that its pods are starting: until then
// the mesh believes that they are still ready.
func (a *Agent) order(ctx context.Context) error {
	for _, r := range a.reflectors {
		select {
		case <-ctx.Done():
			return nil
		case <-r.Synced():
		}
	}
	close(a.listed)
	select {
	case <-ctx.Done():
		return nil
	case <-a.endpoints.Adopted():
	}
	close(a.start)
	a.log.Info("all sources read", "after", time.Since(a.started).Round(time.Millisecond))
	if !a.booted {
		return nil
	}
	select {
	case <-ctx.Done():
		return nil
	case <-a.publisher.told:
		if a.Tables.Endpoints.NumObjects(a.Tables.DB.ReadTxn()) > 0 {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(newsTime):
			}
		}
	case <-time.After(toldPatience):
		a.log.Warn("could not report in time that this machine's pods are starting; they may get requests too early")
	}
	close(a.open)
	return nil
}

// toldPatience is how long a machine that has booted waits for the store to take the
// report about its pods: a full store must not keep the node out of the mesh.
const toldPatience = 5 * time.Second

// newsTime is how long a change in one store may take to reach every agent of every
// cluster: ten times the 99th percentile. A machine that has booted with pods gets its
// first requests that much later.
const newsTime = time.Second

// probe finds out which paths carry.
func (a *Agent) probe(ctx context.Context) error {
	if a.liveness.Ready(ctx) != nil {
		return nil
	}
	trouble := &trouble{tables: a.Tables, table: wire.ProblemProbes, what: "paths are not probed", log: a.log}
	trouble.retry(ctx, a.liveness.Probe)
	return nil
}

// gossip takes part in the cluster's gossip. Without it, only probes find dead nodes.
func (a *Agent) gossip(ctx context.Context) error {
	if a.edges.Gossip == nil || a.cfg.GossipPort == 0 {
		return nil
	}
	trouble := partTrouble(a.Tables, "gossip", "gossip does not run, so only probes find dead nodes", a.log)
	trouble.retry(ctx, func(ctx context.Context) error {
		keys, changed := a.intake.GossipKeys()
		lan := keys.LAN
		if len(lan) == 0 && len(a.node.gossip) > 0 {
			lan = [][]byte{a.node.gossip}
		}
		if len(lan) == 0 {
			select {
			case <-ctx.Done():
			case <-changed:
			}
			return nil
		}
		cfg := gossip.Config{
			Self:  gossip.Member{Cluster: a.node.cluster, Name: a.node.name, Role: gossip.Agent, Addr: netip.AddrPortFrom(a.node.ip, a.cfg.GossipPort)},
			Label: "weft-lan-" + a.node.cluster, Speed: gossip.VeryFast, Keys: lan, Clusters: []string{a.node.cluster},
			OnEvent: a.liveness.Heard, Say: a.standing.say, Log: a.log,
		}
		return a.gossipOnce(ctx, cfg, changed)
	})
	return nil
}

// gossipOnce takes part until the gossip keys change.
func (a *Agent) gossipOnce(ctx context.Context, cfg gossip.Config, changed <-chan struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer cancel()
		return a.edges.Gossip(ctx, cfg, a.access.now().Gossip)
	})
	g.Go(func() error {
		select {
		case <-ctx.Done():
		case <-changed:
			cancel()
		}
		return nil
	})
	return g.Wait()
}
