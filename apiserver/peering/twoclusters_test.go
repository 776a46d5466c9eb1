package peering_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/apiserver/embedded"
	"github.com/weft-mesh/weft/apiserver/export"
	"github.com/weft-mesh/weft/apiserver/peering"
	"github.com/weft-mesh/weft/apiserver/state"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/internal/loopbacktest"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// site is a cluster's control plane on a real etcd, with exporter and peering.
type site struct {
	t    *testing.T
	own  wire.Cluster
	ca   *authority.Authority
	dir  string
	addr netip.Addr
	root *store.Etcd
	p    *peering.Peering
	exp  *export.Exporter
	stop func()
}

// concerns are the lines of a status.
func (s *site) concerns() (lines []string) {
	for _, c := range s.p.Concerns(time.Now()) {
		lines = append(lines, c.String())
	}
	return lines
}

func newSite(t *testing.T, name string, id byte) *site {
	t.Helper()
	ca, err := authority.Open(t.TempDir(), name)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, ca: ca, dir: t.TempDir(), addr: loopbacktest.Addr(t), own: wire.Cluster{
		Name: name, ID: identity.ClusterID(id), MaxConnectedClusters: 255, Generation: name + "-1",
		PodCIDRs:    []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, id, 0, 0}), 16)},
		ServiceCIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 100 + id, 0, 0}), 16),
	}}
	s.start()
	t.Cleanup(func() { s.stop() })
	return s
}

func (s *site) start() {
	s.t.Helper()
	log := slog.New(slog.DiscardHandler)
	cert, key, err := s.ca.IssueFile("etcd", authority.Request{User: "etcd", Client: true, Server: true, Addresses: []netip.Addr{s.addr}})
	if err != nil {
		s.t.Fatal(err)
	}
	etcd, err := embedded.Start(s.t.Context(), embedded.Config{Dir: s.dir, Listen: fmt.Sprintf("%v:12379", s.addr), Cert: cert, Key: key, CA: s.ca.BundlePath(), Log: log})
	if err != nil {
		s.t.Fatal(err)
	}
	pair, err := s.ca.Issue(authority.Request{User: authority.Root, Client: true})
	if err != nil {
		s.t.Fatal(err)
	}
	s.root = s.dial(pair, s.ca.Bundle())
	if err := s.root.EnableAuth(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	own := state.New(s.root, log)
	s.exp = export.New(export.Config{State: own, Store: s.root, Cluster: s.own, Log: log})
	s.p = peering.New(peering.Config{Cluster: s.own, Store: s.root, Users: s.root, Authority: s.ca, EtcdEndpoints: func() []string { return []string{s.endpoint()} }, Log: log})
	done := make(chan error, 3)
	go func() { done <- own.Run(ctx) }()
	go func() { done <- s.exp.Run(ctx) }()
	go func() { done <- s.p.Run(ctx) }()
	s.stop = func() {
		cancel()
		for range 3 {
			if err := <-done; err != nil {
				s.t.Error(err)
			}
		}
		s.root.Close()
		etcd.Close()
		s.stop = func() {}
	}
}

func (s *site) endpoint() string { return fmt.Sprintf("https://%v:12379", s.addr) }

func (s *site) dial(pair authority.Pair, ca []byte) *store.Etcd {
	s.t.Helper()
	cert, err := pair.TLS()
	if err != nil {
		s.t.Fatal(err)
	}
	e, err := store.Dial(store.DialConfig{Endpoints: []string{s.endpoint()}, TLS: &tls.Config{RootCAs: s.ca.Pool(), Certificates: []tls.Certificate{cert}}})
	if err != nil {
		s.t.Fatal(err)
	}
	return e
}

func (s *site) dialInvite(in *api.Invite) *store.Etcd {
	s.t.Helper()
	return s.dial(authority.Pair{Cert: []byte(in.Cert), Key: []byte(in.Key)}, []byte(in.CA))
}

func (s *site) put(key string, v any) {
	s.t.Helper()
	value, ok := v.([]byte)
	if !ok {
		value = wire.Marshal(v)
	}
	if err := store.Write(s.t.Context(), s.root, store.Put(key, value)); err != nil {
		s.t.Fatal(err)
	}
}

// populate writes the state of a cluster of two nodes, three pods and a global
// service.
func (s *site) populate() {
	id := byte(s.own.ID)
	number := identity.Number(s.own.ID)<<16 + 1
	s.put(wire.IdentityIDKey(number), fmt.Appendf(nil, "k8s:app=web;k8s:io.cilium.k8s.policy.cluster=%s;k8s:io.kubernetes.pod.namespace=shop;", s.own.Name))
	for n := byte(1); n <= 2; n++ {
		r := wire.Registration{Name: fmt.Sprintf("n%d", n), Addresses: []netip.Addr{netip.AddrFrom4([4]byte{172, 16, id, n})},
			PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, id, n, 0}), 24)}}
		s.put(wire.RegistrationKey(r.Name), r)
		s.put(wire.NodeKey(r.Name), wire.NodeState{Name: r.Name, Addresses: r.Addresses, PodCIDRs: r.PodCIDRs, Internal: r.Internals()[0], Epoch: 1})
	}
	name, port := "http", int32(8080)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "shop", Name: "web-v4", Labels: map[string]string{wire.ServiceNameLabel: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}
	for p := byte(2); p <= 4; p++ {
		ip := netip.AddrFrom4([4]byte{10, id, 1, p})
		pod := fmt.Sprintf("web-%d", p)
		s.put(wire.EndpointKey("shop", pod), wire.Endpoint{Namespace: "shop", Pod: pod, Node: "n1", NodeIP: netip.AddrFrom4([4]byte{172, 16, id, 1}), IP: ip, Identity: number, Ready: true})
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip.String()}})
	}
	s.put(wire.ObjectKey("endpointslices", "shop", "web-v4"), slice)
	s.put(wire.ObjectKey("services", "shop", "web"), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", Annotations: map[string]string{service.AnnotationGlobal: "true"}},
		Spec:       corev1.ServiceSpec{ClusterIP: netip.AddrFrom4([4]byte{10, 100 + id, 0, 1}).String(), Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	})
}

