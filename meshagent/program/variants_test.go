package program

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/policy"
	"github.com/weft-mesh/weft/wire"
)

// address is the address of a pod in west, with the ports it names.
func (b *bench) address(ip string, n identity.Number, ports ...wire.NamedPort) {
	b.write(func(txn statedb.WriteTxn) {
		tables.PutIP(txn, b.tab, &tables.IP{Cluster: "west", Prefix: whole(netip.MustParseAddr(ip)), Identity: n, Namespace: "shop", Pod: "pod-" + ip, NamedPorts: ports})
	})
}

// passes says whether web may speak to an address, as the kernel would judge.
func (b *bench) passes(web bpf.Addr, ip string, dir bpf.Direction, port uint16) bool {
	b.t.Helper()
	addr := bpf.AddrOf(netip.MustParseAddr(ip))
	n := rowsIn(b.maps.IPs)[addr].Identity
	if row, ok := rowsIn(b.maps.Endpoints)[addr]; ok {
		n = row.Identity
	}
	allow, known := judgePacket(b.maps, web, identity.Number(n), dir, 6, port)
	if !known {
		b.t.Errorf("%s has no verdict", ip)
	}
	return allow
}

const block = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
  egress: [{to: [{ipBlock: %s}]}]
`

// An ipBlock selects pods and nodes too: of two pods with one identity, the one whose
// address it contains.
func TestAnIPBlockMeansPodsAndNodes(t *testing.T) {
	b := newBench(t)
	web := b.pod("web-1", "web", "10.1.1.2", 65537)
	b.pod("other-1", "other", "10.1.1.3", 65538)
	b.remote("db", 131073)
	for _, ip := range []string{"10.2.1.5", "10.2.1.200", "10.2.7.5"} {
		b.address(ip, 131073)
	}
	addr := netip.MustParseAddr
	cidrs := []netip.Prefix{netip.MustParsePrefix("10.1.2.0/24")}
	b.write(func(txn statedb.WriteTxn) {
		tables.Put(txn, b.tab.Nodes, &tables.Node{Cluster: "east", Name: "n2",
			Registration: &wire.Registration{Name: "n2", Addresses: []netip.Addr{addr("192.0.2.2")}, PodCIDRs: cidrs},
			State:        &wire.NodeState{Name: "n2", Addresses: []netip.Addr{addr("192.0.2.2")}, Internal: addr("10.1.2.1"), PodCIDRs: cidrs}})
	})
	look := func(when string, want map[string]bool) {
		t.Helper()
		b.pass()
		for ip, want := range want {
			if got := b.passes(web, ip, bpf.Egress, 80); got != want {
				t.Errorf("%s: %s passes: %v, want %v", when, ip, got, want)
			}
		}
	}
	b.policy("web", fmt.Sprintf(block, "{cidr: 10.2.1.0/24, except: [10.2.1.128/25]}"))
	look("block and exception", map[string]bool{"10.2.1.5": true, "10.2.1.200": false, "10.2.7.5": false, "10.1.1.3": false, "192.0.2.2": false, "10.1.2.1": false})
	b.address("10.2.1.6", 131073)
	b.address("10.2.1.201", 131073)
	look("who comes later", map[string]bool{"10.2.1.6": true, "10.2.1.201": false})
	b.policy("web", fmt.Sprintf(block, "{cidr: 10.1.1.0/29}"))
	look("pods of this node", map[string]bool{"10.2.1.5": false, "10.1.1.3": true})
	if n := b.p.rowOf(addr("10.1.1.3")); b.p.Identity(n) != 65538 {
		t.Errorf("the identity behind %v is %v", n, b.p.Identity(n))
	}
	b.policy("web", fmt.Sprintf(block, "{cidr: 192.0.2.0/30}"))
	look("nodes", map[string]bool{"192.0.2.2": true, "10.1.2.1": false, "10.1.1.3": false})
	b.policy("web", fmt.Sprintf(block, "{cidr: 0.0.0.0/0, except: [10.2.0.0/16]}"))
	look("everything but", map[string]bool{"192.0.2.2": true, "10.1.2.1": true, "10.1.1.3": true, "10.2.1.5": false})
	b.policy("web", "")
	b.pass()
	b.settle()
	for _, ip := range []string{"10.2.1.5", "10.1.1.3", "192.0.2.2"} {
		if n := b.p.rowOf(addr(ip)); n.Scope() == identity.ScopeLocal {
			t.Errorf("without a policy %s is still %v", ip, n)
		}
	}
	if len(b.p.variants.numbers) > 0 {
		t.Errorf("numbers are left: %v", b.p.variants.numbers)
	}
}

// TestNoGapWhileBlocksChange: an address that a policy allows before and after a
// change of blocks stays allowed in between, even if the agent was away.
func TestNoGapWhileBlocksChange(t *testing.T) {
	for _, c := range []struct{ name, before, after string }{
		{"narrower", "{cidr: 10.2.0.0/16}", "{cidr: 10.2.1.0/24}"},
		{"wider", "{cidr: 10.2.1.0/24}", "{cidr: 10.2.0.0/16}"},
		{"from all", "{cidr: 0.0.0.0/0}", "{cidr: 10.2.1.0/24, except: [10.2.1.128/25]}"},
		{"to all", "{cidr: 10.2.1.0/24, except: [10.2.1.128/25]}", "{cidr: 0.0.0.0/0}"},
		{"nothing changes", "{cidr: 10.2.1.0/24}", "{cidr: 10.2.1.0/24}"},
	} {
		for _, restarts := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, restart %v", c.name, restarts), func(t *testing.T) {
				b := newBench(t)
				web := b.pod("web-1", "web", "10.1.1.2", 65537)
				b.remote("db", 131073)
				for _, ip := range []string{"10.2.1.5", "10.2.1.6", "10.2.7.5"} {
					b.address(ip, 131073)
				}
				b.policy("web", fmt.Sprintf(block, c.before))
				b.pass()
				look := func() {
					for _, ip := range []string{"10.2.1.5", "10.2.1.6"} {
						if !b.passes(web, ip, bpf.Egress, 80) {
							t.Errorf("%s does not pass", ip)
						}
					}
				}
				look()
				if restarts {
					b.restart()
				}
				b.tap.after = look
				b.policy("web", fmt.Sprintf(block, c.after))
				for range 4 {
					b.pass()
					b.p.policies.stale = time.Now().Add(-time.Hour)
				}
			})
		}
	}
}

// A named port is the subject's for ingress and the peer's for egress: two pods with
// one identity each have their own number.
func TestNamedPortsAreEachEndpointsOwn(t *testing.T) {
	b := newBench(t)
	http := func(port uint16) wire.NamedPort { return wire.NamedPort{Name: "http", Port: port, Protocol: "TCP"} }
	pods := map[string]bpf.Addr{}
	for name, p := range map[string]struct {
		ip   string
		port uint16
	}{"web-1": {"10.1.1.2", 8080}, "web-2": {"10.1.1.3", 9090}, "web-3": {"10.1.1.4", 0}} {
		pods[name] = b.pod(name, "web", p.ip, 65537)
		b.write(func(txn statedb.WriteTxn) {
			row := *tables.Get(txn, b.tab.Pods, "shop/"+name)
			ep := *row.Endpoint
			if p.port != 0 {
				ep.NamedPorts = []wire.NamedPort{http(p.port), {Name: "http-admin", Port: 81, Protocol: "TCP"}}
			}
			row.Endpoint = &ep
			tables.Put(txn, b.tab.Pods, &row)
		})
	}
	b.remote("db", 131073)
	b.address("10.2.1.5", 131073, http(8080))
	b.address("10.2.1.6", 131073, http(9090))
	b.policy("web", `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - toPorts: [{ports: [{port: http, protocol: TCP}]}]
  egress:
  - toEndpoints: [{matchLabels: {app: db, io.cilium.k8s.policy.cluster: west}}]
    toPorts: [{ports: [{port: http, protocol: TCP}]}]
