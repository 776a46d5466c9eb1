package bpf

const (
	apiServer = "10.101.0.82" // a service whose backend is a process of node 2
	ownServer = "10.101.0.83" // likewise of this node
	dns       = 53            // both nodes have a DNS server behind a service, too
)

// offer opens a port of a node, behind a service.
func offer(n *node, at string, proto uint8, port uint16) {
	n.Helper()
	set(n, n.m.Services, offerKey(at, proto, port), Service{ID: 500})
}

// setExposed says at which address the node has node ports.
func (n *node) setExposed(at string) {
	n.Helper()
	s, _, err := n.m.Settings.Lookup(0)
	if err != nil {
		n.Fatal(err)
	}
	s.Exposed[bit(addr(at).Netip().Is6())] = addr(at)
	set(n, n.m.Settings, 0, s)
}

func offerKey(at string, proto uint8, port uint16) ServiceKey {
	return ServiceKey{Addr: addr(at), Port: PortOf(port), Proto: proto, Scope: ScopeNode}
}

func memberAt(service uint32, at string) MemberKey {
	return MemberKey{Service: service, Addr: addr(at), Port: PortOf(6443)}
}

// processes are behind services on this node and on node 2.
func processes(n *node) {
	n.Helper()
	addressesOfNodes(n)
	set(n, n.m.IPs, addr(otherNode), IPInfo{Identity: 6, Flags: IPNode, Node: 2})
	for service, at := range map[uint32][2]string{82: {apiServer, otherNode}, 83: {ownServer, ownAddress}} {
		set(n, n.m.Services, front(at[0], 6), Service{ID: service, Groups: 1, Group: [MaxGroups]Group{{Cluster: 1, Weight: 1, Count: 1}}})
		set(n, n.m.Backends, SlotKey{Service: service, Cluster: 1}, Backend{Addr: addr(at[1]), Port: PortOf(6443)})
		set(n, n.m.Members, memberAt(service, at[1]), Member{})
		offer(n, at[1], 6, 6443)
		offer(n, at[1], 17, dns)
	}
}

// withdrawn: node 2's process is behind no service any more.
func withdrawn(n *node) {
	n.Helper()
	set(n, n.m.Services, front(apiServer, 6), Service{ID: 82})
	unset(n, n.m.Members, memberAt(82, otherNode))
	unset(n, n.m.Services, offerKey(otherNode, 6, 6443))
	n.change(nil)
}

