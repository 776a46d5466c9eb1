package peering

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/apiserver/mirror"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// running is a mirror that runs.
type running struct {
	mirror *mirror.Mirror
	moves  *moves
	secret wire.PeerSecret
	ends   time.Time // when the certificate in secret expires; zero if it cannot be read
	cancel context.CancelFunc
	done   chan struct{}
}

func (r *running) stop() {
	r.cancel()
	<-r.done
}

// Run keeps a mirror for every peer until ctx ends; then it returns nil. The copies
// stay in the store.
func (p *Peering) Run(ctx context.Context) error {
	var mirrors sync.WaitGroup
	defer mirrors.Wait()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, r := range p.mirrors {
			r.cancel()
		}
	}()
	// No mirror starts before our own nodes are known, because claims are checked
	// against their addresses.
	known := make(chan struct{})
	tell := sync.OnceFunc(func() { close(known) })
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return store.Persist(ctx, p.conf.Log, "following our own nodes", func(ctx context.Context) error {
			return store.Follow(ctx, p.conf.Store, wire.RegistrationsPrefix, func(b store.Batch) error {
				p.register(b)
				tell()
				return nil
			})
		})
	})
	g.Go(func() error { return p.kept.Run(ctx, wire.JoinedClustersPrefix) })
	g.Go(func() error {
		return store.Persist(ctx, p.conf.Log, "keeping the count of removals", func(ctx context.Context) error {
			return store.Follow(ctx, p.conf.Store, wire.RemovalsKey, p.keepRemovals)
		})
	})
	g.Go(func() error { return p.rememberHeard(ctx) })
	g.Go(func() error {
		return store.Persist(ctx, p.conf.Log, "telling peers how to reach the API servers", p.tellAccess)
	})
	g.Go(func() error {
		select {
		case <-known:
		case <-ctx.Done():
			return nil
		}
		return store.Persist(ctx, p.conf.Log, "following peers", func(ctx context.Context) error {
			if err := p.recallHeard(ctx); err != nil {
				return err
			}
			return store.Follow(ctx, p.conf.Store, wire.PeersPrefix, func(b store.Batch) error {
				return p.apply(ctx, &mirrors, b)
			})
		})
	})
	return g.Wait()
}

// register updates the addresses of our own nodes.
func (p *Peering) register(b store.Batch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if b.Complete {
		clear(p.nodes)
	}
	for _, e := range b.Events {
		name, ok := wire.ParseRegistrationKey(e.Key)
		if !ok {
			continue
		}
		delete(p.nodes, name)
		if r, err := wire.Unmarshal[wire.Registration](e.Value); err == nil && !e.Deleted {
			p.nodes[name] = r.Addresses
		}
	}
}

// taken says who owns an address that a node of the peer therefore cannot have; "" if
// no one does.
func (p *Peering) taken(peer string, a netip.Addr) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, addresses := range p.nodes {
		if slices.Contains(addresses, a) {
			return fmt.Sprintf("node %q of this cluster", name)
		}
	}
	if other := p.owners.of(a, peer); other != "" {
		return fmt.Sprintf("the pods of cluster %q", other)
	}
	return ""
}

func (p *Peering) apply(ctx context.Context, mirrors *sync.WaitGroup, b store.Batch) error {
	restored := b.Complete && p.history != "" && p.history != b.History
	p.mu.Lock()
	gone := map[string]bool{}
	p.listed, p.known = p.listed || b.Complete, p.known || b.Complete
	if b.Complete {
		for name := range p.peers {
			gone[name] = true
		}
	}
	touched := map[string]bool{}
	for _, e := range b.Events {
		name, ok := wire.ParsePeerKey(e.Key)
		if !ok {
			continue
		}
		if e.Deleted {
			gone[name] = true
			continue
		}
		peer, err := wire.Unmarshal[wire.Peer](e.Value)
		if err != nil {
			p.mu.Unlock()
			return fmt.Errorf("%s: %w", e.Key, err)
		}
		p.owners.remove(p.peers[name])
		p.owners.add(peer)
		p.peers[name] = peer
		touched[name] = true
		delete(gone, name)
	}
	for name := range gone {
		p.owners.remove(p.peers[name])
		delete(p.peers, name)
		touched[name] = true
	}
	p.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(touched)) {
		if err := p.carry(ctx, mirrors, name, b.Complete, restored); err != nil {
			return fmt.Errorf("peer %q: %w", name, err)
		}
	}
	if b.Complete {
		p.history = b.History
	}
	if len(touched) > 0 {
		p.Moved() // somebody new wants to know
	}
	return nil
}

