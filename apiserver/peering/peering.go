package peering

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/apiserver/mirror"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// Authority is the part of the cluster's certificate authority that peering needs.
type Authority interface {
	Issue(authority.Request) (authority.Pair, error)
	// Bundle returns the CA bundle, in PEM, with which peers verify our servers.
	Bundle() []byte
	// KeepRemovals raises the count of removals, which outlasts the store as the
	// authority's certificates do, to at least atLeast and returns it.
	KeepRemovals(atLeast uint64) (uint64, error)
}

// Config of a Peering.
type Config struct {
	Cluster   wire.Cluster
	Store     store.Store
	Users     store.Users
	Authority Authority
	// EtcdEndpoints (https://host:port) are where peers reach our store.
	EtcdEndpoints func() []string
	// GossipAddresses returns the host:port of our API servers' WAN gossip, none if we
	// do not take part. GossipKey is its key.
	GossipAddresses func() []string
	GossipKey       []byte
	// Limit bounds our copy of each peer; the zero value means mirror's default.
	Limit mirror.Limit
	// Rate bounds how fast our copy changes; the zero value means mirror's
	// default.
	Rate mirror.Rate
	// Declares says that Peer objects of Kubernetes are followed: what they have joined is
	// theirs alone.
	Declares bool
	// Dialer reaches peers; nil means Etcd with Limit.
	Dialer Dialer
	Log    *slog.Logger
}

func (c Config) gossipAddresses() []string {
	if c.GossipAddresses == nil {
		return nil
	}
	return c.GossipAddresses()
}

// Peering manages the peers of a cluster. Run keeps a mirror for each. The other
// methods are safe for concurrent use once Run has started. Run it once only.
type Peering struct {
	conf    Config
	halted  chan struct{} // has one element after a mirror was stopped
	tells   chan struct{} // has one element if peers may have to be told how we are reached
	kept    *store.Kept
	revival mirror.Revival
	// history of our store to which the mirrors have written; used by Run only.
	history string

	changing sync.Mutex // held from a check to the write it allows; taken before mu
	mu       sync.Mutex // guards what follows
	peers    map[string]wire.Peer
	known    bool   // they were read once
	listed   bool   // since peers were last told how we are reached
	owners   owners // of peers
	mirrors  map[string]*running
	nodes    map[string][]netip.Addr // our own
	heard    map[string]time.Time    // by peer, for mirrors that start: from our store, or from the mirror before
}

// New makes a Peering.
func New(c Config) *Peering {
	if c.Limit == (mirror.Limit{}) {
		c.Limit = mirror.DefaultLimit()
	}
	if c.Dialer == nil {
		c.Dialer = Etcd{Limit: c.Limit}
	}
	return &Peering{conf: c, kept: store.NewKept(c.Store, c.Log), halted: make(chan struct{}, 1), tells: make(chan struct{}, 1), peers: map[string]wire.Peer{}, owners: newOwners(), mirrors: map[string]*running{}, nodes: map[string][]netip.Addr{}, heard: map[string]time.Time{}}
}

// Invite creates what the named cluster needs to read us: a user, a certificate for
// it, and our addresses. Inviting again makes another certificate; the older ones stay
// valid until they expire or the peer is removed. Removal invalidates them for good.
func (p *Peering) Invite(ctx context.Context, cluster string) (*api.Invite, error) {
	return p.invite(ctx, cluster, byCommand)
}

