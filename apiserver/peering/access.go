package peering

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// The API servers of a cluster come and go. Each cluster tells its peers, where only they
// can read it, how it is reached from now on, so that invites need not be renewed.

// tellRetry is the pause before a peer is told whose folder did not exist.
const tellRetry = time.Second

// access is how peers reach us, in one order, whichever API server leads.
func (p *Peering) access() wire.Access {
	return wire.Access{Etcd: slices.Sorted(slices.Values(p.conf.EtcdEndpoints())), Gossip: slices.Sorted(slices.Values(p.conf.gossipAddresses()))}
}

// Moved has peers told how we are reached, because our API servers have changed. It does not
// wait.
func (p *Peering) Moved() {
	select {
	case p.tells <- struct{}{}:
	default:
	}
}

// tellAccess tells peers how we are reached, until ctx ends: each when it was added, and all
// when our API servers have changed.
func (p *Peering) tellAccess(ctx context.Context) error {
	told := map[string]time.Time{} // peers that know how we are reached, and when they were added
	var last wire.Access
	for {
		now := p.access()
		added, listed := p.added()
		if listed || !now.Equal(last) {
			clear(told)
			last = now
		}
		maps.DeleteFunc(told, func(name string, at time.Time) bool { return !added[name].Equal(at) })
		var again <-chan time.Time
		for name, at := range added {
			if _, ok := told[name]; ok {
				continue
			}
			done, err := p.tellOne(ctx, name, now)
			if err != nil {
				return err
			}
			if !done {
				again = time.After(tellRetry)
				continue
			}
			told[name] = at
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.tells:
		case <-again:
		}
	}
}

// added returns the peers that are added here and run Weft, and since when they are. listed
// says that they were listed since the last call: the store may have been restored.
func (p *Peering) added() (all map[string]time.Time, listed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	listed, p.listed = p.listed, false
	all = map[string]time.Time{}
	for name, peer := range p.peers {
		if peer.Connected && !peer.Cilium && !peer.Removing {
			all[name] = peer.Added
		}
	}
	return all, listed
}

// tellOne tells one peer. It does nothing while the peer's folder does not exist yet, or no
// longer: nobody would delete what is written there.
func (p *Peering) tellOne(ctx context.Context, name string, now wire.Access) (done bool, err error) {
	key, value := wire.PeerAccessKey(name), wire.Marshal(now)
	kv, err := p.conf.Store.Get(ctx, key)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return false, err
	}
	if slices.Equal(kv.Value, value) {
		return true, nil
	}
	joined, err := p.conf.Store.Get(ctx, wire.JoinedKey(name))
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	_, done, err = p.conf.Store.Commit(ctx, store.Txn{
		If:   []store.Cond{{Key: joined.Key, Modified: joined.Modified}},
		Then: []store.Op{store.Put(key, value)},
	})
	return done, err
}

// moveTurn is the pause between two changes that a peer makes to how it is reached: each is
// a write of ours that all our agents see. What could not be taken up is tried again after
// moveRetry.
const (
	moveTurn  = time.Second
	moveRetry = 10 * time.Second
	moveGrace = 30 * time.Second
)

// moves are what a peer says of how it is reached from now on.
type moves struct {
	newest chan wire.Access // has one element if there is something new

	mu     sync.Mutex // guards what follows
	failed error      // why it is not taken up; nil if it is
	since  time.Time
}

func newMoves() *moves { return &moves{newest: make(chan wire.Access, 1)} }

// say puts the newest in place of what has not been taken up. Only the mirror calls it.
func (m *moves) say(now wire.Access) {
	select {
	case <-m.newest:
	default:
	}
	m.newest <- now
}

// note keeps the result of an attempt, and reports whether it is another one.
func (m *moves) note(err error) (changed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if (err == nil) != (m.failed == nil) {
		m.since = time.Now()
	}
	changed = fmt.Sprint(err) != fmt.Sprint(m.failed)
	m.failed = err
	return changed
}

// concern says that a peer names API servers that are not used; false if it does not.
func (m *moves) concern(peer string) (api.Concern, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed == nil {
		return api.Concern{}, false
	}
	return api.Concern{
		Object: "peer " + peer, Reason: "PeerMoved", Since: m.since, Grace: moveGrace,
		Message: fmt.Sprintf("peer %s: what it has named for {age} as its API servers is not usable: %v", peer, m.failed),
		Next:    "ask its operator to check the advertise addresses of its API servers",
	}, true
}

// follow takes up how a peer says that it is reached, until ctx ends. The mirror goes on with
// the connection that it has.
func (p *Peering) follow(ctx context.Context, name string, m *moves, conf func() (*tls.Config, error)) {
	var now wire.Access
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case now = <-m.newest:
		case <-again:
		}
		again = nil
		unusable, err := p.move(ctx, name, now, conf)
		if ctx.Err() != nil {
			return
		}
		if err == nil && m.note(unusable) && unusable != nil {
			p.conf.Log.Warn("what a peer names as its API servers is not usable; retrying", "peer", name, "err", unusable)
		}
		if err != nil || unusable != nil {
			again = time.After(moveRetry)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(moveTurn):
		}
	}
}