`)
	b.pass()
	for _, c := range []struct {
		pod, peer string
		dir       bpf.Direction
		port      uint16
		want      bool
	}{
		{"web-1", "10.2.1.5", bpf.Ingress, 8080, true}, {"web-1", "10.2.1.5", bpf.Ingress, 9090, false}, {"web-1", "10.2.1.5", bpf.Ingress, 81, false},
		{"web-2", "10.2.1.5", bpf.Ingress, 8080, false}, {"web-2", "10.2.1.5", bpf.Ingress, 9090, true},
		{"web-3", "10.2.1.5", bpf.Ingress, 8080, false},
		{"web-1", "10.2.1.5", bpf.Egress, 8080, true}, {"web-1", "10.2.1.5", bpf.Egress, 9090, false},
		{"web-1", "10.2.1.6", bpf.Egress, 8080, false}, {"web-1", "10.2.1.6", bpf.Egress, 9090, true},
	} {
		if got := b.passes(pods[c.pod], c.peer, c.dir, c.port); got != c.want {
			t.Errorf("%s, %v %s port %d: passes %v, want %v", c.pod, c.dir, c.peer, c.port, got, c.want)
		}
	}
	// A number that nobody had when the rules were compiled.
	b.address("10.2.1.7", 131073, http(7070))
	b.pass()
	if !b.passes(pods["web-1"], "10.2.1.7", bpf.Egress, 7070) || b.passes(pods["web-1"], "10.2.1.7", bpf.Egress, 8080) {
		t.Error("a port's new number is not used")
	}
	b.pod("web-4", "web", "10.1.1.5", 65537)
	b.write(func(txn statedb.WriteTxn) {
		row := *tables.Get(txn, b.tab.Pods, "shop/web-4")
		ep := *row.Endpoint
		ep.NamedPorts = []wire.NamedPort{http(6060)}
		row.Endpoint = &ep
		tables.Put(txn, b.tab.Pods, &row)
	})
	b.pass()
	if web4 := bpf.AddrOf(netip.MustParseAddr("10.1.1.5")); !b.passes(web4, "10.2.1.5", bpf.Ingress, 6060) || b.passes(web4, "10.2.1.5", bpf.Ingress, 8080) {
		t.Error("a new pod's port number is not used")
	}
}

// Policies that tell apart endpoints of one identity come and go without a new generation,
// and have only those flows judged again that they concern.
func TestTellingApartDisturbsOnlyWhatItConcerns(t *testing.T) {
	b := newBench(t)
	web := b.pod("web-1", "web", "10.1.1.2", 65537)
	other := b.pod("other-1", "other", "10.1.1.3", 65538)
	b.remote("db", 131073)
	http := func(port uint16) wire.NamedPort { return wire.NamedPort{Name: "http", Port: port, Protocol: "TCP"} }
	b.address("10.2.1.5", 131073, http(8080))
	b.address("10.2.7.5", 131073)
	b.pass()
	b.settle()
	at := func(a string) uint32 { return bpf.RevisionOf(bpf.AddrOf(netip.MustParseAddr(a))) }
	for _, c := range []struct {
		name, text string
		change     func()
		raised     []uint32
	}{
		{"a block", fmt.Sprintf(block, "{cidr: 10.2.1.0/24}"), nil, []uint32{at("10.2.1.5"), bpf.RevisionOf(web)}},
		{"an address in it", "", func() { b.address("10.2.1.6", 131073) }, []uint32{at("10.2.1.6")}},
		{"one outside of it", "", func() { b.address("10.2.7.6", 131073) }, []uint32{at("10.2.7.6")}},
		{"no block", "none", nil, []uint32{at("10.2.1.5"), at("10.2.1.6"), bpf.RevisionOf(web)}},
		{"a port", fmt.Sprintf(byRules, "egress: [{toPorts: [{ports: [{port: http, protocol: TCP}]}]}]"), nil, []uint32{at("10.2.1.5"), bpf.RevisionOf(web)}},
		{"an address with that number", "", func() { b.address("10.2.7.5", 131073, http(8080)) }, []uint32{at("10.2.7.5")}},
		{"another number", "", func() { b.address("10.2.7.6", 131073, http(9090)) }, []uint32{at("10.2.7.6"), bpf.RevisionOf(web)}},
		{"no port", "none", nil, []uint32{at("10.2.1.5"), at("10.2.7.5"), at("10.2.7.6"), bpf.RevisionOf(web)}},
	} {
		settings, before := rowsIn(b.maps.Settings)[0], rowsIn(b.maps.Revisions)
		identities := map[uint32]bool{} // of numbers that nobody had before, or has any longer
		for k := range rowsIn(b.maps.Classes) {
			identities[k.Identity] = true
		}
		switch {
		case c.change != nil:
			c.change()
		case c.text == "none":
			b.policy("web", "")
		default:
			b.policy("web", c.text)
		}
		b.pass()
		b.settle()
		for k := range rowsIn(b.maps.Classes) {
			if !identities[k.Identity] {
				identities[k.Identity] = true
				c.raised = append(c.raised, bpf.RevisionOfIdentity(k.Identity))
			} else {
				delete(identities, k.Identity)
			}
		}
		for n := range identities {
			c.raised = append(c.raised, bpf.RevisionOfIdentity(n))
		}
		if now := rowsIn(b.maps.Settings)[0]; now != settings {
			t.Errorf("%s: settings were %+v and are %+v", c.name, settings, now)
		}
		for i, r := range rowsIn(b.maps.Revisions) {
			if r != before[i] && !slices.Contains(c.raised, i) {
				t.Errorf("%s: revision %d was raised", c.name, i)
			}
		}
		for _, i := range c.raised[:1] {
			if rowsIn(b.maps.Revisions)[i] == before[i] {
				t.Errorf("%s: the address's revision was not raised", c.name)
			}
		}
		if c.text == "" || c.text == "none" {
			continue
		}
		if !b.passes(web, "10.2.1.5", bpf.Egress, 8080) || b.passes(web, "10.2.7.5", bpf.Egress, 8080) || !b.passes(other, "10.2.7.5", bpf.Egress, 8080) {
			t.Errorf("%s: wrong verdicts", c.name)
		}
	}
	if len(b.p.variants.about)+len(b.p.variants.rows) > 0 {
		t.Errorf("numbers are left: %v, rows %v", b.p.variants.about, b.p.variants.rows)
	}
}

// Changes of a group are followed.
func TestPoliciesFollowTheirGroups(t *testing.T) {
	b := newBench(t)
	web := b.pod("web-1", "web", "10.1.1.2", 65537)
	b.policy("web", `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress: [{toCIDRSet: [{cidrGroupRef: partners}]}]
