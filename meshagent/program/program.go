// Package program writes the agent's tables to the datapath's maps.
//
// One loop follows the tables and writes what a change concerns: policy first, then the
// owner of each address, then pods and services, and last the revisions that make flows
// be judged again. The view says which rows are believed and which others a
// change concerns; the loop decides the order of writes, so that no intermediate state
// is wrong.
package program

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/internal/addrmap"
	"github.com/weft-mesh/weft/meshagent/paths"
	"github.com/weft-mesh/weft/meshagent/reconcile"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/wire"
)

// Config is what a Program needs.
type Config struct {
	// Self is the name of this node.
	Self string
	// APIServers returns the addresses of our own cluster's API servers, when it names these;
	// nil: it has not yet.
	APIServers func(*wire.Access) []netip.Addr
	// Ports are those at which a machine with an agent needs its own address for itself.
	Ports  []uint16
	Tables *tables.Tables
	Maps   *bpf.Maps
	// Rows give nodes their indexes, before anything refers to them.
	Rows *paths.Rows
	// Start is closed once all sources have been listed and the node's pods adopted.
	// Until then nothing in the kernel is touched.
	Start <-chan struct{}
	// Remember saves the CIDRs of present and former members to disk, so that a
	// booting machine can block them before it has read anything. Nil: not saved.
	Remember func([]netip.Prefix) error
	// Trace requests an event for every new allowed flow.
	Trace bool
	// Health is called with the health checks of all services whenever one is new; nil: nobody
	// asks.
	Health func([]Health)
	// Outside says that SetAddresses will be called. Until then node ports of an earlier
	// agent stay.
	Outside bool
	Log     *slog.Logger
}

// Program is the loop. Run it once.
type Program struct {
	cfg Config

	settings  bpf.Settings // as in the kernel
	revisions *revisions
	addrs     *reconcile.Reconciler[bpf.Addr, bpf.IPInfo]
	prefixes  *reconcile.Reconciler[bpf.PrefixKey, bpf.IPInfo]
	endpoints *reconcile.Reconciler[bpf.Addr, bpf.Endpoint]
	policies  *policies
	frontends *frontends
	numbers   *numbering
	variants  *variants
	// spots are the addresses that the kernel has rows of; ported are those in table ips
	// with named ports.
	spots  spots
	ported ported

	// beliefs follow clusters, nodes and former.
	beliefs *beliefs

	// What has to be written, besides the rows that the feeds give: addresses and
	// prefixes; the indexes that nodes need or give back; the rows of clusters, by ID;
	// the identities of clusters; the doubts about former members.
	owners          owners
	joining         map[string]bool
	leaving         map[string]bool
	ids             map[identity.ClusterID]bool
	judging         map[string]bool
	formerMoved     bool
	pruned, unsaved bool

	// hosted finds the addresses behind a node.
	hosted hosted

	ips        *ipFeed
	identities feed[*tables.Identity]
	changed    feed[*tables.Policy]
	// did is the input that stages have seen which look at everything whenever some of
	// it has changed; zero means the stage must run.
	did done
	// epoch counts changes in what one stage passes to another.
	epoch    uint64
	subjects map[string]subject
	// enlisted are the named ports of pods on this node that rules are made for.
	enlisted map[string]identity.Labels
	// renumbered is set while pods of this node may not be under the rules for new numbers
	// of named ports yet.
	renumbered bool
	force      force
	// retiring are prefixes that policies named, until their rows and numbers are gone.
	retiring map[netip.Prefix]bool
	// cidrs are the numbers of the prefixes that policies name, named finds them by
	// range.
	cidrs map[netip.Prefix]identity.Number
	named ranges[struct{}]
	// members finds the prefixes that the kernel holds as a member's.
	members ranges[struct{}]
	// kept is what Remember saved last; nil if nothing yet.
	kept     []netip.Prefix
	attempts int
	// tried is closed after the first pass, passed after the first that wrote everything.
	tried, passed chan struct{}
	once          struct{ tried, passed sync.Once }

	// mu guards lanes, internal, exposed and addressed, which other goroutines set.
	mu        sync.Mutex
	lanes     [2]uint32
	internal  [2]bpf.Addr // of IPv4 and of IPv6
	exposed   []netip.Addr
	addressed bool
	kicked    chan struct{}
}

