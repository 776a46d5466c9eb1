package peering

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/apiserver/mirror"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func describe(name string, id uint32) wire.Cluster {
	c := wire.Cluster{Name: name, MaxConnectedClusters: 255, Generation: name + "-1",
		PodCIDRs:    []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(id), 0, 0}), 16)},
		ServiceCIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(100 + id), 0, 0}), 16), IPv6ServiceCIDR: netip.MustParsePrefix(fmt.Sprintf("fd00:10:%d::/112", 100+id))}
	_ = json.Unmarshal(fmt.Append(nil, id), &c.ID)
	return c
}

// world is the network between clusters in one test: stores by endpoint.
type world struct {
	mu     sync.Mutex // guards what follows
	stores map[string]*storetest.Store
	down   map[string]bool
	probe  error
}

type session struct{ *storetest.Store }

func (session) Close() error { return nil }

func (w *world) Probe(_ context.Context, endpoints []string, _ *tls.Config) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.ContainsFunc(endpoints, func(e string) bool { return !w.down[e] }) {
		return ErrUnreachable
	}
	return w.probe
}

func (w *world) Open(endpoints []string, _ *tls.Config) (mirror.Source, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range endpoints {
		if s := w.stores[e]; s != nil && !w.down[e] {
			return session{s}, nil
		}
	}
	return nil, store.ErrUnavailable
}

// cluster is one side.
type cluster struct {
	t     *testing.T
	own   wire.Cluster
	st    *storetest.Store
	users *storetest.Users
	ca    *authority.Authority
	p     *Peering
	stop  func()
}

func endpointOf(name string) string { return "https://" + name + ".test:2379" }

func (w *world) cluster(t *testing.T, name string, id uint32) *cluster {
	t.Helper()
	ca, err := authority.Open(t.TempDir(), name)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, own: describe(name, id), st: storetest.New(), users: &storetest.Users{}, ca: ca}
	w.set(func() { w.stores[endpointOf(name)] = c.st })
	c.p = New(Config{Cluster: c.own, Store: c.st, Users: c.users, Authority: ca, EtcdEndpoints: func() []string { return []string{endpointOf(name)} },
		GossipAddresses: func() []string { return []string{name + ".test:7947"} }, GossipKey: bytes.Repeat([]byte{byte(id)}, 32),
		Dialer: w, Log: slog.New(slog.DiscardHandler)})
	c.export(fmt.Sprintf(`{"id":%d,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,"endpointSlicesExportMode":"services-and-endpointslices"}}`, id))
	c.start()
	return c
}

// export writes what an exporter would, for one node and one pod.
func (c *cluster) export(config string) {
	c.t.Helper()
	ops := []store.Op{
		store.Put(wire.ClusterConfigKey(c.own.Name), []byte(config)),
		store.Put(wire.ExportClusterKey, wire.Marshal(wire.ExportCluster{PodCIDRs: c.own.PodCIDRs, Generation: c.own.Generation})),
		store.Put(wire.NodeStateKey(c.own.Name, "n1"), wire.Marshal(wire.Node{Name: "n1", Cluster: c.own.Name, ClusterID: uint32(c.own.ID)})),
		store.Put(wire.IPStateKey(c.own.PodCIDRs[0].Addr().Next()), fmt.Appendf(nil, `{"IP":"%v","ID":%d}`, c.own.PodCIDRs[0].Addr().Next(), uint32(c.own.ID)<<16+1)),
	}
	for _, r := range wire.Resources {
		ops = append(ops, store.Put(r.StateSyncedKey(c.own.Name), wire.TimeText(time.Now())))
	}
	if err := store.Write(context.Background(), c.st, ops...); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) start() {
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan error)
	go func() { done <- c.p.Run(ctx) }()
	c.stop = func() {
		cancel()
		if err := <-done; err != nil {
			c.t.Errorf("Run: %v", err)
		}
	}
	synctest.Wait()
}

