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
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/tunnel/gossip"
	"github.com/weft-mesh/weft/wire"
)

// peersTurn is how often the WAN pool learns of peers that were added or removed.
const peersTurn = 500 * time.Millisecond

// wanLabel separates the WAN pool from every other pool.
const wanLabel = "weft-wan"

// gossiper takes part in two pools: in that of the cluster's agents it learns which of them
// are dead, and in that of all API servers it reports its own dead nodes and learns those of
// peers. It stores what it learns for the agents, whose probes decide.
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
	wan     *gossip.Pool  // nil: we do not take part in that of all clusters
}

// newGossiper makes the gossiper of a server.
func newGossiper(s *server, wanKey []byte) (*gossiper, error) {
	g := &gossiper{
		conf: s.conf, cluster: s.cluster, store: s.store, census: s.census, wanKey: wanKey, trust: s.authority,
		peers: s.directory.Gossip, log: s.log, reports: make(chan struct{}, 1),
	}
	if s.conf.WANGossipPort == 0 {
		return g, nil
	}
	var err error
	g.wan, err = g.wanPool()
	return g, err
}

// Run takes part until ctx ends. A pool that fails is tried again: gossip makes failover
// faster, but nothing depends on it.
func (g *gossiper) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	if g.conf.GossipPort != 0 {
		group.Go(func() error { return store.Persist(ctx, g.log, "gossip among agents", g.lan) })
	}
	if g.wan != nil {
		group.Go(func() error { return store.Persist(ctx, g.log, "gossip among clusters", g.wan.Run) })
		group.Go(func() error { return g.follow(ctx) })
		group.Go(func() error { return store.Persist(ctx, g.log, "reporting dead nodes to peers", g.reportOwn) })
	}
	return group.Wait()
}

// write stores what is heard for the agents, until ctx ends. Only the server that leads
// does so.
func (g *gossiper) write(ctx context.Context, st store.Store) error {
	// Without a pool there are no reports, and those in the store expire.
	heard := func() []gossip.Report { return nil }
	if g.wan != nil {
		heard = g.wan.Reports
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return store.Persist(ctx, g.log, "storing peers' reports of dead nodes", func(ctx context.Context) error { return g.writePeers(ctx, st, heard) })
	})
	group.Go(func() error {
		return store.Persist(ctx, g.log, "storing which nodes are dead", func(ctx context.Context) error { return g.writeOwn(ctx, st) })
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

// count tells the census that an agent joined, left or died.
func (g *gossiper) count(e gossip.Event) {
	if e.Member.Role == gossip.Agent && e.Member.Cluster == g.cluster.Name {
		g.census.heard(e.Member.Name, e.Kind, e.At)
	}
}

// said passes on how far an agent is with its store. Anyone with the pool's key can speak
// for another agent, so this is used for the status only.
func (g *gossiper) said(m gossip.Member, text []byte) {
	if m.Role != gossip.Agent || m.Cluster != g.cluster.Name {
		return
	}
	if s, err := wire.Unmarshal[wire.StoreStanding](text); err == nil {
		g.census.stands(m.Name, s, time.Now())
	}
}

// agents returns the addresses of the cluster's agents, as registered, so that a restarted
// API server finds them without waiting for them.
func (g *gossiper) agents(ctx context.Context) []netip.AddrPort {
	kvs, _, err := g.store.List(ctx, wire.RegistrationsPrefix)
	if err != nil {
		return nil // they join us too
	}
	var seeds []netip.AddrPort
	for _, kv := range kvs {
		if r, err := wire.Unmarshal[wire.Registration](kv.Value); err == nil && len(r.Addresses) > 0 {
			seeds = append(seeds, netip.AddrPortFrom(r.Addresses[0], agentGossipPort))
		}
	}
	return seeds
}

func (g *gossiper) wanPool() (*gossip.Pool, error) {
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

// reportKind is the kind under which reports of dead nodes are signed.
const reportKind = "report of dead nodes"

// verify checks that a cluster signed a report, against the CA that the peer's servers are
// checked against too.
func (g *gossiper) verify(cluster string, text, signature []byte) error {
	if cluster == g.cluster.Name {
		return authority.Signed(g.trust.Bundle(), reportKind, text, signature)
	}
	for _, p := range g.peers() {
		if p.Name == cluster {
			return authority.Signed([]byte(p.CA), reportKind, text, signature)
		}
	}
	return fmt.Errorf("cluster %q is not a peer", cluster)
}

// follow keeps the WAN pool's clusters, keys and seeds equal to those of the peers.
func (g *gossiper) follow(ctx context.Context) error {
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
			if err := g.wan.SetKeys(keys); err != nil {
				g.log.Warn("gossip among clusters: a peer's key is invalid", "err", err)
			}
			g.wan.SetClusters(clusters)
			g.wan.SetSeeds(seeds)
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

// writeOwn stores which of our nodes gossip considers dead.
func (g *gossiper) writeOwn(ctx context.Context, st store.Store) error {
	var written map[string]time.Time
	for {
		dead := g.census.dead()
		if written == nil || !maps.EqualFunc(dead, written, time.Time.Equal) {
			if err := store.Write(ctx, st, store.Put(wire.OwnLivenessKey, wire.Marshal(wire.PeerLiveness{Dead: dead, Seen: time.Now().UTC()}))); err != nil {
				return err
			}
			written = dead
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-g.census.unstored:
		}
	}
}

// reportOwn reports the dead nodes to the peers. Every API server does: they need one of
// them only, and the one that leads may be the one that died.
func (g *gossiper) reportOwn(ctx context.Context) error {
	for {
		if err := g.wan.SetDead(slices.Collect(maps.Keys(g.census.dead()))); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-g.census.untold:
		}
	}
}
