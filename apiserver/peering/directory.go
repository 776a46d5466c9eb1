package peering

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// Directory knows the peers as they are in the store. Every API server has one: those that
// run no mirrors gossip all the same, and show the peers when nobody else does. Safe for
// concurrent use.
type Directory struct {
	own   string
	store store.Store
	log   *slog.Logger

	mu      sync.Mutex // guards what follows
	peers   map[string]wire.Peer
	secrets map[string]wire.PeerSecret
}

// NewDirectory returns an empty one for the cluster named own.
func NewDirectory(own string, s store.Store, log *slog.Logger) *Directory {
	return &Directory{own: own, store: s, log: log, peers: map[string]wire.Peer{}, secrets: map[string]wire.PeerSecret{}}
}

// Run follows the store until ctx ends.
func (d *Directory) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return follow(ctx, d, wire.PeersPrefix, d.peers) })
	g.Go(func() error { return follow(ctx, d, wire.PeerSecretsPrefix, d.secrets) })
	return g.Wait()
}

// follow keeps into equal to the values below a prefix, by the rest of their keys. What
// cannot be read counts as absent.
func follow[T any](ctx context.Context, d *Directory, prefix string, into map[string]T) error {
	return store.Persist(ctx, d.log, "following "+prefix, func(ctx context.Context) error {
		return store.Follow(ctx, d.store, prefix, func(b store.Batch) error {
			d.mu.Lock()
			defer d.mu.Unlock()
			if b.Complete {
				clear(into)
			}
			for _, e := range b.Events {
				name := strings.TrimPrefix(e.Key, prefix)
				delete(into, name)
				if v, err := wire.Unmarshal[T](e.Value); err == nil && !e.Deleted {
					into[name] = v
				}
			}
			return nil
		})
	})
}

// GossipPeer is a peer to exchange WAN gossip with.
type GossipPeer struct {
	Name      string
	Addresses []string // host:port
	Key       []byte   // never printed
	CA        string   // PEM, to verify what the peer has signed
}

// Gossip returns the connected peers that take part in WAN gossip, ordered by name.
func (d *Directory) Gossip() []GossipPeer {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []GossipPeer
	for _, name := range slices.Sorted(maps.Keys(d.peers)) {
		peer, secret := d.peers[name], d.secrets[name]
		if peer.Connected && len(peer.Gossip) > 0 && len(secret.GossipKey) > 0 {
			out = append(out, GossipPeer{Name: name, Addresses: peer.Gossip, Key: secret.GossipKey, CA: peer.CA})
		}
	}
	return out
}

// Status returns what the store says about every peer, ordered by name. Only the mirrors
// know how the links are.
func (d *Directory) Status(ctx context.Context) ([]api.PeerStatus, error) {
	kv, err := d.store.Get(ctx, wire.HeardKey)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	heard, _ := wire.Unmarshal[wire.Heard](kv.Value) // unreadable, or absent: never heard
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]api.PeerStatus, 0, len(d.peers))
	for _, peer := range d.peers {
		s := recorded(d.own, peer)
		if at := heard.Peers[peer.Name]; !at.IsZero() {
			s.Control.LastHeard, s.Control.AgeSeconds = at, max(0, time.Since(at).Seconds())
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b api.PeerStatus) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// Former lists the removed peers whose CIDRs are blocked, ordered by name.
func (d *Directory) Former(ctx context.Context) ([]api.FormerPeer, error) {
	return formerOf(ctx, d.own, d.store)
}

// recorded is the status of a peer without a mirror.
func recorded(own string, peer wire.Peer) api.PeerStatus {
	s := api.PeerStatus{
		Cluster: own, Name: peer.Name, ID: uint32(peer.ID),
		PodCIDRs: peer.PodCIDRs, ServiceCIDR: peer.ServiceCIDR, IPv6ServiceCIDR: peer.IPv6ServiceCIDR, Endpoints: peer.Endpoints,
		Control: api.ControlStatus{State: api.LinkUnknown, Since: peer.Added},
		Invited: peer.Invited, Added: peer.Added, Cilium: peer.Cilium,
	}
	switch {
	case peer.Removing:
		s.Control.State = api.LinkRemoving
	case !peer.Connected:
		s.Control.State, s.Control.Since = api.LinkInvited, peer.InvitedAt
	}
	return s
}