// restart stands for a crash and restart of the API server.
func (c *cluster) restart() {
	c.stop()
	c.p = New(c.p.conf)
	c.start()
}

// restartOn restarts on another store, with the same authority.
func (c *cluster) restartOn(st *storetest.Store, users *storetest.Users) {
	c.stop()
	c.st, c.users = st, users
	conf := c.p.conf
	conf.Store, conf.Users = st, users
	c.p = New(conf)
	c.start()
}

// read makes c a reader of from.
func (c *cluster) read(from *cluster) {
	c.t.Helper()
	in, err := from.p.Invite(c.t.Context(), c.own.Name)
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.p.Add(c.t.Context(), in); err != nil {
		c.t.Fatal(err)
	}
	synctest.Wait()
}

func (c *cluster) status(peer string) api.PeerStatus {
	for _, s := range c.p.Status() {
		if s.Name == peer {
			return s
		}
	}
	return api.PeerStatus{}
}

// of lists every key that is about a peer.
func (c *cluster) of(peer string) []string {
	var out []string
	for _, line := range c.st.Dump("") {
		key, _, _ := strings.Cut(line, "=")
		if strings.Contains(key, "/"+peer) {
			out = append(out, key)
		}
	}
	return out
}

// left is everything in the store except the count of removals and when peers were
// heard.
func (c *cluster) left() []string {
	return slices.DeleteFunc(c.st.Dump(""), func(line string) bool {
		return strings.HasPrefix(line, wire.RemovalsKey+"=") || strings.HasPrefix(line, wire.HeardKey+"=")
	})
}

func inWorld(t *testing.T, each func(*testing.T, *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		each(t, &world{stores: map[string]*storetest.Store{}, down: map[string]bool{}})
	})
}

func TestTwoClustersJoinAndPart(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		east, west := w.cluster(t, "east", 1), w.cluster(t, "west", 2)
		defer func() { east.stop(); west.stop() }()
		blank := east.left()
		east.read(west)
		west.read(east)
		for _, c := range []struct {
			at   *cluster
			peer string
		}{{east, "west"}, {west, "east"}} {
			if s := c.at.status(c.peer); s.Control.State != api.LinkUp || s.Cluster != c.at.own.Name {
				t.Errorf("%s: %+v", c.at.own.Name, s)
			} else if !s.Invited || s.Added.IsZero() || s.AddedUs == nil || !*s.AddedUs {
				t.Errorf("%s does not know that both have added the other: %+v", c.at.own.Name, s)
			}
			want := store.User{Name: "remote-" + c.peer, Read: []string{"cilium/state/", "weft/export/", "cilium/cluster-config/" + c.at.own.Name, "cilium/synced/" + c.at.own.Name + "/", "cilium/.heartbeat*", "weft/joined/" + c.peer + "/"}}
			if got, _ := c.at.users.User("remote-" + c.peer); !cmp.Equal(want, got) {
				t.Errorf("user %+v", got)
			}
		}
		if got := len(east.st.Dump("cilium/cache/")); got != 2 {
			t.Errorf("%d entries of west", got)
		}
		if g := gossipPeers(t, east.st); len(g) != 1 || g[0].Name != "west" || g[0].Addresses[0] != "west.test:7947" || g[0].Key[0] != 2 {
			t.Errorf("gossip %v", g)
		}
		for _, line := range east.st.Dump("weft/state/") {
			if strings.Contains(line, "PRIVATE KEY") {
				t.Errorf("a secret that agents can read: %.60s", line)
			}
		}

		if err := east.p.Remove(t.Context(), "west"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if diff := cmp.Diff(with(blank, formerLine("west", "10.2.0.0/16")), east.left()); diff != "" {
			t.Errorf("left behind:\n%s", diff)
		}
		if n := east.users.Names(); len(n) != 0 {
			t.Errorf("users %v", n)
		}
		if len(west.of("east")) == 0 {
			t.Error("removing west at east took something from west")
		}
		if err := east.p.Remove(t.Context(), "west"); !refusal(err, http.StatusNotFound) {
			t.Errorf("removed twice: %v", err)
		}

		east.read(west)
		if s := east.status("west"); s.Control.State != api.LinkUp || len(east.st.Dump("cilium/cache/")) != 2 {
			t.Errorf("added again: %+v", s)
		}
	})
}