func (p *Peering) invite(ctx context.Context, cluster string, by way) (*api.Invite, error) {
	if err := wire.CheckClusterName(cluster); err != nil {
		return nil, api.Invalid("", "%v", err)
	}
	own := p.conf.Cluster
	if cluster == own.Name {
		return nil, api.Invalid("name the cluster that should join", "cluster %q cannot invite itself", cluster)
	}
	if len(p.conf.EtcdEndpoints()) == 0 {
		return nil, api.Invalid("set advertise in the API server's configuration", "peers cannot reach the store of cluster %q: it has no address for them", own.Name)
	}
	p.changing.Lock()
	defer p.changing.Unlock()
	peer, cond, err := p.peer(ctx, cluster)
	if err != nil {
		return nil, err
	}
	if peer.Removing {
		return nil, api.Conflict("try again in a moment", "peer %q is still being removed", cluster)
	}
	if err := alike(peer, by == asCilium); err != nil {
		return nil, err
	}
	if err := p.mine(peer, cond, by); err != nil {
		return nil, err
	}
	conds, ops := []store.Cond{cond}, []store.Op(nil)
	if !peer.Invited {
		var unchanged store.Cond
		if peer.Generation, unchanged, err = p.removals(ctx); err != nil {
			return nil, err
		}
		peer.Name, peer.Invited, peer.InvitedAt, peer.Cilium = cluster, true, time.Now().UTC(), by == asCilium
		peer.Declared = by == byObject
		conds = append(conds, unchanged)
		ops = append(ops, store.Put(wire.PeerKey(cluster), wire.Marshal(peer)),
			store.Put(wire.RemovalsKey, wire.Marshal(peer.Generation)))
	}
	reader := reader(own.Name, peer)
	if err := p.conf.Users.SetUser(ctx, reader); err != nil {
		return nil, err
	}
	pair, err := p.conf.Authority.Issue(authority.Request{User: reader.Name, Client: true})
	if err != nil {
		return nil, err
	}
	if len(ops) > 0 {
		if err := p.commit(ctx, conds, ops...); err != nil {
			return nil, err
		}
	}
	return &api.Invite{
		Kind: api.InviteKind, For: cluster, Expires: time.Now().Add(authority.LeafLifetime).UTC().Truncate(time.Second),
		Cluster: own.Name, ID: uint32(own.ID), PodCIDRs: own.PodCIDRs, ServiceCIDR: own.ServiceCIDR, IPv6ServiceCIDR: own.IPv6ServiceCIDR,
		MaxConnectedClusters: own.MaxConnectedClusters, Generation: own.Generation,
		EtcdEndpoints: p.conf.EtcdEndpoints(), CA: string(p.conf.Authority.Bundle()),
		Cert: string(pair.Cert), Key: string(pair.Key),
		GossipAddresses: p.conf.gossipAddresses(), GossipKey: base64.StdEncoding.EncodeToString(p.conf.GossipKey),
	}, nil
}

// reader is the user of a peer in our store. It may read our export and whether it was
// added here. Cilium reads the heartbeat as a prefix, and etcd refuses a range wider
// than the granted one.
func reader(own string, peer wire.Peer) store.User {
	return store.User{Name: authority.RemoteUser(peer.Name, peer.Generation), Read: []string{
		wire.CiliumStatePrefix,
		wire.ExportPrefix,
		wire.ClusterConfigKey(own),
		wire.SyncedPrefix(own),
		wire.HeartbeatKey + "*",
		wire.JoinedPrefix(peer.Name),
	}}
}

// Add makes the cluster that issued an invite a peer. If it is refused, the error
// lists every reason and nothing is altered. A peer that does not answer is added
// anyway; its status shows that it is down.
func (p *Peering) Add(ctx context.Context, in *api.Invite) (*api.PeerStatus, error) {
	return p.add(ctx, in, byCommand)
}

func (p *Peering) add(ctx context.Context, in *api.Invite, by way) (*api.PeerStatus, error) {
	p.changing.Lock()
	defer p.changing.Unlock()
	peers, nodes, err := p.claims(ctx)
	if err != nil {
		return nil, err
	}
	if err := check(p.conf.Cluster, nodes, peers, in); err != nil {
		return nil, err
	}
	peer, secret := peerOf(in), secretOf(in)
	if err := p.greet(ctx, peer, secret); err != nil {
		return nil, err
	}
	peer.Declared = by == byObject
	return p.connect(ctx, peer, secret)
}

