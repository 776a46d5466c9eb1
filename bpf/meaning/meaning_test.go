package meaning

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
)

// numbers are those that an agent is free to choose.
type numbers struct {
	gen, set, class, service, node uint32
	port                           uint16
}

func addr(s string) bpf.Addr { return bpf.AddrOf(netip.MustParseAddr(s)) }

func put[K, V any](t *testing.T, update func(K, V) error, k K, v V) {
	t.Helper()
	if err := update(k, v); err != nil {
		t.Fatal(err)
	}
}

// node writes what a node with one pod and one service knows of a peer's.
func node(t *testing.T, n numbers) *bpf.Maps {
	m := bpftest.New()
	pod, other, vip := addr("10.1.1.2"), addr("10.2.1.2"), addr("10.101.0.1")
	put(t, m.Settings.Update, 0, bpf.Settings{Revision: n.gen, PolicyGen: n.gen, Cluster: 1})
	put(t, m.Revisions.Update, 7, n.gen)
	put(t, m.Shares.Update, 9, bpf.Share{Used: int64(n.node)})
	put(t, m.Nodes.Update, n.node, bpf.Node{Path: bpf.PathAlive, Keyed: 1, Cluster: 2})
	put(t, m.Clusters.Update, 2, bpf.Cluster{Path: bpf.PathAlive, Member: 1})
	put(t, m.Prefixes.Update, bpf.PrefixOf(netip.MustParsePrefix("10.2.1.0/24")), bpf.IPInfo{Node: uint16(n.node), Cluster: 2, Flags: bpf.IPMember})
	put(t, m.IPs.Update, other, bpf.IPInfo{Identity: 200, Node: uint16(n.node), Cluster: 2})
	put(t, m.Endpoints.Update, pod, bpf.Endpoint{Ifindex: 9, Identity: 100, Set: n.set, ID: 1})
	put(t, m.Services.Update, bpf.ServiceKey{Addr: vip, Port: bpf.PortOf(80), Proto: 6}, bpf.Service{ID: n.service, Groups: 1, Group: [bpf.MaxGroups]bpf.Group{{Count: 2, Cluster: 2, Weight: 1}}})
	for i, b := range []bpf.Backend{{Addr: other, Port: bpf.PortOf(8080), Node: uint16(n.node)}, {Addr: pod, Port: bpf.PortOf(8080)}} {
		slot := (uint32(i) + n.service) % 2 // the order of slots is the agent's
		put(t, m.Backends.Update, bpf.SlotKey{Service: n.service, Slot: slot, Cluster: 2}, b)
		put(t, m.Members.Update, bpf.MemberKey{Addr: b.Addr, Service: n.service, Port: b.Port}, bpf.Member{})
	}
	put(t, m.Sets.Update, bpf.SetKey{Gen: n.gen, Set: n.set}, bpf.SetInfo{Enforced: [2]uint8{0, 1}})
	put(t, m.Classes.Update, bpf.ClassKey{Gen: n.gen, Identity: 200}, n.class)
	for _, port := range []uint16{80, 81, 443} {
		i, _ := bpf.PortIndex(n.gen, 6, port)
		put(t, m.Ports.Update, i, n.port)
	}
	put(t, m.Policy.Update, bpf.PolicyKey{Gen: n.gen, Set: n.set, Class: n.class, Port: n.port, Proto: 6, Dir: bpf.Ingress}, bpf.PolicyEntry{})
	put(t, m.Policy.Update, bpf.PolicyKey{Gen: n.gen, Set: n.set, Class: bpf.AnyClass, Dir: bpf.Ingress}, bpf.PolicyEntry{Deny: 1})
	return m
}

