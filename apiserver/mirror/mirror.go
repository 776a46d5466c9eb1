package mirror

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// Source is a peer's store, opened for one session.
type Source interface {
	store.Store
	Close() error
}

// Config of a Mirror.
type Config struct {
	Own  wire.Cluster
	Peer wire.Peer
	// Store is ours; the mirror writes only this peer's keys.
	Store store.Store
	// Limit bounds the copy; the zero value means DefaultLimit.
	Limit Limit
	// Rate bounds how fast the copy changes; the zero value means DefaultRate.
	Rate Rate
	// Taken says who owns an address that the peer therefore must not give to a
	// node; "" if no one does. Own's CIDRs are checked without it. It may be nil.
	// It is called with the mirror locked: it must not call the mirror, nor take a
	// lock under which the mirror is called.
	Taken func(netip.Addr) string
	// Heard is when the peer last proved that our copy was current, before this
	// mirror was made; zero if not known.
	Heard time.Time
	// Moved is called when the peer says how it is reached from now on. It may be nil.
	Moved func(wire.Access)
	// Dial opens the peer's store. It need not wait for the connection.
	Dial func() (Source, error)
	Log  *slog.Logger
	// FirstPause and LastPause bound the pauses between two sessions. Pauses
	// double, and each is drawn between half of it and the whole, so that the
	// peers of a returning cluster do not all connect at once. 0 means 200 ms and
	// 5 s.
	FirstPause, LastPause time.Duration
	// Answer is how long the first request of a session may take before the peer
	// is considered down; 0 means 5 s.
	Answer time.Duration
	// Listing is how long one resource may take to list; 0 means two minutes.
	Listing time.Duration
	// Revival is shared with the other mirrors of this API server; nil if there are none.
	Revival *Revival
}

// ErrRefused: the peer contradicts what was agreed on, or refuses us; nothing is
// imported.
var ErrRefused = errors.New("refused")

// Mirror copies one peer. Run may be called once; the other methods are safe for
// concurrent use at any time.
type Mirror struct {
	conf   Config
	claims claims

	writing sync.Mutex // held from a decision to its write; taken before mu
	mu      sync.Mutex // guards what follows
	known   bool       // have is what our store contains; false after a failed write
	have    map[string]entry
	entries map[string]int  // how many of have each folder has
	bytes   int             // of have, keys and values
	held    map[string]bool // keys of have whose deletion waits for an operator
	// generation is that of the peer's store that have is a copy of. While
	// deletions are held it is not updated, here and in our store, so that a
	// restart holds them again.
	generation string
	pending    []byte // the peer's ExportCluster, not copied while deletions are held
	count      counters
	pace       *pace
	queue      *queue // of this session
	late       bool   // that changes wait has been logged; used by drain only
	// reached is from where the next session goes on, if the peer's cluster config is still
	// agreed; nil: it lists everything.
	reached []followed
	agreed  string
	steady  bool // the link was up for a while until it broke; used by Run only
}

// entry is one of our keys, with enough of its value to notice a change.
type entry struct {
	folder string
	hash   uint64
	size   int // of key and value
}

func entryOf(folder, key string, value []byte) entry {
	return entry{folder: folder, hash: maphash.Bytes(seed, value), size: len(key) + len(value)}
}

var seed = maphash.MakeSeed()

// New makes a Mirror.
func New(c Config) *Mirror {
	if c.FirstPause == 0 {
		c.FirstPause = 200 * time.Millisecond
	}
	if c.LastPause == 0 {
		c.LastPause = 5 * time.Second
	}
	if c.Answer == 0 {
		c.Answer = 5 * time.Second
	}
	if c.Listing == 0 {
		c.Listing = 2 * time.Minute
	}
	if c.Limit == (Limit{}) {
		c.Limit = DefaultLimit()
	}
	if c.Rate == (Rate{}) {
		c.Rate = DefaultRate()
	}
	m := &Mirror{pace: newPace(c.Rate, time.Now()), queue: newQueue(), conf: c, claims: newClaims(c.Own, c.Peer, c.Taken), have: map[string]entry{}, entries: map[string]int{}, held: map[string]bool{}}
	now := time.Now()
	m.count = counters{state: api.LinkConnecting, since: now, notUp: now, heard: c.Heard, synced: map[wire.Resource]bool{}, refused: map[string]refusal{}, refusals: map[refusalKey]uint64{}}
	return m
}

// Peer returns the peer that the mirror copies.
func (m *Mirror) Peer() wire.Peer { return m.conf.Peer }

// Run copies until ctx ends; then it returns nil. The copy stays, whatever happens to
// the link.
func (m *Mirror) Run(ctx context.Context) error {
	pause := m.conf.FirstPause
	for {
		began := time.Now()
		err := m.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, errRevived) {
			continue
		}
		if long := time.Since(began) > m.conf.LastPause; long {
			pause = m.conf.FirstPause
			m.steady = m.steady || m.stateIs(api.LinkUp)
		}
		state := api.LinkDown
		if errors.Is(err, ErrRefused) {
			state = api.LinkRefused
		}
		m.setState(state, err)
		m.conf.Log.Warn("control link to peer is down", "peer", m.conf.Peer.Name, "state", state, "err", err)
		if errors.Is(err, errOverLimit) {
			if sleep(ctx, overLimitPause) != nil {
				return nil
			}
			continue
		}
		revived := m.conf.Revival.rest(ctx, pause/2+rand.N(pause/2+1))
		if ctx.Err() != nil {
			return nil
		}
		if pause = min(2*pause, m.conf.LastPause); revived {
			pause = m.conf.FirstPause
		}
	}
}