// claims are what a new peer must not contradict: the peers, and the own nodes' addresses.
func (p *Peering) claims(ctx context.Context) (peers []wire.Peer, nodes map[string][]netip.Addr, err error) {
	if peers, err = p.list(ctx); err != nil {
		return nil, nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return peers, maps.Clone(p.nodes), nil
}

// connect makes a cluster that was checked a peer.
func (p *Peering) connect(ctx context.Context, peer wire.Peer, secret wire.PeerSecret) (*api.PeerStatus, error) {
	old, cond, err := p.peer(ctx, peer.Name)
	if err != nil {
		return nil, err
	}
	if err := alike(old, peer.Cilium); err != nil {
		return nil, err
	}
	by := byCommand
	if peer.Declared {
		by = byObject
	}
	if err := p.mine(old, cond, by); err != nil {
		return nil, err
	}
	peer.Invited, peer.InvitedAt, peer.Generation = old.Invited, old.InvitedAt, old.Generation
	// The time makes the record differ, so that the mirror restarts even if only
	// the certificate is new.
	peer.Added = time.Now().UTC()
	former, unchanged, err := p.former(ctx, peer.Name)
	if err != nil {
		return nil, err
	}
	ops := []store.Op{
		store.Put(wire.PeerSecretKey(peer.Name), wire.Marshal(secret)),
		store.Put(wire.PeerKey(peer.Name), wire.Marshal(peer)),
	}
	if left, any := rejoined(former, old, peer); any {
		ops = append(ops, store.Put(wire.FormerKey(peer.Name), wire.Marshal(left)))
	} else if unchanged.Modified != 0 {
		ops = append(ops, store.Delete(wire.FormerKey(peer.Name)))
	}
	if err := p.commit(ctx, []store.Cond{cond, unchanged}, ops...); err != nil {
		return nil, err
	}
	p.conf.Log.Info("peer added", "peer", peer.Name, "id", peer.ID)
	status := p.status(peer, time.Now())
	return &status, nil
}

// greet checks that the peer is who it says it is, if it answers.
func (p *Peering) greet(ctx context.Context, peer wire.Peer, secret wire.PeerSecret) error {
	src, config, err := p.call(ctx, peer, secret)
	if err != nil || src == nil {
		return err
	}
	defer src.Close()
	if config == nil {
		return nil // its store is still being filled
	}
	if _, err := mirror.Agree(p.conf.Cluster, peer, config); err != nil {
		return api.Conflict("", "%v", err)
	}
	return nil
}

// call opens the peer's store and reads how it introduces itself, nil if it does not yet.
// If it does not answer, there is no store, and no error.
func (p *Peering) call(ctx context.Context, peer wire.Peer, secret wire.PeerSecret) (src mirror.Source, config []byte, err error) {
	conf, err := tlsOf(peer, secret)
	if err != nil {
		return nil, nil, api.Invalid("", "%v", err)
	}
	err = p.conf.Dialer.Probe(ctx, peer.Endpoints, conf)
	if errors.Is(err, ErrUnreachable) {
		p.conf.Log.Warn("peer does not answer", "peer", peer.Name, "err", err)
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, api.Invalid("", "cluster %q cannot be added: %v", peer.Name, err)
	}
	if src, err = p.conf.Dialer.Open(peer.Endpoints, conf); err != nil {
		return nil, nil, api.Invalid("", "cluster %q cannot be added: %v", peer.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	kv, err := src.Get(ctx, wire.ClusterConfigKey(peer.Name))
	switch {
	case err == nil:
		return src, kv.Value, nil
	case errors.Is(err, store.ErrNotFound):
		return src, nil, nil
	}
	err = errors.Join(err, src.Close())
	if errors.Is(err, store.ErrDenied) {
		return nil, nil, denied(peer)
	}
	p.conf.Log.Warn("peer does not answer", "peer", peer.Name, "err", err)
	return nil, nil, nil
}

// Remove parts from a cluster: it deletes the peer's user here, our certificate for it,
// and exactly the keys copied from it. Its CIDRs stay blocked until it is forgotten.
// What the peer has of us is removed there, by its operator.
func (p *Peering) Remove(ctx context.Context, cluster string) error {
	return p.remove(ctx, cluster, byCommand)
}

func (p *Peering) remove(ctx context.Context, cluster string, by way) error {
	p.changing.Lock()
	defer p.changing.Unlock()
	peer, cond, err := p.peer(ctx, cluster)
	if err != nil {
		return err
	}
	if cond.Modified == 0 {
		return api.NotFound("`weft peer list` lists the peers", "cluster %q has no peer %q", p.conf.Cluster.Name, cluster)
	}
	if err := p.mine(peer, cond, by); err != nil {
		return err
	}
	if err := p.conf.Users.RemoveUser(ctx, authority.RemoteUser(cluster, peer.Generation)); err != nil {
		return err
	}
	conds, ops := []store.Cond{cond}, []store.Op(nil)
	if peer.Invited {
		n, unchanged, err := p.removals(ctx)
		if err != nil {
			return err
		}
		// The authority goes first: a count that is too high does no harm.
		if n, err = p.conf.Authority.KeepRemovals(n + 1); err != nil {
			return err
		}
		conds, ops = append(conds, unchanged), append(ops, store.Put(wire.RemovalsKey, wire.Marshal(n)))
	}
	if peer.Connected {
		former, unchanged, err := p.former(ctx, cluster)
		if err != nil {
			return err
		}
		// In the transaction that ends the membership, so that no node ever sees
		// the CIDRs as world.
		conds, ops = append(conds, unchanged), append(ops, store.Put(wire.FormerKey(cluster), wire.Marshal(parted(former, peer, time.Now().UTC()))))
	}
	peer.Invited, peer.Connected, peer.Removing = false, false, true
	if err := p.commit(ctx, conds, append(ops,
		store.Put(wire.PeerKey(cluster), wire.Marshal(peer)),
		store.Delete(wire.PeerSecretKey(cluster)))...); err != nil {
		return err
	}
	// Run does the same, in case of a crash here.
	return p.finish(ctx, cluster)
}

// Release carries out a peer's held deletions.
func (p *Peering) Release(ctx context.Context, cluster string) (*api.PeerStatus, error) {
	p.mu.Lock()
	peer, known := p.peers[cluster]
	m := p.mirrors[cluster]
	p.mu.Unlock()
	if !known || m == nil {
		return nil, api.NotFound("`weft peer list` lists the peers", "cluster %q has no peer %q", p.conf.Cluster.Name, cluster)
	}
	n, err := m.mirror.Release(ctx)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, api.Conflict("", "peer %q has no held deletions", cluster)
	}
	status := p.status(peer, time.Now())
	return &status, nil
}

// peer reads a peer, and returns it with the condition that it has not changed. If
// there is none, it returns the zero value.
func (p *Peering) peer(ctx context.Context, cluster string) (wire.Peer, store.Cond, error) {
	key := wire.PeerKey(cluster)
	kv, err := p.conf.Store.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return wire.Peer{}, store.Cond{Key: key}, nil
	}
	if err != nil {
		return wire.Peer{}, store.Cond{}, err
	}
	peer, err := wire.Unmarshal[wire.Peer](kv.Value)
	return peer, store.Cond{Key: key, Modified: kv.Modified}, err
}

// removals returns how many invited peers were removed, according to the store or the
// authority, whichever is higher, with the condition that the store's count has not
// changed.
func (p *Peering) removals(ctx context.Context) (uint64, store.Cond, error) {
	kv, err := p.conf.Store.Get(ctx, wire.RemovalsKey)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return 0, store.Cond{}, err
	}
	var n uint64
	if err == nil {
		if n, err = wire.Unmarshal[uint64](kv.Value); err != nil {
			return 0, store.Cond{}, err
		}
	}
	n, err = p.conf.Authority.KeepRemovals(n)
	return n, store.Cond{Key: wire.RemovalsKey, Modified: kv.Modified}, err
}