// move takes up once how a peer says that it is reached; what an operator chose otherwise
// stays. No address is forgotten before the peer answers at one that stays: what it names may
// be wrong, or from before its store was restored, and then nobody could tell us. unusable is
// why it cannot be taken up, or not whole. It does not take the lock changing, under which a
// removal waits for the mirror: the record's revision keeps two changes apart.
func (p *Peering) move(ctx context.Context, name string, now wire.Access, conf func() (*tls.Config, error)) (unusable, err error) {
	peer, cond, err := p.peer(ctx, name)
	if err != nil || !peer.Connected || peer.Cilium || peer.Named.Equal(now) {
		return nil, err
	}
	used := wire.Access{Etcd: peer.Endpoints, Gossip: peer.Gossip}
	if err := p.checkAccess(name, used, now); err != nil {
		return err, nil
	}
	take, next := now, used.Follow(peer.Named, now)
	if gone := used.Lacks(next); len(gone) > 0 {
		if err := p.reaches(ctx, next.Etcd, conf); err != nil {
			unusable = fmt.Errorf("%w; %s stays in use until it does", err, strings.Join(gone, ", "))
			if take = now.And(peer.Named); len(take.Etcd) > 2*mostAccess || len(take.Gossip) > 2*mostAccess {
				return unusable, nil // it names others again and again
			}
			next = used.Follow(peer.Named, take)
		}
	}
	if peer.Named.Equal(take) && used.Equal(next) {
		return unusable, nil
	}
	peer.Endpoints, peer.Gossip, peer.Named = next.Etcd, next.Gossip, take
	if err := p.commit(ctx, []store.Cond{cond}, store.Put(wire.PeerKey(name), wire.Marshal(peer))); err != nil {
		return nil, err
	}
	p.conf.Log.Info("a peer named its API servers", "peer", name, "endpoints", next.Etcd)
	return unusable, nil
}

// reaches returns nil if the peer answers at one of these endpoints.
func (p *Peering) reaches(ctx context.Context, endpoints []string, conf func() (*tls.Config, error)) error {
	c, err := conf()
	if err != nil {
		return err
	}
	var why error
	for _, e := range endpoints {
		if why = p.conf.Dialer.Probe(ctx, []string{e}, c); why == nil {
			return nil
		}
	}
	return fmt.Errorf("it does not answer at %s (%w)", strings.Join(endpoints, ", "), why)
}

// mostAccess is how many API servers a peer may name.
const mostAccess = 16

// checkAccess refuses what cannot be how a peer is reached, and what would make us connect to
// something that is not its own.
func (p *Peering) checkAccess(name string, used, now wire.Access) error {
	var c checker
	if len(now.Etcd) == 0 || len(now.Etcd) > mostAccess || len(now.Gossip) > mostAccess {
		c.invalid("it names %d endpoints and %d gossip addresses; 1 to %d and up to %[3]d are allowed", len(now.Etcd), len(now.Gossip), mostAccess)
	}
	c.endpoints(now.Etcd)
	local := false // as in tests, and where one machine runs both
	for _, e := range used.Etcd {
		a, err := netip.ParseAddr(hostOf(e))
		local = local || err == nil && a.IsLoopback()
	}
	var hosts []string
	for _, e := range now.Etcd {
		hosts = append(hosts, hostOf(e))
	}
	for _, g := range now.Gossip {
		host, _, err := net.SplitHostPort(g)
		if err != nil {
			c.invalid("gossip address %q is not of the form host:port", g)
		}
		hosts = append(hosts, host)
	}
	for _, host := range hosts {
		a, err := netip.ParseAddr(host)
		if err != nil {
			continue // a name
		}
		a = a.Unmap()
		switch owner := p.taken(name, a); {
		case owner != "":
			c.invalid("%v belongs to %s", a, owner)
		case a.IsUnspecified(), a.IsMulticast(), a.IsLinkLocalUnicast(), a.IsLoopback() && !local:
			c.invalid("%v is not an address of another machine", a)
		}
	}
	if len(c.problems) > 0 {
		return errors.New(c.problems[0].Message)
	}
	return nil
}

// hostOf returns the host of a URL; "" if it has none.
func hostOf(endpoint string) string {
	u, err := url.Parse(endpoint)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// endpointsOf returns where a peer is reached now.
func (p *Peering) endpointsOf(peer wire.Peer) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now, ok := p.peers[peer.Name]; ok {
		return now.Endpoints
	}
	return peer.Endpoints
}
