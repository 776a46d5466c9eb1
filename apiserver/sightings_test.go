package apiserver

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/leader"
	"github.com/weft-mesh/weft/apiserver/members"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

func TestAConcernIsAsOldAsItsFirstSight(t *testing.T) {
	log, start := slog.New(slog.DiscardHandler), time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	s := newSightings(func() bool { return true }, log)
	at := func(d time.Duration) time.Time { return start.Add(d) }
	// since is what the concern's age counts from at a look after d.
	since := func(d time.Duration, c api.Concern) time.Duration {
		all := []api.Concern{c}
		s.date(at(d), all)
		return all[0].Since.Sub(start)
	}
	none := func(d time.Duration) { s.date(at(d), nil) }
	held := func(message string) api.Concern {
		return api.Concern{Object: "peer west", Reason: "DeletionsHeld", Message: message}
	}
	if got := since(0, api.Concern{Object: "node e1", Since: at(-time.Hour)}); got != -time.Hour {
		t.Errorf("one that says it itself: %v", got)
	}
	since(time.Second, held("3 deletions"))
	if got := since(9*time.Second, held("4 deletions")); got != time.Second {
		t.Errorf("another count: since %v", got)
	}
	if got := since(9*time.Second, api.Concern{Object: "peer west", Reason: "DeletionsHeld", Part: "another"}); got != 9*time.Second {
		t.Errorf("another part: since %v", got)
	}
	none(10 * time.Second)
	if got := since(12*time.Second, held("")); got != time.Second {
		t.Errorf("gone for a moment: since %v", got)
	}
	none(12*time.Second + sightingGap)
	if got := since(30*time.Second, held("")); got != 30*time.Second {
		t.Errorf("gone, and back: since %v", got)
	}

	// The next run, or the next server, goes on where this one ended, however long its
	// parts take.
	reopen := func(d time.Duration) {
		text := wire.Marshal(s.file())
		s = newSightings(func() bool { return true }, log)
		s.take(at(d), text)
	}
	reopen(time.Hour)
	none(time.Hour + 50*time.Second)
	if got := since(time.Hour+55*time.Second, held("")); got != 30*time.Second {
		t.Errorf("after a restart: since %v", got)
	}
	none(time.Hour + 2*time.Minute)
	reopen(2 * time.Hour)
	if len(s.seen) != 0 {
		t.Errorf("what was over before the restart: %v", s.seen)
	}

	// A damaged value costs the ages.
	s.take(at(2*time.Hour), []byte(`{"seen":[{"Obj`))
	if got := since(2*time.Hour, held("")); got != 2*time.Hour {
		t.Errorf("damaged: since %v", got)
	}
}

// Servers that do not lead show what the one that leads has written.
func TestAgesPassToTheSuccessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, log := storetest.New(), slog.New(slog.DiscardHandler)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		leads := newSightings(func() bool { return true }, log)
		other := newSightings(func() bool { return false }, log)
		go func() { done <- other.follow(ctx, st) }()
		go func() { done <- leads.write(ctx, st) }()
		synctest.Wait()
		first := time.Now()
		see := func(s *sightings) time.Time {
			all := []api.Concern{{Object: "peer west", Reason: "DeletionsHeld"}}
			s.date(time.Now(), all)
			return all[0].Since
		}
		see(leads)
		time.Sleep(10 * time.Second)
		see(leads)
		synctest.Wait()
		if got := see(other); !got.Equal(first) {
			t.Errorf("another server dates it from %v, want %v", got, first)
		}
		cancel()
		<-done
		<-done
		// One that starts and leads at once reads before it writes.
		next := newSightings(func() bool { return true }, log)
		ctx, cancel = context.WithCancel(t.Context())
		go func() { done <- next.write(ctx, st) }()
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if got := see(next); !got.Equal(first) {
			t.Errorf("the successor dates it from %v, want %v", got, first)
		}
		cancel()
		<-done
	})
}

