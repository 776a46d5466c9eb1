package program

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/paths"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/policy"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/tunnel/probe"
	"github.com/weft-mesh/weft/wire"
)

// everything is what a program has put into maps and reported about rows.
type everything struct {
	ips       map[bpf.Addr]bpf.IPInfo
	prefixes  map[bpf.PrefixKey]bpf.IPInfo
	endpoints map[bpf.Addr]bpf.Endpoint
	nodes     map[uint32]bpf.Node
	clusters  map[uint32]bpf.Cluster
	services  map[bpf.ServiceKey]bpf.Service
	balancing map[uint32]bpf.Balancing
	maglev    map[bpf.MaglevKey]bpf.MaglevSlots
	slots     map[bpf.SlotKey]bpf.Backend
	members   map[bpf.MemberKey]bpf.Member
	ranges    map[bpf.RangeKey]uint32
	classes   map[bpf.ClassKey]uint32
	policy    map[bpf.PolicyKey]bpf.PolicyEntry
	sets      map[bpf.SetKey]bpf.SetInfo
	ports     map[uint32]uint16
	verdicts  map[judged]string
	problems  map[string]string
}

// judged is a packet between a pod of this node and an identity.
type judged struct {
	pod      bpf.Addr
	identity uint32
	dir      bpf.Direction
	proto    uint8
	port     uint16
}

func (b *bench) everything() everything {
	e := everything{
		rowsIn(b.maps.IPs), rowsIn(b.maps.Prefixes), rowsIn(b.maps.Endpoints), rowsIn(b.maps.Nodes), rowsIn(b.maps.Clusters),
		rowsIn(b.maps.Services), rowsIn(b.maps.Balancing), rowsIn(b.maps.Maglev), rowsIn(b.maps.Backends), rowsIn(b.maps.Members), rowsIn(b.maps.Sources), rowsIn(b.maps.Classes), rowsIn(b.maps.Policy), rowsIn(b.maps.Sets), rowsIn(b.maps.Ports),
		map[judged]string{}, map[string]string{},
	}
	for pod := range e.endpoints {
		for k := range e.classes {
			for _, to := range []judged{{proto: 6, port: 80}, {proto: 6, port: 81}, {proto: 6, port: 8080}, {proto: 17, port: 80}} {
				to.pod, to.identity = pod, k.Identity
				for _, to.dir = range []bpf.Direction{bpf.Egress, bpf.Ingress} {
					allow, known := judgePacket(b.maps, pod, identity.Number(k.Identity), to.dir, to.proto, to.port)
					e.verdicts[to] = fmt.Sprint(allow, known)
				}
			}
		}
	}
	for _, p := range tables.All(b.tab.DB.ReadTxn(), b.tab.Problems) {
		e.problems[p.Key()] = p.Error
	}
	return e
}

// differ says where two states differ, or "" if nowhere.
func (e everything) differ(other everything) string {
	return firstOf(
		differ("ips", e.ips, other.ips), differ("prefixes", e.prefixes, other.prefixes), differ("endpoints", withoutSets(e.endpoints), withoutSets(other.endpoints)),
		differ("nodes", e.nodes, other.nodes), differ("clusters", e.clusters, other.clusters), differ("services", e.services, other.services),
		differ("balancing", e.balancing, other.balancing), differ("maglev", e.maglev, other.maglev), differ("slots", e.slots, other.slots), differ("members", e.members, other.members), differ("ranges", e.ranges, other.ranges), differ("verdicts", e.verdicts, other.verdicts),
		differ("policy", e.policyRows(), other.policyRows()), differ("problems", e.problems, other.problems),
	)
}

// withoutSets are rows without the numbers of their sets, which count from when they were
// needed.
func withoutSets(rows map[bpf.Addr]bpf.Endpoint) map[bpf.Addr]bpf.Endpoint {
	out := map[bpf.Addr]bpf.Endpoint{}
	for k, row := range rows {
		row.Set = 0
		out[k] = row
	}
	return out
}

