package trace

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/flow"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/policy"
	"github.com/weft-mesh/weft/tunnel"
	"github.com/weft-mesh/weft/tunnel/probe"
)

// nodeOf is the node of mesh, which knows its paths to east and west.
func nodeOf(m *bpf.Maps) *Node {
	all := tables.New()
	txn := all.DB.WriteTxn(all.Paths)
	for i, cluster := range []string{"west", "south"} {
		_, _, _ = all.Paths.Insert(txn, &tables.Path{Cluster: cluster, Node: "n1", Index: uint16(i + 1), Alive: true,
			Observation: &probe.Observation{State: probe.Up, Since: time.Now().Add(-time.Hour)}})
	}
	txn.Commit()
	return &Node{
		Cluster: "east", Name: "n1", Maps: m, Tables: all, Ring: flow.NewRing(8),
		Resolver: flow.Resolver{
			Endpoint:  func(a netip.Addr, id identity.Number) flow.Endpoint { return flow.Endpoint{Address: a, Identity: id} },
			Rule:      func(uint32, uint32) (flow.Policy, bool) { return flow.Policy{}, false },
			Selecting: func(uint32, uint32, flow.Direction) []flow.Policy { return nil },
			Service:   func(netip.AddrPort, uint8) (string, string) { return "", "" },
		},
		RuleOf:  func(uint32, uint32) (policy.RuleInfo, bool) { return policy.RuleInfo{}, false },
		Hint:    func(*flow.Flow, uint8) string { return "" },
		Tunnels: func(context.Context) (tunnel.Status, error) { return tunnel.Status{}, nil },
	}
}

// follow asks about TCP and returns the lines of its steps.
func follow(t *testing.T, n *Node, from, to string) (lines []string, answer *api.Trace) {
	t.Helper()
	answer, err := n.Follow(t.Context(), api.TraceQuestion{From: netip.MustParseAddrPort(from), To: netip.MustParseAddrPort(to), Protocol: 6})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range answer.Steps {
		lines = append(lines, s.Hook+" "+s.LookUp+": "+s.Found)
	}
	return lines, answer
}

func has(t *testing.T, lines []string, wanted ...string) {
	t.Helper()
	for _, want := range wanted {
		if !slices.ContainsFunc(lines, func(s string) bool { return strings.HasPrefix(s, want) }) {
			t.Errorf("there is no %q in\n%s", want, strings.Join(lines, "\n"))
		}
	}
}

// web is service 7 at 10.101.0.7:80, with a backend here in tier 0 and one in each other cluster
// in tier 1.
func web(t *testing.T, m *bpf.Maps) bpf.Service {
	svc := bpf.Service{ID: 7, Groups: 3}
	for i, a := range []string{"10.1.1.3", "10.2.1.2", "10.3.1.2"} {
		svc.Group[i] = bpf.Group{Count: 1, Cluster: uint16(i + 1), Tier: uint8(min(i, 1)), Weight: 1}
		put(t, m.Backends, bpf.SlotKey{Service: 7, Cluster: uint16(i + 1)}, bpf.Backend{Addr: addr(a), Port: bpf.PortOf(8080), Node: uint16(i)})
		put(t, m.Members, bpf.MemberKey{Addr: addr(a), Service: 7, Port: bpf.PortOf(8080)}, bpf.Member{})
	}
	put(t, m.Endpoints, addr("10.1.1.3"), bpf.Endpoint{Ifindex: 6, Identity: 101})
	put(t, m.Services, bpf.ServiceKey{Addr: addr("10.101.0.7"), Port: bpf.PortOf(80), Proto: 6}, svc)
	return svc
}

func setService(t *testing.T, m *bpf.Maps, svc bpf.Service) {
	t.Helper()
	put(t, m.Services, bpf.ServiceKey{Addr: addr("10.101.0.7"), Port: bpf.PortOf(80), Proto: 6}, svc)
}

// open is a flow of 10.1.1.2 with service 7, from port 40112.
func open(t *testing.T, m *bpf.Maps, backend string, flags bpf.FlowFlags) {
	t.Helper()
	put(t, m.Flows, bpf.FlowKey{Local: addr("10.1.1.2"), Remote: addr("10.101.0.7"), Lport: bpf.PortOf(40112), Rport: bpf.PortOf(80), Proto: 6},
		bpf.Flow{Seen: bpf.Now(), Ifindex: 5, Service: 7, Backend: addr(backend), Bport: bpf.PortOf(8080), Via: bpf.ViaTunnel, Flags: bpf.FlowService | flags})
}