func (s *site) dump(prefixes ...string) []string {
	s.t.Helper()
	var out []string
	for _, p := range prefixes {
		kvs, _, err := s.root.List(s.t.Context(), p)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, kv := range kvs {
			out = append(out, kv.Key+"="+string(kv.Value))
		}
	}
	slices.Sort(out)
	return out
}

// exported is what peers should have of s, under the keys of their copy.
func (s *site) exported() []string {
	var out []string
	for _, r := range wire.Resources {
		if r == wire.Services {
			continue // the older form of what is in slices
		}
		prefix := r.StatePrefix(s.own.Name)
		for _, line := range s.dump(prefix) {
			out = append(out, r.CachePrefix(s.own.Name)+strings.TrimPrefix(line, prefix))
		}
	}
	for _, line := range s.dump(wire.ExportPrefix) {
		out = append(out, wire.PeerCachePrefix(s.own.Name)+strings.TrimPrefix(line, wire.ExportPrefix))
	}
	slices.Sort(out)
	return out
}

func (s *site) mirrored() []string { return s.dump(wire.CiliumCachePrefix, wire.CachePrefix) }

func (s *site) control(peer string) api.ControlStatus {
	for _, p := range s.p.Status() {
		if p.Name == peer {
			return p.Control
		}
	}
	return api.ControlStatus{}
}

func (s *site) read(from *site) *api.Invite {
	s.t.Helper()
	in, err := from.p.Invite(s.t.Context(), s.own.Name)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.p.Add(s.t.Context(), in); err != nil {
		s.t.Fatal(err)
	}
	return in
}

// eventually repeats what until it returns "".
func eventually(t *testing.T, what func() string) {
	t.Helper()
	var last string
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		if last = what(); last == "" {
			return
		}
		<-time.After(20 * time.Millisecond)
	}
	t.Fatal(last)
}

// entries is how many entries a site exports for its peers after populate.
const entries = 10

func copied(from, to *site) func() string {
	return func() string {
		if want := from.exported(); len(want) < entries {
			return fmt.Sprintf("%s exports only %d entries", from.own.Name, len(want))
		}
		return cmp.Diff(from.exported(), to.mirrored())
	}
}