`)
	group := func(cidrs string) {
		row := &tables.Policy{Kind: "ciliumcidrgroups", Name: "partners"}
		b.write(func(txn statedb.WriteTxn) {
			if cidrs == "" {
				tables.Drop(txn, b.tab.Policies, row)
				return
			}
			g, err := policy.ParseGroup([]byte("apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: partners}\nspec: {externalCIDRs: " + cidrs + "}"))
			if err != nil {
				t.Fatal(err)
			}
			row.Group = g
			tables.Put(txn, b.tab.Policies, row)
		})
	}
	look := func(when string, want map[string]bool) {
		t.Helper()
		for range 2 {
			b.pass()
			b.p.policies.stale = time.Now().Add(-time.Hour)
		}
		for ip, want := range want {
			if got, known := judgePacket(b.maps, web, whoIs(b.maps, netip.MustParseAddr(ip)), bpf.Egress, 6, 80); got != want || !known {
				t.Errorf("%s: %s allowed %v (known %v), want %v", when, ip, got, known, want)
			}
		}
	}
	look("no group yet", map[string]bool{"198.51.100.1": false, "203.0.113.1": false})
	group("[198.51.100.0/24]")
	look("a group", map[string]bool{"198.51.100.1": true, "203.0.113.1": false})
	group("[203.0.113.0/24]")
	look("another prefix", map[string]bool{"198.51.100.1": false, "203.0.113.1": true})
	group("")
	look("gone", map[string]bool{"198.51.100.1": false, "203.0.113.1": false})
}
