package trace

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/identity"
)

func addr(s string) bpf.Addr { return bpf.AddrOf(netip.MustParseAddr(s)) }

func put[K comparable, V any](t *testing.T, table bpf.Table[K, V], k K, v V) {
	t.Helper()
	if err := table.Update(k, v); err != nil {
		t.Fatal(err)
	}
}

func rowsOf(m *bpf.Maps) *rows {
	s, _, _ := m.Settings.Lookup(0)
	return &rows{ctx: context.Background(), maps: m, settings: s}
}

// mesh is a node of cluster 1 with the pod 10.1.1.2, beside one node of cluster 2 and one of 3.
func mesh(t *testing.T) *bpf.Maps {
	m := bpftest.New()
	put(t, m.Settings, 0, bpf.Settings{Revision: 1, PolicyGen: 1, Cluster: 1, TunnelIfindex: [2]uint32{8, 9}, Internal: [2]bpf.Addr{addr("10.1.1.1")}})
	put(t, m.Endpoints, addr("10.1.1.2"), bpf.Endpoint{Ifindex: 5, Identity: 100})
	for node := range uint32(2) {
		cluster := node + 2
		put(t, m.Nodes, node+1, bpf.Node{Path: bpf.PathAlive, Keyed: 1, Lane: uint8(node), Cluster: uint16(cluster)})
		put(t, m.Clusters, cluster, bpf.Cluster{Path: bpf.PathAlive, Member: 1})
		put(t, m.Prefixes, bpf.PrefixOf(netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", cluster))), bpf.IPInfo{Cluster: uint16(cluster), Flags: bpf.IPMember})
		put(t, m.Prefixes, bpf.PrefixOf(netip.MustParsePrefix(fmt.Sprintf("10.%d.1.0/24", cluster))), bpf.IPInfo{Cluster: uint16(cluster), Node: uint16(node + 1), Flags: bpf.IPMember, Bits: 120})
		put(t, m.IPs, addr(fmt.Sprintf("10.%d.1.2", cluster)), bpf.IPInfo{Identity: 200 + cluster, Cluster: uint16(cluster), Node: uint16(node + 1), Flags: bpf.IPMember})
	}
	put(t, m.Prefixes, bpf.PrefixOf(netip.MustParsePrefix("10.1.1.0/24")), bpf.IPInfo{Cluster: 1, Flags: bpf.IPMember | bpf.IPLocal})
	put(t, m.Prefixes, bpf.PrefixOf(netip.MustParsePrefix("10.101.0.0/16")), bpf.IPInfo{Flags: bpf.IPService})
	put(t, m.Prefixes, bpf.PrefixOf(netip.MustParsePrefix("10.9.0.0/16")), bpf.IPInfo{Cluster: 9, Flags: bpf.IPMember | bpf.IPFormer})
	put(t, m.IPs, addr("172.16.1.2"), bpf.IPInfo{Identity: uint32(identity.RemoteNode), Flags: bpf.IPNode, Node: 1})
	put(t, m.IPs, addr("172.16.2.1"), bpf.IPInfo{Identity: uint32(identity.RemoteNode), Flags: bpf.IPNode})
	return m
}

func TestLocate(t *testing.T) {
	r := rowsOf(mesh(t))
	for a, want := range map[string]struct {
		why      bpf.Reason
		via      bpf.Via
		identity identity.Number
		node     uint16
	}{
		"10.1.1.2":   {0, bpf.ViaPod, 100, 0},
		"10.1.1.1":   {0, bpf.ViaStack, identity.Host, 0},
		"10.1.1.3":   {bpf.ReasonNoEndpoint, bpf.ViaTunnel, identity.UnknownMember, 0},
		"10.2.1.2":   {0, bpf.ViaTunnel, 202, 1},
		"10.2.1.3":   {0, bpf.ViaTunnel, identity.UnknownMember, 1},
		"10.2.1.0":   {0, bpf.ViaTunnel, identity.World, 1}, // the node's ingress address
		"10.2.2.3":   {bpf.ReasonNoTunnel, bpf.ViaTunnel, identity.UnknownMember, 0},
		"10.9.1.2":   {bpf.ReasonFormerMember, bpf.ViaTunnel, identity.UnknownMember, 0},
		"10.101.0.9": {bpf.ReasonNoBackend, bpf.ViaStack, 0, 0},
		"172.16.1.2": {bpf.ReasonNodeAddress, bpf.ViaTunnel, identity.RemoteNode, 1},
		"172.16.2.1": {bpf.ReasonNodeAddress, bpf.ViaStack, identity.RemoteNode, 0},
		"192.0.2.1":  {0, bpf.ViaStack, identity.World, 0},
	} {
		at, why := r.locate(addr(a))
		if why != want.why || at.via != want.via || at.identity != uint32(want.identity) || at.node != want.node {
			t.Errorf("%s: %+v, %v; want %+v", a, at, why, want)
		}
	}
	if r.err != nil {
		t.Error(r.err)
	}
}

// A node port of another node of the cluster leads where this node's does; a peer's does not.
func TestNodePortsOfOtherNodes(t *testing.T) {
	m := mesh(t)
	s, _, _ := m.Settings.Lookup(0)
	s.Exposed[0] = addr("172.16.1.1")
	put(t, m.Settings, 0, s)
	for _, port := range []uint16{80, 30080} {
		put(t, m.Services, bpf.ServiceKey{Addr: addr("172.16.1.1"), Port: bpf.PortOf(port), Proto: 6}, bpf.Service{ID: 9})
	}
	r := rowsOf(m)
	for _, c := range []struct {
		addr  string
		port  uint16
		proto uint8
		want  bool
	}{
		{"172.16.1.1", 80, 6, true},
		{"172.16.1.1", 30080, 6, true},
		{"172.16.1.2", 30080, 6, true},
		{"172.16.1.2", 30080, 17, false},
		{"172.16.1.2", 30081, 6, false},
		{"172.16.1.2", 80, 6, false},
		{"172.16.2.1", 30080, 6, false},
		{"192.0.2.1", 30080, 6, false},
	} {
		if _, ok := r.serviceAt(addr(c.addr), bpf.PortOf(c.port), c.proto); ok != c.want {
			t.Errorf("%+v: %v", c, ok)
		}
	}
	if r.err != nil {
		t.Error(r.err)
	}
}

// A process of another node of the cluster is reached if it is behind a service.
func TestLocateProcesses(t *testing.T) {
	m := mesh(t)
	for _, a := range []string{"172.16.1.2", "172.16.2.1"} {
		put(t, m.Services, bpf.ServiceKey{Addr: addr(a), Port: bpf.PortOf(6443), Proto: 6, Scope: bpf.ScopeNode}, bpf.Service{ID: 9})
	}
	r := rowsOf(m)
	for _, c := range []struct {
		addr  string
		port  uint16
		proto uint8
		want  bpf.Reason
	}{
		{"172.16.1.2", 6443, 6, 0},
		{"172.16.1.2", 6443, 17, bpf.ReasonNodeAddress},
		{"172.16.1.2", 6444, 6, bpf.ReasonNodeAddress},
		{"172.16.2.1", 6443, 6, bpf.ReasonNodeAddress}, // a peer's
		{"10.2.1.2", 6443, 6, 0},
	} {
		if _, why := r.locateOffered(addr(c.addr), bpf.PortOf(c.port), c.proto); why != c.want {
			t.Errorf("%+v: %v", c, why)
		}
	}
	for a, want := range map[string]bpf.Reason{"172.16.1.2": 0, "172.16.2.1": bpf.ReasonNodeAddress} {
		if _, why := r.locateBackend(addr(a)); why != want {
			t.Errorf("backend %s: %v", a, why)
		}
	}
	if r.err != nil {
		t.Error(r.err)
	}
}

// A new connection gets a backend of the lowest tier that has one whose path is alive, or else of
// the lowest that has one whose path is silent.
func TestWhichBackendsMayBeChosen(t *testing.T) {
	const alive, silent, dead = bpf.PathAlive, bpf.PathSilent, bpf.PathDead
	for _, c := range []struct {
		name        string
		tiers       [3]uint8 // of the backend here, in cluster 2 and in cluster 3
		weights     [3]uint8
		nodes       [2]bpf.Path
		clusters    [2]bpf.Path
		unkeyed     bool // the node of cluster 2
		wantChosen  [3]bool
		wantUsable2 bool
	}{
		{"all alike", [3]uint8{0, 0, 0}, [3]uint8{1, 1, 1}, [2]bpf.Path{alive, alive}, [2]bpf.Path{alive, alive}, false, [3]bool{true, true, true}, true},
		{"the nearest tier", [3]uint8{1, 0, 2}, [3]uint8{1, 1, 1}, [2]bpf.Path{alive, alive}, [2]bpf.Path{alive, alive}, false, [3]bool{false, true, false}, true},
		{"a dead node", [3]uint8{1, 0, 2}, [3]uint8{1, 1, 1}, [2]bpf.Path{dead, alive}, [2]bpf.Path{alive, alive}, false, [3]bool{true, false, false}, false},
		{"a dead cluster", [3]uint8{2, 0, 1}, [3]uint8{1, 1, 1}, [2]bpf.Path{alive, alive}, [2]bpf.Path{dead, alive}, false, [3]bool{false, false, true}, false},
		{"no weight", [3]uint8{1, 0, 2}, [3]uint8{1, 0, 1}, [2]bpf.Path{alive, alive}, [2]bpf.Path{alive, alive}, false, [3]bool{true, false, false}, false},
		{"no key", [3]uint8{1, 0, 2}, [3]uint8{1, 1, 1}, [2]bpf.Path{alive, alive}, [2]bpf.Path{alive, alive}, true, [3]bool{true, false, false}, false},
		{"silent only if none is alive", [3]uint8{1, 0, 0}, [3]uint8{0, 1, 1}, [2]bpf.Path{silent, dead}, [2]bpf.Path{silent, alive}, false, [3]bool{false, true, false}, false},
		{"silent after what is alive", [3]uint8{1, 0, 0}, [3]uint8{1, 1, 1}, [2]bpf.Path{silent, dead}, [2]bpf.Path{silent, alive}, false, [3]bool{true, false, false}, false},
		{"nothing", [3]uint8{0, 0, 0}, [3]uint8{0, 1, 1}, [2]bpf.Path{dead, dead}, [2]bpf.Path{dead, dead}, false, [3]bool{}, false},
	} {
		m := mesh(t)
		svc := bpf.Service{ID: 7, Groups: 3}
		for i, a := range []string{"10.1.1.2", "10.2.1.2", "10.3.1.2"} {
			svc.Group[i] = bpf.Group{Count: 1, Cluster: uint16(i + 1), Tier: c.tiers[i], Weight: c.weights[i]}
			put(t, m.Backends, bpf.SlotKey{Service: 7, Cluster: uint16(i + 1)}, bpf.Backend{Addr: addr(a), Port: bpf.PortOf(80), Node: uint16(i)})
		}
		for i := range uint32(2) {
			n, _, _ := m.Nodes.Lookup(i + 1)
			if n.Path = c.nodes[i]; i == 0 && c.unkeyed {
				n.Keyed = 0
			}
			put(t, m.Nodes, i+1, n)
			put(t, m.Clusters, i+2, bpf.Cluster{Path: c.clusters[i], Member: 1})
		}
		all := rowsOf(m).backends(svc)
		for i := range all {
			if all[i].chosen != c.wantChosen[i] {
				t.Errorf("%s: backend %d: %v, want %v", c.name, i, all[i].chosen, c.wantChosen[i])
			}
		}
		if len(all) != 3 || all[1].usable(false) != c.wantUsable2 {
			t.Errorf("%s: %d backends, that of cluster 2 usable %v", c.name, len(all), !c.wantUsable2)
		}
	}
}

// The verdict agrees with the twin's on any rows.
func TestJudgeAgreesWithTheTwin(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	pod := addr("10.1.1.2")
	denied := 0
	for range 3000 {
		m := bpftest.New()
		put(t, m.Settings, 0, bpf.Settings{Revision: 1, PolicyGen: 3})
		put(t, m.Endpoints, pod, bpf.Endpoint{Set: uint32(random.IntN(3))})
		for set := range uint32(2) {
			if random.IntN(8) == 0 {
				continue
			}
			info := bpf.SetInfo{Enforced: [2]uint8{uint8(random.IntN(2)), uint8(random.IntN(2))}}
			for range random.IntN(6) {
				k := bpf.PolicyKey{Gen: 3, Set: set + 1, Class: []uint32{0, 1, 2, bpf.AnyClass}[random.IntN(4)], Dir: bpf.Direction(random.IntN(2))}
				if k.Proto = []uint8{0, 6, 17}[random.IntN(3)]; k.Proto != 0 {
					k.Port = uint16(random.IntN(3))
				}
				if random.IntN(4) > 0 {
					info.Shapes[k.Dir] |= k.Shape()
				}
				put(t, m.Policy, k, bpf.PolicyEntry{Rule: uint32(random.IntN(5)), Deny: uint8(random.IntN(2))})
			}
			put(t, m.Sets, bpf.SetKey{Gen: 3, Set: set + 1}, info)
		}
		for n := range uint32(3) {
			put(t, m.Classes, bpf.ClassKey{Gen: 3, Identity: 300 + n}, n)
			for _, proto := range []uint8{6, 17} {
				i, _ := bpf.PortIndex(3, proto, uint16(80+n))
				put(t, m.Ports, i, uint16(n))
			}
		}
		ep, _, _ := m.Endpoints.Lookup(pod)
		for range 20 {
			peer, dir, proto, port := 300+uint32(random.IntN(4)), bpf.Direction(random.IntN(2)), []uint8{6, 17}[random.IntN(2)], uint16(79+random.IntN(4))
			allow, known := bpftest.Judge(m, pod, peer, dir, proto, port)
			v := rowsOf(m).judge(ep.Set, peer, dir, proto, port)
			if (v.reason == 0) != allow || (v.reason == bpf.ReasonNoPolicy) == known {
				t.Fatalf("set %d, peer %d, %v, protocol %d, port %d: %+v, want allowed %v, known %v", ep.Set, peer, dir, proto, port, v, allow, known)
			}
			if !allow {
				denied++
			}
		}
	}
	if denied < 1000 {
		t.Errorf("only %d were denied", denied)
	}
}

func TestMasked(t *testing.T) {
	a := addr("10.2.255.255")
	for bits, want := range map[int]string{128: "10.2.255.255", 127: "10.2.255.254", 120: "10.2.255.0", 113: "10.2.128.0", 96: "0.0.0.0"} {
		if got := masked(a, bits); got.String() != want {
			t.Errorf("%d bits: %v, want %s", bits, got, want)
		}
	}
}