type done struct {
	endpoints signature
	policy    stage
}

// signature is the input a stage has seen: revisions of the tables it reads, zero for
// those it does not.
type signature struct {
	policies, identities, pods, endpoints statedb.Revision
	epoch                                 uint64
	// server is whether an API server runs on this node; known is always set.
	server, known bool
}

// stage is the progress of a stage that can apply changes row by row: it was derived
// from scratch for ground and has since followed rows.
type stage struct{ ground, rows signature }

// New reads what is in the kernel and changes nothing.
func New(cfg Config) (*Program, error) {
	p := &Program{cfg: cfg, subjects: map[string]subject{}, enlisted: map[string]identity.Labels{}, force: newForce(), retiring: map[netip.Prefix]bool{}, kicked: make(chan struct{}, 1), tried: make(chan struct{}), passed: make(chan struct{})}
	var err error
	if p.beliefs, err = newBeliefs(cfg.Tables, cfg.Self); err != nil {
		return nil, err
	}
	v := p.beliefs.view
	v.answered, v.servers, v.former.kernel, v.fixed = cfg.Rows.HasAnswered, cfg.APIServers, &p.members, cfg.Ports
	if p.settings, _, err = cfg.Maps.Settings.Lookup(0); err != nil {
		return nil, fmt.Errorf("read settings: %w", err)
	}
	p.lanes, p.internal = p.settings.TunnelIfindex, p.settings.Internal
	if p.revisions, err = newRevisions(cfg.Maps.Revisions); err != nil {
		return nil, err
	}
	wroteIP := func(a bpf.Addr, was, is bpf.IPInfo, there bool) {
		if key := bpf.PrefixOf(whole(a.Netip())); there {
			p.spots.put(key)
		} else {
			p.spots.drop(key)
		}
		p.variants.wrote(was.Identity, is.Identity)
		p.revisions.address(a)
	}
	if p.addrs, err = reconcile.NewIn(&addrmap.Map[bpf.Addr, bpf.IPInfo]{}, cfg.Maps.IPs, batchFrom, wroteIP); err != nil {
		return nil, err
	}
	for a := range p.addrs.Rows() {
		p.spots.put(bpf.PrefixOf(whole(a.Netip())))
	}
	wrotePrefix := func(k bpf.PrefixKey, was, is bpf.IPInfo, there bool) {
		p.learnMember(k, is, there)
		p.numberGoes(k.Netip(), was.Identity, is.Identity)
		p.variants.wrote(was.Identity, is.Identity)
		p.revisions.prefix(k)
	}
	if p.prefixes, err = reconcile.New(cfg.Maps.Prefixes, batchFrom, wrotePrefix); err != nil {
		return nil, err
	}
	for k, info := range p.prefixes.Rows() {
		p.learnMember(k, info, true)
	}
	wroteEndpoint := func(a bpf.Addr, was, is bpf.Endpoint, _ bool) {
		p.variants.wrote(was.Identity, is.Identity)
		p.revisions.address(a)
	}
	if p.endpoints, err = reconcile.New(cfg.Maps.Endpoints, batchFrom, wroteEndpoint); err != nil {
		return nil, err
	}
	if p.policies, err = newPolicies(cfg.Maps, p.settings.PolicyGen, p.endpoints.Rows(), p.revisions.identity); err != nil {
		return nil, err
	}
	if p.ips, err = followIPs(cfg.Tables); err != nil {
		return nil, err
	}
	if p.identities, err = follow(cfg.Tables.DB, cfg.Tables.Identities); err != nil {
		return nil, err
	}
	if p.changed, err = follow(cfg.Tables.DB, cfg.Tables.Policies); err != nil {
		return nil, err
	}
	if p.frontends, err = newFrontends(cfg.Maps, cfg.Tables, p.revisions.address); err != nil {
		return nil, err
	}
	p.addressed = !cfg.Outside
	p.numbers = newNumbering(p.prefixes.Rows(), p.numbersInRows())
	p.variants = newVariants(p.numbers.fresh, p.numbersInRows())
	return p, nil
}