// session is one connection: check who the peer is, wait for its canaries, list
// everything, mark and sweep, unless the last session left off at a place it can go on from,
// then follow changes until something breaks. It never returns nil.
func (m *Mirror) session(ctx context.Context) error {
	if err := m.recall(ctx); err != nil {
		return fmt.Errorf("read our copy: %w", err)
	}
	src, err := m.conf.Dial()
	if err != nil {
		return err
	}
	defer src.Close()
	var config wire.ClusterConfig
	err = m.conf.Revival.orRevival(ctx, func(ctx context.Context) (err error) {
		config, err = m.agree(ctx, src)
		return err
	})
	if err != nil {
		return err
	}
	if m.steady {
		m.steady = false
		m.conf.Revival.tell(time.Now())
	}
	if config.Capabilities.SyncedCanaries {
		if err := m.awaitCanaries(ctx, src, config); err != nil {
			return err
		}
	}
	from := m.leftOff(config)
	resumed := from != nil
	if !resumed {
		if from, err = m.readAll(ctx, src, config); err != nil {
			return err
		}
		m.hear()
	}
	m.setState(api.LinkUp, nil)
	m.conf.Log.Info("control link to peer is up", "peer", m.conf.Peer.Name)

	g, gctx := errgroup.WithContext(ctx)
	q := newQueue()
	m.setQueue(q)
	defer m.setQueue(newQueue()) // the next session reads again what waits here
	g.Go(func() error {
		return m.drain(gctx, q, func(f folder, events []store.Event) error { return m.vouched(gctx, src, config, f, events) })
	})
	for _, f := range from {
		g.Go(func() error { return m.follow(gctx, src, q, f.folder, f.at) })
	}
	if !m.conf.Peer.Cilium {
		g.Go(func() error { return m.followJoined(gctx, src) })
	}
	err = g.Wait()
	m.leave(config, from, resumed, q, err)
	return err
}

// readAll makes our copy equal to a complete list of what the peer exports, and returns
// what to follow from there.
func (m *Mirror) readAll(ctx context.Context, src Source, config wire.ClusterConfig) ([]followed, error) {
	if err := m.awaitPace(ctx); err != nil {
		return nil, err
	}
	lists, err := m.list(ctx, src, config)
	if lists != nil && errors.Is(err, errOverLimit) {
		return nil, m.sweep(ctx, lists, err)
	}
	if err != nil {
		return nil, err
	}
	if err := m.introduce(ctx, config); err != nil {
		return nil, err
	}
	if err := m.sweep(ctx, lists, nil); err != nil {
		return nil, err
	}
	if err := m.raiseCanaries(ctx, config.Capabilities); err != nil {
		return nil, err
	}
	from := make([]followed, len(lists))
	for i, l := range lists {
		from[i] = followed{l.folder, l.at}
	}
	return from, nil
}

func (m *Mirror) setQueue(q *queue) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.queue = q
}

// followJoined learns whether the peer has added us. A peer of an older version, which
// does not tell, does not let us read the key.
func (m *Mirror) followJoined(ctx context.Context, src Source) error {
	key := wire.JoinedKey(m.conf.Own.Name)
	err := store.Follow(ctx, src, wire.JoinedPrefix(m.conf.Own.Name), func(b store.Batch) error {
		if b.Complete {
			m.setJoined(slices.ContainsFunc(b.Events, func(e store.Event) bool { return e.Key == key }))
		}
		for _, e := range b.Events {
			switch {
			case e.Key == key:
				m.setJoined(!e.Deleted)
			case e.Key == wire.PeerAccessKey(m.conf.Own.Name) && !e.Deleted && m.conf.Moved != nil:
				a, err := wire.Unmarshal[wire.Access](e.Value)
				if err != nil {
					m.conf.Log.Warn("cannot read how the peer is reached from now on", "peer", m.conf.Peer.Name, "err", err)
					continue
				}
				m.conf.Moved(a)
			}
		}
		return nil
	})
	if errors.Is(err, store.ErrDenied) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.count.joined = nil
		return nil
	}
	if err == nil {
		err = store.ErrUnavailable
	}
	return fmt.Errorf("read the peer's record of us: %w", err)
}

func (m *Mirror) setJoined(joined bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.count.joined == nil || *m.count.joined != joined {
		m.count.joined, m.count.joinedSince = &joined, time.Now()
	}
}

