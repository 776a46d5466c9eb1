package peering_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/apiserver/clustermesh"
	"github.com/weft-mesh/weft/apiserver/embedded"
	"github.com/weft-mesh/weft/internal/loopbacktest"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// ciliumSite is the etcd of a Cilium cluster, west with ID 2, with the users, rights and
// certificates that Cilium gives it: those of the server name no address.
type ciliumSite struct {
	t     *testing.T
	ca    *authority.Authority
	addr  netip.Addr
	root  *store.Etcd
	lease store.Lease
	// cached says that it is a KVStoreMesh's, with copies of other clusters.
	cached bool
}

const meshName = "west.mesh.cilium.io"

func newCiliumSite(t *testing.T, cached bool) *ciliumSite {
	t.Helper()
	ca, err := authority.Open(t.TempDir(), "cilium")
	if err != nil {
		t.Fatal(err)
	}
	s := &ciliumSite{t: t, ca: ca, addr: loopbacktest.Addr(t), cached: cached}
	cert, key, err := ca.IssueFile("server", authority.Request{User: "clustermesh-apiserver.cilium.io", Client: true, Server: true,
		Names: []string{"clustermesh-apiserver.cilium.io", "*.mesh.cilium.io", "clustermesh-apiserver.kube-system.svc"}})
	if err != nil {
		t.Fatal(err)
	}
	etcd, err := embedded.Start(t.Context(), embedded.Config{Dir: t.TempDir(), Listen: fmt.Sprintf("%v:12379", s.addr), Cert: cert, Key: key, CA: ca.BundlePath(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(etcd.Close)
	pair := s.issue("root")
	certificate, err := pair.TLS()
	if err != nil {
		t.Fatal(err)
	}
	s.root, err = store.Dial(store.DialConfig{Endpoints: []string{fmt.Sprintf("https://%v:12379", s.addr)}, TLS: &tls.Config{RootCAs: ca.Pool(), Certificates: []tls.Certificate{certificate}, ServerName: meshName}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.root.Close() })
	for _, u := range []store.User{
		{Name: "remote", Read: []string{"cilium/.heartbeat*", "cilium/state/", "cilium/cluster-config/west", "cilium/synced/west/"}},
		{Name: "local-north", Read: []string{"cilium/.heartbeat*", "cilium/cache/", "cilium/cluster-config/", "cilium/synced/"}},
	} {
		if err := s.root.SetUser(t.Context(), u); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.root.EnableAuth(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.grant()
	return s
}

func (s *ciliumSite) issue(user string) authority.Pair {
	s.t.Helper()
	pair, err := s.ca.Issue(authority.Request{User: user, Client: true})
	if err != nil {
		s.t.Fatal(err)
	}
	return pair
}

// grant gives what is written from now on a lease of its own.
func (s *ciliumSite) grant() {
	s.t.Helper()
	lease, err := s.root.Grant(s.t.Context(), 15*time.Minute)
	if err != nil {
		s.t.Fatal(err)
	}
	s.lease = lease
}

func (s *ciliumSite) put(key, value string) {
	s.t.Helper()
	if err := store.Write(s.t.Context(), s.root, store.Op{Key: key, Value: []byte(value), Lease: s.lease}); err != nil {
		s.t.Fatal(err)
	}
}

// at returns the prefix of a resource, and its canary.
func (s *ciliumSite) at(r wire.Resource) (prefix, canary string) {
	if s.cached {
		return r.CachePrefix("west"), r.CacheSyncedKey("west")
	}
	return r.StatePrefix("west"), r.StateSyncedKey("west")
}

// fill writes a cluster of one node, one pod and a service, and the canaries last.
func (s *ciliumSite) fill() {
	slice := &wire.ClusterEndpointSlice{Cluster: "west", ClusterID: 2, Namespace: "shop", Name: "web-x7k2p", AddressType: "IPv4",
		Labels: map[string]string{wire.ServiceNameLabel: "web"}, Endpoints: []wire.SliceEndpoint{{Addresses: []string{"10.2.1.2"}, NodeName: "worker"}}, Ports: []wire.SlicePort{{Protocol: "TCP", Port: 8080}}}
	s.put("cilium/cluster-config/west", fmt.Sprintf(`{"id":2,"capabilities":{"syncedCanaries":true,"cached":%v,"maxConnectedClusters":255,"serviceExportsEnabled":false,"endpointSlicesExportMode":"services-and-endpointslices"}}`, s.cached))
	for r, entry := range map[wire.Resource][2]string{
		wire.Nodes: {"worker", `{"Name":"worker","Cluster":"west","IPAddresses":[{"Type":"InternalIP","IP":"172.18.0.2"},{"Type":"CiliumInternalIP","IP":"10.2.1.10"}],` +
			`"IPv4AllocCIDR":{"IP":"10.2.1.0","Mask":"////AA=="},"IPv4HealthIP":"10.2.1.134","ClusterID":2,"Source":"custom-resource","EncryptionKey":0}`},
		wire.Identities: {"131073", "k8s:app=web;k8s:io.cilium.k8s.policy.cluster=west;k8s:io.kubernetes.pod.namespace=shop;"},
		wire.IPs:        {"10.2.1.2", `{"IP":"10.2.1.2","HostIP":"172.18.0.2","ID":131073,"Key":0,"Metadata":"","K8sNamespace":"shop","K8sPodName":"web-1"}`},
		wire.Services: {"shop/web", `{"cluster":"west","namespace":"shop","name":"web","frontends":{},"backends":{"10.2.1.2":{"":{"Protocol":"TCP","Port":8080}}},` +
			`"hostnames":{},"zones":{},"labels":{},"selector":{},"includeExternal":true,"shared":true,"clusterID":2}`},
		wire.EndpointSlices: {"shop/web-x7k2p", string(slice.Marshal())},
	} {
		prefix, _ := s.at(r)
		s.put(prefix+entry[0], entry[1])
	}
	for _, r := range wire.Resources {
		_, canary := s.at(r)
		s.put(canary, string(wire.TimeText(time.Now())))
	}
}

// secret is the Secret with which a Cilium cluster reads it.
func (s *ciliumSite) secret(user string) []byte {
	s.t.Helper()
	pair := s.issue(user)
	config := fmt.Sprintf("endpoints:\n- https://%s:12379\ntrusted-ca-file: /var/lib/cilium/clustermesh/west.etcd-client-ca.crt\n"+
		"key-file: /var/lib/cilium/clustermesh/west.etcd-client.key\ncert-file: /var/lib/cilium/clustermesh/west.etcd-client.crt\n"+
		"cilium-host-aliases:\n- hostname: %s\n  ips: [%v]\n", meshName, meshName, s.addr)
	text, err := yaml.Marshal(map[string]any{"apiVersion": "v1", "kind": "Secret", "metadata": map[string]any{"name": "cilium-clustermesh"},
		"data": map[string][]byte{"west": []byte(config), "west.etcd-client-ca.crt": s.ca.Bundle(), "west.etcd-client.crt": pair.Cert, "west.etcd-client.key": pair.Key}})
	if err != nil {
		s.t.Fatal(err)
	}
	return text
}

// access is what the command line makes of the Secret.
func (s *ciliumSite) access(user string) *api.CiliumPeer {
	s.t.Helper()
	files, err := clustermesh.Parse(s.secret(user))
	if err != nil {
		s.t.Fatal(err)
	}
	a, err := files.Access("west")
	if err != nil {
		s.t.Fatal(err)
	}
	return &api.CiliumPeer{Cluster: "west", Endpoints: a.Endpoints, ServerName: a.ServerName, CA: a.CA, Cert: a.Cert, Key: a.Key, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")}}
}

// mirrored is what a mirror makes of what the site holds, without the older form of what
// it has slices of.
func (s *ciliumSite) mirrored() []string {
	s.t.Helper()
	var out []string
	for _, r := range wire.Resources {
		if r == wire.Services {
			continue
		}
		prefix, _ := s.at(r)
		kvs, _, err := s.root.List(s.t.Context(), prefix)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, kv := range kvs {
			out = append(out, r.CachePrefix("west")+strings.TrimPrefix(kv.Key, prefix)+"="+string(kv.Value))
		}
	}
	slices.Sort(out)
	return out
}

// A real etcd with a Cilium cluster's users, keys, leases and canaries, in the plain form
// and in that of a KVStoreMesh, is mirrored and followed.
func TestACiliumClusterOnARealStore(t *testing.T) {
	for _, form := range []struct {
		name, user string
		cached     bool
	}{{"plain", "remote", false}, {"cached", "local-north", true}} {
		t.Run(form.name, func(t *testing.T) {
			east, west := newSite(t, "east", 1), newCiliumSite(t, form.cached)
			west.fill()
			if _, err := east.p.AddCilium(t.Context(), west.access(form.user)); err != nil {
				t.Fatal(err)
			}
			same := func() string { return cmp.Diff(west.mirrored(), east.mirrored()) }
			eventually(t, same)
			eventually(t, func() string {
				if c := east.control("west"); c.State != api.LinkUp {
					return fmt.Sprintf("control link %+v", c)
				}
				return ""
			})
			status := east.p.Status()[0]
			if status.ID != 2 || !status.Cilium || len(status.Refused) != 0 || len(east.concerns()) != 0 {
				t.Errorf("%+v, concerns %q", status, east.concerns())
			}
			// One form of its services is mirrored, and it has no service exports.
			if got := len(east.dump("cilium/synced/west/")); got != len(wire.Resources)-2 {
				t.Errorf("%d canaries in our copy", got)
			}

			ips, _ := west.at(wire.IPs)
			west.put(ips+"10.2.1.3", `{"IP":"10.2.1.3","HostIP":"172.18.0.2","ID":131073,"Key":0,"Metadata":""}`)
			eventually(t, same)
			if err := store.Write(t.Context(), west.root, store.Delete(ips+"10.2.1.3")); err != nil {
				t.Fatal(err)
			}
			eventually(t, same)

			// Its clustermesh-apiserver dies and its leases expire; then it is back.
			before := east.mirrored()
			if err := west.root.Revoke(t.Context(), west.lease); err != nil {
				t.Fatal(err)
			}
			eventually(t, func() string {
				if c := east.control("west"); c.State == api.LinkUp {
					return "the link to a store without canaries counts as up"
				}
				return ""
			})
			if diff := cmp.Diff(before, east.mirrored()); diff != "" {
				t.Errorf("what expired was taken for withdrawn:\n%s", diff)
			}
			west.grant()
			west.fill()
			eventually(t, func() string {
				if c := east.control("west"); c.State != api.LinkUp {
					return fmt.Sprintf("control link %+v", c)
				}
				return same()
			})
		})
	}
}

// What is wrong with a Cilium cluster's certificates, name or rights is refused with what
// to do, and alters nothing.
func TestACiliumClusterThatIsRefused(t *testing.T) {
	east, west := newSite(t, "east", 1), newCiliumSite(t, false)
	west.fill()
	good := west.access("remote")
	impostor, err := authority.Open(t.TempDir(), "cilium")
	if err != nil {
		t.Fatal(err)
	}
	before := east.dump("weft/state/", "weft/secret/", "cilium/cache/")
	for _, c := range []struct {
		name   string
		change func(*api.CiliumPeer)
		want   string
	}{
		{"another CA", func(in *api.CiliumPeer) { in.CA = string(impostor.Bundle()) }, "cert-file: the certificate is not signed by the ca beside it"},
		{"another server", func(in *api.CiliumPeer) {
			pair, err := impostor.Issue(authority.Request{User: "remote", Client: true})
			if err != nil {
				t.Fatal(err)
			}
			in.CA, in.Cert, in.Key = string(impostor.Bundle()), string(pair.Cert), string(pair.Key)
		}, "is not signed by the CA in the file"},
		{"the server's name", func(in *api.CiliumPeer) { in.ServerName = "" }, "is for other names"},
		{"another cluster's name", func(in *api.CiliumPeer) { in.Cluster = "north" }, "does not let us read cilium/cluster-config/north; compare the name with cluster-name"},
		{"a user without rights", func(in *api.CiliumPeer) {
			pair := west.issue("nobody")
			in.Cert, in.Key = string(pair.Cert), string(pair.Key)
		}, "does not let us read cilium/cluster-config/west"},
		{"another ID", func(in *api.CiliumPeer) { in.ID = 3 }, "its cluster ID is 2, not 3"},
		{"no pod CIDR", func(in *api.CiliumPeer) { in.PodCIDRs = nil }, "name its pod CIDRs with --pod-cidr; nothing outside of them is believed, and its nodes announce 10.2.1.0/24"},
		{"our pod CIDR", func(in *api.CiliumPeer) { in.PodCIDRs = east.own.PodCIDRs }, "overlaps our own 10.1.0.0/16"},
	} {
		in := *good
		c.change(&in)
		_, err := east.p.AddCilium(t.Context(), &in)
		if text := fmt.Sprint(err); err == nil || !strings.Contains(text+"; "+hint(err), c.want) {
			t.Errorf("%s: %v; %s", c.name, err, hint(err))
		}
	}
	if diff := cmp.Diff(before, east.dump("weft/state/", "weft/secret/", "cilium/cache/")); diff != "" {
		t.Errorf("altered:\n%s", diff)
	}
}

// hint is what a refusal says is to be done.
func hint(err error) string {
	var e *api.Error
	if errors.As(err, &e) {
		return e.Hint
	}
	return ""
}