// keepRemovals copies the count of removals from the store to our authority: another
// API server of the cluster may have raised it, and each has its own folder.
func (p *Peering) keepRemovals(b store.Batch) error {
	for _, e := range b.Events {
		if e.Key != wire.RemovalsKey || e.Deleted {
			continue
		}
		n, err := wire.Unmarshal[uint64](e.Value)
		if err != nil {
			return fmt.Errorf("%s: %w", e.Key, err)
		}
		if _, err := p.conf.Authority.KeepRemovals(n); err != nil {
			return err
		}
	}
	return nil
}

func (p *Peering) list(ctx context.Context) ([]wire.Peer, error) {
	kvs, _, err := p.conf.Store.List(ctx, wire.PeersPrefix)
	if err != nil {
		return nil, err
	}
	peers := make([]wire.Peer, 0, len(kvs))
	for _, kv := range kvs {
		peer, err := wire.Unmarshal[wire.Peer](kv.Value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", kv.Key, err)
		}
		peers = append(peers, peer)
	}
	return peers, nil
}

func (p *Peering) commit(ctx context.Context, conds []store.Cond, ops ...store.Op) error {
	_, done, err := p.conf.Store.Commit(ctx, store.Txn{If: conds, Then: ops})
	if err != nil {
		return err
	}
	if !done {
		return api.Conflict("try again", "the peer was changed by someone else at the same time")
	}
	return nil
}
