package apiserver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/internal/loopbacktest"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// process is an API server in this process, on loopback.
type process struct {
	t    testing.TB
	conf Config
	srv  *server
	url  string
	stop func()
	// ended waits until the server has ended by itself, with this error.
	ended func(want error)
}

func config(t testing.TB) Config {
	t.Helper()
	c := good()
	c.Advertise = loopbacktest.Addr(t)
	c.DataDir, c.AdminConfig = t.TempDir(), filepath.Join(t.TempDir(), "admin.conf")
	c.Listen, c.EtcdListen = fmt.Sprintf("%v:17443", c.Advertise), fmt.Sprintf("%v:12379", c.Advertise)
	c.MetricsAddress, c.GossipPort, c.WANGossipPort, c.DiskReserveBytes, c.EtcdPeerListen = "", 0, 0, 0, ""
	c.Log = slog.New(slog.DiscardHandler)
	return c
}

func start(t testing.TB, conf Config) *process {
	t.Helper()
	conf.Version = "v1"
	p := &process{t: t, conf: conf}
	ctx, cancel := context.WithCancel(context.Background())
	up, done := make(chan struct{}), make(chan error, 1)
	began := time.Now()
	go func() {
		done <- run(ctx, conf, func(s *server, url string) { p.srv, p.url = s, url; close(up) })
	}()
	select {
	case <-up:
		t.Logf("ready after %v", time.Since(began))
	case err := <-done:
		t.Fatal(err)
	}
	stopped := false
	p.ended = func(want error) {
		stopped = true
		if err := <-done; !errors.Is(err, want) {
			t.Errorf("ended with %v, want %v", err, want)
		}
		cancel()
	}
	p.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error("ended with:", err)
		}
	}
	t.Cleanup(p.stop)
	return p
}

func (p *process) admin() *api.Client {
	p.t.Helper()
	file, err := api.LoadConfig(p.conf.AdminConfig)
	if err != nil {
		p.t.Fatal(err)
	}
	x, err := file.Context("")
	if err != nil {
		p.t.Fatal(err)
	}
	c, err := api.NewClient(x)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(c.Close)
	return c
}

// as is a client of the API under another user's certificate.
func (p *process) as(user string, lifetime time.Duration) *api.Client {
	p.t.Helper()
	pair, err := p.srv.authority.Issue(authority.Request{User: user, Client: true, Lifetime: lifetime})
	if err != nil {
		p.t.Fatal(err)
	}
	c, err := api.NewClient(api.Context{Name: user, Server: p.url, CA: string(p.srv.authority.Bundle()), Cert: string(pair.Cert), Key: string(pair.Key)})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(c.Close)
	return c
}

// agent is a node's agent, as far as the store sees it.
type agent struct {
	*store.Etcd
	t    testing.TB
	node string
}

func (p *process) agent(b *api.JoinBundle) *agent {
	p.t.Helper()
	return &agent{Etcd: dial(p.t, b.EtcdEndpoints, b.CA, b.Cert, b.Key), t: p.t, node: b.Node}
}