func refusal(err error, status int) bool {
	var e *api.Error
	return errors.As(err, &e) && e.Status == status
}

// Each side knows whether the other has added it, and since when.
func TestHalfJoined(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		east, west := w.cluster(t, "east", 1), w.cluster(t, "west", 2)
		defer func() { east.stop(); west.stop() }()
		begun := time.Now()
		east.read(west)
		if s := east.status("west"); s.Control.State != api.LinkUp || s.Invited || !s.Added.Equal(begun) {
			t.Errorf("east has added west, and was not added: %+v", s)
		}
		if s := west.status("east"); s.Control.State != api.LinkInvited || !s.Control.Since.Equal(begun) {
			t.Errorf("west has invited east, and not added it: %+v", s)
		}
		time.Sleep(time.Minute)
		in, err := east.p.Invite(t.Context(), "west")
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if s := east.status("west"); !s.Invited || s.AddedUs == nil || *s.AddedUs || !s.AddedUsSince.Equal(begun) {
			t.Errorf("west was invited, and has not added east: %+v", s)
		}
		if _, err := west.p.Add(t.Context(), in); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if s := east.status("west"); s.AddedUs == nil || !*s.AddedUs || s.AddedUsSince.Before(begun.Add(time.Minute)) {
			t.Errorf("west has added east: %+v", s)
		}
		if s := west.status("east"); s.Control.State != api.LinkUp || s.AddedUs == nil || !*s.AddedUs {
			t.Errorf("both have: %+v", s)
		}
		// A peer added by a version that did not write the key yet gets it now.
		if err := store.Write(t.Context(), east.st, store.Delete(wire.JoinedKey("west"))); err != nil {
			t.Fatal(err)
		}
		east.stop()
		east.start()
		if s := west.status("east"); s.AddedUs == nil || !*s.AddedUs {
			t.Errorf("after an upgrade of east: %+v", s)
		}
	})
}

// The data age of an unreachable peer survives a restart.
func TestAgeOutlastsARestart(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		east, west := w.cluster(t, "east", 1), w.cluster(t, "west", 2)
		defer func() { east.stop(); west.stop() }()
		east.read(west)
		time.Sleep(10 * time.Second)
		age := func() time.Duration {
			return time.Duration(east.status("west").Control.AgeSeconds * float64(time.Second)).Round(time.Minute)
		}
		w.set(func() { w.down[endpointOf("west")] = true })
		west.st.Fail(func(string, string) error { return store.ErrUnavailable })
		time.Sleep(time.Hour)
		if got := age(); got != time.Hour {
			t.Errorf("%v before the restart", got)
		}
		east.stop()
		east.p = New(east.p.conf)
		east.start()
		if got := age(); got != time.Hour {
			t.Errorf("%v after the restart", got)
		}
		time.Sleep(time.Hour)
		if s := east.status("west"); age() != 2*time.Hour || s.Control.State == api.LinkUp {
			t.Errorf("%v an hour later: %+v", age(), s)
		}
		if err := east.p.Remove(t.Context(), "west"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if got := east.st.Dump(wire.HeardKey); len(got) != 0 {
			t.Errorf("removed, and remembered: %v", got)
		}
	})
}

