package apiserver

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/apiserver/peering"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/tunnel/gossip"
	"github.com/weft-mesh/weft/wire"
)

func TestHeardOf(t *testing.T) {
	now := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	stands := func(age time.Duration, dead ...string) wire.PeerLiveness {
		l := wire.PeerLiveness{Seen: ago(age), Dead: map[string]time.Time{}}
		for _, n := range dead {
			l.Dead[n] = ago(age)
		}
		return l
	}
	report := func(age time.Duration, dead ...string) gossip.Report {
		return gossip.Report{Cluster: "west", Sequence: uint64(ago(age).UnixNano()), Dead: dead}
	}
	reports := func(all ...gossip.Report) []gossip.Report { return all }
	for _, c := range []struct {
		name    string
		stands  wire.PeerLiveness
		reports []gossip.Report
		write   bool
		dead    string
		seen    time.Duration // ago
	}{
		{"nothing at all", wire.PeerLiveness{}, nil, false, "", 0},
		{"first word", wire.PeerLiveness{}, reports(report(time.Second, "n1")), true, "n1", time.Second},
		{"first word, of nobody", wire.PeerLiveness{}, reports(report(0)), true, "", 0},
		{"the same", stands(time.Minute, "n1"), reports(report(0, "n1")), false, "", 0},
		{"another death", stands(time.Minute, "n1"), reports(report(0, "n1", "n2")), true, "n1 n2", 0},
		{"of an earlier life of ours", stands(time.Hour, "n9"), reports(report(0)), true, "", 0},
		{"one of two says so", stands(time.Minute), reports(report(0), report(time.Second, "n1")), true, "n1", 0},
		{"kept fresh", stands(recordRefresh, "n1"), reports(report(0, "n1")), true, "n1", 0},
		{"no word yet", stands(gossip.ReportLife-time.Second, "n1"), nil, false, "", 0},
		{"no word any more", stands(gossip.ReportLife, "n1"), nil, true, "", gossip.ReportLife},
		{"no word, and nobody dead", stands(time.Hour), nil, false, "", 0},
		{"written by a clock far ahead", stands(-time.Hour, "n1"), nil, true, "", -time.Hour},
		{"another has heard later", stands(time.Second, "n1"), reports(report(time.Minute, "n2")), false, "", 0},
		{"another has heard far ahead", stands(-time.Hour, "n1"), reports(report(time.Minute, "n2")), true, "n2", time.Minute},
		{"the peer's clock is ahead", wire.PeerLiveness{}, reports(report(-time.Minute, "n1")), true, "n1", 0},
	} {
		next, write := heardOf(c.stands, c.reports, now)
		if write != c.write {
			t.Errorf("%s: write %v", c.name, write)
		}
		if dead := strings.Join(slices.Sorted(maps.Keys(next.Dead)), " "); write && (dead != c.dead || !next.Seen.Equal(ago(c.seen))) {
			t.Errorf("%s: %q, seen %v", c.name, dead, next.Seen)
		}
		for n, since := range c.stands.Dead {
			if again, ok := next.Dead[n]; ok && !again.Equal(since) {
				t.Errorf("%s: %s died %v and then %v", c.name, n, since, again)
			}
		}
	}
}

// TestPeerThatFellSilentIsNotQuotedForEver has an API server on a store that says
// something of a peer, which it does not hear of itself: from its own earlier life
// at first, and then from another API server, which hears the peer and goes.
func TestPeerThatFellSilentIsNotQuotedForEver(t *testing.T) {
	for name, c := range map[string]struct {
		before bool          // something stands there from the beginning
		hears  []string      // nil: nothing; else who is dead by the peer's reports
		quoted time.Duration // how long the other one's word stands at most
	}{
		"hears nothing, and something stands there": {true, nil, gossip.ReportLife},
		"hears nothing, and nothing stands there":   {false, nil, gossip.ReportLife},
		"hears of nobody dead":                      {false, []string{}, recordRefresh},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := storetest.New()
				dead := wire.PeerLiveness{Dead: map[string]time.Time{"n9": time.Now()}}
				write := func() {
					t.Helper()
					dead.Seen = time.Now()
					if err := store.Write(t.Context(), st, store.Put(wire.PeerLivenessKey("west"), wire.Marshal(dead))); err != nil {
						t.Fatal(err)
					}
				}
				if c.before {
					write()
				}
				if err := store.Write(t.Context(), st, store.Put(wire.PeerKey("west"), wire.Marshal(wire.Peer{Name: "west"}))); err != nil {
					t.Fatal(err)
				}
				heard := func() []gossip.Report {
					if c.hears == nil {
						return nil
					}
					return []gossip.Report{{Cluster: "west", Sequence: uint64(time.Now().UnixNano()), Dead: c.hears}}
				}
				g := &gossiper{
					store: st, log: slog.New(slog.DiscardHandler), reports: make(chan struct{}, 1),
					peers: func() []peering.GossipPeer { return []peering.GossipPeer{{Name: "west"}} },
				}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error)
				go func() { done <- g.writePeers(ctx, st, heard) }()
				after := func(d time.Duration, want bool) {
					t.Helper()
					time.Sleep(d)
					synctest.Wait()
					kv, err := st.Get(t.Context(), wire.PeerLivenessKey("west"))
					if is := hasDead(kv.Value, err, "n9") == nil; is != want {
						t.Errorf("n9 is dead: %v, %s", is, kv.Value)
					}
				}
				after(gossip.ReportLife-time.Minute, c.before)
				write()
				if c.hears == nil {
					after(c.quoted-time.Minute, true)
					after(2*time.Minute, false)
				} else {
					after(c.quoted, false)
				}
				cancel()
				<-done
			})
		})
	}
}

// An API server outside the pool of clusters lets what it wrote when it took
// part grow old all the same.
func TestWithoutAPoolPeersAreNotQuotedForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := storetest.New()
		if err := store.Write(t.Context(), st,
			store.Put(wire.PeerKey("west"), wire.Marshal(wire.Peer{Name: "west"})),
			store.Put(wire.PeerLivenessKey("west"), wire.Marshal(wire.PeerLiveness{Dead: map[string]time.Time{"n9": time.Now()}, Seen: time.Now()}))); err != nil {
			t.Fatal(err)
		}
		log := slog.New(slog.DiscardHandler)
		g := &gossiper{
			store: st, census: newCensus(st, log), log: log, reports: make(chan struct{}, 1),
			peers: func() []peering.GossipPeer { return []peering.GossipPeer{{Name: "west"}} },
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- g.write(ctx, st) }()
		time.Sleep(gossip.ReportLife + time.Minute)
		synctest.Wait()
		kv, err := st.Get(t.Context(), wire.PeerLivenessKey("west"))
		if err != nil || hasDead(kv.Value, err, "n9") == nil {
			t.Errorf("n9 is dead: %s, %v", kv.Value, err)
		}
		cancel()
		<-done
	})
}
