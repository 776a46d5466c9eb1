package apiserver

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/apiserver/nodes"
	"github.com/weft-mesh/weft/apiserver/peering"
	"github.com/weft-mesh/weft/apiserver/store"
	"github.com/weft-mesh/weft/tunnel/gossip"
	"github.com/weft-mesh/weft/wire"
)

// peersTurn is how often the WAN pool is told of peers that were added or left.
const peersTurn = 500 * time.Millisecond

// wanLabel keeps the WAN pool apart from every other.
const wanLabel = "weft-wan"

// gossiper takes part in two pools: among the cluster's agents it learns which
// are dead, and among all API servers it tells of its own and hears of theirs.
// What is heard is written down for the agents, whose probes decide.
type gossiper struct {
	conf    Config
	cluster wire.Cluster
	store   store.Store
	census  *census
	wanKey  []byte
	trust   *authority.Authority // signs what we report
	peers   func() []peering.GossipPeer
	log     *slog.Logger
	reports chan struct{} // has one element when a report came in
}

// Run takes part until ctx ends. A pool that cannot be had is tried again: it
// makes things faster, nothing rests on it.
func (g *gossiper) Run(ctx context.Context) error {
	var wan *gossip.Pool
	if g.conf.WANGossipPort != 0 {
		var err error
		if wan, err = g.wan(); err != nil {
			return err
		}
	}
	// Without a pool nothing is heard, and what was heard before grows old.
	heard := func() []gossip.Report { return nil }
	group, ctx := errgroup.WithContext(ctx)
	if g.conf.GossipPort != 0 {
		group.Go(func() error { return store.Persist(ctx, g.log, "gossip among agents", g.lan) })
	}
	if wan != nil {
		group.Go(func() error { return store.Persist(ctx, g.log, "gossip among clusters", wan.Run) })
		group.Go(func() error { return g.follow(ctx, wan) })
		heard = wan.Reports
	}
	group.Go(func() error {
		return store.Persist(ctx, g.log, "writing down what peers say of their nodes", func(ctx context.Context) error { return g.writePeers(ctx, heard) })
	})
	group.Go(func() error {
		return store.Persist(ctx, g.log, "writing down which nodes are dead", func(ctx context.Context) error { return g.writeOwn(ctx, wan) })
	})
	return group.Wait()
}

func (g *gossiper) self(port uint16) gossip.Member {
	return gossip.Member{Cluster: g.cluster.Name, Name: g.conf.Advertise.String(), Role: gossip.APIServer, Addr: netip.AddrPortFrom(g.conf.Advertise, port)}
}

// lan takes part in the agents' pool. Its settings are theirs.
func (g *gossiper) lan(ctx context.Context) error {
	keys, err := nodes.GossipKeys(ctx, g.store)
	if err != nil {
		return err
	}
	pool, err := gossip.New(gossip.Config{
		Self:  g.self(g.conf.GossipPort),
		Label: "weft-lan-" + g.cluster.Name, Speed: gossip.VeryFast, Keys: keys.LAN, Clusters: []string{g.cluster.Name},
		OnEvent: g.count, OnSaid: g.said,
		Log: g.log,
	})
	if err != nil {
		return err
	}
	pool.SetSeeds(g.agents(ctx))
	return pool.Run(ctx)
}

// count tells the census of an agent that came, left or died.
func (g *gossiper) count(e gossip.Event) {
	if e.Member.Role == gossip.Agent && e.Member.Cluster == g.cluster.Name {
		g.census.heard(e.Member.Name, e.Kind, e.At)
	}
}

// said hands on how far an agent is with its store. Whoever has the pool's key
// can claim to be another; nothing but what the status shows follows from it.
func (g *gossiper) said(m gossip.Member, text []byte) {
	if m.Role != gossip.Agent || m.Cluster != g.cluster.Name {
		return
	}
	if s, err := wire.Unmarshal[wire.StoreStanding](text); err == nil {
		g.census.stands(m.Name, s, time.Now())
	}
}

