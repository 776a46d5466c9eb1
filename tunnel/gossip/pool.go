package gossip

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/sync/errgroup"
)

const (
	// joinRetry is the pause between attempts to reach seeds that are not members,
	// also after all members were cut off from each other.
	joinRetry = time.Second
	// leavePatience is how long a goodbye may take.
	leavePatience = 500 * time.Millisecond
)

// Pool is one gossip pool as seen by one member. Several goroutines may call its
// methods, before and during Run.
type Pool struct {
	cfg     Config
	keyring *memberlist.Keyring
	refused atomic.Uint64
	leaving atomic.Bool

	mu       sync.Mutex
	clusters map[string]bool          // guarded by mu, those let in
	seeds    []netip.AddrPort         // guarded by mu
	members  map[string]Member        // guarded by mu, alive, by String; of any cluster
	reports  map[string]Report        // guarded by mu, by cluster/reporter
	warned   map[string]time.Time     // guarded by mu, by cluster: last warning of an ignored report
	own      Report                   // guarded by mu
	rtt      map[string]time.Duration // guarded by mu, by String

	// queue has its own lock, which is taken inside mu and never around it.
	queue memberlist.TransmitLimitedQueue
	alive atomic.Int64  // len(members), for queue
	wake  chan struct{} // has one element when seeds changed
}

// New returns a pool with this member only. Nothing is sent before Run.
func New(cfg Config) (*Pool, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	keyring, err := memberlist.NewKeyring(cfg.Keys, cfg.Keys[0])
	if err != nil {
		return nil, fmt.Errorf("gossip: keys: %w", err)
	}
	p := &Pool{
		cfg: cfg, keyring: keyring,
		members: map[string]Member{}, reports: map[string]Report{}, rtt: map[string]time.Duration{},
		warned: map[string]time.Time{}, wake: make(chan struct{}, 1),
	}
	p.SetClusters(cfg.Clusters)
	p.queue = memberlist.TransmitLimitedQueue{RetransmitMult: 3, NumNodes: func() int { return int(p.alive.Load()) + 1 }}
	return p, nil
}

// Run takes part in the pool until ctx ends, then says goodbye. It fails if it cannot
// listen on the address.
func (p *Pool) Run(ctx context.Context) error {
	conf := memberlist.DefaultLANConfig()
	speeds[p.cfg.Speed].apply(conf)
	self := p.cfg.Self
	conf.Name, conf.Label, conf.Keyring = self.String(), p.cfg.Label, p.keyring
	conf.BindAddr, conf.BindPort = self.Addr.Addr().String(), int(self.Addr.Port())
	conf.AdvertiseAddr, conf.AdvertisePort = conf.BindAddr, conf.BindPort
	d := &delegate{p}
	// Compressing saves little in messages of a few dozen bytes, and makes 64 KiB of
	// garbage for each. Compressed messages are still read.
	conf.EnableCompression = false
	conf.Delegate, conf.Events, conf.Alive, conf.Ping, conf.Conflict = d, d, d, d, d
	conf.Logger = log.New(lineWriter{p.cfg.Log, &p.refused}, "", 0)
	list, err := memberlist.Create(conf)
	if err != nil {
		return fmt.Errorf("gossip on %v: %w", self.Addr, err)
	}
	p.join(ctx, list)
	// memberlist tells others that we are gone but not whether on purpose, so that is
	// sent first. A goodbye that nobody hears is not an error.
	p.leaving.Store(true)
	if err := errors.Join(list.UpdateNode(leavePatience), list.Leave(leavePatience)); err != nil {
		p.cfg.Log.Debug("left without a goodbye", "error", err)
	}
	p.leaving.Store(false)
	if err := list.Shutdown(); err != nil {
		return fmt.Errorf("gossip on %v: end: %w", self.Addr, err)
	}
	return nil
}

// join contacts seeds that are not members, and keeps our own report fresh, until ctx
// ends.
func (p *Pool) join(ctx context.Context, list *memberlist.Memberlist) {
	tick := time.NewTicker(joinRetry)
	defer tick.Stop()
	for {
		// In parallel: one that does not answer must not delay the others.
		var g errgroup.Group
		g.SetLimit(8)
		for _, seed := range p.strangers() {
			g.Go(func() error {
				if ctx.Err() != nil {
					return nil
				}
				if _, err := list.Join([]string{seed.String()}); err != nil {
					p.cfg.Log.Debug("seed does not answer", "address", seed, "error", err)
				}
				return nil
			})
		}
		g.Wait()
		if err := p.refresh(); err != nil {
			p.cfg.Log.Warn("peers do not receive our nodes' state", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		case <-tick.C:
		}
	}
}

// strangers are seeds that are neither members nor ourselves.
func (p *Pool) strangers() []netip.AddrPort {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := map[netip.AddrPort]bool{p.cfg.Self.Addr: true}
	for _, m := range p.members {
		known[m.Addr] = true
	}
	return slices.DeleteFunc(slices.Clone(p.seeds), func(a netip.AddrPort) bool { return known[a] })
}

// SetSeeds sets the addresses where members are expected. Those that are not members
// are tried again every second.
func (p *Pool) SetSeeds(seeds []netip.AddrPort) {
	p.mu.Lock()
	p.seeds = slices.Clone(seeds)
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// SetClusters sets the clusters whose members are let in, besides our own. Members of
// other clusters are ignored from now on.
func (p *Pool) SetClusters(clusters []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clusters = map[string]bool{p.cfg.Self.Cluster: true}
	for _, c := range clusters {
		p.clusters[c] = true
	}
	maps.DeleteFunc(p.reports, func(_ string, r Report) bool { return !p.clusters[r.Cluster] })
	maps.DeleteFunc(p.warned, func(cluster string, _ time.Time) bool { return !p.clusters[cluster] })
}

// SetKeys replaces the keys; the first one encrypts what we send. New keys are added
// before old ones are removed, so that nothing is missed in between.
func (p *Pool) SetKeys(keys [][]byte) error {
	if len(keys) == 0 {
		return errors.New("gossip keys: at least one is needed")
	}
	for _, key := range keys {
		if err := p.keyring.AddKey(key); err != nil {
			return fmt.Errorf("gossip keys: %w", err)
		}
	}
	if err := p.keyring.UseKey(keys[0]); err != nil {
		return fmt.Errorf("gossip keys: %w", err)
	}
	for _, old := range p.keyring.GetKeys() {
		if slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, old) }) {
			continue
		}
		if err := p.keyring.RemoveKey(old); err != nil {
			return fmt.Errorf("gossip keys: %w", err)
		}
	}
	return nil
}