// policyRows counts what policies make of rows, whatever their numbers are. Rows that
// nobody needs any longer would make it more.
func (e everything) policyRows() map[string]int {
	classes, ports := map[uint32]bool{}, map[string]bool{}
	for _, c := range e.classes {
		classes[c] = true
	}
	for i, c := range e.ports {
		ports[fmt.Sprint(i>>16&3, " ", c)] = true
	}
	return map[string]int{"identities": len(e.classes), "classes": len(classes), "entries": len(e.policy), "sets": len(e.sets), "ports": len(e.ports), "classes of ports": len(ports)}
}

func firstOf(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}

func differ[K, V comparable](name string, a, b map[K]V) string {
	if maps.Equal(a, b) {
		return ""
	}
	for k, v := range a {
		if other, ok := b[k]; !ok || other != v {
			return fmt.Sprintf("%s: %+v is %+v, from scratch %+v (%v)", name, k, v, other, ok)
		}
	}
	for k, v := range b {
		if _, ok := a[k]; !ok {
			return fmt.Sprintf("%s: %+v is missing, from scratch %+v", name, k, v)
		}
	}
	return ""
}

// fromScratch makes the program derive everything again.
func (b *bench) fromScratch() {
	b.p.forget()
	b.p.policies.revision = 0
	b.pass()
	b.settle()
}

// settle lets the program remove what nobody needs any longer.
func (b *bench) settle() {
	for b.late(); !b.p.policies.stale.IsZero(); b.late() {
	}
}

// meshed says where the mesh differs from one read from scratch, or from what was told of
// it; "" if nowhere.
func (b *bench) meshed() string {
	fresh, err := NewMeshes(b.tab, "n1")
	if err != nil {
		b.t.Fatal(err)
	}
	defer fresh.Close()
	txn := b.tab.DB.ReadTxn()
	before := b.mesh
	got, news := b.follower.Follow(txn)
	want, _ := fresh.Follower().Follow(txn)
	b.mesh = got
	nodes, clusters := maps.Collect(got.Remote.All()), maps.Collect(got.Members.All())
	if !maps.Equal(nodes, maps.Collect(want.Remote.All())) || !maps.Equal(clusters, maps.Collect(want.Members.All())) ||
		got.Own != want.Own || got.Complete != want.Complete || !slices.Equal(got.CIDRs, want.CIDRs) || !slices.Equal(got.Former, want.Former) {
		return fmt.Sprintf("mesh is %+v, from scratch %+v", got, want)
	}
	if before == nil || news.All {
		return ""
	}
	return firstOf(untold("node", maps.Collect(before.Remote.All()), nodes, news.Nodes), untold("cluster", maps.Collect(before.Members.All()), clusters, news.Clusters))
}

func untold[V comparable](what string, before, after map[string]V, told map[string]bool) string {
	for _, m := range []map[string]V{before, after} {
		for key := range m {
			if before[key] != after[key] && !told[key] {
				return fmt.Sprintf("nobody was told of %s %s", what, key)
			}
		}
	}
	return ""
}

var (
	firstSeed = flag.Uint64("first", 0, "the first seed of the rows changed at random")
	seeds     = flag.Uint64("seeds", 20, "how many seeds of them are run; `make test` has more")
)

// Applying rows one by one gives the same result as deriving everything from scratch:
// whatever changes, in whatever order, with failing writes and restarts in between.
func TestRowByRowIsAsFromScratch(t *testing.T) {
	for seed := *firstSeed; seed < *firstSeed+*seeds; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.maps = tapMaps(bpftest.New(), b.tap)
			b.restart()
			c := changer{b, rand.New(rand.NewPCG(seed, 1)), seed%2 == 0}
			b.write(func(txn statedb.WriteTxn) { // of both IP families
				east := *tables.Get(txn, b.tab.Clusters, "east")
				own := *east.Own
				own.PodCIDRs = append(slices.Clone(own.PodCIDRs), netip.PrefixFrom(six(1, 0, 0), 48))
				east.Own = &own
				tables.Put(txn, b.tab.Clusters, &east)
			})
			for step := range 80 {
				b.write(func(txn statedb.WriteTxn) {
					for range 1 + c.IntN(4) {
						c.change(txn)
					}
				})
				switch c.IntN(12) {
				case 0:
					b.restart()
				case 2, 3:
					c.addresses()
				case 1: // some writes fail and are retried
					b.tap.before = func() error {
						if c.IntN(3) == 0 {
							return errors.New("no memory")
						}
						return nil
					}
					b.p.pass(t.Context())
					b.tap.before = nil
				}
				b.pass()
				b.settle()
				got := b.everything()
				if where := firstOf(b.balance(got), b.census().differ(got), b.meshed()); where != "" {
					t.Fatalf("after step %d: %s", step, where)
				}
				if c.IntN(3) > 0 && step < 79 {
					continue // what one pass leaves to the next counts too
				}
				b.fromScratch()
				if where := got.differ(b.everything()); where != "" {
					t.Fatalf("after step %d: %s", step, where)
				}
			}
		})
	}
}

