package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/apiserver/embedded"
	"github.com/weft-mesh/weft/apiserver/leader"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// existing starts an etcd that is not the API servers' own, and returns a function that
// makes the configuration of one more API server over it.
func existing(t *testing.T) (another func() Config) {
	t.Helper()
	first := config(t)
	ours, err := authority.Open(filepath.Join(first.DataDir, "pki"), "east")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	theirs, err := authority.Open(dir, "etcd")
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := theirs.IssueFile("server", authority.Request{User: "etcd", Client: true, Server: true, Addresses: []netip.Addr{first.Advertise}})
	if err != nil {
		t.Fatal(err)
	}
	both, err := authority.MergeBundles(theirs.Bundle(), ours.Bundle())
	if err != nil {
		t.Fatal(err)
	}
	trusted := filepath.Join(dir, "trusted.crt")
	if err := os.WriteFile(trusted, both, 0o600); err != nil {
		t.Fatal(err)
	}
	etcd, err := embedded.Start(t.Context(), embedded.Config{Dir: filepath.Join(dir, "data"), Listen: first.EtcdListen, Cert: cert, Key: key, CA: trusted, Log: first.Log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(etcd.Close)
	first.EtcdListen, first.EtcdEndpoints, first.EtcdCA = "", []string{"https://" + etcd.Addr()}, theirs.BundlePath()
	if first.EtcdCert, first.EtcdKey, err = theirs.IssueFile("root", authority.Request{User: authority.Root, Client: true}); err != nil {
		t.Fatal(err)
	}
	made := 0
	return func() Config {
		if made++; made == 1 {
			return first
		}
		c, own := first, config(t)
		c.Advertise, c.Listen, c.DataDir, c.AdminConfig = own.Advertise, own.Listen, own.DataDir, own.AdminConfig
		return c
	}
}

// TestExistingEtcd has two API servers share an etcd that is not theirs.
func TestExistingEtcd(t *testing.T) {
	another := existing(t)
	one, two := start(t, another()), start(t, another())

	// A node that joins by one is served by both.
	bundle := join(t, one.admin(), 1)
	if err := one.agent(bundle).put(wire.NodeKey("n1"), wire.NodeState{Name: "n1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := two.admin().Apply(t.Context(), []byte(shop), api.ManifestOptions{}); err != nil {
		t.Fatal(err)
	}
	one.agent(bundle).claim("web-1", "10.1.1.5")
	for _, p := range []*process{one, two} {
		eventually(t, "backend appears", func() error {
			if got := backends(t, p.admin()); got != "east/n1/web 10.1.1.5" {
				return os.ErrNotExist
			}
			return nil
		})
	}
	status, err := two.admin().Status(t.Context())
	if err != nil || status.Cluster.Store != "external" {
		t.Error(status, err)
	}
	// Certificates of one are good for the other.
	if got := string(two.srv.authority.Bundle()); !strings.HasPrefix(got, string(one.srv.authority.Bundle())) {
		t.Error("two authorities for one cluster")
	}
}

// leads returns nil once the controllers run on exactly this server.
func leads(p *process, others ...*process) func() error {
	return func() error {
		if p.srv.controllers.Load() == nil {
			return errors.New("no controllers run on the one that should lead")
		}
		if leaderMetric(p) != 1 {
			return errors.New("the metric says that it does not lead")
		}
		for _, o := range others {
			if o.srv.controllers.Load() != nil || leaderMetric(o) != 0 {
				return errors.New("controllers run on another one")
			}
		}
		return nil
	}
}

// leaderMetric is what a server's metrics say about its leadership; -1 if nothing.
func leaderMetric(p *process) float64 {
	families, err := p.srv.metrics.registry.Gather()
	if err != nil {
		p.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "weft_apiserver_leader" {
			return f.Metric[0].GetGauge().GetValue()
		}
	}
	return -1
}

// servers returns what one server's status says about all of them.
func servers(p *process) (string, error) {
	list, err := p.admin().Servers(p.t.Context())
	if err != nil {
		return "", err
	}
	var out []string
	for _, s := range list.Servers {
		out = append(out, s.URL+" "+s.State)
	}
	return strings.Join(out, ", "), nil
}

// Any of several API servers may stop, or lose its lease; exactly one of those left runs
// the controllers, and what it finds out every one of them tells.
func TestSeveralServers(t *testing.T) {
	another := existing(t)
	one := start(t, another())
	eventually(t, "the first leads", leads(one))
	two := start(t, another())
	ctx := t.Context()
	sees := func(p *process, want string) {
		t.Helper()
		eventually(t, "servers as "+p.url+" sees them", func() error {
			got, err := servers(p)
			if err == nil && got != want {
				err = fmt.Errorf("%s, want %s", got, want)
			}
			return err
		})
	}
	both := func(states ...string) string {
		rows := []string{one.url + " " + states[0], two.url + " " + states[1]}
		if two.conf.Advertise.String() < one.conf.Advertise.String() {
			rows[0], rows[1] = rows[1], rows[0]
		}
		return strings.Join(rows, ", ")
	}
	for _, p := range []*process{one, two} {
		sees(p, both(api.ServerLeads, api.ServerReady))
	}

	// Whichever is asked, the mirrors' server answers, and its trail has the operator.
	if _, err := two.admin().Invite(ctx, "west"); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*process{one, two} {
		if list, err := p.admin().Peers(ctx); err != nil || len(list.Peers) != 1 || list.Peers[0].Control.State != api.LinkInvited {
			t.Errorf("peers: %+v, %v", list, err)
		}
	}
	var refused *api.Error
	if _, err := two.as(authority.RemoteUser("west", 0), time.Hour).Peers(ctx); !errors.As(err, &refused) || refused.Status != http.StatusForbidden {
		t.Errorf("a peer asks for the peers: %v", err)
	}

	// What the controllers refuse shows at every server, and outlives them.
	n1 := one.agent(join(t, two.admin(), 1))
	if _, err := two.admin().Apply(ctx, []byte(shop), api.ManifestOptions{}); err != nil {
		t.Fatal(err)
	}
	n1.claim("web-1", "10.9.9.9")
	refusedAt := func(p *process) {
		t.Helper()
		eventually(t, "the claim is refused", func() error {
			if r := p.srv.problemRows().Refused(); len(r) != 1 || r[0].Node != "n1" {
				return fmt.Errorf("%+v", r)
			}
			if c := p.srv.problemRows().Pod("shop", "web-1"); c == nil || c.Reason != "ClaimRefused" {
				return fmt.Errorf("%+v", c)
			}
			s, err := p.admin().Status(ctx)
			if err == nil && (len(s.Refused) != 1 || s.Nodes[0].Refused != 1) {
				err = fmt.Errorf("%+v", s.Refused)
			}
			return err
		})
	}
	refusedAt(one)
	refusedAt(two)

	began := time.Now()
	one.stop()
	eventually(t, "the second leads", leads(two))
	t.Logf("led by the next %v after a stop", time.Since(began))
	sees(two, two.url+" "+api.ServerLeads)
	refusedAt(two)
	n1.claim("web-1", "10.1.1.5")
	eventually(t, "the next one's controllers work", func() error {
		if got := backends(t, two.admin()); got != "east/n1/web 10.1.1.5" {
			return errors.New(got)
		}
		return nil
	})

	// One whose lease is gone ends its controllers before the next one starts its own.
	one = start(t, one.conf)
	sees(two, both(api.ServerReady, api.ServerLeads))
	kv, err := two.srv.store.Get(ctx, wire.ServerAliveKey(two.srv.self.ID))
	if err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	if err := one.srv.store.Revoke(ctx, kv.Lease); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first leads again", leads(one, two))
	t.Logf("led by the next %v after a lost lease", time.Since(began))
	for _, p := range []*process{one, two} {
		sees(p, both(api.ServerLeads, api.ServerReady))
	}
	// The operator's context goes on with the other.
	client := two.admin()
	eventually(t, "the context names both servers", func() error {
		x, err := contextOf(two.conf)
		if err == nil && (x.Server != two.url || strings.Join(x.Servers, " ") != one.url) {
			err = fmt.Errorf("%s, others %v", x.Server, x.Servers)
		}
		return err
	})
	client = two.admin()
	two.stop()
	if _, err := client.Status(ctx); err != nil {
		t.Error("a client whose server has stopped:", err)
	}
	if _, err := client.Apply(ctx, []byte(shop), api.ManifestOptions{}); err != nil {
		t.Error("it applies:", err)
	}
}

func contextOf(c Config) (api.Context, error) {
	file, err := api.LoadConfig(c.AdminConfig)
	if err != nil {
		return api.Context{}, err
	}
	return file.Context("")
}

// A leader that was deposed writes nothing, whatever it was about to write.
func TestDeposedLeaderCannotWrite(t *testing.T) {
	conf := existing(t)()
	f, err := lay(t.Context(), conf, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	terms := make(chan store.Store, 1)
	candidate := func(id string) (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		e := leader.New(leader.Config{
			Store: f.store, Self: wire.Server{ID: id}, Stopped: func() bool { return true }, Log: slog.New(slog.DiscardHandler),
			Lead: func(ctx context.Context, s store.Store) error { terms <- s; <-ctx.Done(); return nil },
		})
		done := make(chan error)
		go func() { done <- e.Run(ctx) }()
		return func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	stop := candidate("a")
	first := <-terms
	defer candidate("b")()
	if err := store.Write(t.Context(), first, store.Put("weft/test", []byte("first"))); err != nil {
		t.Error(err)
	}
	stop()
	second := <-terms
	if err := store.Write(t.Context(), second, store.Put("weft/test", []byte("second"))); err != nil {
		t.Error(err)
	}
	if err := store.Write(t.Context(), first, store.Put("weft/test", []byte("late"))); !errors.Is(err, leader.ErrDeposed) {
		t.Error("a late write:", err)
	}
	if err := leader.Users(first, f.store).SetUser(t.Context(), store.User{Name: "late"}); !errors.Is(err, leader.ErrDeposed) {
		t.Error("a late user:", err)
	}
	kv, err := f.store.Get(t.Context(), "weft/test")
	if err != nil || string(kv.Value) != "second" {
		t.Errorf("%s, %v", kv.Value, err)
	}
	// As many writes as the controllers make at once, with the fence on top.
	var txns []store.Txn
	for i := range 300 {
		key := fmt.Sprint("weft/test/", i)
		txns = append(txns, store.Txn{If: []store.Cond{{Key: key}}, Then: []store.Op{store.Put(key, nil)}})
	}
	for i, o := range store.CommitEach(t.Context(), second, txns) {
		if o.Err != nil || o.Revision == 0 {
			t.Fatalf("write %d: %+v", i, o)
		}
	}
}