// recall reads our copy unless it is known. No one else writes these keys.
func (m *Mirror) recall(ctx context.Context) error {
	m.mu.Lock()
	known := m.known
	m.mu.Unlock()
	if known {
		return nil
	}
	have, entries, bytes := map[string]entry{}, map[string]int{}, 0
	generation := ""
	synced := map[wire.Resource]bool{}
	for _, f := range m.claims.folders(false) {
		prefix := wire.PeerCachePrefix(m.conf.Peer.Name)
		if f.resource != "" {
			prefix = f.resource.CachePrefix(m.conf.Peer.Name)
			_, err := m.conf.Store.Get(ctx, f.resource.CacheSyncedKey(m.conf.Peer.Name))
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
			synced[f.resource] = err == nil
		}
		kvs, _, err := m.conf.Store.List(ctx, prefix)
		if err != nil {
			return err
		}
		for _, kv := range kvs {
			switch kv.Key {
			case wire.PeerLivenessKey(m.conf.Peer.Name):
				continue // not copied from the peer
			case wire.PeerClusterKey(m.conf.Peer.Name):
				if c, err := wire.Unmarshal[wire.ExportCluster](kv.Value); err == nil {
					generation = c.Generation
				}
			}
			e := entryOf(f.name, kv.Key, kv.Value)
			have[kv.Key], bytes = e, bytes+e.size
			entries[f.name]++
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.known, m.have, m.entries, m.bytes, m.generation, m.count.synced = true, have, entries, bytes, generation, synced
	// The next complete list finds again what was held and is still missing.
	clear(m.held)
	return nil
}

// agree reads the peer's cluster config and compares it with what was agreed on when
// the peer was added.
func (m *Mirror) agree(ctx context.Context, src Source) (wire.ClusterConfig, error) {
	ctx, cancel := context.WithTimeout(ctx, m.conf.Answer)
	defer cancel()
	kv, err := src.Get(ctx, wire.ClusterConfigKey(m.conf.Peer.Name))
	switch {
	case errors.Is(err, store.ErrNotFound):
		return wire.ClusterConfig{}, fmt.Errorf("the peer's store does not say who it is yet (no %s)", wire.ClusterConfigKey(m.conf.Peer.Name))
	case errors.Is(err, store.ErrDenied):
		return wire.ClusterConfig{}, fmt.Errorf("%w: the peer does not let us read it; ask its operator for %s and add it again: %w", ErrRefused, Access(m.conf.Peer.Cilium), err)
	case err != nil:
		return wire.ClusterConfig{}, err
	}
	return Agree(m.conf.Own, m.conf.Peer, kv.Value)
}

// Access names what its operator gives us to read a peer.
func Access(cilium bool) string {
	if cilium {
		return "a new clustermesh secret"
	}
	return "a new invite"
}

// Agree checks a peer's cluster config against what was agreed on. Its errors wrap
// ErrRefused.
func Agree(own wire.Cluster, peer wire.Peer, value []byte) (wire.ClusterConfig, error) {
	config, err := wire.ParseClusterConfig(value)
	switch {
	case err != nil:
		err = fmt.Errorf("its cluster config is not usable: %w", err)
	case config.ID == uint32(own.ID):
		err = fmt.Errorf("it uses cluster ID %d, which is ours; rebuild one of the two with another ID", config.ID)
	case config.ID != uint32(peer.ID):
		err = fmt.Errorf("it says that its cluster ID is %d, but it was added with %d; remove it and add it again", config.ID, peer.ID)
	case config.Capabilities.MaxConnectedClusters != own.MaxConnectedClusters:
		err = fmt.Errorf("its maxConnectedClusters is %d, but ours is %d; all clusters of a mesh need the same one", config.Capabilities.MaxConnectedClusters, own.MaxConnectedClusters)
	}
	if err != nil {
		return wire.ClusterConfig{}, fmt.Errorf("cluster %q: %w: %w", peer.Name, ErrRefused, err)
	}
	return config, nil
}

// introduce publishes the peer's cluster config to our agents, marked as cached,
// because they read the peer through us, and with the one form of services that our
// copy has.
func (m *Mirror) introduce(ctx context.Context, config wire.ClusterConfig) error {
	config.Capabilities.Cached = true
	if config.Capabilities.EndpointSlicesExportMode != "" {
		config.Capabilities.EndpointSlicesExportMode = wire.EndpointSlicesOnly
	}
	key, value := wire.ClusterConfigKey(m.conf.Peer.Name), wire.Marshal(config)
	if kv, err := m.conf.Store.Get(ctx, key); err == nil && string(kv.Value) == string(value) {
		return nil
	}
	return store.Write(ctx, m.conf.Store, store.Put(key, value))
}

// Release carries out the held deletions and returns how many there were.
func (m *Mirror) Release(ctx context.Context) (int, error) {
	m.writing.Lock()
	defer m.writing.Unlock()
	m.mu.Lock()
	ops := m.clusterOpLocked()
	n := len(m.held)
	for key := range m.held {
		ops = append(ops, store.Delete(key))
	}
	m.mu.Unlock()
	if n == 0 {
		return 0, nil
	}
	if err := m.commit(ctx, ops); err != nil {
		return 0, fmt.Errorf("release %d deletions of peer %q: %w", n, m.conf.Peer.Name, err)
	}
	m.conf.Log.Info("held deletions were released", "peer", m.conf.Peer.Name, "entries", n)
	return n, nil
}