// changer changes tables at random, as intake would: what it writes is often
// contradictory, or more than a cluster may claim.
type changer struct {
	*bench
	*rand.Rand
	calm bool // mostly endpoints change
}

func (c changer) change(txn statedb.WriteTxn) {
	if c.calm && c.IntN(8) > 0 && c.tab.Slices.NumObjects(txn) > 3 {
		c.endpoints(txn)
		return
	}
	cluster := []string{"east", "west", "north"}[c.IntN(3)]
	own := map[string]byte{"east": 1, "west": 2, "north": 3}[cluster]
	speaksOf := own
	if c.IntN(8) == 0 {
		speaksOf = byte(1 + c.IntN(3)) // possibly another cluster's
	}
	node, there := byte(1+c.IntN(3)), c.IntN(3) > 0
	number := identity.Number(uint32(speaksOf)<<16 + 1 + uint32(c.IntN(4)))
	switch c.IntN(15) {
	case 0, 1:
		prefix := whole(c.addr(speaksOf, node, byte(1+c.IntN(4))))
		if c.IntN(4) == 0 { // mostly a whole node's, whose CIDR has a row beneath it
			bits := 24
			if prefix.Addr().Is6() {
				bits = 64
			}
			prefix = netip.PrefixFrom(prefix.Addr(), bits+c.IntN(4)/3).Masked()
		}
		putIP(txn, c.tab, &tables.IP{Cluster: cluster, Prefix: prefix, Identity: number, Host: netip.AddrFrom4([4]byte{192, 0, own, node}), Namespace: []string{"shop", "dev"}[c.IntN(2)], NamedPorts: c.ports()}, there)
	case 2:
		put(txn, c.tab.Identities, &tables.Identity{Cluster: cluster, Number: number,
			Labels: identity.PodLabels("shop", nil, map[string]string{"app": fmt.Sprint("a", c.IntN(3))}, "default", cluster)}, there)
	case 3, 12:
		c.node(txn, cluster, speaksOf, node, there)
	case 4:
		c.cluster(txn, cluster, own)
	case 13:
		c.nodeOfOurs(txn, node, there)
	case 14:
		row := &tables.Former{Former: wire.Former{Name: fmt.Sprint("f", node), PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 2 + node%2, 0, 0}), 16+8*c.IntN(2))}}}
		if c.IntN(3) == 0 {
			row.Forgotten = time.Unix(1, 0)
		}
		put(txn, c.tab.Former, row, there)
	case 5:
		if c.IntN(4) == 0 {
			c.group(txn)
			return
		}
		text := []string{
			fmt.Sprintf(block, "{cidr: 10.2.0.0/16}"),
			fmt.Sprintf(block, "{cidr: 192.0.2.0/24, except: [192.0.2.8/29]}"),
			fmt.Sprintf(block, "{cidr: 10.2.0.0/16, except: [10.2.1.0/30]}"),
			fmt.Sprintf(block, "{cidr: 0.0.0.0/0, except: [10.2.1.0/24]}"),
			allowFrontend,
			// Inside a peer's CIDRs, once it has joined.
			fmt.Sprintf(allowTo, []string{"10.3.7.0/24, 10.2.0.0/16", "10.2.130.0/24, 10.102.0.0/16", "10.3.1.0/24"}[c.IntN(3)]),
			fmt.Sprintf(byRules, "egress: [{toCIDRSet: [{cidrGroupRef: partners}]}]"),
			fmt.Sprintf(byRules, "egress: [{toPorts: [{ports: [{port: http, protocol: TCP}]}]}]"),
			fmt.Sprintf(byRules, "ingress: [{fromEntities: [cluster, remote-node], toPorts: [{ports: [{port: http, protocol: TCP}]}]}]"),
			fmt.Sprintf(byRules, "egress: [{toEntities: [all]}], egressDeny: [{toEndpoints: [{matchLabels: {app: a1, io.cilium.k8s.policy.cluster: west}}], toPorts: [{ports: [{port: http, protocol: TCP}, {port: dns, protocol: UDP}]}]}]"),
		}[c.IntN(10)]
		name := fmt.Sprint("p", c.IntN(3))
		parsed, err := policy.Parse([]byte(strings.Replace(text, "name: web", "name: "+name, 1)))
		if err != nil {
			c.t.Fatal(err)
		}
		put(txn, c.tab.Policies, &tables.Policy{Kind: "ciliumnetworkpolicies", Namespace: "shop", Name: name, Policies: parsed}, c.IntN(5) < 3)
	case 6:
		name, ip := fmt.Sprint("web-", c.IntN(3)), netip.AddrFrom4([4]byte{10, 1, 1, byte(10 + c.IntN(3))})
		if other := tables.Get(txn, c.tab.Endpoints, "shop/"+name); other != nil {
			ip = other.IP // while it exists
		} else {
			for e := range c.tab.Endpoints.All(txn) {
				if e.IP == ip {
					return
				}
			}
		}
		labels := identity.PodLabels("shop", nil, map[string]string{"app": "web"}, "default", "east")
		put(txn, c.tab.Endpoints, &tables.Endpoint{Namespace: "shop", Pod: name, ID: uint16(ip.As4()[3]), IP: ip, Ifindex: int(ip.As4()[3]), Phase: tables.Held}, there)
		put(txn, c.tab.Pods, &tables.Pod{Namespace: "shop", Name: name, Object: c.hosted(), Endpoint: &wire.Endpoint{Namespace: "shop", Pod: name, Node: fmt.Sprint("n", 1+c.IntN(4)/3), IP: ip, Identity: number, Labels: labels, NamedPorts: c.ports()}}, there)
	case 7:
		c.service(txn, cluster, there)
	case 8:
		c.slice(txn, cluster, speaksOf, node, there)
	default:
		c.endpoints(txn)
	}
}