// Two clusters on real stores: joined both ways, lied to, cut, emptied, parted.
func TestTwoClustersOnRealStores(t *testing.T) {
	east, west := newSite(t, "east", 1), newSite(t, "west", 2)
	east.populate()
	west.populate()
	eventually(t, func() string {
		// Synced may have been set before populate wrote anything.
		if east.exp.Status().Synced.IsZero() || len(east.exported()) < entries {
			return "not exported yet"
		}
		return ""
	})
	blank := east.dump("cilium/", "weft/")
	invite := east.read(west)
	ofEast := west.read(east)
	eventually(t, copied(west, east))
	eventually(t, copied(east, west))

	t.Run("rights", func(t *testing.T) {
		e := west.dialInvite(invite)
		defer e.Close()
		for _, prefix := range []string{"cilium/state/", "weft/export/", "cilium/synced/west/", "cilium/cluster-config/west", "cilium/.heartbeat"} {
			if _, err := e.Get(t.Context(), prefix); err != nil && !errors.Is(err, store.ErrNotFound) {
				t.Errorf("%s: %v", prefix, err)
			}
			if !strings.HasSuffix(prefix, "/") {
				continue
			}
			if kvs, _, err := e.List(t.Context(), prefix); err != nil || len(kvs) == 0 {
				t.Errorf("list %s: %d, %v", prefix, len(kvs), err)
			}
		}
		for _, prefix := range []string{"weft/", "weft/state/", "weft/secret/", "weft/agents/", "weft/cache/", "cilium/", "cilium/cache/", "cilium/synced/", "cilium/synced/east/", "cilium/cluster-config/"} {
			if kvs, _, err := e.List(t.Context(), prefix); !errors.Is(err, store.ErrDenied) {
				t.Errorf("list %q: %d keys, %v", prefix, len(kvs), err)
			}
		}
		for _, key := range []string{"cilium/cluster-config/east", "weft/secret/peers/east", "weft/state/cluster"} {
			if _, err := e.Get(t.Context(), key); !errors.Is(err, store.ErrDenied) {
				t.Errorf("get %s: %v", key, err)
			}
		}
		if err := store.Write(t.Context(), e, store.Put("cilium/state/ip/v1/default/10.2.1.9", nil)); !errors.Is(err, store.ErrDenied) {
			t.Errorf("write: %v", err)
		}
	})

	t.Run("changes", func(t *testing.T) {
		west.put(wire.EndpointKey("shop", "late"), wire.Endpoint{Namespace: "shop", Pod: "late", IP: netip.MustParseAddr("10.2.1.9"), Identity: 2<<16 + 1})
		began := time.Now()
		eventually(t, func() string {
			if _, err := east.root.Get(t.Context(), "cilium/cache/ip/v1/west/10.2.1.9"); err != nil {
				return err.Error()
			}
			return ""
		})
		t.Logf("state in west to mirror in east: %v", time.Since(began))
	})

	t.Run("lies", func(t *testing.T) {
		before := east.mirrored()
		west.put("cilium/state/ip/v1/default/10.1.1.2", []byte(`{"IP":"10.1.1.2","ID":131073}`))
		west.put("cilium/state/identities/v1/id/65537", []byte("k8s:io.cilium.k8s.policy.cluster=west;"))
		eventually(t, func() string {
			if r := east.p.Status()[0].Refused; len(r) != 2 {
				return fmt.Sprintf("refused: %+v", r)
			}
			return ""
		})
		if diff := cmp.Diff(before, east.mirrored()); diff != "" {
			t.Error(diff)
		}
		if err := store.Write(t.Context(), west.root, store.Delete("cilium/state/ip/v1/default/10.1.1.2"), store.Delete("cilium/state/identities/v1/id/65537")); err != nil {
			t.Fatal(err)
		}
	})

	t.Run("restart", func(t *testing.T) {
		west.stop()
		eventually(t, func() string {
			if c := east.control("west"); c.State != api.LinkDown {
				return fmt.Sprintf("%+v", c)
			}
			return ""
		})
		before := east.mirrored()
		west.start()
		eventually(t, func() string {
			if c := east.control("west"); c.State != api.LinkUp {
				return fmt.Sprintf("%+v", c)
			}
			return ""
		})
		if diff := cmp.Diff(before, east.mirrored()); diff != "" {
			t.Error(diff)
		}
	})

	t.Run("emptied", func(t *testing.T) {
		before := east.mirrored()
		west.stop()
		if err := os.RemoveAll(west.dir); err != nil {
			t.Fatal(err)
		}
		west.own.Generation = "west-2"
		west.start()
		// The users were lost with the store: west's operator invites again. East's
		// certificate is still valid.
		if _, err := west.p.Invite(t.Context(), "east"); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() string {
			if p := east.concerns(); len(p) != 1 || !strings.Contains(p[0], "held:") {
				return fmt.Sprintf("problems %q, %+v", p, east.control("west"))
			}
			return ""
		})
		if diff := cmp.Diff(before, east.mirrored()); diff != "" {
			t.Error(diff)
		}
		west.populate()
		eventually(t, func() string {
			// Of all that was held, the pod that came late does not come back,
			// and with it the cluster's own entry waits.
			if p := strings.Join(east.concerns(), "\n"); !strings.Contains(p, "held: 1 deletions") {
				return p
			}
			return ""
		})
		if diff := cmp.Diff(before, east.mirrored()); diff != "" {
			t.Error(diff)
		}
		if _, err := east.p.Release(t.Context(), "west"); err != nil {
			t.Fatal(err)
		}
		eventually(t, copied(west, east))
	})

	t.Run("removed", func(t *testing.T) {
		if err := east.p.Remove(t.Context(), "west"); err != nil {
			t.Fatal(err)
		}
		own := func(line string) bool {
			return strings.HasPrefix(line, wire.HeartbeatKey+"=") || strings.HasPrefix(line, wire.RemovalsKey+"=") || strings.HasPrefix(line, wire.FormerPrefix)
		}
		eventually(t, func() string {
			return cmp.Diff(slices.DeleteFunc(slices.Clone(blank), own), slices.DeleteFunc(east.dump("cilium/", "weft/"), own))
		})
		if _, err := east.root.Client().UserGet(t.Context(), "remote-west"); err == nil {
			t.Error("west's user is still there")
		}
		if _, err := east.root.Client().RoleGet(t.Context(), "remote-west"); err == nil {
			t.Error("west's role is still there")
		}
	})

	t.Run("invited again", func(t *testing.T) {
		before := east.dialInvite(ofEast)
		defer before.Close()
		again, err := east.p.Invite(t.Context(), "west")
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := before.List(t.Context(), "cilium/state/"); !errors.Is(err, store.ErrDenied) {
			t.Error("the certificate from before the removal is good again:", err)
		}
		now := east.dialInvite(again)
		defer now.Close()
		if _, _, err := now.List(t.Context(), "cilium/state/"); err != nil {
			t.Error(err)
		}
		if _, err := west.p.Add(t.Context(), again); err != nil {
			t.Error(err)
		}
		eventually(t, copied(east, west))
	})
}