func dial(t testing.TB, endpoints []string, ca, cert, key string) *store.Etcd {
	t.Helper()
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(ca))
	conf := &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots}
	e, err := store.Dial(store.DialConfig{Endpoints: endpoints, TLS: conf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func (a *agent) put(key string, v any) error {
	return store.Write(a.t.Context(), a.Etcd, store.Put(key, wire.Marshal(v)))
}

func (a *agent) claim(pod, ip string) {
	a.t.Helper()
	err := a.put(wire.NodeEndpointKey(a.node, "shop", pod), wire.EndpointState{Namespace: "shop", Pod: pod, IP: netip.MustParseAddr(ip), Ready: true, State: wire.EndpointReady})
	if err != nil {
		a.t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, holds func() error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := holds()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		<-tick.C
	}
}

func join(t testing.TB, c *api.Client, i int) *api.JoinBundle {
	t.Helper()
	b, err := c.AddNode(t.Context(), api.NodeRequest{
		Name: fmt.Sprintf("n%d", i), Addresses: []netip.Addr{netip.AddrFrom4([4]byte{172, 16, 1, byte(i)})},
		PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i), 0}), 24)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const shop = `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, annotations: {service.cilium.io/global: "true"}}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c}]}
`

func backends(t *testing.T, c *api.Client) string {
	t.Helper()
	list, err := c.Services(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, s := range list.Services {
		for _, b := range s.Backends {
			out = append(out, fmt.Sprintf("%s/%s/%s %s", b.Cluster, b.Node, s.Name, b.Address))
		}
	}
	return strings.Join(out, ", ")
}

func TestFromApplyToSliceThroughRestart(t *testing.T) {
	conf := config(t)
	p := start(t, conf)
	ctx, admin := t.Context(), p.admin()
	if info, err := os.Stat(conf.AdminConfig); err != nil || info.Mode().Perm() != 0o600 {
		t.Error("admin.conf:", err, info)
	}
	n1 := p.agent(join(t, admin, 1))
	if _, err := admin.Apply(ctx, []byte(shop), api.ManifestOptions{}); err != nil {
		t.Fatal(err)
	}
	n1.claim("web-1", "10.1.1.5")
	eventually(t, "backend appears", func() error {
		if got := backends(t, admin); got != "east/n1/web 10.1.1.5" {
			return errors.New(got)
		}
		return nil
	})
	eventually(t, "backend is exported", func() error {
		_, err := p.srv.store.Get(ctx, wire.IPStateKey(netip.MustParseAddr("10.1.1.5")))
		return err
	})
	var status *api.Status
	eventually(t, "status counts it", func() (err error) { // just after it is written
		status, err = admin.Status(ctx)
		if err == nil && status.Cluster.Endpoints != 1 {
			err = fmt.Errorf("%+v", status)
		}
		return err
	})
	if status.Cluster.Services != 1 || status.Cluster.Identities != 1 || status.Nodes[0].State != api.NodeSilent || status.Cluster.StoreVersion == "" || status.Cluster.Version != "v1" {
		t.Errorf("status: %+v", status)
	}
	generation := status.Cluster.Generation
	before, err := os.ReadFile(conf.AdminConfig)
	if err != nil {
		t.Fatal(err)
	}

	p.stop()
	p = start(t, conf)
	if after, _ := os.ReadFile(conf.AdminConfig); string(before) != string(after) {
		t.Error("a restart changed the operator's context")
	}
	if status, err = admin.Status(ctx); err != nil || status.Cluster.Generation != generation {
		t.Error("generation changed", err)
	}
	// The agent's connection finds its way back by itself.
	if err := n1.put(wire.NodeKey("n1"), wire.NodeState{Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("172.16.1.1")}, Epoch: 3}); err != nil {
		t.Fatal(err)
	}
	if err := n1.put(wire.NodeSyncedKey("n1"), "start"); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Delete(ctx, "pod", "shop", "web-1", api.ManifestOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "backend goes with its pod", func() error {
		if got := backends(t, admin); got != "" {
			return errors.New(got)
		}
		return nil
	})
	eventually(t, "node is ready", func() error {
		list, err := admin.Nodes(ctx)
		if err != nil || list.Nodes[0].State != api.NodeReady || list.Nodes[0].Epoch != 3 {
			return fmt.Errorf("%v %+v", err, list)
		}
		return nil
	})
	for range 2 {
		if r, err := admin.RotateKeys(ctx); err != nil || r.Epoch != 4 {
			t.Error("rotation:", r, err)
		}
	}
}

func TestRights(t *testing.T) {
	p := start(t, config(t))
	ctx, admin := t.Context(), p.admin()
	n1 := p.agent(join(t, admin, 1))
	join(t, admin, 2)

	// The store.
	if err := n1.put(wire.NodeKey("n1"), wire.NodeState{Name: "n1"}); err != nil {
		t.Error("own node:", err)
	}
	for _, key := range []string{wire.NodeKey("n2"), wire.NodeEndpointKey("n2", "shop", "x"), wire.EndpointKey("shop", "x"), wire.ClusterKey} {
		if err := n1.put(key, "lie"); !errors.Is(err, store.ErrDenied) {
			t.Errorf("agent writes %s: %v", key, err)
		}
	}
	for _, prefix := range []string{wire.StatePrefix, wire.AgentsPrefix, wire.CachePrefix, wire.CiliumCachePrefix, wire.CiliumSyncedPrefix, wire.ClusterConfigPrefix} {
		if _, _, err := n1.List(ctx, prefix); err != nil {
			t.Errorf("agent reads %s: %v", prefix, err)
		}
	}
	if _, _, err := n1.List(ctx, wire.SecretPrefix); !errors.Is(err, store.ErrDenied) {
		t.Errorf("agent reads secrets: %v", err)
	}
	invite, err := admin.Invite(ctx, "west")
	if err != nil {
		t.Fatal(err)
	}
	west := dial(t, invite.EtcdEndpoints, invite.CA, invite.Cert, invite.Key)
	if _, _, err := west.List(ctx, wire.CiliumStatePrefix); err != nil {
		t.Errorf("peer reads the export: %v", err)
	}
	for _, prefix := range []string{wire.StatePrefix, wire.AgentsPrefix, wire.SecretPrefix, wire.CiliumCachePrefix, wire.CachePrefix} {
		if _, _, err := west.List(ctx, prefix); !errors.Is(err, store.ErrDenied) {
			t.Errorf("peer reads %s: %v", prefix, err)
		}
	}
	// What Cilium's readers ask for, range by range: refused one, they never come
	// as far as the state.
	for _, asked := range []string{"cilium/.heartbeat", "cilium/synced/east/", "cilium/state/nodes/v1/east/", "cilium/state/serviceexports/v1/east/"} {
		if _, _, err := west.List(ctx, asked); err != nil {
			t.Errorf("peer reads the range %s: %v", asked, err)
		}
	}
	if _, err := west.Get(ctx, "cilium/cluster-config/east"); err != nil && !errors.Is(err, store.ErrNotFound) { // or not exported yet
		t.Errorf("peer reads the cluster's configuration: %v", err)
	}
	for _, wider := range []string{"cilium/", "cilium/.", "cilium/synced/", "cilium/cluster-config/"} {
		if _, _, err := west.List(ctx, wider); !errors.Is(err, store.ErrDenied) {
			t.Errorf("peer reads the range %s: %v", wider, err)
		}
	}
	if err := store.Write(ctx, west, store.Put(wire.CiliumStatePrefix+"x", nil)); !errors.Is(err, store.ErrDenied) {
		t.Errorf("peer writes: %v", err)
	}

	// The API.
	var refused *api.Error
	for _, user := range []string{authority.AgentUser("n1"), authority.RemoteUser("west", 0), "mallory"} {
		c := p.as(user, time.Hour)
		if _, err := c.Apply(ctx, []byte(shop), api.ManifestOptions{}); !errors.As(err, &refused) || refused.Status != http.StatusForbidden {
			t.Errorf("%s applies: %v", user, err)
		}
		if _, err := c.Invite(ctx, "north"); !errors.As(err, &refused) || refused.Status != http.StatusForbidden {
			t.Errorf("%s invites: %v", user, err)
		}
		if _, err := c.GetRaw(ctx, "/debug/pprof/allocs", nil); !errors.As(err, &refused) || refused.Status != http.StatusForbidden {
			t.Errorf("%s takes a profile: %v", user, err)
		}
	}
	if text, err := p.as(authority.Admin, time.Hour).GetRaw(ctx, "/debug/pprof/allocs", url.Values{"debug": {"1"}}); err != nil || !strings.Contains(string(text), "heap profile: ") {
		t.Errorf("an operator takes a profile: %v, %.200s", err, text)
	}
	own := p.as(authority.AgentUser("n1"), time.Hour)
	if b, err := own.AddNode(ctx, api.NodeRequest{Name: "n1"}); err != nil || b.Node != "n1" {
		t.Errorf("agent renews its bundle: %v", err)
	}
	if _, err := own.AddNode(ctx, api.NodeRequest{Name: "n2"}); !errors.As(err, &refused) || refused.Status != http.StatusForbidden {
		t.Errorf("agent asks for another's bundle: %v", err)
	}
	// Labels too are the operator's: zones steer the traffic of every cluster.
	for _, change := range []api.NodeRequest{
		{Name: "n1", Labels: map[string]string{"topology.kubernetes.io/zone": "z9"}},
		{Name: "n1", Replace: true},
	} {
		if _, err := own.AddNode(ctx, change); !errors.As(err, &refused) || refused.Status != http.StatusForbidden {
			t.Errorf("agent changes its registration with %+v: %v", change, err)
		}
	}
	if _, err := p.as(authority.Admin, -time.Minute).Status(ctx); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("expired certificate: %v", err)
	}
	other, err := authority.Open(t.TempDir(), "west")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := other.Issue(authority.Request{User: authority.Admin, Client: true})
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := api.NewClient(api.Context{Name: "east", Server: p.url, CA: string(p.srv.authority.Bundle()), Cert: string(pair.Cert), Key: string(pair.Key)})
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	if _, err := foreign.Status(ctx); err == nil || !strings.Contains(err.Error(), "does not accept the context's certificate") {
		t.Errorf("certificate of another cluster: %v", err)
	}

	// Removal takes the rights back.
	if _, err := admin.RemoveNode(ctx, "n1", false); err != nil {
		t.Fatal(err)
	}
	if err := n1.put(wire.NodeKey("n1"), wire.NodeState{Name: "n1"}); !errors.Is(err, store.ErrDenied) {
		t.Errorf("removed node writes: %v", err)
	}
}

