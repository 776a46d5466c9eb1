package program

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/statedb"
	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/policy"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/wire"
)

// oneMore are changes of one thing. Change i of each makes one of few states, and so
// undoes an earlier one or adds what is new.
func oneMore(tb testing.TB, known int) []oneChange {
	return []oneChange{
		{"address", func(t *tables.Tables, txn statedb.WriteTxn, i int) {
			tables.PutIP(txn, t, remoteAddress(known+i, i))
		}},
		{"identity", func(t *tables.Tables, txn statedb.WriteTxn, i int) {
			tables.Put(txn, t.Identities, remoteIdentity(known+i))
		}},
		{"service", func(t *tables.Tables, txn statedb.WriteTxn, i int) { tables.Put(txn, t.Services, ownService(i%1000)) }},
		{"backend of 10", func(t *tables.Tables, txn statedb.WriteTxn, i int) {
			tables.Put(txn, t.Slices, remoteSlice("one", 0, 9+i%2))
		}},
		{"backend of 10000", func(t *tables.Tables, txn statedb.WriteTxn, i int) {
			tables.Put(txn, t.Slices, remoteSlice("many", 50, 99+i%2))
		}},
		{"backend of 10000, of another zone", func(t *tables.Tables, txn statedb.WriteTxn, i int) {
			tables.Put(txn, t.Slices, zonedSlice(50, 100, []string{"a", "b"}[i%2]))
		}},
		// A node with 100 addresses behind it, one of them a backend of 10,000, gets new
		// keys; another address; comes and goes.
		{"node, new keys", func(t *tables.Tables, txn statedb.WriteTxn, i int) {
			n := remoteNode(5)
			n.Export = &wire.ExportNode{Epoch: uint64(i)}
			tables.Put(txn, t.Nodes, n)
		}},
		{"node, new address", func(t *tables.Tables, txn statedb.WriteTxn, i int) {
			tables.Put(txn, t.Nodes, remoteNodeAt(5, netip.AddrFrom4([4]byte{192, byte(i % 2), 0, 5})))
		}},
		{"node", func(t *tables.Tables, txn statedb.WriteTxn, i int) { put(txn, t.Nodes, remoteNode(5), i%2 == 0) }},
		// A cluster with a node says who of its nodes is dead; comes and goes.
		{"cluster, liveness", func(t *tables.Tables, txn statedb.WriteTxn, i int) {
			c := otherCluster(3)
			c.Liveness = &wire.PeerLiveness{}
			tables.Put(txn, t.Clusters, c)
		}},
		{"cluster", func(t *tables.Tables, txn statedb.WriteTxn, i int) { put(txn, t.Clusters, otherCluster(3), i%2 == 0) }},
		{"policy", func(t *tables.Tables, txn statedb.WriteTxn, i int) {
			parsed, err := policy.Parse([]byte(allowFrontend))
			if err != nil {
				tb.Fatal(err)
			}
			put(txn, t.Policies, &tables.Policy{Kind: "ciliumnetworkpolicies", Namespace: "shop", Name: "web", Policies: parsed}, i%2 == 0)
		}},
		// A policy tells a few addresses apart, by a block or by the number of a port.
		{"policy, ipBlock", func(t *tables.Tables, txn statedb.WriteTxn, i int) {
			put(txn, t.Policies, policyOf(tb, fmt.Sprintf(block, "{cidr: 11.0.0.0/28, except: [11.0.0.4/30]}")), i%2 == 0)
		}},
		{"policy, named port", func(t *tables.Tables, txn statedb.WriteTxn, i int) {
			ip := remoteAddress(1, 1)
			ip.NamedPorts = []wire.NamedPort{{Name: "http", Port: 8080, Protocol: "TCP"}}
			tables.PutIP(txn, t, ip)
			put(txn, t.Policies, policyOf(tb, fmt.Sprintf(byRules, "egress: [{toPorts: [{ports: [{port: http, protocol: TCP}]}]}]")), i%2 == 0)
		}},
		// While one does, another address comes, in a block and with a port of its own.
		{"address, told apart", func(t *tables.Tables, txn statedb.WriteTxn, i int) {
			if i == 1 {
				row := policyOf(tb, fmt.Sprintf(block, "{cidr: 11.0.0.0/8, except: [11.0.0.4/30]}"))
				row.Policies = append(row.Policies, policyOf(tb, fmt.Sprintf(byRules, "egress: [{toPorts: [{ports: [{port: http, protocol: TCP}]}]}]")).Policies...)
				tables.Put(txn, t.Policies, row)
			}
			ip := remoteAddress(known+i, i)
			ip.NamedPorts = []wire.NamedPort{{Name: "http", Port: uint16(8000 + i%2), Protocol: "TCP"}}
			tables.PutIP(txn, t, ip)
		}},
	}
}

