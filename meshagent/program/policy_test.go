package program

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/paths"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/policy"
	"github.com/weft-mesh/weft/wire"
)

// judgePacket judges a packet as the kernel does.
func judgePacket(m *bpf.Maps, ep bpf.Addr, peer identity.Number, dir bpf.Direction, proto uint8, port uint16) (allow bool, known bool) {
	return bpftest.Judge(m, ep, uint32(peer), dir, proto, port)
}

const allowFrontend = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints:
    - matchLabels: {app: frontend, io.cilium.k8s.policy.cluster: west}
    toPorts:
    - ports: [{port: "80", protocol: TCP}]
`

// bench is a program over tables and maps, run step by step.
type bench struct {
	t    testing.TB
	tab  *tables.Tables
	maps *bpf.Maps
	p    *Program
	// follower follows the tables beside the program, mesh is what it said last.
	follower *Follower
	mesh     *paths.Mesh
	// nodes and clusters are what an earlier program left in the kernel.
	nodes    map[uint32]bpf.Node
	clusters map[uint32]bpf.Cluster
	tap      *tap
	// servers are the API servers' addresses from the next restart on, while the cluster
	// names none.
	servers []netip.Addr
}

func (b *bench) apiServers(told *wire.Access) (all []netip.Addr) {
	if told == nil {
		return b.servers
	}
	for _, text := range told.Etcd {
		all = append(all, netip.MustParseAddr(text))
	}
	return all
}

func newBench(t testing.TB) *bench {
	b := &bench{t: t, tab: tables.New(), tap: &tap{}}
	b.maps = tapMaps(bpftest.New(), b.tap)
	b.restart()
	b.write(func(txn statedb.WriteTxn) {
		tables.Put(txn, b.tab.Clusters, &tables.Cluster{Name: "east", Own: &wire.Cluster{Name: "east", ID: 1, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, MaxConnectedClusters: 255}})
		tables.Put(txn, b.tab.Clusters, &tables.Cluster{Name: "west", Peer: &wire.Peer{Name: "west", ID: 2, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")}}})
	})
	return b
}

func (b *bench) restart() {
	b.nodes, b.clusters = rowsIn(b.maps.Nodes), rowsIn(b.maps.Clusters)
	rows, err := paths.NewRows(b.tab, b.maps)
	if err != nil {
		b.t.Fatal(err)
	}
	meshes, err := NewMeshes(b.tab, "n1")
	if err != nil {
		b.t.Fatal(err)
	}
	b.follower, b.mesh = meshes.Follower(), nil
	start := make(chan struct{})
	close(start)
	if b.p, err = New(Config{Self: "n1", APIServers: b.apiServers, Ports: []uint16{81}, Tables: b.tab, Maps: b.maps, Rows: rows, Start: start, Log: slog.New(slog.DiscardHandler)}); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) write(f func(statedb.WriteTxn)) {
	t := b.tab
	txn := t.DB.WriteTxn(t.Clusters, t.Former, t.Nodes, t.IPs, t.Identities, t.Services, t.Slices, t.Pods, t.Policies, t.Endpoints)
	f(txn)
	txn.Commit()
}

// pod makes a pod of this node with an identity.
func (b *bench) pod(name, app string, ip string, n identity.Number) bpf.Addr {
	labels := identity.PodLabels("shop", nil, map[string]string{"app": app}, "default", "east")
	addr := netip.MustParseAddr(ip)
	b.write(func(txn statedb.WriteTxn) {
		tables.Put(txn, b.tab.Endpoints, &tables.Endpoint{Namespace: "shop", Pod: name, ID: uint16(n), IP: addr, Ifindex: int(n), Phase: tables.Held})
		tables.Put(txn, b.tab.Pods, &tables.Pod{Namespace: "shop", Name: name, Endpoint: &wire.Endpoint{Namespace: "shop", Pod: name, IP: addr, Identity: n, Labels: labels}})
		tables.Put(txn, b.tab.Identities, &tables.Identity{Cluster: "east", Number: n, Labels: labels})
	})
	return bpf.AddrOf(addr)
}

func (b *bench) remote(app string, n identity.Number) {
	b.write(func(txn statedb.WriteTxn) {
		tables.Put(txn, b.tab.Identities, &tables.Identity{Cluster: "west", Number: n, Labels: identity.PodLabels("shop", nil, map[string]string{"app": app}, "default", "west")})
	})
}

func (b *bench) policy(name, text string) {
	row := &tables.Policy{Kind: "ciliumnetworkpolicies", Namespace: "shop", Name: name}
	b.write(func(txn statedb.WriteTxn) {
		if text == "" {
			tables.Drop(txn, b.tab.Policies, row)
			return
		}
		parsed, err := policy.Parse([]byte(text))
		if err != nil {
			b.t.Fatal(err)
		}
		row.Policies = parsed
		tables.Put(txn, b.tab.Policies, row)
	})
}

func (b *bench) pass() {
	b.p.pass(b.t.Context())
	b.p.pass(b.t.Context())
}

func (b *bench) want(when string, ep bpf.Addr, peer identity.Number, port uint16, want bool) {
	b.t.Helper()
	if got, known := judgePacket(b.maps, ep, peer, bpf.Ingress, 6, port); got != want || !known {
		b.t.Errorf("%s: peer %v at port %d: allowed %v (known %v), want %v", when, peer, port, got, known, want)
	}
}

func TestPolicyFollowsPoliciesPodsAndIdentities(t *testing.T) {
	b := newBench(t)
	web := b.pod("web-1", "web", "10.1.1.2", 65537)
	other := b.pod("other", "other", "10.1.1.3", 65538)
	b.remote("frontend", 131073)
	b.remote("intruder", 131074)
	b.pass()
	b.want("no policy", web, 131074, 80, true)

	b.policy("web", allowFrontend)
	b.pass()
	gen := b.p.settings.PolicyGen
	b.want("frontend", web, 131073, 80, true)
	b.want("frontend, other port", web, 131073, 81, false)
	b.want("intruder", web, 131074, 80, false)
	b.want("unknown member", web, identity.UnknownMember, 80, false)
	b.want("another pod", other, 131074, 80, true)

	// A new identity needs no new generation.
	b.remote("frontend", 131075)
	b.want("identity not there yet", web, 131075, 80, false)
	b.pass()
	b.want("one more frontend", web, 131075, 80, true)
	// Nor does a pod under existing rules.
	web2 := b.pod("web-2", "web", "10.1.1.4", 65537)
	b.pass()
	b.want("one more web", web2, 131073, 80, true)
	b.want("one more web, intruder", web2, 131074, 80, false)
	if b.p.settings.PolicyGen != gen {
		t.Errorf("generation %d became %d", gen, b.p.settings.PolicyGen)
	}

	// After a restart it takes over and judges the same.
	b.restart()
	b.want("agent away", web, 131073, 80, true)
	b.pass()
	b.want("restarted", web, 131073, 80, true)
	b.want("restarted, intruder", web, 131074, 80, false)

	b.policy("web", "")
	b.pass()
	b.want("policy gone", web, 131074, 80, true)
	row, _, _ := b.maps.Endpoints.Lookup(web)
	if row.Set != 0 {
		t.Errorf("set %d without a policy", row.Set)
	}
}

// However it got into the tables: a peer's identity that also claims to be from
// another cluster, or something reserved, is nobody.
func TestAForgedIdentityIsNobody(t *testing.T) {
	for name, forged := range map[string]string{
		"our cluster beside its own": "container:io.cilium.k8s.policy.cluster=east",
		"the host":                   "reserved:host",
		"addresses":                  "cidr:0.0.0.0/0",
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			web := b.pod("web-1", "web", "10.1.1.2", 65537)
			labels, err := identity.ParseLabels("k8s:app=frontend;k8s:io.cilium.k8s.policy.cluster=west;k8s:io.kubernetes.pod.namespace=shop;" + forged)
			if err != nil {
				t.Fatal(err)
			}
			b.write(func(txn statedb.WriteTxn) {
				tables.Put(txn, b.tab.Identities, &tables.Identity{Cluster: "west", Number: 131073, Labels: labels})
			})
			b.remote("frontend", 131074)
			b.policy("web", allowFrontend)
			b.pass()
			b.want("frontend", web, 131074, 80, true)
			b.want("forged", web, 131073, 80, false)
			problems := tables.All(b.tab.DB.ReadTxn(), b.tab.Problems)
			if len(problems) != 1 || problems[0].Table != "identities" {
				t.Errorf("problems: %+v", problems)
			}
		})
	}
}

// TestNoGapWhateverFails fails every write once in turn while policies change: the
// intruder never gets in, the frontend is never kept out, and every drop can be
// attributed to its policy.
func TestNoGapWhateverFails(t *testing.T) {
	const writes = 100 // at least as many as there are
	for failAt := range writes {
		t.Run(fmt.Sprint(failAt), func(t *testing.T) {
			b := newBench(t)
			web := b.pod("web-1", "web", "10.1.1.2", 65537)
			b.remote("frontend", 131073)
			b.remote("intruder", 131074)
			b.policy("web", allowFrontend)
			b.pass()
			b.tap.after = func() {
				if ok, _ := judgePacket(b.maps, web, 131073, bpf.Ingress, 6, 80); !ok {
					t.Error("the frontend is kept out")
				}
				if ok, _ := judgePacket(b.maps, web, 131074, bpf.Ingress, 6, 80); ok {
					t.Error("the intruder gets in")
				}
				force, _, _ := b.maps.Settings.Lookup(0)
				row, _, _ := b.maps.Endpoints.Lookup(web)
				if x := b.p.Explain().Of(force.PolicyGen); x == nil || len(x.Sets[row.Set].Policies[1]) == 0 {
					t.Error("no explanation names the policy that keeps the intruder out")
				}
			}
			n := 0
			b.tap.before = func() error {
				if n++; n == failAt {
					return errors.New("injected")
				}
				return nil
			}
			b.policy("more", `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: more, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: monitor}}]
