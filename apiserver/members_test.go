package apiserver

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/apiserver/embedded"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// serverConfig is the configuration of one of several API servers, whose etcds meet.
func serverConfig(t *testing.T, name string) Config {
	t.Helper()
	c := config(t)
	c.Name, c.EtcdPeerListen = name, fmt.Sprintf("%v:12380", c.Advertise)
	return c
}

// bundled admits an API server and writes its bundle to a file, which it returns.
func bundled(t *testing.T, admin *api.Client, conf Config) string {
	t.Helper()
	var b *api.ServerBundle
	eventually(t, "add "+conf.Name, func() (err error) {
		b, err = admin.AddServer(t.Context(), api.ServerRequest{Name: conf.Name, Address: conf.Advertise})
		return err
	})
	text, err := yaml.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "server.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// states is what a server says of all of them: "a up, b down, c invited".
func states(c *api.Client) (string, api.Quorum, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	l, err := c.Servers(ctx)
	if err != nil || l.Quorum == nil {
		return "", api.Quorum{}, err
	}
	var out []string
	for _, s := range l.Servers {
		out = append(out, s.Name+" "+cmp.Or(s.Store, s.State))
	}
	return strings.Join(out, ", "), *l.Quorum, nil
}

func sees(t *testing.T, c *api.Client, want string) {
	t.Helper()
	eventually(t, want, func() error {
		got, _, err := states(c)
		if err == nil && got != want {
			err = errors.New(got)
		}
		return err
	})
}

const namespace = `
apiVersion: v1
kind: Namespace
metadata: {name: %s}
`

func apply(t *testing.T, c *api.Client, name string) {
	t.Helper()
	eventually(t, "apply "+name, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := c.Apply(ctx, fmt.Appendf(nil, namespace, name), api.ManifestOptions{})
		return err
	})
}

func has(t *testing.T, c *api.Client, names ...string) {
	t.Helper()
	eventually(t, fmt.Sprint(names), func() error {
		for _, name := range names {
			if _, err := c.Object(t.Context(), "namespace", "", name); err != nil {
				return err
			}
		}
		return nil
	})
}