// agents are where the cluster's agents listen, as registered: an API server
// that comes back finds them without waiting for them.
func (g *gossiper) agents(ctx context.Context) []netip.AddrPort {
	kvs, _, err := g.store.List(ctx, nodes.RegistrationPrefix)
	if err != nil {
		return nil // they join us too
	}
	var seeds []netip.AddrPort
	for _, kv := range kvs {
		if r, err := wire.Unmarshal[nodes.Registration](kv.Value); err == nil && len(r.Addresses) > 0 {
			seeds = append(seeds, netip.AddrPortFrom(r.Addresses[0], agentGossipPort))
		}
	}
	return seeds
}

func (g *gossiper) wan() (*gossip.Pool, error) {
	return gossip.New(gossip.Config{
		Self:  g.self(g.conf.WANGossipPort),
		Label: wanLabel, Speed: gossip.WAN, Keys: [][]byte{g.wanKey}, Clusters: []string{g.cluster.Name},
		OnReport: func(gossip.Report) {
			select {
			case g.reports <- struct{}{}:
			default:
			}
		},
		Sign:   func(text []byte) ([]byte, error) { return g.trust.Sign(reportKind, text) },
		Verify: g.verify,
		Log:    g.log,
	})
}

// reportKind is what reports of dead nodes are signed as.
const reportKind = "report of dead nodes"

// verify says whether a cluster signed a report: what a peer's servers are
// checked against also tells what else is the peer's.
func (g *gossiper) verify(cluster string, text, signature []byte) error {
	if cluster == g.cluster.Name {
		return authority.Signed(g.trust.Bundle(), reportKind, text, signature)
	}
	for _, p := range g.peers() {
		if p.Name == cluster {
			return authority.Signed([]byte(p.CA), reportKind, text, signature)
		}
	}
	return fmt.Errorf("cluster %q is no peer", cluster)
}

// follow keeps the WAN pool's members and keys those of the peers.
func (g *gossiper) follow(ctx context.Context, wan *gossip.Pool) error {
	tick := time.NewTicker(peersTurn)
	defer tick.Stop()
	var known []peering.GossipPeer
	for {
		peers := g.peers()
		if !slices.EqualFunc(known, peers, samePeer) {
			clusters, keys, seeds := []string{g.cluster.Name}, [][]byte{g.wanKey}, []netip.AddrPort(nil)
			for _, p := range peers {
				clusters = append(clusters, p.Name)
				if len(p.Key) > 0 {
					keys = append(keys, p.Key)
				}
				for _, text := range p.Addresses {
					if a, err := netip.ParseAddrPort(text); err == nil {
						seeds = append(seeds, a)
					}
				}
			}
			if err := wan.SetKeys(keys); err != nil {
				g.log.Warn("gossip among clusters: a peer's key is not usable", "err", err)
			}
			wan.SetClusters(clusters)
			wan.SetSeeds(seeds)
			known = peers
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func samePeer(a, b peering.GossipPeer) bool {
	return a.Name == b.Name && slices.Equal(a.Key, b.Key) && slices.Equal(a.Addresses, b.Addresses)
}

// writeOwn writes down which of our nodes gossip holds for dead, and tells the
// peers.
func (g *gossiper) writeOwn(ctx context.Context, wan *gossip.Pool) error {
	var written map[string]time.Time
	for {
		dead := g.census.dead()
		if wan != nil {
			if err := wan.SetDead(slices.Collect(maps.Keys(dead))); err != nil {
				return err
			}
		}
		if written == nil || !maps.EqualFunc(dead, written, time.Time.Equal) {
			if err := store.Write(ctx, g.store, store.Put(wire.OwnLivenessKey, wire.Marshal(wire.PeerLiveness{Dead: dead, Seen: time.Now().UTC()}))); err != nil {
				return err
			}
			written = dead
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-g.census.changed:
		}
	}
}