const anyPort, ofFlow, service = "10.1.1.2:0", "10.1.1.2:40112", "10.101.0.7:80"

// Where sockets are given backends, they choose, and an open connection is found under its
// backend's address.
func TestSocketsChoose(t *testing.T) {
	m := mesh(t)
	svc := web(t, m)
	n := nodeOf(m)
	lines, _ := follow(t, n, anyPort, service)
	has(t, lines, "from_pod service: ", "from_pod backend: ", "from_pod policy: ")
	put(t, m.Namespaces, 77, bpf.Namespace{Addr: [2]bpf.Addr{addr("10.1.1.2")}})
	lines, _ = follow(t, n, anyPort, service)
	has(t, lines, "socket service: ", "socket backend: ", "from_pod destination: ", "from_pod policy: ")

	given := bpf.FlowKey{Local: addr("10.1.1.2"), Remote: addr("10.2.1.2"), Lport: bpf.PortOf(40112), Rport: bpf.PortOf(8080), Proto: 6}
	put(t, m.Flows, given, bpf.Flow{Seen: bpf.Now(), Ifindex: 5, Service: 7, Backend: addr("10.101.0.7"), Bport: bpf.PortOf(80), Via: bpf.ViaTunnel, Flags: bpf.FlowMember | bpf.FlowReplied})
	for from, want := range map[string]string{anyPort: "socket service: what follows is about 10.2.1.2:8080, that of the newest flow", ofFlow: "from_pod flow: what follows is about this open connection, to its backend 10.2.1.2:8080: "} {
		svc.Group[1].Tier, svc.Group[0].Tier = 0, 1
		setService(t, m, svc)
		lines, got := follow(t, n, from, service)
		has(t, lines, "from_pod flow: port 40112: open, ", want)
		if got.Next == nil || got.Next.To.String() != "10.2.1.2:8080" {
			t.Errorf("from %s it goes on to %+v", from, got.Next)
		}
	}
	// Gone from its service and from the mesh.
	if err := errors.Join(m.Members.Delete(bpf.MemberKey{Addr: addr("10.2.1.2"), Service: 7, Port: bpf.PortOf(8080)}), m.IPs.Delete(addr("10.2.1.2"))); err != nil {
		t.Fatal(err)
	}
	lines, got := follow(t, n, ofFlow, service)
	has(t, lines, "from_pod flow: its backend 10.2.1.2:8080 is gone: the pod is told by a reset at its next packet")
	if got.End != bpf.ReasonPathDown.String() {
		t.Errorf("it ends %s", got.End)
	}
	// Of another service, or from another port.
	if lines, _ := follow(t, n, "10.1.1.2:40113", service); slices.ContainsFunc(lines, func(s string) bool { return strings.Contains(s, "40112") }) {
		t.Errorf("another port's flow is in\n%s", strings.Join(lines, "\n"))
	}
}

// A node whose number has no name yet is not where a connection is known to go on.
func TestAnUnnamedNodeIsUnknown(t *testing.T) {
	n := nodeOf(mesh(t))
	if _, got := follow(t, n, anyPort, "10.2.1.2:80"); got.End != api.EndTunnelled || got.Next == nil || got.Next.Cluster != "west" || got.Next.Node != "n1" {
		t.Errorf("to a node with a name: %+v", got)
	}
	n.Tables = tables.New()
	lines, got := follow(t, n, anyPort, "10.2.1.2:80")
	if got.End != api.EndUnknown || got.Dropped || got.Next != nil {
		t.Errorf("to one without: %+v", got)
	}
	has(t, lines, "to_tunnel tunnel: the agent does not know yet which node that is")
}