func TestHeardDue(t *testing.T) {
	at := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	one, later := map[string]time.Time{"west": at}, map[string]time.Time{"west": at.Add(time.Second)}
	for name, c := range map[string]struct {
		wrote, heard map[string]time.Time
		since        time.Duration
		want         bool
	}{
		"nobody was ever heard":      {nil, nil, time.Hour, false},
		"the first":                  {nil, one, 0, true},
		"nothing since":              {one, one, time.Hour, false},
		"heard since, but only just": {one, later, heardTurn - 1, false},
		"heard since":                {one, later, heardTurn, true},
		"gone":                       {one, nil, 0, true},
	} {
		if got := heardDue(c.wrote, c.heard, c.since); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestThreeClustersOneLeaves(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		east, west, south := w.cluster(t, "east", 1), w.cluster(t, "west", 2), w.cluster(t, "south", 3)
		defer func() { east.stop(); west.stop(); south.stop() }()
		east.read(west)
		kept := east.left()
		east.read(south)
		if err := east.p.Remove(t.Context(), "south"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if diff := cmp.Diff(with(kept, formerLine("south", "10.3.0.0/16")), east.left()); diff != "" {
			t.Errorf("removing south left or took:\n%s", diff)
		}
	})
}

// A peer's node may have neither an address of our nodes nor one of another peer's
// pods.
func TestNodesOfPeersTakeNobodysAddress(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		east, west, south := w.cluster(t, "east", 1), w.cluster(t, "west", 2), w.cluster(t, "south", 3)
		defer func() { east.stop(); west.stop(); south.stop() }()
		ours := wire.Registration{Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("172.16.1.1")}}
		if err := store.Write(t.Context(), east.st, store.Put(wire.RegistrationKey("n1"), wire.Marshal(ours))); err != nil {
			t.Fatal(err)
		}
		east.read(south)
		east.read(west)
		for i, a := range []string{"172.16.1.1", "10.3.1.2", "172.16.2.9"} {
			node := wire.Node{Name: fmt.Sprintf("x%d", i), Cluster: "west", ClusterID: 2, IPAddresses: []wire.NodeAddress{{Type: wire.NodeInternalIP, IP: netip.MustParseAddr(a)}}}
			if err := store.Write(t.Context(), west.st, store.Put(wire.NodeStateKey("west", node.Name), wire.Marshal(node))); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if got := len(east.st.Dump("cilium/cache/nodes/v1/west/x")); got != 1 {
			t.Errorf("%d nodes believed", got)
		}
		if r := east.status("west").Refused; len(r) != 1 || r[0].Count != 2 {
			t.Errorf("refused %+v", r)
		}
	})
}

func TestRestartGoesOn(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		east, west := w.cluster(t, "east", 1), w.cluster(t, "west", 2)
		defer func() { east.stop(); west.stop() }()
		east.read(west)
		west.read(east)
		w.tellAll()
		before := east.st.Dump("")
		east.restart()
		if s := east.status("west"); s.Control.State != api.LinkUp {
			t.Errorf("status %+v", s)
		}
		if diff := cmp.Diff(before, east.st.Dump("")); diff != "" {
			t.Error(diff)
		}
	})
}

// A removal interrupted by a crash is completed at the next start.
func TestRemovalIsFinishedAfterACrash(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		east, west := w.cluster(t, "east", 1), w.cluster(t, "west", 2)
		defer func() { east.stop(); west.stop() }()
		blank := east.left()
		east.read(west)
		west.read(east)
		writes := 0
		east.st.Fail(func(call, _ string) error {
			if call == "commit" {
				if writes++; writes > 3 {
					return store.ErrUnavailable
				}
			}
			return nil
		})
		if err := east.p.Remove(t.Context(), "west"); err == nil {
			t.Error("no failure was reported")
		}
		east.stop()
		if s := wire.PeerKey("west"); len(east.st.Dump(s)) != 1 {
			t.Error("the peer was forgotten before its keys were gone")
		}
		east.st.Fail(nil)
		east.p = New(east.p.conf)
		east.start()
		if diff := cmp.Diff(with(blank, formerLine("west", "10.2.0.0/16")), east.left()); diff != "" {
			t.Errorf("left behind:\n%s", diff)
		}
	})
}