// ports are the named ports of a pod, if it has any.
func (c changer) ports() (ports []wire.NamedPort) {
	if c.IntN(2) == 0 {
		ports = append(ports, wire.NamedPort{Name: "http", Port: []uint16{80, 81, 8080}[c.IntN(3)], Protocol: "TCP"})
	}
	if c.IntN(4) == 0 {
		ports = append(ports, wire.NamedPort{Name: "dns", Port: 80, Protocol: "UDP"})
	}
	return ports
}

// group changes the group that some policies refer to.
func (c changer) group(txn statedb.WriteTxn) {
	text := "apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: partners}\nspec: {externalCIDRs: [%s]}"
	g, err := policy.ParseGroup([]byte(fmt.Sprintf(text, []string{"203.0.113.0/24", "203.0.113.0/28, 10.3.0.0/16", "198.51.100.0/24, 203.0.113.0/24"}[c.IntN(3)])))
	if err != nil {
		c.t.Fatal(err)
	}
	put(txn, c.tab.Policies, &tables.Policy{Kind: "ciliumcidrgroups", Name: "partners", Group: g}, c.IntN(3) > 0)
}

// byRules is a policy with some rules.
const byRules = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec: {endpointSelector: {matchLabels: {app: web}}, %s}
`

// node changes a peer's node. Some have a CIDR inside or around another's, the address
// of another, or an address outside the mesh that is inside it once a peer has joined.
func (c changer) node(txn statedb.WriteTxn, cluster string, speaksOf, node byte, there bool) {
	own := map[string]byte{"east": 1, "west": 2, "north": 3}[cluster]
	row := &wire.Node{}
	bits, third := 24, node
	switch c.IntN(8) {
	case 0:
		bits = 22
	case 1:
		bits = 26
	case 2:
		third = 1 + node%3
	}
	alloc := wire.CIDR(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, speaksOf, third, 0}), bits).Masked())
	row.IPv4AllocCIDR = &alloc
	if c.IntN(4) == 0 {
		more := wire.CIDR(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, speaksOf, 8 + node/2, 0}), 24+c.IntN(2)))
		row.IPv4SecondaryAllocCIDRs = []*wire.CIDR{&more}
	}
	both := c.IntN(2) == 0
	if both {
		more := wire.CIDR(netip.PrefixFrom(six(speaksOf, third, 0), 62+c.IntN(5)).Masked())
		row.IPv6AllocCIDR = &more
	}
	last := byte(1)
	if c.IntN(4) == 0 {
		last, third = 2, 1 // a pod's, and others'
	}
	row.IPAddresses = []wire.NodeAddress{{Type: wire.NodeCiliumInternalIP, IP: netip.AddrFrom4([4]byte{10, speaksOf, third, last})}}
	if both {
		row.IPAddresses = append(row.IPAddresses, wire.NodeAddress{Type: wire.NodeCiliumInternalIP, IP: six(speaksOf, third, last)})
	}
	for range 1 + c.IntN(2) {
		a := netip.AddrFrom4([4]byte{192, 0, own, byte(1 + c.IntN(3))})
		switch c.IntN(6) {
		case 0:
			a = netip.AddrFrom4([4]byte{192, 0, 1, byte(1 + c.IntN(3))}) // also one of ours
		case 1:
			a = netip.AddrFrom4([4]byte{10, byte(1 + c.IntN(3)), 200, byte(c.IntN(2))})
		}
		row.IPAddresses = append(row.IPAddresses, wire.NodeAddress{Type: wire.NodeInternalIP, IP: a})
	}
	put(txn, c.tab.Nodes, &tables.Node{Cluster: cluster, Name: fmt.Sprint("n", node), Place: tables.PlaceOf(row)}, there)
}

// nodeOfOurs changes a node of our cluster, possibly this one.
func (c changer) nodeOfOurs(txn statedb.WriteTxn, node byte, there bool) {
	cidrs := []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, node, 0}), 24)}
	if c.IntN(2) == 0 {
		cidrs = append(cidrs, netip.PrefixFrom(six(1, node, 0), 64))
	}
	row := &tables.Node{Cluster: "east", Name: fmt.Sprint("n", node), State: &wire.NodeState{
		Internal: netip.AddrFrom4([4]byte{10, 1, node, 1}), PodCIDRs: cidrs, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 1, node})}}}
	row.State.Epoch = c.Uint64()
	row.Registration = &wire.Registration{Name: row.Name, PodCIDRs: cidrs, Addresses: row.State.Addresses}
	if c.IntN(4) == 0 {
		row.Registration.Labels = map[string]string{"topology.kubernetes.io/zone": c.zone()}
	}
	switch c.IntN(6) {
	case 0:
		row.Registration = nil
	case 1:
		row.State = nil
	case 2:
		row.Registration.Addresses = append(slices.Clone(row.State.Addresses), netip.AddrFrom4([4]byte{192, 0, 1, 1 + node%3}))
	}
	put(txn, c.tab.Nodes, row, there)
}

// cluster changes a peer, or what our own cluster says beside its CIDRs.
func (c changer) cluster(txn statedb.WriteTxn, name string, id byte) {
	if name == "east" {
		east := *tables.Get(txn, c.tab.Clusters, "east")
		own := *east.Own
		if c.IntN(4) == 0 {
			own.ServiceCIDR = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 101, 0, 0}), 16+c.IntN(9))
		}
		if c.IntN(4) == 0 {
			own.IPv6ServiceCIDR = netip.PrefixFrom(six(101, 0, 0), 108+c.IntN(5))
		}
		east.Own, east.Liveness = &own, &wire.PeerLiveness{}
		tables.Put(txn, c.tab.Clusters, &east)
		return
	}
	peer := &wire.Peer{Name: name, ID: identity.ClusterID(id), PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, id, 0, 0}), 16)}}
	if c.IntN(4) > 0 {
		peer.PodCIDRs = append(peer.PodCIDRs, netip.PrefixFrom(six(id, 0, 0), 48))
	}
	row := &tables.Cluster{Name: name, Peer: peer}
	switch c.IntN(12) {
	case 0:
		peer.ID = identity.ClusterID(1 + c.IntN(3)) // possibly another's
	case 1:
		peer.PodCIDRs[0] = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, id, 0, 0}), 17) // half of it
	case 2:
		peer.PodCIDRs = append(peer.PodCIDRs, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(1 + c.IntN(4)), 128, 0}), 17)) // possibly of another's
	case 3:
		peer.ServiceCIDR = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(101 + c.IntN(2)), 0, 0}), 16)
		peer.IPv6ServiceCIDR = netip.PrefixFrom(six(byte(101+c.IntN(2)), 0, 0), 112)
	case 4:
		peer.ServiceCIDR = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(1 + c.IntN(3)), 64, 0}), 18) // among pods
		peer.IPv6ServiceCIDR = netip.PrefixFrom(six(byte(1+c.IntN(3)), 64, 0), 60)
	case 5:
		_ = c.p.cfg.Rows.See(paths.Seen{Clusters: map[identity.ClusterID]probe.Standing{identity.ClusterID(id): probe.Alive}}) // tried again
	}
	if c.IntN(4) > 0 { // read in full
		row.Synced = map[wire.Resource]time.Time{wire.Nodes: {}, wire.Identities: {}, wire.IPs: {}, wire.Services: {}}
	}
	put(txn, c.tab.Clusters, row, c.IntN(8) > 0)
}

// endpoints changes what one slice holds, and nothing else.
func (c changer) endpoints(txn statedb.WriteTxn) {
	all := tables.All(txn, c.tab.Slices)
	if len(all) == 0 {
		return
	}
	row := *all[c.IntN(len(all))]
	if c.IntN(8) == 0 {
		tables.Drop(txn, c.tab.Slices, &row)
		return
	}
	if c.IntN(4) == 0 {
		row.Name += "-more"
	}
	of := map[string]byte{"east": 1, "west": 2, "north": 3}[row.Cluster]
	row.Endpoints = nil
	if c.IntN(8) == 0 {
		of = 1 + of%3 // another's
	}
	row.Weight = c.weight()
	for range c.IntN(5) {
		row.Endpoints = append(row.Endpoints, c.somewhere(service.Endpoint{Addr: c.backend(of, byte(1+c.IntN(2)), byte(2+c.IntN(5))),
			Ready: c.IntN(4) > 0, Serving: true, Terminating: c.IntN(2) == 0}))
	}
	tables.Put(txn, c.tab.Slices, &row)
}

func (c changer) slice(txn statedb.WriteTxn, cluster string, speaksOf, node byte, there bool) {
	name := fmt.Sprint("s", c.IntN(3), "-", c.IntN(2))
	row := sliceOf(cluster, name, fmt.Sprint("s", c.IntN(3)), c.backend(speaksOf, node, byte(2+c.IntN(3))))
	row.Derived, row.Weight = c.IntN(2) == 0, c.weight()
	for i := range row.Endpoints {
		row.Endpoints[i] = c.somewhere(row.Endpoints[i])
		row.Endpoints[i].Ready, row.Endpoints[i].Serving, row.Endpoints[i].Terminating = c.IntN(3) > 0, true, c.IntN(2) == 0
	}
	put(txn, c.tab.Slices, row, there)
}

func sliceOf(cluster, name, svc string, addrs ...netip.Addr) *tables.Slice {
	s := &tables.Slice{Cluster: cluster, Slice: service.Slice{Namespace: "shop", Name: name, Service: svc, Ports: []service.SlicePort{{Protocol: service.TCP, Port: 80}}}}
	for _, a := range addrs {
		s.Endpoints = append(s.Endpoints, service.Endpoint{Addr: a, Ready: true, Serving: true})
	}
	return s
}

func put[P any](txn statedb.WriteTxn, t statedb.RWTable[P], row P, there bool) {
	if there {
		tables.Put(txn, t, row)
	} else {
		tables.Drop(txn, t, row)
	}
}

func putIP(txn statedb.WriteTxn, t *tables.Tables, ip *tables.IP, there bool) {
	if there {
		tables.PutIP(txn, t, ip)
	} else {
		tables.DropIP(txn, t, ip.Cluster, ip.Prefix)
	}
}
