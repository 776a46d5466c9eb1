package apiserver

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/apiserver/embedded"
	"github.com/weft-mesh/weft/wire"
)

// TestExistingEtcd has two API servers share an etcd that is not theirs.
func TestExistingEtcd(t *testing.T) {
	conf := config(t)
	ours, err := authority.Open(filepath.Join(conf.DataDir, "pki"), "east")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	theirs, err := authority.Open(dir, "etcd")
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := theirs.IssueFile("server", authority.Request{User: "etcd", Client: true, Server: true, Addresses: []netip.Addr{conf.Advertise}})
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
	etcd, err := embedded.Start(t.Context(), embedded.Config{Dir: filepath.Join(dir, "data"), Listen: conf.EtcdListen, Cert: cert, Key: key, CA: trusted, Log: conf.Log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(etcd.Close)
	conf.EtcdListen, conf.EtcdEndpoints, conf.EtcdCA = "", []string{"https://" + etcd.Addr()}, theirs.BundlePath()
	if conf.EtcdCert, conf.EtcdKey, err = theirs.IssueFile("root", authority.Request{User: authority.Root, Client: true}); err != nil {
		t.Fatal(err)
	}
	one := start(t, conf)
	other := conf
	another := config(t)
	other.Advertise, other.Listen, other.DataDir, other.AdminConfig = another.Advertise, another.Listen, another.DataDir, another.AdminConfig
	two := start(t, other)

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
	if got := string(two.srv.authority.Bundle()); !strings.HasPrefix(got, string(ours.Bundle())) {
		t.Error("two authorities for one cluster")
	}
}