func policyOf(tb testing.TB, text string) *tables.Policy {
	parsed, err := policy.Parse([]byte(text))
	if err != nil {
		tb.Fatal(err)
	}
	return &tables.Policy{Kind: "ciliumnetworkpolicies", Namespace: "shop", Name: "apart", Policies: parsed}
}

type oneChange struct {
	name string
	one  func(t *tables.Tables, txn statedb.WriteTxn, i int)
}

// make makes change i and lets the program write it.
func (c oneChange) make(p *Program, t *tables.Tables, i int) {
	txn := t.DB.WriteTxn(t.Clusters, t.Nodes, t.IPs, t.Identities, t.Services, t.Slices, t.Policies)
	c.one(t, txn, i)
	txn.Commit()
	p.pass(context.Background())
}

// BenchmarkOneMore measures the agent's work for one change against what it already
// knows, of 250 clusters: the design promises that it does not grow.
func BenchmarkOneMore(b *testing.B) {
	for _, known := range []int{1_000, 10_000, 100_000, 500_000} {
		for _, c := range oneMore(b, known) {
			b.Run(fmt.Sprintf("%s/known=%d", c.name, known), func(b *testing.B) {
				p, t := programOf(b, known)
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				i, began := 0, ownTime(b)
				for b.Loop() {
					i++
					c.make(p, t, i)
				}
				b.ReportMetric(float64(ownTime(b)-began)/float64(b.N), "cpu-ns/op")
			})
		}
	}
}

// What grows with what is known allocates more: one change does not.
func TestOneMoreDoesNotGrow(t *testing.T) {
	const few, many = 1_000, 10_000
	p, small := programOf(t, few)
	q, large := programOf(t, many)
	for i, c := range oneMore(t, few) {
		count := func(p *Program, t *tables.Tables, c oneChange) float64 {
			n := 0
			return testing.AllocsPerRun(20, func() { n++; c.make(p, t, n) })
		}
		before, after := count(p, small, c), count(q, large, oneMore(t, many)[i])
		if after > 1.5*before+50 {
			t.Errorf("%s: %.0f allocations with %d addresses known, %.0f with %d", c.name, before, few, after, many)
		}
	}
}

// One more backend costs what its slice holds, be it one of 100 backends or of 10,000.
func TestOneMoreBackendDoesNotGrow(t *testing.T) {
	p, tab := programOf(t, 1_000)
	count := func(change func(i int) *tables.Slice) float64 {
		n := 0
		c := oneChange{"", func(t *tables.Tables, txn statedb.WriteTxn, i int) { tables.Put(txn, t.Slices, change(i)) }}
		c.make(p, tab, 0) // the service's live form is made once
		return testing.AllocsPerRun(20, func() { n++; c.make(p, tab, n) })
	}
	few := count(func(i int) *tables.Slice { return remoteSlice("one", 0, 99+i%2) })
	for name, change := range map[string]func(i int) *tables.Slice{
		"one more":         func(i int) *tables.Slice { return remoteSlice("many", 50, 99+i%2) },
		"one more in zone": func(i int) *tables.Slice { return zonedSlice(50, 99+i%2, "a") },
		"one moves":        func(i int) *tables.Slice { return zonedSlice(50, 100, []string{"a", "b"}[i%2]) },
		// Then no zone counts, or all do again.
		"one loses its zone": func(i int) *tables.Slice { return zonedSlice(50, 100, []string{"a", ""}[i%2]) },
	} {
		if many := count(change); many > 1.2*few+50 {
			t.Errorf("%s: %.0f allocations with 100 backends, %.0f with 10,000", name, few, many)
		}
	}
}