// Three API servers form one store, and any one of them may go: nothing that was applied is
// lost. A removed one does not come back; a lost disk is replaced.
func TestThreeAPIServers(t *testing.T) {
	t.Parallel() // etcd wants members to be connected for 5 s before it changes them
	confs := map[string]Config{"a": serverConfig(t, "a"), "b": serverConfig(t, "b"), "c": serverConfig(t, "c")}
	run := map[string]*process{"a": start(t, confs["a"])}
	admin := map[string]*api.Client{"a": run["a"].admin()}
	apply(t, admin["a"], "one")
	for _, name := range []string{"b", "c"} {
		conf := confs[name]
		conf.Join = bundled(t, admin["a"], conf)
		confs[name] = conf
		run[name] = start(t, conf)
		admin[name] = run[name].admin()
		has(t, admin[name], "one")
	}
	for _, c := range admin {
		sees(t, c, "a up, b up, c up")
	}
	if _, q, err := states(admin["b"]); err != nil || q != (api.Quorum{Members: 3, Up: 3, Needed: 2}) {
		t.Error(q, err)
	}
	// All of them have the same authority, and nodes are told of all.
	var bundle *api.JoinBundle
	eventually(t, "a node joins", func() (err error) {
		bundle, err = admin["c"].AddNode(t.Context(), api.NodeRequest{
			Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("172.16.1.1")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24")},
		})
		return err
	})
	if len(bundle.EtcdEndpoints) != 3 {
		t.Error("a node is told of", bundle.EtcdEndpoints)
	}
	n1 := run["c"].agent(bundle)
	claimOf := func(pod, ip string) {
		t.Helper()
		eventually(t, "claim", func() error { return n1.put("weft/state/nodes/n1/test/"+pod, ip) })
	}
	claimOf("web", "10.1.1.5")

	// Members let in nobody but members: neither a node nor the store's own root.
	for _, user := range []string{authority.AgentUser("n1"), authority.Root, authority.Admin} {
		if err := meet(t, run["a"], user); err == nil {
			t.Errorf("%s got in where members meet", user)
		}
	}
	if err := meet(t, run["a"], authority.Member); err != nil {
		t.Error("a member:", err)
	}

	// One after the other goes and comes back. Whoever follows the store need not list it
	// again: it has lost nothing.
	before := lastStart(t, run["a"])
	for i, gone := range []string{"a", "b", "c"} {
		left := admin[string("bca"[i])]
		run[gone].stop()
		apply(t, left, "without-"+gone)
		claimOf("web", fmt.Sprint(i))
		sees(t, left, strings.Replace("a up, b up, c up", gone+" up", gone+" down", 1))
		other := map[string]string{"a": "c", "b": "a", "c": "b"}[gone]
		if _, err := left.RemoveServer(t.Context(), other); err == nil {
			t.Fatal("the quorum was given away")
		}
		run[gone] = start(t, confs[gone])
		has(t, admin[gone], "one", "without-"+gone)
		sees(t, left, "a up, b up, c up")
	}

	if after := lastStart(t, run["b"]); after != before {
		t.Errorf("the store's lineage says that it was started again: %s, was %s", after, before)
	}

	// c loses its disk: it is not mistaken for a new one, and replaced.
	run["c"].stop()
	if err := os.RemoveAll(confs["c"].DataDir); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), confs["c"]); err == nil || !strings.Contains(err.Error(), "weft server replace c") {
		t.Fatal("started with an empty disk:", err)
	}
	sees(t, admin["a"], "a up, b up, c down")
	if _, err := admin["a"].ReplaceServer(t.Context(), "b"); err == nil || !strings.Contains(err.Error(), "API server b is running") {
		t.Error("a live one was replaced:", err)
	}
	if _, err := admin["a"].ReplaceServer(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	run["c"] = start(t, confs["c"])
	has(t, admin["c"], "one", "without-a", "without-b", "without-c")
	sees(t, admin["a"], "a up, b up, c up")

	// b is removed while it runs: it ends, and does not come back, neither with its disk nor
	// without.
	// Whoever is asked to remove itself has another one do it.
	if change, err := admin["b"].RemoveServer(t.Context(), "b"); err != nil || change.Quorum.Members != 2 {
		t.Fatal(change, err)
	}
	run["b"].ended(embedded.ErrRemoved)
	for range 2 {
		if err := Run(t.Context(), confs["b"]); !errors.Is(err, embedded.ErrRemoved) || !strings.Contains(err.Error(), "weft server add b") {
			t.Error("came back:", err)
		}
	}
	if err := os.RemoveAll(confs["b"].DataDir); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), confs["b"]); err == nil || !strings.Contains(err.Error(), "no longer good") {
		t.Error("came back with an empty disk:", err)
	}
	sees(t, admin["a"], "a up, c up")
	apply(t, admin["c"], "last")
	has(t, admin["a"], "last")

	// Both stop. What they start with may be copies, and they say so.
	before = lastStart(t, run["a"])
	run["a"].stop()
	run["c"].stop()
	other := make(chan *process, 1)
	go func() {
		defer close(other)
		other <- start(t, confs["c"])
	}()
	run["a"] = start(t, confs["a"])
	<-other
	if after := lastStart(t, run["a"]); after == before {
		t.Error("nothing in the lineage tells of the start")
	}
	has(t, admin["a"], "last")
}

// lastStart is the newest start in the store's lineage.
func lastStart(t *testing.T, p *process) string {
	t.Helper()
	kv, err := p.srv.store.Get(t.Context(), wire.LineageKey)
	if err != nil {
		t.Fatal(err)
	}
	l, err := wire.Unmarshal[wire.Lineage](kv.Value)
	if err != nil {
		t.Fatal(err)
	}
	return l.Last()
}