func TestUnreachablePeerIsAddedAndShown(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		east, west := w.cluster(t, "east", 1), w.cluster(t, "west", 2)
		defer func() { east.stop(); west.stop() }()
		w.set(func() { w.down[endpointOf("west")] = true })
		east.read(west)
		if s := east.status("west"); s.Control.State != api.LinkDown || s.Control.Error == "" {
			t.Errorf("status %+v", s)
		}
		w.set(func() { w.down[endpointOf("west")] = false })
		time.Sleep(time.Minute)
		synctest.Wait()
		if s := east.status("west"); s.Control.State != api.LinkUp {
			t.Errorf("status %+v", s)
		}
		// A new certificate for the same peer replaces the link, not the copy.
		before := east.st.Dump("cilium/cache/")
		east.read(west)
		if s := east.status("west"); s.Control.State != api.LinkUp || !cmp.Equal(before, east.st.Dump("cilium/cache/")) {
			t.Errorf("status %+v", s)
		}
	})
}

func TestHTTP(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		east, west := w.cluster(t, "east", 1), w.cluster(t, "west", 2)
		defer func() { east.stop(); west.stop() }()
		call := func(c *cluster, method, path, body string, want int) string {
			t.Helper()
			mux := http.NewServeMux()
			c.p.Mount(mux)
			rec := httptest.NewRecorder()
			mux.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body)))
			synctest.Wait()
			if rec.Code != want {
				t.Errorf("%s %s: %d, want %d: %s", method, path, rec.Code, want, rec.Body)
			}
			return rec.Body.String()
		}
		invite := call(west, "POST", "/v1/peers/invite", `{"peer":"east"}`, 200)
		call(east, "POST", "/v1/peers", invite, 200)
		var list api.PeerList
		if err := json.Unmarshal([]byte(call(east, "GET", "/v1/peers", "", 200)), &list); err != nil || len(list.Peers) != 1 || list.Cluster != "east" {
			t.Errorf("list %+v, %v", list, err)
		}
		call(east, "GET", "/v1/peers/west", "", 200)
		call(east, "GET", "/v1/peers/north", "", 404)
		call(east, "POST", "/v1/peers", `{"kind":"WeftInvite","colour":"red"}`, 422)
		call(east, "POST", "/v1/peers", strings.Repeat("x", maxBody+1), 422)
		call(east, "POST", "/v1/peers/invite", `{"peer":"east"}`, 422)
		call(east, "POST", "/v1/peers/west/release", "", 409)

		// West loses everything and gets only a node back.
		west.st = storetest.New()
		old := w.stores[endpointOf("west")]
		w.set(func() { w.stores[endpointOf("west")] = west.st })
		old.Fail(func(string, string) error { return store.ErrUnavailable })
		west.own.Generation = "west-2"
		west.export(`{"id":2,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,"endpointSlicesExportMode":"services-and-endpointslices"}}`)
		if err := store.Write(t.Context(), west.st, store.Delete(wire.IPStateKey(west.own.PodCIDRs[0].Addr().Next()))); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if p := east.concerns(); len(p) != 1 || !strings.Contains(p[0], "held: 1 deletions") {
			t.Errorf("problems %q", p)
		}
		call(east, "POST", "/v1/peers/west/release", "", 200)
		if p := east.concerns(); len(p) != 0 {
			t.Errorf("problems %q", p)
		}
		if got := len(east.st.Dump("cilium/cache/ip/")); got != 0 {
			t.Errorf("%d addresses after release", got)
		}
		call(east, "DELETE", "/v1/peers/west", "", 200)
		call(east, "DELETE", "/v1/peers/west", "", 404)
	})
}

func TestSecretsStayInside(t *testing.T) {
	key := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32))
	if s := fmt.Sprintf("%v %+v %#v", secretOf(&api.Invite{Key: "k3y", GossipKey: key}), secretOf(&api.Invite{Key: "k3y"}), secretOf(&api.Invite{Key: "k3y"})); strings.Contains(s, "k3y") {
		t.Errorf("printed: %s", s)
	}
}