// What an open connection uses says something of new ones only if they may get it too.
func TestAFlowDecidesOnlyAboutItself(t *testing.T) {
	m := mesh(t)
	svc := web(t, m)
	n := nodeOf(m)
	to := func(from, want string, wanted ...string) {
		t.Helper()
		lines, got := follow(t, n, from, service)
		if got.Next == nil || got.Next.To.String() != want {
			t.Errorf("from %s it ends %s and goes on to %+v, want %s:\n%s", from, got.End, got.Next, want, strings.Join(lines, "\n"))
		}
		has(t, lines, wanted...)
	}
	open(t, m, "10.2.1.2", bpf.FlowReplied)
	to(anyPort, "10.1.1.3:8080")
	to(ofFlow, "10.2.1.2:8080", "from_pod flow: what follows is about this open connection, to its backend 10.2.1.2:8080")

	svc.Group[0].Tier = 1
	setService(t, m, svc)
	to(anyPort, "10.2.1.2:8080", "from_pod service: what follows is about 10.2.1.2:8080, that of the newest flow")

	// Neither source ranges nor a service that is gone end it.
	svc.Timeout = svc.Timeout.With(bpf.ServiceRanged)
	setService(t, m, svc)
	to(ofFlow, "10.2.1.2:8080")
	if _, got := follow(t, n, anyPort, service); got.End != "source-range" {
		t.Errorf("a new one outside of the source ranges ends %s", got.End)
	}
	if err := m.Services.Delete(bpf.ServiceKey{Addr: addr("10.101.0.7"), Port: bpf.PortOf(80), Proto: 6}); err != nil {
		t.Fatal(err)
	}
	to(ofFlow, "10.2.1.2:8080")
	svc.Timeout = bpf.Seconds{}
	svc.Group[0].Tier = 0
	setService(t, m, svc)

	// A backend that left its service keeps what is open for as long as it exists.
	if err := m.Members.Delete(bpf.MemberKey{Addr: addr("10.2.1.2"), Service: 7, Port: bpf.PortOf(8080)}); err != nil {
		t.Fatal(err)
	}
	to(ofFlow, "10.2.1.2:8080")
	open(t, m, "10.2.1.2", 0)
	to(ofFlow, "10.1.1.3:8080", "from_pod flow: its backend 10.2.1.2:8080 cannot be reached: what follows is about a new choice")
	open(t, m, "10.2.1.99", bpf.FlowReplied)
	if _, got := follow(t, n, ofFlow, service); got.End != "path-down" {
		t.Errorf("one whose pod is gone ends %s", got.End)
	}
	// A flow of the pod that had the address before is nobody's.
	open(t, m, "10.2.1.2", bpf.FlowReplied)
	put(t, m.Endpoints, addr("10.1.1.2"), bpf.Endpoint{Ifindex: 55, Identity: 100})
	to(ofFlow, "10.1.1.3:8080")
}

// A connection with an address that became a service's afterwards goes on to the address, and the
// other side sees the port that it has there.
func TestAnOpenConnectionWithAnAddressStays(t *testing.T) {
	m := mesh(t)
	svc := web(t, m)
	put(t, m.Services, bpf.ServiceKey{Addr: addr("10.2.1.2"), Port: bpf.PortOf(80), Proto: 6}, svc)
	const other = bpf.FlowFlags(40000>>8)<<16 | bpf.FlowFlags(40000&0xff)<<24
	put(t, m.Flows, bpf.FlowKey{Local: addr("10.1.1.2"), Remote: addr("10.2.1.2"), Lport: bpf.PortOf(40112), Rport: bpf.PortOf(80), Proto: 6},
		bpf.Flow{Seen: bpf.Now(), Ifindex: 5, Via: bpf.ViaTunnel, Flags: bpf.FlowDirect | bpf.FlowReplied | other})
	n := nodeOf(m)
	lines, got := follow(t, n, ofFlow, "10.2.1.2:80")
	if got.Next == nil || got.Next.To.String() != "10.2.1.2:80" || got.Next.From.String() != "10.1.1.2:40000" {
		t.Errorf("it goes on to %+v:\n%s", got.Next, strings.Join(lines, "\n"))
	}
	if _, got := follow(t, n, "10.1.1.2:40113", "10.2.1.2:80"); got.Next == nil || got.Next.To.String() != "10.1.1.3:8080" {
		t.Errorf("a new one goes on to %+v", got.Next)
	}
}

func TestAPodKeepsReachingItself(t *testing.T) {
	m := mesh(t)
	web(t, m)
	open(t, m, "10.1.1.2", bpf.FlowLoop)
	lines, got := follow(t, nodeOf(m), ofFlow, service)
	if got.End != api.EndDelivered {
		t.Errorf("it ends %s:\n%s", got.End, strings.Join(lines, "\n"))
	}
}