// Explain says what the numbers in events mean; nil before the first compilation. It
// is safe for concurrent use.
func (p *Program) Explain() *Explanation { return p.policies.explain.Load() }

// Identity maps a number in an event to its identity. They differ where policies
// distinguish endpoints of one identity. It is safe for concurrent use.
func (p *Program) Identity(n identity.Number) identity.Number {
	if base, ok := p.variants.bases.Load(n); ok {
		return base.(identity.Number)
	}
	return n
}

// Tried is closed once everything known at the start has been written or refused.
func (p *Program) Tried() <-chan struct{} { return p.tried }

// Passed is closed once everything known at the start is in the kernel.
func (p *Program) Passed() <-chan struct{} { return p.passed }

// SetTunnels sets the two tunnel devices and the node's addresses inside the mesh, at most
// one of each family. It is safe for concurrent use.
func (p *Program) SetTunnels(ifindex [2]uint32, internals ...netip.Addr) {
	var own [2]bpf.Addr
	for _, a := range internals {
		if a.Is4() {
			own[0] = bpf.AddrOf(a)
		} else {
			own[1] = bpf.AddrOf(a)
		}
	}
	p.mu.Lock()
	p.lanes, p.internal = ifindex, own
	p.mu.Unlock()
	p.kick()
}

// SetAddresses sets the node's addresses outside of the mesh, at which it offers node ports.
// It is safe for concurrent use.
func (p *Program) SetAddresses(addrs []netip.Addr) {
	p.mu.Lock()
	same := p.addressed && slices.Equal(p.exposed, addrs)
	p.exposed, p.addressed = slices.Clone(addrs), true
	p.mu.Unlock()
	if !same {
		p.kick()
	}
}

func (p *Program) kick() {
	select {
	case p.kicked <- struct{}{}:
	default:
	}
}

// takeAddresses tells the view and the frontends the node's addresses.
func (p *Program) takeAddresses(v *view) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frontends.addressed = p.addressed
	if !slices.Equal(v.addresses, p.exposed) || v.internal != p.internal[0] {
		v.addresses, v.internal, p.frontends.readdressed = p.exposed, p.internal[0], true
	}
}

const (
	// batchFrom is the number of changed rows from which building a batch for one system
	// call pays off.
	batchFrom = 64
	// settle is how long changes are collected before they are written.
	settle = 2 * time.Millisecond
	// Retries of failed rows: quickly at first, at most every 10 s later.
	firstRetry = 100 * time.Millisecond
	lastRetry  = 10 * time.Second
)

// Run works until ctx ends. It leaves the kernel as it is.
func (p *Program) Run(ctx context.Context) error {
	defer p.beliefs.close()
	defer p.ips.close()
	defer p.identities.close()
	defer p.changed.close()
	defer p.frontends.close()
	select {
	case <-ctx.Done():
		return nil
	case <-p.cfg.Start:
	}
	for ctx.Err() == nil {
		watches, wait := p.pass(ctx)
		p.sleep(ctx, watches, wait)
	}
	return nil
}

// sleep waits for a change, a kick or the timeout, and then for changes to settle.
func (p *Program) sleep(ctx context.Context, watches *statedb.WatchSet, wait time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-p.kicked:
			cancel()
		case <-p.cfg.Rows.News():
			cancel()
		case <-ctx.Done():
		}
	}()
	_, _ = watches.Wait(ctx, settle)
	cancel()
	<-done
}

// pass writes one snapshot. It returns what to wait for and the longest time to wait.
func (p *Program) pass(ctx context.Context) (*statedb.WatchSet, time.Duration) {
	t := p.cfg.Tables
	txn := t.DB.ReadTxn()
	watches := watch(txn, t)
	v, m := p.beliefs.look(txn)
	if v == nil {
		return watches, lastRetry
	}
	p.takeAddresses(v)
	r := newReport(v)
	p.learn(v, m, r)
	p.write(v, r)
	p.writeSettings(v, r)
	p.vacate(v, r)
	r.publish(t)
	p.once.tried.Do(func() { close(p.tried) })

	wait := lastRetry
	if r.failed {
		p.attempts++
		wait = min(lastRetry, firstRetry<<min(p.attempts, 7))
		wait = wait/2 + rand.N(wait/2)
		p.cfg.Log.Warn("some rows did not reach the kernel; retrying", "rows", r.count(), "example", r.example(), "in", wait)
	} else {
		p.attempts = 0
		p.once.passed.Do(func() { close(p.passed) })
	}
	if !p.policies.stale.IsZero() {
		wait = min(wait, grace)
	}
	return watches, wait
}