func TestWatch(t *testing.T) {
	p := start(t, config(t))
	admin := p.admin()
	join(t, admin, 1)
	if _, err := admin.Apply(t.Context(), []byte(shop), api.ManifestOptions{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var got []string
	err := admin.Watch(ctx, "pods", "", func(ev api.WatchEvent) error {
		got = append(got, ev.Type+" "+ev.Name)
		switch ev.Type {
		case "synced":
			_, err := admin.Delete(ctx, "pods", "shop", "web-1", api.ManifestOptions{})
			return err
		case "delete":
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || strings.Join(got, ", ") != "put web-1, synced , delete web-1" {
		t.Errorf("%v: %v", err, got)
	}
}

func TestAnotherClusterDoesNotTakeTheStore(t *testing.T) {
	conf := config(t)
	start(t, conf).stop()
	other := conf
	other.Cluster, other.ID = "west", 2
	err := Run(t.Context(), other)
	if err == nil || !strings.Contains(err.Error(), `cluster is east in this store and cannot become west`) || !strings.Contains(err.Error(), "id is 1") {
		t.Error(err)
	}
	wider := conf
	wider.PodCIDRs = append(wider.PodCIDRs, netip.MustParsePrefix("10.5.0.0/16"))
	p := start(t, wider)
	if len(p.srv.cluster.PodCIDRs) != 2 {
		t.Error("CIDR not added")
	}
	if err := Run(t.Context(), conf); err == nil || !strings.Contains(err.Error(), "another API server (process ") {
		t.Error("a second one on the same data:", err)
	}
}

func TestDiskNearlyFull(t *testing.T) {
	p := start(t, config(t))
	ctx, admin := t.Context(), p.admin()
	n1 := p.agent(join(t, admin, 1))
	if _, err := admin.Apply(ctx, []byte(shop), api.ManifestOptions{}); err != nil {
		t.Fatal(err)
	}
	full := newSpace(p.conf.DataDir, 100<<20, p.srv.store, p.conf.Log)
	full.free = func(string) (uint64, error) { return 1 << 20, nil }
	if err := full.lay(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(full.ballast); err != nil || info.Size() != 25<<20 {
		t.Error("ballast:", info, err)
	}
	if err := full.look(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(full.ballast); err == nil {
		t.Error("ballast is still there")
	}
	changed := []byte(strings.ReplaceAll(shop, "app: web", "app: other"))
	var refused *api.Error
	if _, err := admin.Apply(ctx, changed, api.ManifestOptions{}); !errors.As(err, &refused) || refused.Status != http.StatusInsufficientStorage || refused.Hint == "" {
		t.Errorf("apply: %v", err)
	}
	if err := full.refusal(); err == nil || !strings.Contains(err.Error(), "1 MiB free in ") {
		t.Error(err)
	}
	if err := n1.put(wire.NodeKey("n1"), wire.NodeState{Name: "n1"}); !errors.Is(err, store.ErrFull) {
		t.Errorf("agent's write: %v", err)
	}
	if _, err := admin.Delete(ctx, "services", "shop", "web", api.ManifestOptions{}); err != nil {
		t.Errorf("a deletion makes space: %v", err)
	}
	full.free = func(string) (uint64, error) { return 110 << 20, nil }
	if err := full.look(ctx); err != nil || !isFull(full) {
		t.Error("let through too early", err)
	}
	full.free = func(string) (uint64, error) { return 1 << 30, nil }
	if err := full.look(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Apply(ctx, changed, api.ManifestOptions{}); err != nil {
		t.Errorf("space again: %v", err)
	}
}

func isFull(s *space) bool { return s.refusal() != nil }

func TestStatusShowsWhatANodesKernelLacks(t *testing.T) {
	p := start(t, config(t))
	n1 := p.agent(join(t, p.admin(), 1))
	full := wire.NodeProblem{Table: "services", Row: "shop/web", Rows: 2, Error: "it is full"}
	if err := n1.put(wire.NodeProblemsKey("n1"), wire.NodeProblems{Problems: []wire.NodeProblem{full}}); err != nil {
		t.Fatal(err)
	}
	shows := func(want ...api.NodeProblem) func() error {
		return func() error {
			s, err := p.admin().Status(t.Context())
			if err == nil && !slices.Equal(s.Nodes[0].Problems, want) {
				err = fmt.Errorf("got %+v", s.Nodes[0].Problems)
			}
			return err
		}
	}
	eventually(t, "the problem is shown", shows(api.NodeProblem(full)))
	if err := store.Write(t.Context(), n1, store.Delete(wire.NodeProblemsKey("n1"))); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what is over is not shown", shows())
}

// Without them no agent believes the store; a key that somebody deletes there is
// written again, as it was last.
func TestFixedKeysStay(t *testing.T) {
	p := start(t, config(t))
	for _, key := range append(p.srv.fixed(), wire.ClusterConfigKey("east")) {
		var before store.KV
		eventually(t, key, func() (err error) { before, err = p.srv.store.Get(t.Context(), key); return err })
		if err := store.Write(t.Context(), p.srv.store, store.Delete(key)); err != nil {
			t.Fatal(err)
		}
		eventually(t, key, func() error {
			after, err := p.srv.store.Get(t.Context(), key)
			if err == nil && string(after.Value) != string(before.Value) {
				err = fmt.Errorf("is %q, and was %q", after.Value, before.Value)
			}
			return err
		})
	}
}