// A server not certified by the invite's CA, and one that does not accept our
// certificate, are told apart from one that does not answer.
func TestWrongCertificatesOnTheWire(t *testing.T) {
	east, west := newSite(t, "east", 1), newSite(t, "west", 2)
	eventually(t, func() string {
		if west.exp.Status().Synced.IsZero() {
			return "not exported yet"
		}
		return ""
	})
	good, err := west.p.Invite(t.Context(), "east")
	if err != nil {
		t.Fatal(err)
	}
	before := east.dump("weft/")

	impostor, err := authority.Open(t.TempDir(), "west")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := impostor.Issue(authority.Request{User: "remote-east", Client: true})
	if err != nil {
		t.Fatal(err)
	}
	bad := *good
	bad.CA, bad.Cert, bad.Key = string(impostor.Bundle()), string(pair.Cert), string(pair.Key)
	if _, err := east.p.Add(t.Context(), &bad); err == nil || !strings.Contains(err.Error(), "not signed by the CA in the file") {
		t.Errorf("another CA: %v", err)
	}
	bad.CA = string(bytes.Join([][]byte{west.ca.Bundle(), impostor.Bundle()}, nil))
	if _, err := east.p.Add(t.Context(), &bad); err == nil || !strings.Contains(err.Error(), "does not accept the certificate") {
		t.Errorf("a certificate of another CA: %v", err)
	}
	if err := west.p.Remove(t.Context(), "east"); err != nil {
		t.Fatal(err)
	}
	if _, err := east.p.Add(t.Context(), good); err == nil || !strings.Contains(err.Error(), "does not let us read") {
		t.Errorf("removed meanwhile: %v", err)
	}
	if diff := cmp.Diff(before, east.dump("weft/")); diff != "" {
		t.Errorf("altered:\n%s", diff)
	}
}
