package program

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/policy"
	"github.com/weft-mesh/weft/service"
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
	slots     map[bpf.SlotKey]bpf.Backend
	members   map[bpf.MemberKey]bpf.Member
	classes   map[bpf.ClassKey]uint32
	policy    map[bpf.PolicyKey]bpf.PolicyEntry
	sets      map[bpf.SetKey]bpf.SetInfo
	problems  map[string]string
}

func (b *bench) everything() everything {
	e := everything{
		rowsIn(b.maps.IPs), rowsIn(b.maps.Prefixes), rowsIn(b.maps.Endpoints), rowsIn(b.maps.Nodes), rowsIn(b.maps.Clusters),
		rowsIn(b.maps.Services), rowsIn(b.maps.Backends), rowsIn(b.maps.Members), rowsIn(b.maps.Classes), rowsIn(b.maps.Policy), rowsIn(b.maps.Sets),
		map[string]string{},
	}
	for _, p := range tables.All(b.tab.DB.ReadTxn(), b.tab.Problems) {
		e.problems[p.Key()] = p.Error
	}
	return e
}

// differ says where two states differ, or "" if nowhere.
func (e everything) differ(other everything) string {
	return firstOf(
		differ("ips", e.ips, other.ips), differ("prefixes", e.prefixes, other.prefixes), differ("endpoints", e.endpoints, other.endpoints),
		differ("nodes", e.nodes, other.nodes), differ("clusters", e.clusters, other.clusters), differ("services", e.services, other.services),
		differ("slots", e.slots, other.slots), differ("members", e.members, other.members), differ("classes", e.classes, other.classes),
		differ("policy", e.policy, other.policy), differ("sets", e.sets, other.sets), differ("problems", e.problems, other.problems),
	)
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
	b.p.did = struct {
		ways, endpoints   signature
		policy, addresses stage
	}{}
	b.p.seen.view = nil
	b.p.frontends.forget()
	b.pass()
}