func watch(txn statedb.ReadTxn, t *tables.Tables) *statedb.WatchSet {
	ws := statedb.NewWatchSet()
	t.WatchWritten(txn, ws)
	_, pods := t.Pods.AllWatch(txn) // policies select this node's by them
	ws.Add(pods)
	return ws
}

// write writes the snapshot to every map except settings.
func (p *Program) write(v *view, r *report) {
	changed := 0
	t, txn := v.tables, v.txn
	p.ways(v, r)
	changed += p.policy(v, r)
	p.expire(v, r)

	n, obsolete := p.addresses(v, r)
	changed += n

	s := signature{pods: t.Pods.Revision(txn), endpoints: t.Endpoints.Revision(txn), epoch: p.epoch, known: true}
	if p.did.endpoints != s {
		changed += p.pods(v, r)
		p.did.endpoints = keep(s, r.clean("endpoints"))
	}

	changed += p.frontends.write(v, p.cfg.Rows.Index, r)
	if p.cfg.Health != nil && p.frontends.checkable {
		p.frontends.checkable = false
		p.cfg.Health(p.frontends.checks())
	}
	changed += obsolete()
	if len(p.variants.idle) > 0 {
		p.policies.tire() // a number that only those rows had goes, too
	}
}

// keep returns s if its stage wrote everything, or else zero, so that the stage runs
// again.
func keep[S any](s S, clean bool) (kept S) {
	if clean {
		kept = s
	}
	return kept
}

// policy brings policies and identities up to date.
func (p *Program) policy(v *view, r *report) (changed int) {
	t, txn := v.tables, v.txn
	s := stage{
		ground: signature{server: v.isAPIServer(v.node(v.selfKey())), known: true},
		rows:   signature{policies: t.Policies.Revision(txn), identities: t.Identities.Revision(txn), pods: t.Pods.Revision(txn), endpoints: t.Endpoints.Revision(txn)},
	}
	judging := p.judging
	p.judging = map[string]bool{}
	switch {
	case p.did.policy == s && len(judging) == 0:
		return 0
	case p.did.policy.ground == s.ground:
		changed = p.judgeRows(v, judging, r)
	default:
		changed = p.judge(v, r)
	}
	p.did.policy = keep(s, r.clean("policies", "identities"))
	return changed
}

// exposedAt is the first of a node's addresses of each family.
func exposedAt(addrs []netip.Addr) (at [2]bpf.Addr) {
	for _, a := range addrs {
		family := 1
		if a.Is4() {
			family = 0
		}
		if at[family] == (bpf.Addr{}) {
			at[family] = bpf.AddrOf(a)
		}
	}
	return at
}

// writeSettings writes the one row that all programs read, and then raises the revisions
// of what has changed.
func (p *Program) writeSettings(v *view, r *report) {
	p.mu.Lock()
	want := p.settings
	want.TunnelIfindex, want.Internal, want.Exposed = p.lanes, p.internal, exposedAt(p.exposed)
	p.mu.Unlock()
	want.Cluster, want.PolicyGen, want.Trace = uint16(v.own.ID()), p.policies.gen, bit(p.cfg.Trace)
	if p.policies.current == nil {
		return // nothing may pass before there is a policy
	}
	r.stage("settings")
	if want != p.settings {
		if err := p.cfg.Maps.Settings.Update(0, want); err != nil {
			r.fail("settings", "", err)
			return
		}
		p.revisions.all = p.revisions.all || want.Internal != p.settings.Internal || want.Cluster != p.settings.Cluster
		p.settings = want
	}
	if err := p.raise(); err != nil {
		r.fail("settings", "", err)
	}
}

func bit(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}