// carry brings one peer's user, keys and mirror to the wanted state.
func (p *Peering) carry(ctx context.Context, mirrors *sync.WaitGroup, name string, first, restored bool) error {
	p.mu.Lock()
	peer, wanted := p.peers[name]
	have := p.mirrors[name]
	p.mu.Unlock()
	if peer.Removing {
		return p.finish(ctx, name)
	}
	if peer.Invited && first {
		// Its rights may have changed with an upgrade.
		if err := p.conf.Users.SetUser(ctx, reader(p.conf.Cluster.Name, peer)); err != nil {
			return err
		}
	}
	if err := p.tell(ctx, name, wanted && peer.Connected); err != nil {
		return err
	}
	if !wanted {
		// finish did this, but a mirror may have started in between.
		p.halt(name)
		return p.purge(ctx, name)
	}
	if !peer.Connected {
		p.halt(name)
		return nil
	}
	kv, err := p.conf.Store.Get(ctx, wire.PeerSecretKey(name))
	if errors.Is(err, store.ErrNotFound) {
		p.halt(name)
		p.conf.Log.Error("our certificate for a peer is missing: add the peer again with a new invite", "peer", name)
		return nil
	}
	if err != nil {
		return err
	}
	secret, err := wire.Unmarshal[wire.PeerSecret](kv.Value)
	if err != nil {
		return err
	}
	// A restored store may lack what the mirror has written.
	if have != nil && !restored && same(have.mirror.Peer(), peer) && have.secret.Cert == secret.Cert && have.secret.Key == secret.Key {
		return nil
	}
	p.halt(name)
	p.start(ctx, mirrors, peer, secret)
	return nil
}

// tell publishes to a peer whether it is added here.
func (p *Peering) tell(ctx context.Context, name string, added bool) error {
	key := wire.JoinedKey(name)
	op := store.Delete(key)
	if added {
		op = store.Put(key, wire.TimeText(time.Now()))
	}
	p.kept.Note(op)
	_, err := p.conf.Store.Get(ctx, key)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if told := err == nil; told == added {
		return nil
	}
	return store.Write(ctx, p.conf.Store, op)
}

// same compares the fields that a mirror depends on.
func same(a, b wire.Peer) bool {
	a.Invited, b.Invited = false, false
	a.InvitedAt, b.InvitedAt = time.Time{}, time.Time{}
	a.Generation, b.Generation = 0, 0
	// Only the next session uses what is new; see Dial.
	a.Endpoints, a.Gossip, a.Named = b.Endpoints, b.Gossip, b.Named
	return string(wire.Marshal(a)) == string(wire.Marshal(b))
}

func (p *Peering) start(ctx context.Context, mirrors *sync.WaitGroup, peer wire.Peer, secret wire.PeerSecret) {
	ctx, cancel := context.WithCancel(ctx)
	r := &running{moves: newMoves(), secret: secret, ends: endOf(secret), cancel: cancel, done: make(chan struct{})}
	p.mu.Lock()
	heard := p.heard[peer.Name]
	p.mu.Unlock()
	conf := func() (*tls.Config, error) { return tlsOf(peer, secret) }
	r.mirror = mirror.New(mirror.Config{
		Own: p.conf.Cluster, Peer: peer, Store: p.conf.Store, Limit: p.conf.Limit, Rate: p.conf.Rate, Log: p.conf.Log,
		Heard: heard, Revival: &p.revival,
		Taken: func(a netip.Addr) string { return p.taken(peer.Name, a) },
		Dial: func() (mirror.Source, error) {
			c, err := conf()
			if err != nil {
				return nil, err
			}
			return p.conf.Dialer.Open(p.endpointsOf(peer), c)
		},
		Moved: r.moves.say,
	})
	p.mu.Lock()
	p.mirrors[peer.Name] = r
	p.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { p.follow(ctx, peer.Name, r.moves, conf) })
	both.Go(func() {
		if err := r.mirror.Run(ctx); err != nil {
			p.conf.Log.Error("mirror ended", "peer", peer.Name, "err", err)
		}
	})
	mirrors.Go(func() { both.Wait(); close(r.done) })
}