// ownTime is the CPU time of this thread: a figure that other work on the machine does
// not change.
func ownTime(b *testing.B) time.Duration {
	const thread = 1 // RUSAGE_THREAD
	var u syscall.Rusage
	if err := syscall.Getrusage(thread, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// programOf returns a program that has written n remote addresses to in-memory maps,
// one in ten with an identity of its own, with a node for every hundred. One more node
// for every 25, without addresses, is in one of 248 other clusters.
func programOf(tb testing.TB, known int) (*Program, *tables.Tables) {
	tb.Helper()
	x := &bench{t: tb, tab: tables.New(), maps: bpftest.New()}
	x.restart()
	x.write(func(txn statedb.WriteTxn) {
		tables.Put(txn, x.tab.Clusters, &tables.Cluster{Name: "east", Own: &wire.Cluster{Name: "east", ID: 1, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, MaxConnectedClusters: 255}})
		tables.Put(txn, x.tab.Clusters, &tables.Cluster{Name: "west", Peer: &wire.Peer{Name: "west", ID: 2, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("11.0.0.0/8")}}})
		for id := 3; id <= 250; id++ {
			tables.Put(txn, x.tab.Clusters, otherCluster(byte(id)))
			for n := range known/(25*248) + 1 {
				if id > 3 || n == 0 {
					tables.Put(txn, x.tab.Nodes, otherNode(byte(id), byte(n)))
				}
			}
		}
		labels := identity.PodLabels("shop", nil, map[string]string{"app": "web"}, "default", "east")
		tables.Put(txn, x.tab.Endpoints, &tables.Endpoint{Namespace: "shop", Pod: "web", ID: 1, IP: netip.MustParseAddr("10.1.1.2"), Ifindex: 1, Phase: tables.Held})
		tables.Put(txn, x.tab.Pods, &tables.Pod{Namespace: "shop", Name: "web", Endpoint: &wire.Endpoint{Namespace: "shop", Pod: "web", IP: netip.MustParseAddr("10.1.1.2"), Identity: 65537, Labels: labels}})
		for i := range 1000 {
			tables.Put(txn, x.tab.Services, ownService(i))
		}
		tables.Put(txn, x.tab.Nodes, &tables.Node{Cluster: "east", Name: "n1", Registration: &wire.Registration{Name: "n1", Labels: map[string]string{corev1.LabelTopologyZone: "a"}}})
		for _, name := range []string{"one", "many", "zoned"} {
			svc := ownService(len(name))
			if name == "zoned" {
				svc.Distribution = service.SameZone
			}
			svc.Name, svc.Addresses[0] = name, netip.AddrFrom4([4]byte{10, 102, 0, byte(len(name))})
			tables.Put(txn, x.tab.Services, svc)
		}
		tables.Put(txn, x.tab.Slices, remoteSlice("one", 0, 10))
		for i := range 100 {
			tables.Put(txn, x.tab.Slices, remoteSlice("many", i, 100))
			tables.Put(txn, x.tab.Slices, zonedSlice(i, 100, "a"))
		}
		for n := range max(known/100, 100) + 1 {
			tables.Put(txn, x.tab.Nodes, remoteNode(n))
		}
		for i := range known {
			tables.PutIP(txn, x.tab, remoteAddress(i, i))
			if i%10 == 0 && i < 100_000 {
				tables.Put(txn, x.tab.Identities, remoteIdentity(i/10))
			}
		}
	})
	x.pass()
	x.late()
	x.pass()
	return x.p, x.tab
}

func otherCluster(id byte) *tables.Cluster {
	name := fmt.Sprintf("c%d", id)
	return &tables.Cluster{Name: name, Peer: &wire.Peer{Name: name, ID: identity.ClusterID(id), PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{12, id, 0, 0}), 16)}}}
}