func lines(t *testing.T, m *bpf.Maps) []string {
	t.Helper()
	got, err := Of(m)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

var first = numbers{gen: 4, set: 1, class: 1, service: 1, node: 1, port: 1}

const want = `cluster 2: alive
endpoint 10.1.1.2: number 1, identity 100, device 9, 000000000000, 000000000000, held 0
ip 10.2.1.2: identity 200, cluster 2, node 10.2.1.0/24, flags none
member of service 10.101.0.1:80/tcp: 10.1.1.2:8080, terminating 0
member of service 10.101.0.1:80/tcp: 10.2.1.2:8080, terminating 0
node 10.2.1.0/24: cluster 2, alive, keyed 1
policy of 10.1.1.2: egress enforced 0, ingress enforced 1
policy of 10.1.1.2: ingress any with anybody: denied on any port
policy of 10.1.1.2: ingress tcp with identity 200: allowed 80-81,443
prefix 10.2.1.0/24: identity 0, cluster 2, node 10.2.1.0/24, flags member
service 10.101.0.1:80/tcp: cluster 2, part 0, tier 0, weight 1: 10.1.1.2:8080 on node none, 10.2.1.2:8080 on node 10.2.1.0/24
settings: cluster 1, internal addresses invalid IP, invalid IP, trace 0`

// What an agent may number as it likes does not show; what packets would notice does.
func TestMeaningIsFreeOfNumbers(t *testing.T) {
	if got := strings.Join(lines(t, node(t, first)), "\n"); got != want {
		t.Errorf("the maps say\n%s\nwant\n%s", got, want)
	}
	if got := strings.Join(lines(t, node(t, numbers{gen: 7, set: 30, class: 9, service: 12, node: 5, port: 4})), "\n"); got != want {
		t.Errorf("with other numbers the maps say\n%s\nwant\n%s", got, want)
	}
}

func TestMeaningShowsWhatPacketsWouldNotice(t *testing.T) {
	peer := addr("10.2.1.2")
	for name, c := range map[string]struct {
		change func(m *bpf.Maps) error
		line   string // that is new
	}{
		"an identity": {func(m *bpf.Maps) error { return m.IPs.Update(peer, bpf.IPInfo{Identity: 201, Node: 1, Cluster: 2}) }, "ip 10.2.1.2: identity 201, cluster 2, node 10.2.1.0/24, flags none"},
		"a dead path": {func(m *bpf.Maps) error {
			return m.Nodes.Update(1, bpf.Node{Keyed: 1, Cluster: 2})
		}, "node 10.2.1.0/24: cluster 2, dead, keyed 1"},
		"a node that has nothing": {func(m *bpf.Maps) error { return m.Nodes.Update(2, bpf.Node{Cluster: 2}) }, "node without an address: cluster 2, dead, keyed 0"},
		"an empty slot": {func(m *bpf.Maps) error {
			return m.Backends.Delete(bpf.SlotKey{Service: 1, Slot: 0, Cluster: 2})
		}, "service 10.101.0.1:80/tcp: cluster 2, part 0, tier 0, weight 1: 10.2.1.2:8080 on node 10.2.1.0/24, an empty slot"},
		"a slot beyond the count": {func(m *bpf.Maps) error {
			return m.Backends.Update(bpf.SlotKey{Service: 1, Slot: 2, Cluster: 2}, bpf.Backend{Addr: peer, Port: bpf.PortOf(1)})
		}, "stray slot: 10.2.1.2:1"},
		"a member of no service": {func(m *bpf.Maps) error {
			return m.Members.Update(bpf.MemberKey{Addr: peer, Service: 2, Port: bpf.PortOf(1)}, bpf.Member{})
		}, "stray member: 10.2.1.2:1"},
		"a class of another generation": {func(m *bpf.Maps) error {
			return m.Classes.Update(bpf.ClassKey{Gen: 3, Identity: 200}, 1)
		}, "stray class of identity 200"},
		"a set that nobody has": {func(m *bpf.Maps) error { return m.Sets.Update(bpf.SetKey{Gen: 4, Set: 2}, bpf.SetInfo{}) }, "stray policy set"},
		"an entry of another generation": {func(m *bpf.Maps) error {
			return m.Policy.Update(bpf.PolicyKey{Gen: 3, Set: 1, Class: 1, Proto: 6}, bpf.PolicyEntry{})
		}, "stray policy entry: egress tcp"},
		"an entry of which its set knows nothing": {func(m *bpf.Maps) error {
			if err := m.Sets.Update(bpf.SetKey{Gen: 4, Set: 1}, bpf.SetInfo{Enforced: [2]uint8{0, 1}, Shapes: [2]bpf.Shapes{bpf.NoShapes, 0}}); err != nil {
				return err
			}
			return m.Policy.Update(bpf.PolicyKey{Gen: 4, Set: 1, Class: 1, Proto: 6, Dir: bpf.Egress}, bpf.PolicyEntry{})
		}, "hidden policy entry: egress tcp"},
		"a port of another generation": {func(m *bpf.Maps) error {
			i, _ := bpf.PortIndex(3, 6, 80)
			return m.Ports.Update(i, 1)
		}, "stray ports: 1"},
		"a set that is missing":            {func(m *bpf.Maps) error { return m.Sets.Delete(bpf.SetKey{Gen: 4, Set: 1}) }, "policy of 10.1.1.2: its set is missing"},
		"a share of a device that is gone": {func(m *bpf.Maps) error { return m.Shares.Update(8, bpf.Share{Used: 3}) }, "stray share of device 8: 3 rows"},
	} {
		m := node(t, first)
		if err := c.change(m); err != nil {
			t.Fatal(err)
		}
		if got := lines(t, m); !slices.Contains(got, c.line) {
			t.Errorf("%s: there is no line %q in\n%s", name, c.line, strings.Join(got, "\n"))
		}
	}
}