// meet makes a TLS connection to where members meet, and waits for what the server says to
// the certificate.
func meet(t *testing.T, p *process, user string) error {
	t.Helper()
	pair, err := p.srv.authority.Issue(authority.Request{User: user, Client: true, Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pair.TLS()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := tls.Dial("tcp", p.conf.EtcdPeerListen, &tls.Config{RootCAs: p.srv.authority.Pool(), Certificates: []tls.Certificate{cert}})
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "GET /version HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}

// What is configured wrongly is said, before anything begins.
func TestJoinBundlesAreChecked(t *testing.T) {
	p := start(t, serverConfig(t, "a"))
	conf := serverConfig(t, "b")
	conf.Join = bundled(t, p.admin(), conf)
	renamed, moved, other, old := conf, conf, conf, conf
	renamed.Name = "c"
	moved.Advertise = netip.MustParseAddr("127.0.0.1")
	other.ID = 9
	old.Join = filepath.Join(t.TempDir(), "join.yaml")
	if err := os.WriteFile(old.Join, []byte("cluster: east\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	again := conf
	again.DataDir = t.TempDir()
	if _, err := authority.Open(filepath.Join(again.DataDir, "pki"), "east"); err != nil {
		t.Fatal(err)
	}
	stale := conf
	stale.DataDir = t.TempDir()
	for name, test := range map[string]struct {
		conf Config
		want string
	}{
		"another name":      {renamed, "is for API server b, and this one is called c"},
		"another address":   {moved, "and this one advertises 127.0.0.1"},
		"another cluster":   {other, "is for cluster east (ID 1), and this API server is configured for east (ID 9)"},
		"not a bundle":      {old, "is not the join bundle of an API server"},
		"another authority": {again, "is another certificate authority"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := Run(t.Context(), test.conf); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Error(err)
			}
		})
	}
	bundled(t, p.admin(), conf) // a newer one
	if err := Run(t.Context(), stale); err == nil || !strings.Contains(err.Error(), "no longer good") {
		t.Error("an old bundle:", err)
	}
	sees(t, p.admin(), "a up, b invited")
	for want, request := range map[string]api.ServerRequest{
		"there is an API server a already":       {Name: "a", Address: netip.MustParseAddr("127.0.0.1")},
		"API server b has the address":           {Name: "c", Address: conf.Advertise},
		"cannot be an API server's name":         {Name: "B_", Address: netip.MustParseAddr("127.0.0.1")},
		"the address of API server c is missing": {Name: "c"},
	} {
		if _, err := p.admin().AddServer(t.Context(), request); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	for _, verb := range []func(context.Context, string) (*api.ServerChange, error){p.admin().RemoveServer, p.admin().ReplaceServer} {
		if _, err := verb(t.Context(), "a"); err == nil {
			t.Error("the only one was removed or replaced")
		}
		if _, err := verb(t.Context(), "x"); err == nil || !strings.Contains(err.Error(), `no API server "x"`) {
			t.Error("a stranger:", err)
		}
	}
	sees(t, p.admin(), "a up, b invited")
	if _, err := p.admin().RemoveServer(t.Context(), "b"); err != nil {
		t.Error(err)
	}
	if err := Run(t.Context(), stale); err == nil || !strings.Contains(err.Error(), "no longer good") {
		t.Error("a withdrawn bundle:", err)
	}
	sees(t, p.admin(), "a up")
	var refusal *api.Error
	if _, err := p.as(authority.AgentUser("n1"), time.Hour).AddServer(t.Context(), api.ServerRequest{Name: "c", Address: conf.Advertise}); !errors.As(err, &refusal) || refusal.Status != 403 {
		t.Error("a node added a member:", err)
	}
}

// A store that was restored from a backup begins alone, and others join it.
func TestARestoredStoreTakesMembersAgain(t *testing.T) {
	t.Parallel()
	a, b := serverConfig(t, "a"), serverConfig(t, "b")
	p := start(t, a)
	admin := p.admin()
	b.Join = bundled(t, admin, b)
	second := start(t, b)
	file := backup(t, admin)
	apply(t, admin, "lost")
	url := fmt.Sprintf("https://%s", b.Listen)
	eventually(t, "the operator's context names the other API server", func() error {
		if x, _ := adminContext(a); !slices.Contains(x.Servers, url) {
			return fmt.Errorf("it names %v", x.Servers)
		}
		return nil
	})
	p.stop()
	// While b runs, its store would go on beside the restored one.
	if _, err := Restore(a, file, false); err == nil || !strings.Contains(err.Error(), "its API server b at "+url+" answers") {
		t.Error("restored beside another API server:", err)
	}
	// Nor does a begin again on an empty disk.
	empty := a
	empty.DataDir = t.TempDir()
	if err := Run(t.Context(), empty); err == nil || !strings.Contains(err.Error(), "API server b at "+url+" answers") {
		t.Error("began a second store:", err)
	}
	second.stop()
	if r, err := Restore(a, file, false); err != nil || !slices.Equal(r.Others, []string{url}) {
		t.Fatal(r, err)
	}
	p = start(t, a)
	// b is not a member any more. Its old data does not start beside the restored store.
	sees(t, admin, "a up, b invited")
	if err := Run(t.Context(), b); err == nil || !strings.Contains(err.Error(), "is from before a restoration: API server a serves another store of cluster east") {
		t.Error("b started with the store from before:", err)
	}
	if err := os.RemoveAll(filepath.Join(b.DataDir, "etcd")); err != nil {
		t.Fatal(err)
	}
	start(t, b)
	sees(t, admin, "a up, b up")
	if _, err := p.srv.store.Get(t.Context(), "weft/state/objects/namespaces/lost"); !errors.Is(err, store.ErrNotFound) {
		t.Error("what was applied after the backup:", err)
	}
}