func otherNode(id, n byte) *tables.Node {
	cidr := netip.PrefixFrom(netip.AddrFrom4([4]byte{12, id, n, 0}), 24)
	alloc := wire.CIDR(cidr)
	return &tables.Node{Cluster: fmt.Sprintf("c%d", id), Name: fmt.Sprintf("n%d", n), Place: tables.PlaceOf(&wire.Node{
		IPv4AllocCIDR: &alloc, IPAddresses: []wire.NodeAddress{
			{Type: wire.NodeInternalIP, IP: netip.AddrFrom4([4]byte{192, 2, id, n})},
			{Type: wire.NodeCiliumInternalIP, IP: cidr.Addr().Next()},
		}})}
}

func remoteNode(n int) *tables.Node {
	return remoteNodeAt(n, netip.AddrFrom4([4]byte{192, 0, byte(n >> 8), byte(n)}))
}

func remoteNodeAt(n int, outside netip.Addr) *tables.Node {
	cidr := netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(n >> 8), byte(n), 0}), 24)
	alloc := wire.CIDR(cidr)
	return &tables.Node{Cluster: "west", Name: fmt.Sprintf("n%d", n), Place: tables.PlaceOf(&wire.Node{
		IPv4AllocCIDR: &alloc, IPAddresses: []wire.NodeAddress{
			{Type: wire.NodeInternalIP, IP: outside},
			{Type: wire.NodeCiliumInternalIP, IP: cidr.Addr().Next()},
		}})}
}

func remoteAddress(i, who int) *tables.IP {
	n := i / 100
	return &tables.IP{
		Cluster: "west", Prefix: whole(netip.AddrFrom4([4]byte{11, byte(n >> 8), byte(n), byte(2 + i%100)})),
		Identity: identity.Number(2<<16 + 256 + who/10%65000), Host: netip.AddrFrom4([4]byte{192, 0, byte(n >> 8), byte(n)}),
	}
}

func ownService(i int) *tables.Service {
	return &tables.Service{Cluster: "east", Service: service.Service{Namespace: "shop", Name: fmt.Sprint("s", i), Global: true, Shared: true,
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 101, byte(i >> 8), byte(i)})}, Ports: []service.Port{{Protocol: service.TCP, Port: 80}}}}
}

// remoteSlice is slice i of a service, with so many of its 100 addresses.
func remoteSlice(svc string, i, backends int) *tables.Slice {
	s := sliceOf("west", fmt.Sprint(svc, "-", i), svc)
	for j := range backends {
		s.Endpoints = append(s.Endpoints, service.Endpoint{Addr: netip.AddrFrom4([4]byte{11, byte(j), byte(i), 2}), Ready: true, Serving: true})
	}
	return s
}

// zonedSlice is slice i of service zoned, of which every other backend is in zone a, and the
// last where it says.
func zonedSlice(i, backends int, last string) *tables.Slice {
	s := remoteSlice("zoned", i, backends)
	for j := range s.Endpoints {
		s.Endpoints[j].Zone = []string{"a", "b"}[j%2]
	}
	s.Endpoints[len(s.Endpoints)-1].Zone = last
	return s
}

func remoteIdentity(i int) *tables.Identity {
	return &tables.Identity{Cluster: "west", Number: identity.Number(2<<16 + 256 + i%65000),
		Labels: identity.PodLabels("shop", nil, map[string]string{"app": fmt.Sprintf("a%d", i)}, "default", "west")}
}