// A client's session leads to its backend as find_session says: of any tier, if its path is alive.
func TestASessionIsFollowed(t *testing.T) {
	m := mesh(t)
	svc := web(t, m)
	svc.Timeout = bpf.SecondsOf(time.Hour)
	setService(t, m, svc)
	n := nodeOf(m)
	member := bpf.MemberKey{Addr: addr("10.2.1.2"), Service: 7, Port: bpf.PortOf(8080)}
	session := func(backend string, ago time.Duration) {
		put(t, m.Affinities, bpf.AffinityKey{Client: addr("10.1.1.2"), Service: 7}, bpf.Affinity{Seen: bpf.Now() - uint64(ago), Backend: addr(backend), Port: bpf.PortOf(8080)})
	}
	to := func(what, want string) {
		t.Helper()
		lines, got := follow(t, n, anyPort, service)
		if got.Next == nil || got.Next.To.String() != want {
			t.Errorf("%s: it ends %s and goes on to %+v, want %s:\n%s", what, got.End, got.Next, want, strings.Join(lines, "\n"))
		}
	}
	const ours, theirs = "10.1.1.3:8080", "10.2.1.2:8080"
	to("no session", ours)
	session("10.2.1.2", 0)
	to("a higher tier", theirs)
	alive, _, _ := m.Nodes.Lookup(1)
	silent := alive
	silent.Path = bpf.PathSilent
	put(t, m.Nodes, 1, silent)
	to("a silent path", ours)
	unkeyed := alive
	unkeyed.Keyed = 0
	put(t, m.Nodes, 1, unkeyed)
	to("no key", ours)
	put(t, m.Nodes, 1, alive)
	put(t, m.Members, member, bpf.Member{Terminating: 1})
	to("a terminating backend", ours)
	if err := m.Members.Delete(member); err != nil {
		t.Fatal(err)
	}
	to("one that left", ours)
	put(t, m.Members, member, bpf.Member{})
	to("one that came back", theirs)
	session("10.2.1.2", 2*time.Second)
	to("one not over yet", theirs)
	svc.Timeout = bpf.SecondsOf(time.Second)
	setService(t, m, svc)
	to("one that is over", ours)
	session("10.2.1.2", 0)
	svc.Timeout = bpf.Seconds{}
	setService(t, m, svc)
	to("a service without sessions", ours)
}

func TestSourceRanges(t *testing.T) {
	m := mesh(t)
	svc := web(t, m)
	svc.Timeout = svc.Timeout.With(bpf.ServiceRanged)
	setService(t, m, svc)
	n := nodeOf(m)
	for _, c := range []struct {
		prefix  string
		service uint32
		end     string
	}{{"192.0.2.0/24", 7, "source-range"}, {"10.1.0.0/16", 8, "source-range"}, {"10.1.0.0/16", 7, api.EndToPod}} {
		k := bpf.RangeOf(netip.MustParsePrefix(c.prefix))
		k.Service = c.service
		put(t, m.Sources, k, 1)
		if lines, got := follow(t, n, anyPort, service); got.End != c.end {
			t.Errorf("with %s of service %d it ends %s:\n%s", c.prefix, c.service, got.End, strings.Join(lines, "\n"))
		}
	}
}

func TestIPv6(t *testing.T) {
	m := mesh(t)
	put(t, m.Endpoints, addr("fd00:1::2"), bpf.Endpoint{Ifindex: 5, Identity: 100})
	put(t, m.Prefixes, bpf.PrefixOf(netip.MustParsePrefix("fd00:2::/48")), bpf.IPInfo{Cluster: 2, Flags: bpf.IPMember})
	put(t, m.Prefixes, bpf.PrefixOf(netip.MustParsePrefix("fd00:2:0:1::/64")), bpf.IPInfo{Cluster: 2, Node: 1, Flags: bpf.IPMember, Bits: 64})
	put(t, m.Masquerading, 0, bpf.Masquerading{Addr: [2]bpf.Addr{addr("172.16.1.1"), addr("fd00:172::1")}})
	put(t, m.Native, bpf.PrefixOf(netip.MustParsePrefix("2001:db8:1::/48")), 1)
	n := nodeOf(m)
	for to, want := range map[string]string{
		"[fd00:2:0:1::7]:80":  "to_tunnel tunnel: tunnel 0 to west/n1",
		"[fd00:2:0:2::7]:80":  "from_pod destination: it is a member's address, and of no known node",
		"[2001:db8::1]:443":   "to_device masquerade: the world sees fd00:172::1 instead of the pod's address, if it leaves by the device towards the other nodes",
		"[2001:db8:1::1]:443": "to_device masquerade: none: 2001:db8:1::1 is in a native CIDR",
		"[fd00:2:0:1::]:80":   "from_pod destination: fd00:2:0:1::, identity world",
		"[fd00:1::2]:80":      "from_pod destination: fd00:1::2, identity 100, a pod of this node",
	} {
		lines, _ := follow(t, n, "[fd00:1::2]:0", to)
		has(t, lines, want)
	}
}