// Applying rows one by one gives the same result as deriving everything from scratch:
// whatever changes, in whatever order, with failing writes and restarts in between.
func TestRowByRowIsAsFromScratch(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.maps = tapMaps(bpftest.New(), b.tap)
			b.restart()
			c := changer{b, rand.New(rand.NewPCG(seed, 1)), seed%2 == 0}
			for step := range 80 {
				b.write(func(txn statedb.WriteTxn) {
					for range 1 + c.IntN(4) {
						c.change(txn)
					}
				})
				switch c.IntN(12) {
				case 0:
					b.restart()
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
				for b.late(); !b.p.policies.stale.IsZero(); b.late() {
				} // until the clock has no older generation left to remove
				got := b.everything()
				if where := b.balance(got); where != "" {
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
	switch c.IntN(12) {
	case 0, 1:
		prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, speaksOf, node, byte(1 + c.IntN(4))}), 32)
		if c.IntN(4) == 0 { // mostly a whole node's, whose CIDR has a row beneath it
			prefix = netip.PrefixFrom(prefix.Addr(), 24+c.IntN(4)/3).Masked()
		}
		put(txn, c.tab.IPs, &tables.IP{Cluster: cluster, Prefix: prefix, Identity: number, Host: netip.AddrFrom4([4]byte{192, 0, own, node}), Namespace: []string{"shop", "dev"}[c.IntN(2)]}, there)
	case 2:
		put(txn, c.tab.Identities, &tables.Identity{Cluster: cluster, Number: number,
			Labels: identity.PodLabels("shop", nil, map[string]string{"app": fmt.Sprint("a", c.IntN(3))}, "default", cluster)}, there)
	case 3:
		alloc := wire.CIDR(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, speaksOf, node, 0}), 24))
		put(txn, c.tab.Nodes, &tables.Node{Cluster: cluster, Name: fmt.Sprint("n", node), Cilium: &wire.Node{IPv4AllocCIDR: &alloc, IPAddresses: []wire.NodeAddress{
			{Type: wire.NodeInternalIP, IP: netip.AddrFrom4([4]byte{192, 0, own, node})},
			{Type: wire.NodeCiliumInternalIP, IP: netip.AddrFrom4([4]byte{10, speaksOf, node, 1})},
		}}}, there || cluster == "east")
	case 4:
		if cluster != "east" {
			row := &tables.Cluster{Name: cluster, Peer: &wire.Peer{Name: cluster, ID: identity.ClusterID(own), PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, own, 0, 0}), 16)}}}
			if c.IntN(4) > 0 { // read in full
				row.Synced = map[wire.Resource]time.Time{wire.Nodes: {}, wire.Identities: {}, wire.IPs: {}, wire.Services: {}}
			}
			put(txn, c.tab.Clusters, row, c.IntN(8) > 0)
		}
	case 5:
		text := fmt.Sprintf(block, []string{"{cidr: 10.2.0.0/16}", "{cidr: 192.0.2.0/24, except: [192.0.2.8/29]}"}[c.IntN(2)])
		if c.IntN(2) == 0 {
			text = allowFrontend
		}
		name := fmt.Sprint("p", c.IntN(2))
		parsed, err := policy.Parse([]byte(strings.Replace(text, "name: web", "name: "+name, 1)))
		if err != nil {
			c.t.Fatal(err)
		}
		put(txn, c.tab.Policies, &tables.Policy{Kind: "ciliumnetworkpolicies", Namespace: "shop", Name: name, Policies: parsed}, c.IntN(3) == 0)
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
		put(txn, c.tab.Pods, &tables.Pod{Namespace: "shop", Name: name, Endpoint: &wire.Endpoint{Namespace: "shop", Pod: name, IP: ip, Identity: number, Labels: labels}}, there)
	case 7:
		c.service(txn, cluster, there)
	case 8:
		c.slice(txn, cluster, speaksOf, node, there)
	default:
		c.endpoints(txn)
	}
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
	for range c.IntN(5) {
		row.Endpoints = append(row.Endpoints, service.Endpoint{Addr: netip.AddrFrom4([4]byte{10, of, byte(1 + c.IntN(2)), byte(2 + c.IntN(5))}),
			Ready: c.IntN(4) > 0, Serving: true, Terminating: c.IntN(2) == 0})
	}
	tables.Put(txn, c.tab.Slices, &row)
}

func (c changer) service(txn statedb.WriteTxn, cluster string, there bool) {
	row := &tables.Service{Cluster: cluster, Service: service.Service{Namespace: "shop", Name: fmt.Sprint("s", c.IntN(3)), Global: true, Shared: true}}
	if cluster == "east" {
		row.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 101, 0, byte(1 + c.IntN(3))})}
		row.Ports = []service.Port{{Protocol: service.TCP, Port: uint16(80 + c.IntN(2))}}
		if c.IntN(4) == 0 {
			row.Ports = append(row.Ports, service.Port{Protocol: service.TCP, Port: 80})
		}
	} else {
		row.Carried = []service.Slice{{Namespace: "shop", Name: row.Name, Service: row.Name, Ports: []service.SlicePort{{Protocol: service.TCP, Port: 80}},
			Endpoints: []service.Endpoint{{Addr: netip.AddrFrom4([4]byte{10, 2, 1, byte(2 + c.IntN(3))}), Ready: true}}}}
	}
	put(txn, c.tab.Services, row, there)
}

func (c changer) slice(txn statedb.WriteTxn, cluster string, speaksOf, node byte, there bool) {
	name := fmt.Sprint("s", c.IntN(3), "-", c.IntN(2))
	row := sliceOf(cluster, name, fmt.Sprint("s", c.IntN(3)), netip.AddrFrom4([4]byte{10, speaksOf, node, byte(2 + c.IntN(3))}))
	row.Derived = c.IntN(2) == 0
	for i := range row.Endpoints {
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
