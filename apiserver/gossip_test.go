package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/apiserver/nodes"
	"github.com/weft-mesh/weft/internal/loopbacktest"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/tunnel/gossip"
	"github.com/weft-mesh/weft/wire"
)

// Ports of the pools in tests.
const lanPort, wanPort = 17948, 17947

// TestDeathIsToldToPeers has an agent of east fall silent and looks for it in
// west's store.
func TestDeathIsToldToPeers(t *testing.T) {
	conf := config(t)
	conf.GossipPort, conf.WANGossipPort = lanPort, wanPort
	east := start(t, conf)
	conf = config(t)
	conf.Cluster, conf.ID = "west", 2
	conf.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")}
	conf.ServiceCIDR = netip.MustParsePrefix("10.102.0.0/16")
	conf.WANGossipPort = wanPort
	west := start(t, conf)
	ctx := t.Context()
	join(t, east.admin(), 1)

	for _, way := range [][2]*process{{east, west}, {west, east}} {
		invite, err := way[0].admin().Invite(ctx, way[1].conf.Cluster)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := way[1].admin().AddPeer(ctx, invite); err != nil {
			t.Fatal(err)
		}
	}

	// The agent takes part in the pool under the settings that agents have.
	keys, err := nodes.GossipKeys(ctx, east.srv.store)
	if err != nil {
		t.Fatal(err)
	}
	pool := func(name string) (stop func()) {
		p, err := gossip.New(gossip.Config{
			Self:  gossip.Member{Cluster: "east", Name: name, Role: gossip.Agent, Addr: netip.AddrPortFrom(loopbacktest.Addr(t), lanPort)},
			Label: "weft-lan-east", Speed: gossip.VeryFast, Keys: keys.LAN, Clusters: []string{"east"}, Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		p.SetSeeds([]netip.AddrPort{netip.AddrPortFrom(east.conf.Advertise, lanPort)})
		ctx, cancel := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		return func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	stop := pool("n1")
	eventually(t, "agent is heard", func() error {
		list, err := east.admin().Nodes(ctx)
		if err != nil {
			return err
		}
		if n := list.Nodes[0]; n.Alive == nil || !*n.Alive || n.AgeSeconds > 1 {
			return fmt.Errorf("%+v", n)
		}
		return nil
	})
	stop()
	eventually(t, "agent is silent", func() error {
		list, err := east.admin().Nodes(ctx)
		if err != nil {
			return err
		}
		if n := list.Nodes[0]; *n.Alive || n.State != api.NodeSilent {
			return fmt.Errorf("%+v", n)
		}
		return nil
	})

	// A death cannot be had without killing a process, so the census is told.
	east.srv.census.heard("n1", gossip.Dead, east.srv.began)
	eventually(t, "own store knows", func() error {
		kv, err := east.srv.store.Get(ctx, wire.OwnLivenessKey)
		return hasDead(kv.Value, err, "n1")
	})
	eventually(t, "peer's store knows", func() error {
		kv, err := west.srv.store.Get(ctx, wire.PeerLivenessKey("east"))
		return hasDead(kv.Value, err, "n1")
	})
	eventually(t, "peer's operator sees it", func() error {
		status, err := west.admin().Status(ctx)
		if err != nil {
			return err
		}
		if strings.Join(status.Peers[0].DeadNodes, " ") != "n1" {
			return fmt.Errorf("%+v", status.Peers[0].DeadNodes)
		}
		return nil
	})
	east.srv.census.heard("n1", gossip.Alive, east.srv.began)
	eventually(t, "peer's store knows that it is back", func() error {
		kv, err := west.srv.store.Get(ctx, wire.PeerLivenessKey("east"))
		if err := hasDead(kv.Value, err, "n1"); err == nil {
			return errors.New("still dead")
		}
		return nil
	})

	// South is let into the pool as any peer is, and speaks for east.
	south, err := authority.Open(t.TempDir(), "south")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.AddrPortFrom(loopbacktest.Addr(t), wanPort)
	liar, err := gossip.New(gossip.Config{
		Self:  gossip.Member{Cluster: "east", Name: "south", Role: gossip.APIServer, Addr: addr},
		Label: wanLabel, Speed: gossip.WAN, Keys: [][]byte{west.srv.gossiper.wanKey}, Clusters: []string{"east", "west"},
		Sign: func(text []byte) ([]byte, error) { return south.Sign(reportKind, text) },
		Log:  slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := liar.SetDead([]string{"n2"}); err != nil {
		t.Fatal(err)
	}
	liar.SetSeeds([]netip.AddrPort{netip.AddrPortFrom(west.conf.Advertise, wanPort)})
	lying, cease := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- liar.Run(lying) }()
	eventually(t, "the liar is in the pool", func() error {
		if len(liar.Members()) == 0 {
			return errors.New("alone")
		}
		return nil
	})
	// What east says next comes after the lie on the same way.
	east.srv.census.heard("n1", gossip.Dead, east.srv.began)
	eventually(t, "the true one is heard", func() error {
		kv, err := west.srv.store.Get(ctx, wire.PeerLivenessKey("east"))
		if hasDead(kv.Value, err, "n2") == nil {
			t.Fatal("another member's word about east counts")
		}
		return hasDead(kv.Value, err, "n1")
	})
	cease()
	if err := <-ended; err != nil {
		t.Error(err)
	}

	if err := west.admin().RemovePeer(ctx, "east"); err != nil {
		t.Fatal(err)
	}
	east.srv.census.heard("n1", gossip.Dead, east.srv.began)
	eventually(t, "nothing is left of a peer that has gone", func() error {
		kvs, _, err := west.srv.store.List(ctx, wire.CachePrefix)
		if err == nil && len(kvs) > 0 {
			err = fmt.Errorf("%d keys, first %s", len(kvs), kvs[0].Key)
		}
		return err
	})
}

// A goodbye is not a death: the node may only be starting again.
func TestGoodbyeOfAnAgentIsNotADeath(t *testing.T) {
	st := storetest.New()
	g := &gossiper{cluster: wire.Cluster{Name: "east"}, census: newCensus(st, slog.New(slog.DiscardHandler))}
	n1 := gossip.Member{Cluster: "east", Name: "n1", Role: gossip.Agent}
	for _, c := range []struct {
		kind gossip.Kind
		dead int
	}{{gossip.Alive, 0}, {gossip.Left, 0}, {gossip.Alive, 0}, {gossip.Dead, 1}, {gossip.Left, 0}, {gossip.Dead, 1}, {gossip.Alive, 0}} {
		g.count(gossip.Event{Kind: c.kind, Member: n1})
		if dead := g.census.dead(); len(dead) != c.dead {
			t.Errorf("after %s: dead %v", c.kind, dead)
		}
		s := g.census.status("east", map[string]wire.Registration{"n1": {Name: "n1"}}, nil, nil)
		if alive := *s[0].Alive; alive != (c.kind == gossip.Alive) {
			t.Errorf("after %s: alive %v", c.kind, alive)
		}
	}
	g.count(gossip.Event{Kind: gossip.Dead, Member: gossip.Member{Cluster: "west", Name: "n2", Role: gossip.Agent}})
	g.count(gossip.Event{Kind: gossip.Dead, Member: gossip.Member{Cluster: "east", Name: "n3", Role: gossip.APIServer}})
	if dead := g.census.dead(); len(dead) != 0 {
		t.Errorf("somebody else's dead are ours: %v", dead)
	}
}

func hasDead(text []byte, err error, node string) error {
	if err != nil {
		return err
	}
	l, err := wire.Unmarshal[wire.PeerLiveness](text)
	if err != nil {
		return err
	}
	if _, ok := l.Dead[node]; !ok {
		return fmt.Errorf("dead: %v", l.Dead)
	}
	return nil
}