func TestTheNodeItselfMayRefuse(t *testing.T) {
	lines, _ := follow(t, nodeOf(mesh(t)), anyPort, "10.1.1.1:80")
	has(t, lines, "from_pod route: to the node's own stack: whether its firewall lets it through")
}

// The time since when a path is down is not that since when it is up.
func TestADeadClusterHidesALivingNode(t *testing.T) {
	m := mesh(t)
	web(t, m)
	put(t, m.Clusters, 2, bpf.Cluster{Path: bpf.PathDead, Member: 1})
	n := nodeOf(m)
	for _, to := range []string{"10.2.1.2:80", service} {
		lines, _ := follow(t, n, anyPort, to)
		if text := strings.Join(lines, "\n"); !strings.Contains(text, " is dead") || strings.Contains(text, " since ") {
			t.Errorf("to %s:\n%s", to, text)
		}
	}
}

// Hooks after from_pod report a service's backend. They do not say which hook it was.
func TestReportsOfOtherHooks(t *testing.T) {
	m := mesh(t)
	web(t, m)
	n := nodeOf(m)
	report := flow.Flow{Time: time.Now().Add(-time.Minute), Verdict: flow.Dropped, Reason: "no-port", Direction: flow.Egress, Protocol: "TCP",
		Source: flow.Endpoint{Address: netip.MustParseAddr("10.1.1.2"), Port: 40112}, Destination: flow.Endpoint{Address: netip.MustParseAddr("10.1.1.3"), Port: 8080}}
	n.Ring.Add(report)
	lines, _ := follow(t, n, anyPort, service)
	has(t, lines, " report: dropped from port 40112 1m0s ago: no-port")
	lines, _ = follow(t, n, anyPort, "10.1.1.3:8081")
	if strings.Contains(strings.Join(lines, "\n"), "report") {
		t.Errorf("about another port:\n%s", strings.Join(lines, "\n"))
	}
	report.Service = &flow.Service{Address: netip.MustParseAddr("10.101.0.7"), Port: 80}
	n.Ring.Add(report)
	lines, _ = follow(t, n, anyPort, service)
	has(t, lines, "from_pod report: dropped from port 40112 1m0s ago: no-port")
}

// changing is a table of settings in which the policy changes after the first look.
type changing struct {
	bpf.Table[uint32, bpf.Settings]
	looks int
}

func (c *changing) Lookup(k uint32) (bpf.Settings, bool, error) {
	s, ok, err := c.Table.Lookup(k)
	if c.looks++; c.looks > 1 {
		s.PolicyGen++
	}
	return s, ok, err
}

func TestAChangedPolicyIsReadAgain(t *testing.T) {
	m := mesh(t)
	put(t, m.Endpoints, addr("10.1.1.2"), bpf.Endpoint{Ifindex: 5, Identity: 100, Set: 3})
	put(t, m.Sets, bpf.SetKey{Gen: 2, Set: 3}, bpf.SetInfo{})
	settings := &changing{Table: m.Settings}
	m.Settings = settings
	lines, got := follow(t, nodeOf(m), anyPort, "10.2.1.2:80")
	if got.Dropped || settings.looks != 3 {
		t.Errorf("after %d looks it ends %s:\n%s", settings.looks, got.End, strings.Join(lines, "\n"))
	}
}

func TestACancelledQuestionIsGivenUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := nodeOf(mesh(t)).Follow(ctx, api.TraceQuestion{From: netip.MustParseAddrPort(anyPort), To: netip.MustParseAddrPort("10.2.1.2:80"), Protocol: 6})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("it is answered: %v", err)
	}
}