// halt stops a mirror and waits for its end. Its copy stays.
func (p *Peering) halt(name string) {
	p.mu.Lock()
	r := p.mirrors[name]
	delete(p.mirrors, name)
	p.mu.Unlock()
	if r == nil {
		return
	}
	r.stop()
	heard := r.mirror.Heard()
	p.mu.Lock()
	p.heard[name] = heard // for the mirror that may follow
	p.mu.Unlock()
	select {
	case p.halted <- struct{}{}:
	default:
	}
}

// finish deletes everything of a peer that is being removed. The Peer goes last, so
// that a removal interrupted by a crash is completed later.
func (p *Peering) finish(ctx context.Context, name string) error {
	p.halt(name)
	if err := p.purge(ctx, name); err != nil {
		return err
	}
	peer, cond, err := p.peer(ctx, name)
	if err != nil || !peer.Removing {
		return err // already finished by someone else
	}
	if err := p.conf.Users.RemoveUser(ctx, authority.RemoteUser(name, peer.Generation)); err != nil {
		return err
	}
	_, done, err := p.conf.Store.Commit(ctx, store.Txn{If: []store.Cond{cond}, Then: []store.Op{store.Delete(wire.PeerKey(name))}})
	if done {
		p.conf.Log.Info("peer removed", "peer", name)
	}
	return err
}

// purge deletes exactly the keys that a mirror of the peer writes, its liveness, and
// what was written for the peer to read. The cluster config goes first, so that no
// agent starts reading what is about to be deleted.
func (p *Peering) purge(ctx context.Context, name string) error {
	p.mu.Lock()
	delete(p.heard, name)
	p.mu.Unlock()
	p.kept.Note(store.Delete(wire.JoinedKey(name)))
	ops := []store.Op{store.Delete(wire.ClusterConfigKey(name)), store.DeletePrefix(wire.SyncedPrefix(name))}
	for _, r := range wire.Resources {
		ops = append(ops, store.DeletePrefix(r.AllCachePrefix()+name+"/"))
	}
	ops = append(ops, store.DeletePrefix(wire.PeerCachePrefix(name)), store.DeletePrefix(wire.JoinedPrefix(name)))
	for _, op := range ops {
		if err := store.Write(ctx, p.conf.Store, op); err != nil {
			return fmt.Errorf("delete what is left of peer %q: %w", name, err)
		}
	}
	return nil
}

// Status returns the status of every peer, ordered by name.
func (p *Peering) Status() []api.PeerStatus {
	now := time.Now()
	p.mu.Lock()
	peers := slices.Collect(maps.Values(p.peers))
	p.mu.Unlock()
	slices.SortFunc(peers, func(a, b wire.Peer) int { return cmp.Compare(a.Name, b.Name) })
	out := make([]api.PeerStatus, 0, len(peers))
	for _, peer := range peers {
		out = append(out, p.status(peer, now))
	}
	return out
}

func (p *Peering) status(peer wire.Peer, now time.Time) api.PeerStatus {
	p.mu.Lock()
	r := p.mirrors[peer.Name]
	p.mu.Unlock()
	if r != nil {
		s := r.mirror.Status(now)
		s.Invited, s.Added = peer.Invited, peer.Added
		return s
	}
	s := recorded(p.conf.Cluster.Name, peer)
	if s.Control.State == api.LinkUnknown {
		s.Control.State = api.LinkConnecting // its mirror is about to start
	}
	return s
}

// working returns the running mirrors, ordered by peer. A mirror holds its own lock
// while it calls taken, which takes p.mu: so mirrors are never asked under p.mu.
func (p *Peering) working() []*running {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*running, 0, len(p.mirrors))
	for _, name := range slices.Sorted(maps.Keys(p.mirrors)) {
		all = append(all, p.mirrors[name])
	}
	return all
}

// Concerns returns what needs an operator, apart from the state of the control links,
// ordered by peer.
func (p *Peering) Concerns(now time.Time) (out []api.Concern) {
	for _, r := range p.working() {
		out = append(out, r.mirror.Concerns(now)...)
		if c, ok := r.moves.concern(r.mirror.Peer().Name); ok {
			out = append(out, c)
		}
		if c, ok := ending(p.conf.Cluster.Name, r.mirror.Peer(), r.ends, now); ok {
			out = append(out, c)
		}
	}
	return out
}