// processCases: services lead to processes of the cluster's own nodes.
var processCases = []packetCase{
	{name: "a process of another node, through its service and without", state: processes, steps: []step{
		{hook: "from a", in: ip(podA, apiServer, tcp(1000, 80, "S")), want: ReasonTunnelled, out: ip(podA, otherNode, tcp(1000, 6443, "S"))},
		{hook: "out of tunnel", in: ip(otherNode, podA, tcp(6443, 1000, "SA")), want: ReasonDelivered, out: ip(apiServer, podA, tcp(80, 1000, "SA"))},
		{hook: "from a", in: ip(podA, apiServer, tcp(1000, 80, "A")), want: ReasonTunnelled, out: ip(podA, otherNode, tcp(1000, 6443, "A"))},
		{hook: "into node", in: ip(otherNode, podA, tcp(6443, 1000, "A")), want: ReasonSpoofedSource},
		{hook: "from a", in: ip(podA, otherNode, tcp(1001, 6443, "S")), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(otherNode, podA, tcp(6443, 1001, "SA")), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, otherNode, udp(1001, dns)), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(otherNode, podA, portUnreachable().quoting(ip(podA, otherNode, udp(1001, dns)))), want: ReasonDelivered},
	}},
	{name: "nothing else of another node", state: processes, steps: []step{
		{hook: "from a", in: ip(podA, otherNode, tcp(1000, 22, "S")), want: ReasonNodeAddress},
		{hook: "from a", in: ip(podA, otherNode, udp(1000, 6443)), want: ReasonNodeAddress},
		{hook: "from a", in: ip(podA, otherNode, echo(7)), want: ReasonNodeAddress, check: flowsAre(0)},
		{hook: "out of node", in: ip(podA, otherNode, tcp(1000, 6443, "S")), want: ReasonNodeAddress},
		{hook: "out of tunnel", in: ip(otherNode, podA, tcp(6443, 9, "S")), want: ReasonSpoofedSource},
		{hook: "out of tunnel", in: ip(otherNode, podA, udp(dns, 9)), want: ReasonSpoofedSource},
		{hook: "into node", in: ip(otherNode, podA, tcp(6443, 9, "S")), want: ReasonPlaintext, check: flowsAre(0)},
	}},
	{name: "a node port of another node, which leads where our own does", state: func(n *node) {
		processes(n)
		both(n)
		n.setExposed(outside)
	}, steps: []step{
		{hook: "from a", in: ip(podA, otherNode, tcp(1000, nodePort, "S")), want: ReasonDelivered, out: ip(podA, podB, tcp(1000, 8080, "S"))},
		{hook: "from b", in: ip(podB, podA, tcp(8080, 1000, "SA")), want: ReasonDelivered, out: ip(otherNode, podA, tcp(nodePort, 1000, "SA"))},
		{hook: "from a", in: ip(podA, otherNode, udp(1000, nodePort)), want: ReasonDelivered, out: ip(podA, podB, udp(1000, 8080))},
		{hook: "from a", in: ip(podA, otherNode, tcp(1000, nodePort+1, "S")), want: ReasonNodeAddress},
		{hook: "into node", in: ip(world, otherNode, tcp(7000, nodePort, "S")), want: ReasonNotOurs},
		{change: func(n *node) { set(n, n.m.IPs, addr(otherNode), IPInfo{Identity: 6, Flags: IPNode}) }, // a peer's
			hook: "from a", in: ip(podA, otherNode, tcp(1001, nodePort, "S")), want: ReasonNodeAddress},
	}},
	{name: "a node whose tunnel leads to nothing of its own", state: func(n *node) {
		processes(n)
		set(n, n.m.IPs, addr(otherNode), IPInfo{Identity: 6, Flags: IPNode})
	}, steps: []step{
		{hook: "from a", in: ip(podA, apiServer, tcp(1000, 80, "S")), want: ReasonNoBackend},
		{hook: "from a", in: ip(podA, otherNode, tcp(1000, 6443, "S")), want: ReasonNodeAddress, check: flowsAre(0)},
	}},
	{name: "a process of the pod's own node", state: processes, steps: []step{
		{hook: "from a", in: ip(podA, ownServer, tcp(1000, 80, "S")), want: ReasonToStack, out: ip(podA, ownAddress, tcp(1000, 6443, "S"))},
		{hook: "to a", in: ip(ownAddress, podA, tcp(6443, 1000, "SA")), want: ReasonDelivered, out: ip(ownServer, podA, tcp(80, 1000, "SA"))},
	}},
	{name: "this node's processes, asked by pods of other nodes", state: processes, steps: []step{
		{hook: "out of tunnel", in: ip(podE, ownAddress, tcp(1000, 6443, "S")), want: ReasonToStack, check: flowsAre(0)},
		{hook: "into tunnel", in: ip(ownAddress, podE, tcp(6443, 1000, "SA")), want: ReasonChangedTunnel, check: flowsAre(0)},
		{hook: "out of tunnel", in: ip("10.1.2.77", ownAddress, tcp(1000, 6443, "S")), want: ReasonToStack}, // not known yet
		{hook: "out of tunnel", in: ip(podE, ownAddress, udp(1000, dns).says("part")).piece(5, 0, true), want: ReasonToStack},
		{hook: "out of tunnel", in: ip(podE, ownAddress, raw("later")).udp().piece(5, 1448, false), want: ReasonToStack},
		{hook: "into tunnel", in: ip(ownAddress, podE, udp(dns, 1000).says("part")).piece(6, 0, true), want: ReasonChangedTunnel},
		{hook: "into tunnel", in: ip(ownAddress, podE, raw("later")).udp().piece(6, 1448, false), want: ReasonChangedTunnel},
		{hook: "into tunnel", in: ip(ownAddress, podE, raw("early")).udp().piece(7, 1448, false), want: ReasonChangedTunnel},
		{hook: "into tunnel", in: ip(ownAddress, podE, portUnreachable().quoting(ip(podE, ownAddress, udp(1000, dns)))), want: ReasonChangedTunnel},
	}},
	{name: "nothing else of this node, and nobody else", state: processes, steps: []step{
		{hook: "out of tunnel", in: ip(podE, ownAddress, tcp(1000, 2379, "S")), want: ReasonNodeClosed},
		{hook: "out of tunnel", in: ip(podE, ownAddress, udp(1000, 6443)), want: ReasonNodeClosed},
		{hook: "out of tunnel", in: ip(podE, ownAddress, echo(7)), want: ReasonNodeClosed},
		{hook: "out of tunnel", in: ip(podE, ownAddress, portUnreachable().quoting(ip(ownAddress, podE, udp(dns, 1000)))), want: ReasonNodeClosed},
		{hook: "out of tunnel", in: ip(podE, nodeInternal, tcp(1000, 6443, "S")), want: ReasonNodeClosed},
		{hook: "out of tunnel", in: ip(podE, otherNode, tcp(1000, 6443, "S")), want: ReasonNoEndpoint},
		{hook: "out of tunnel", in: ip(podE, world, tcp(1000, 6443, "S")), want: ReasonNoEndpoint},
		{hook: "out of tunnel", in: ip(podC, ownAddress, tcp(1000, 6443, "S")), want: ReasonNodeClosed}, // a peer's
		{hook: "out of tunnel", in: ip(otherNode, ownAddress, tcp(1000, 6443, "S")), want: ReasonNodeClosed},
		{hook: "out of tunnel", in: ip(world, ownAddress, tcp(1000, 6443, "S")), want: ReasonNodeClosed},
		{hook: "into tunnel", in: ip(ownAddress, podE, tcp(22, 1000, "SA")), want: ReasonSpoofedSource},
		{hook: "into tunnel", in: ip(ownAddress, podC, tcp(6443, 1000, "SA")), want: ReasonSpoofedSource},
		{hook: "into tunnel", in: ip(ownAddress, world, tcp(6443, 1000, "SA")), want: ReasonSpoofedSource},
		{hook: "into tunnel", in: ip(otherNode, podE, tcp(6443, 1000, "SA")), want: ReasonSpoofedSource},
		{hook: "into tunnel", in: ip(ownAddress, podE, portUnreachable().quoting(ip(podE, ownAddress, udp(1000, 54)))), want: ReasonSpoofedSource},
		{hook: "into tunnel", in: ip(ownAddress, podE, portUnreachable().quoting(ip(podC, ownAddress, udp(1000, dns)))), want: ReasonSpoofedSource, check: flowsAre(0)},
	}},
	{name: "a process that is withdrawn ends its connections", state: processes, steps: []step{
		{hook: "from a", in: ip(podA, apiServer, tcp(1000, 80, "S")), want: ReasonTunnelled, out: ip(podA, otherNode, tcp(1000, 6443, "S"))},
		{hook: "out of tunnel", in: ip(otherNode, podA, tcp(6443, 1000, "SA")), want: ReasonDelivered, out: ip(apiServer, podA, tcp(80, 1000, "SA"))},
		{hook: "from a", in: ip(podA, otherNode, tcp(1001, 6443, "S")), want: ReasonTunnelled},
		{change: withdrawn, hook: "from a", in: ip(podA, apiServer, tcp(1000, 80, "A")), want: ReasonResetSent,
			out: ip(apiServer, podA, tcp(80, 1000, "R")), check: ended(ReasonPathDown)},
		{hook: "from a", in: ip(podA, apiServer, tcp(1002, 80, "S")), want: ReasonNoBackend},
		{hook: "from a", in: ip(podA, otherNode, tcp(1001, 6443, "A")), want: ReasonNodeAddress},
	}},
	{name: "a node with processes dies", state: processes, steps: []step{
		{change: nodeDies(2), hook: "from a", in: ip(podA, apiServer, tcp(1000, 80, "S")), want: ReasonNoBackend},
		{hook: "from a", in: ip(podA, otherNode, tcp(1000, 6443, "S")), want: ReasonPathDown, check: flowsAre(0)},
	}},
	{name: "policies decide about processes of other nodes by who the node is", state: func(n *node) {
		processes(n)
		n.policy(podA, Egress)
	}, steps: []step{
		{hook: "from a", in: ip(podA, apiServer, tcp(1000, 80, "S")), want: ReasonPolicyDenied},
		{change: func(n *node) {
			n.class(5, 6)
			n.portClass(2, 6, 6443)
			n.rule(PolicyKey{Class: 5, Proto: 6, Port: 2, Dir: Egress}, PolicyEntry{Rule: 1})
			n.change(nil)
		}, hook: "from a", in: ip(podA, apiServer, tcp(1000, 80, "S")), want: ReasonTunnelled, out: ip(podA, otherNode, tcp(1000, 6443, "S"))},
		{hook: "from a", in: ip(podA, otherNode, udp(1000, dns)), want: ReasonPolicyDenied},
	}},
}