// Every kind of concern, as its maker makes it: whatever is in the status names an
// object, has an age, and says what to do.
func TestEveryConcernHasObjectAgeAndNextStep(t *testing.T) {
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	long := now.Add(-time.Hour)
	row := func(state string) api.NodeStatus {
		return api.NodeStatus{Cluster: "east", Name: "e1", State: state, Since: long, LastSeen: long}
	}
	problem := func(table, row, text string, rows int) api.NodeStatus {
		n := api.NodeStatus{Cluster: "east", Name: "e1", State: api.NodeReady, Since: long}
		n.Problems = []api.NodeProblem{{Table: table, Row: row, Rows: rows, Error: text, Since: long}}
		return n
	}
	link := func(state, err string) api.PeerStatus {
		return api.PeerStatus{Name: "west", Added: long, Invited: true, Control: api.ControlStatus{State: state, Since: long, Error: err}}
	}
	refusal := api.Refusal{Cluster: "west", Node: "e1", Resource: "ip", Reason: "foreign-address", Count: 2, Example: "x"}
	lost := memory{know: known{Lost: map[string]wire.Registration{"e1": {Name: "e1", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}}}}
	quota, _ := quotaConcern(99, 100)
	failed := failing{since: long, text: "no"}
	disk := (&space{dir: "/var/lib/weft", full: true, failing: failing{since: long, text: "no"}}).concerns()
	own := slices.Concat((&sightings{failing: failing{since: long, text: "no"}}).concerns(), renewalConcerns(&failed), (&history{failing: failing{since: long, text: "no"}}).concerns())
	unsynced := link(api.LinkUp, "")
	unsynced.Mirrors = []api.MirrorStatus{{Resource: "ip"}}
	unsynced.DeadNodes, unsynced.DeadSince, unsynced.Refused = []string{"w1"}, map[string]time.Time{"w1": long}, []api.Refusal{refusal}
	oneSided := link(api.LinkUp, "")
	oneSided.Invited = false
	behind := row(api.NodeNotReady)
	behind.Store = &api.NodeStore{Behind: true, Since: long, Cause: "certificate has expired", Revision: 9}

	var all []api.Concern
	for _, n := range []api.NodeStatus{
		row(api.NodeNeverConnected), row(api.NodeStarting), row(api.NodeSilent), {Name: "e1", State: api.NodeSilent, Since: long}, behind,
		problem(wire.ProblemTunnels, "east/e1", "no WireGuard", 1), problem(wire.ProblemPeers, "east/e1", "no", 1), problem(wire.ProblemProbes, "", "no", 1), problem(wire.ProblemPaths, "", "no", 1),
		problem(wire.ProblemCertificates, "", "they end; issue new ones", 1), problem(wire.ProblemFiles, "/a", "/a: disk full", 1), problem(wire.ProblemDamages, "/a", "/a is damaged; look at it", 1),
		problem(wire.ProblemPrograms, "pod device weft-a", "no", 1), problem(wire.ProblemPods, "a/b", "no", 1), problem(wire.ProblemPods, "a/b", "no", 2), problem(wire.ProblemMasquerades, "", "none", 1), problem(wire.ProblemShares, "a/b", "holds all", 1), problem(wire.ProblemShares, "", "holds all", 1),
		problem("nodes", "east/e2", wire.NotRegistered, 1), problem("ips", "10.1.1.1", "no", 1), problem("ips", "10.1.1.1", "no", 3), problem("ips", "", "no", 1),
	} {
		all = append(all, nodeConcerns([]api.NodeStatus{n}, reach{})...)
	}
	for _, p := range []api.PeerStatus{link(api.LinkInvited, ""), link(api.LinkRemoving, ""), link(api.LinkConnecting, "no"), link(api.LinkDown, "no"), link(api.LinkRefused, "no"), link(api.LinkRefused, "over its limit; raise it"), unsynced, oneSided} {
		all = append(all, peerConcerns("east", []api.PeerStatus{p}, reach{})...)
	}
	all = append(all, refusalConcerns(&api.Status{Refused: []api.Refusal{refusal}, Peers: []api.PeerStatus{unsynced}})...)
	all = append(all, lost.concerns("east")...)
	all = append(all, heldConcerns("east", []string{"e1"})...)
	all = append(all, aheadConcerns([]api.NodeStatus{{Name: "e1", State: api.NodeReady, Store: &api.NodeStore{Revision: 9}}}, 3)...)
	all = append(all, strangerConcerns("east", map[string]time.Time{"e1": long})...)
	all = slices.Concat(all, []api.Concern{quota}, disk, own)
	all = append(all, exportConcerns("east", map[string]string{
		wire.NodeKey("e1"): "no", wire.RegistrationKey("e1"): "no", wire.EndpointKey("a", "b"): "no", wire.IdentityIDKey(65538): "no", wire.ObjectKey("services", "a", "b"): "no",
		wire.ObjectKey("namespaces", "", "a"): "no", wire.ServiceStateKey("east", "a", "b"): "no", wire.SliceStateKey("east", "a", "b"): "no", wire.ClusterConfigKey("east"): "no",
	})...)
	if len(all) < 52 {
		t.Errorf("only %d concerns", len(all))
	}
	all = append(all, serverConcerns("a", leader.View{Vacant: long, Failed: store.ErrFull, Servers: []leader.Row{
		{Server: wire.Server{ID: "a", Name: "192.0.2.1"}, Alive: true},
		{Server: wire.Server{ID: "b", Name: "192.0.2.2"}, Missing: long},
		{Server: wire.Server{ID: "c", Name: "192.0.2.3"}, Alive: true, Problems: wire.Marshal(disk)},
	}}, map[string]silence{"c": {long, errors.New("no answer in time")}}, nil)...)
	all = append(all, serverConcerns("a", leader.View{Leader: wire.Leader{Server: wire.Server{ID: "b", Name: "192.0.2.2"}}, Failed: store.ErrFull}, nil, nil)...)
	all = append(all, serverConcerns("a", leader.View{Servers: []leader.Row{
		{Server: wire.Server{ID: "a", Name: "a"}, Alive: true}, {Server: wire.Server{ID: "b", Name: "b"}, Missing: long}, {Server: wire.Server{ID: "c", Name: "c"}, Alive: true},
	}}, nil, []members.Member{
		{Name: "a", State: members.Up, Since: long}, {Name: "b", State: members.Down, Since: long}, {Name: "c", State: members.Down, Since: long},
		{Name: "d", State: members.Down, Since: long}, {Name: "e", State: members.Joining, Since: long}, {Name: "f", State: members.Invited, Since: long}, {Name: "g", State: members.Up, Since: long},
	})...)
	s := newSightings(func() bool { return true }, slog.New(slog.DiscardHandler))
	s.date(long, all)
	concerns, settling := api.Judge(now, all)
	for _, c := range slices.Concat(concerns, settling) {
		aged := c.Dated || strings.Contains(c.Message, "60 min") || strings.Contains(c.Message, "3600 s")
		if c.Object == "" || c.Reason == "" || c.Next == "" || c.Since.IsZero() || !aged || !strings.HasSuffix(c.String(), c.Next) {
			t.Errorf("%q of %+v", c, c)
		}
	}
}

func TestWhatIsNotExportedIsNamed(t *testing.T) {
	for key, want := range map[string]string{
		wire.NodeKey("e1"):                          "node e1 is not exported to peers as it should be: why; restart its agent; `weft node list` shows what it is registered with",
		wire.ObjectKey("services", "shop", "web"):   "service shop/web is not exported to peers as it should be: why; correct it and apply it again",
		wire.ServiceStateKey("east", "shop", "web"): "service shop/web is not exported to peers as it should be: why; split the service, or raise the store's limit on requests",
		wire.EndpointKey("shop", "web-1"):           "pod shop/web-1 is not exported to peers as it should be: why; correct it and apply it again",
	} {
		got := exportConcerns("east", map[string]string{key: "why"})
		if len(got) != 1 || got[0].String() != want || !strings.HasPrefix(want, got[0].Object) {
			t.Errorf("%s: %v", key, got)
		}
	}
}