`)
			b.pod("web-2", "web", "10.1.1.4", 65537)
			b.pod("third", "third", "10.1.1.5", 65539)
			for range 4 {
				b.p.pass(t.Context())
			}
			b.policy("more", "")
			for range 4 {
				b.p.pass(t.Context())
			}
			if n == 0 || failAt == 0 && n >= writes {
				t.Errorf("%d writes", n)
			}
			// The previous generation's rows go a moment after the switch.
			b.p.policies.stale = time.Now().Add(-time.Hour)
			for range 4 {
				b.p.pass(t.Context())
			}
			for k := range rowsIn(b.maps.Policy) {
				if k.Gen != b.p.settings.PolicyGen {
					t.Errorf("generation %d left %+v", k.Gen, k)
				}
			}
			if problems := tables.All(b.tab.DB.ReadTxn(), b.tab.Problems); len(problems) > 0 {
				t.Errorf("problems left: %+v", problems[0])
			}
		})
	}
}

// tapped calls a hook before and after every write; the first may make it fail.
type tapped[K comparable, V comparable] struct {
	bpf.Table[K, V]
	tap *tap
}

type tap struct {
	before func() error
	after  func()
}

func (t *tap) write(f func() error) error {
	if t.before != nil {
		if err := t.before(); err != nil {
			return err
		}
	}
	err := f()
	if t.after != nil {
		t.after()
	}
	return err
}

func (t tapped[K, V]) Update(k K, v V) error {
	return t.tap.write(func() error { return t.Table.Update(k, v) })
}

func (t tapped[K, V]) Delete(k K) error {
	return t.tap.write(func() error { return t.Table.Delete(k) })
}

func (t tapped[K, V]) UpdateBatch(rows map[K]V) error {
	return t.tap.write(func() error { return t.Table.UpdateBatch(rows) })
}

// tapMaps puts taps on the maps that decide about packets.
func tapMaps(m *bpf.Maps, t *tap) *bpf.Maps {
	out := *m
	out.Settings = tapped[uint32, bpf.Settings]{m.Settings, t}
	out.Revisions = tapped[uint32, uint32]{m.Revisions, t}
	out.Endpoints = tapped[bpf.Addr, bpf.Endpoint]{m.Endpoints, t}
	out.Classes = tapped[bpf.ClassKey, uint32]{m.Classes, t}
	out.Ports = tapped[uint32, uint16]{m.Ports, t}
	out.Policy = tapped[bpf.PolicyKey, bpf.PolicyEntry]{m.Policy, t}
	out.Sets = tapped[bpf.SetKey, bpf.SetInfo]{m.Sets, t}
	out.Services, out.Members = tapped[bpf.ServiceKey, bpf.Service]{m.Services, t}, tapped[bpf.MemberKey, bpf.Member]{m.Members, t}
	out.Backends = tappedBatch[bpf.SlotKey, bpf.Backend]{tapped[bpf.SlotKey, bpf.Backend]{m.Backends, t}}
	out.Balancing, out.Maglev = tapped[uint32, bpf.Balancing]{m.Balancing, t}, tappedBatch[bpf.MaglevKey, bpf.MaglevSlots]{tapped[bpf.MaglevKey, bpf.MaglevSlots]{m.Maglev, t}}
	out.Nodes, out.Clusters = tapped[uint32, bpf.Node]{m.Nodes, t}, tapped[uint32, bpf.Cluster]{m.Clusters, t}
	out.Prefixes, out.IPs = tapped[bpf.PrefixKey, bpf.IPInfo]{m.Prefixes, t}, tapped[bpf.Addr, bpf.IPInfo]{m.IPs, t}
	return &out
}

func rowsIn[K comparable, V any](t bpf.Table[K, V]) map[K]V {
	rows, _ := t.All()
	return maps.Collect(rows)
}