// Members returns the members that are alive, except ourselves, in order of name.
func (p *Pool) Members() []Member {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := slices.DeleteFunc(slices.Collect(maps.Values(p.members)), func(m Member) bool { return !p.clusters[m.Cluster] })
	slices.SortFunc(all, func(a, b Member) int { return cmp.Compare(a.String(), b.String()) })
	return all
}

// RTT is the last round trip to a member; zero if none was measured.
func (p *Pool) RTT(m Member) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rtt[m.String()]
}

// Refused is the number of packets and members that were not let in: from another
// pool, with another key, or from a cluster that is not a peer.
func (p *Pool) Refused() uint64 { return p.refused.Load() }

// SetDead reports which of our own cluster's nodes are dead, if that has changed. It
// fails if the report cannot be signed.
func (p *Pool) SetDead(nodes []string) error {
	nodes = slices.Compact(slices.Sorted(slices.Values(nodes)))
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.own.Sequence != 0 && slices.Equal(nodes, p.own.Dead) {
		return nil
	}
	return p.reportLocked(nodes)
}

// refresh repeats our last report before it is too old to count.
func (p *Pool) refresh() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.own.Sequence == 0 {
		return nil // nothing was reported yet
	}
	// A report far ahead is from before our clock was corrected.
	if age := time.Since(p.own.Made()); age < reportRefresh && age > -reportRefresh {
		return nil
	}
	return p.reportLocked(p.own.Dead)
}

func (p *Pool) reportLocked(dead []string) error {
	if p.cfg.Sign == nil {
		return errors.New("report dead nodes: no key to sign with")
	}
	now := time.Now()
	r := Report{Cluster: p.cfg.Self.Cluster, Reporter: p.cfg.Self.Name, Dead: dead, Sequence: uint64(now.UnixNano())}
	// The clock makes it grow across restarts, and this while the clock stands still.
	if ahead := p.own.Made().Sub(now); ahead >= 0 && ahead < reportRefresh {
		r.Sequence = p.own.Sequence + 1
	}
	var err error
	if r.Signature, err = p.cfg.Sign(r.text()); err != nil {
		return fmt.Errorf("report dead nodes: %w", err)
	}
	p.own = r
	p.spread(r)
	return nil
}

// Reports returns the newest report of every other reporter, in order of cluster and
// name, except those older than ReportLife.
func (p *Pool) Reports() []Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forgetLocked(time.Now())
	all := slices.Collect(maps.Values(p.reports))
	slices.SortFunc(all, func(a, b Report) int {
		return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Reporter, b.Reporter))
	})
	return all
}

// forgetLocked drops reports that are too old to count.
func (p *Pool) forgetLocked(now time.Time) {
	maps.DeleteFunc(p.reports, func(_ string, r Report) bool {
		return now.Sub(r.Made()) > ReportLife
	})
}

func (p *Pool) reportersLocked(cluster string) (n int) {
	for _, r := range p.reports {
		if r.Cluster == cluster {
			n++
		}
	}
	return n
}

// String is the member's name in the pool.
func (m Member) String() string { return m.Cluster + "/" + string(m.Role) + "/" + m.Name }

// signsOfStrangers occur in memberlist's log lines about packets and streams of another
// pool or with another key. It reports them in no other way.
var signsOfStrangers = []string{"Decrypt packet failed", "could decrypt", "unacceptable label", "encryption is configured but", "encryption is not configured"}

// lineWriter carries memberlist's log lines, "[LEVEL] memberlist: text", to slog.
type lineWriter struct {
	log     *slog.Logger
	refused *atomic.Uint64
}

func (w lineWriter) Write(line []byte) (int, error) {
	_, text, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
	w.log.Log(context.Background(), severity(text), text)
	if strange(text) {
		w.refused.Add(1)
	}
	return len(line), nil
}

func strange(text string) bool {
	return slices.ContainsFunc(signsOfStrangers, func(sign string) bool { return strings.Contains(text, sign) })
}

// forOperators are the beginnings of memberlist's log lines about what neither status
// nor another line of ours says: a member of a cluster that is not a peer, a socket that
// fails. That UDP probes fail while TCP works is not among them: it is said of every member
// that has just started.
var forOperators = []struct {
	begin string
	level slog.Level
}{
	{"memberlist: ignoring alive message for ", slog.LevelInfo},
	{"memberlist: Error accepting TCP connection: ", slog.LevelWarn},
	{"memberlist: Error reading UDP packet: ", slog.LevelWarn},
}

// severity is the level for a line of memberlist's log. All others, whatever their own
// level, are about how gossip works: probes fail and suspicions are refuted whenever a
// member restarts, and status shows the result.
func severity(text string) slog.Level {
	for _, line := range forOperators {
		if strings.HasPrefix(text, line.begin) {
			return line.level
		}
	}
	return slog.LevelDebug
}
