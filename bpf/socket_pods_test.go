package bpf

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
)

// newSocketNode is a real node whose pods' sockets are given backends.
func newSocketNode(t *testing.T) *realNode {
	t.Helper()
	n := newRealNode(t, options{})
	n.must(n.d.AttachSockets(ownCgroup(t)))
	for pod := range n.pods {
		n.giveBackends(pod)
	}
	set(t, n.d.Maps().Nodes, 4, Node{Path: PathAlive, Keyed: 1, Cluster: 2, Lane: 1})
	s, _, _ := n.d.Maps().Settings.Lookup(0)
	s.Trace = 1
	set(t, n.d.Maps().Settings, 0, s)
	return n
}

func (n *realNode) cookie(pod string) (cookie uint64) {
	n.Helper()
	n.in(pod, func() (err error) {
		cookie, err = netnsCookie()
		return err
	})
	return cookie
}

func (n *realNode) giveBackends(pod string) {
	n.Helper()
	var row Namespace
	row.Addr[bit(overIPv6)] = addr(pod)
	set(n, n.d.Maps().Namespaces, n.cookie(pod), row)
}

// changed raises the revision of everything.
func (n *realNode) changed() {
	n.Helper()
	s, _, _ := n.d.Maps().Settings.Lookup(0)
	s.Revision++
	set(n, n.d.Maps().Settings, 0, s)
}

// serve echoes datagrams to the pod, and tells who sends them.
func (n *realNode) serve(pod string, port uint16) <-chan netip.AddrPort {
	n.Helper()
	heard := make(chan netip.AddrPort, 100)
	n.in(pod, func() error {
		s, err := net.ListenUDP(network("udp"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at(pod, port))))
		if err != nil {
			return err
		}
		n.Cleanup(func() { s.Close() })
		go func() {
			for b := make([]byte, 1000); ; {
				size, from, err := s.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				heard <- netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
				s.WriteToUDPAddrPort(b[:size], from)
			}
		}()
		return nil
	})
	return heard
}

// echoes expects what it says back.
func (n *realNode) echoes(c net.Conn) {
	n.Helper()
	n.must(c.SetDeadline(time.Now().Add(30 * time.Second)))
	if _, err := io.WriteString(c, "weft"); err != nil {
		n.Fatal(err)
	}
	b := make([]byte, 4)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "weft" {
		n.Fatalf("%v → %v: read %q, %v", c.LocalAddr(), c.RemoteAddr(), b, err)
	}
}

// asks sends a datagram from a socket that is not connected, and returns who answers.
func (n *realNode) asks(c *net.UDPConn, to string) netip.AddrPort {
	n.Helper()
	n.must(c.SetDeadline(time.Now().Add(30 * time.Second)))
	if _, err := c.WriteToUDPAddrPort([]byte(to), netip.MustParseAddrPort(to)); err != nil {
		n.Fatal(err)
	}
	b := make([]byte, 100)
	size, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil || string(b[:size]) != to {
		counters, _ := n.d.Counters()
		n.Fatalf("asked %s, read %q: %v; counted: %+v", to, b[:size], err, counters)
	}
	return netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

// open is a UDP socket of the pod that is not connected.
func (n *realNode) open(pod string) (c *net.UDPConn) {
	n.Helper()
	n.in(pod, func() (err error) {
		c, err = net.ListenUDP(network("udp"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at(pod, 0))))
		return err
	})
	n.Cleanup(func() { c.Close() })
	return c
}

// flow is the row of a pod's connection with an address and port.
func (n *realNode) flow(pod string, local net.Addr, to string, proto uint8) (Flow, bool) {
	n.Helper()
	remote, lport := netip.MustParseAddrPort(to), netip.MustParseAddrPort(local.String()).Port()
	f, ok, err := n.d.Maps().Flows.Lookup(FlowKey{Local: addr(pod), Remote: AddrOf(remote.Addr()), Lport: PortOf(lport), Rport: PortOf(remote.Port()), Proto: proto})
	n.must(err)
	return f, ok
}

// given expects that a socket that asked for service near was given the backend on podB.
func (n *realNode) given(local net.Addr, proto uint8) {
	n.Helper()
	if _, ok := n.flow(podA, local, at(near, 80), proto); ok {
		n.Error("packets are translated")
	}
	f, ok := n.flow(podA, local, at(podB, 8080), proto)
	if !ok || f.Flags&(FlowMember|FlowTranslated) != FlowMember || f.Service != 80 || f.Backend != addr(near) || f.Bport.Number() != 80 || f.Identity != idB {
		n.Errorf("flow with the backend: %v, %+v", ok, f)
	}
}

// translated expects that the packets to a service are translated.
func (n *realNode) translated(pod string, local net.Addr, to string, proto uint8) {
	n.Helper()
	if f, ok := n.flow(pod, local, to, proto); !ok || f.Flags&FlowService == 0 {
		n.Errorf("flow with service %s: %v, %+v", to, ok, f)
	}
}

// watch passes the events that are about an address in one of its places, until the test ends.
func (n *realNode) watch() <-chan Event {
	events := make(chan Event, 1000)
	ctx, cancel := context.WithCancel(context.Background())
	finished := make(chan error, 1)
	go func() { finished <- n.d.Events(ctx, func(e Event) { events <- e }) }()
	n.Cleanup(func() {
		cancel()
		if err := <-finished; err != nil {
			n.Error(err)
		}
	})
	return events
}

func (n *realNode) await(events <-chan Event, what string, is func(Event) bool) {
	n.Helper()
	deadline := time.After(30 * time.Second)
	for {
		select {
		case e := <-events:
			if is(e) {
				return
			}
		case <-deadline:
			n.Fatalf("no event of %s", what)
		}
	}
}

// A socket of a pod is given a service's backend when it connects or sends: its packets need no
// translation, the backend sees the pod, the pod sees the service, and so do events.
func TestSocketsOfPodsGetBackends(t *testing.T) { families(t, testSocketsOfPodsGetBackends) }

func testSocketsOfPodsGetBackends(t *testing.T) {
	n := newSocketNode(t)
	service := netip.MustParseAddrPort(at(near, 80))
	events := n.watch()
	through := func(proto uint8) func(Event) bool {
		return func(e Event) bool {
			return e.Type == EventNewFlow && e.Dir == Egress && e.Proto == proto && e.Service == addr(near) && e.ServicePort.Number() == 80 &&
				e.Src == addr(podA) && e.Dst == addr(podB) && e.Dport.Number() == 8080 && e.SrcIdentity == idA && e.DstIdentity == idB
		}
	}
	n.listen(podB, 8080)
	c, err := n.dial(podA, at(near, 80), 30*time.Second)
	n.must(err)
	n.talk(c)
	if got := c.RemoteAddr().(*net.TCPAddr).AddrPort(); got != service {
		t.Errorf("connected to %v", got)
	}
	n.given(c.LocalAddr(), 6)
	n.await(events, "the connection", through(6))

	heard := n.serve(podB, 8080)
	connected := n.udp(podA, at(near, 80))
	n.echoes(connected)
	if got := connected.RemoteAddr().(*net.UDPAddr).AddrPort(); got != service {
		t.Errorf("connected to %v", got)
	}
	n.given(connected.LocalAddr(), 17)
	if got := <-heard; got != connected.LocalAddr().(*net.UDPAddr).AddrPort() {
		t.Errorf("the backend heard from %v", got)
	}
	n.await(events, "the connected socket", through(17))
	loose := n.open(podA)
	if got := n.asks(loose, at(near, 80)); got != service {
		t.Errorf("%v answered", got)
	}
	n.given(loose.LocalAddr(), 17)
	n.await(events, "the socket that is not connected", through(17))
}

// What is not as usual is left to the packets: they are refused, or translated as ever.
func TestSocketsOfPodsLeaveTheRestToPackets(t *testing.T) {
	families(t, testSocketsOfPodsLeaveTheRestToPackets)
}

func testSocketsOfPodsLeaveTheRestToPackets(t *testing.T) {
	n := newSocketNode(t)
	events := n.watch()
	n.listen(podB, 8080)

	// A service without backends is refused, at once and with an event.
	if _, err := n.dial(podA, at(empty, 80), 30*time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("TCP to nobody: %v", err)
	}
	n.await(events, "the refusal", func(e Event) bool {
		return e.Type == EventRefused && e.Reason == ReasonNoBackend && e.Service == addr(empty)
	})

	// A pod that is its own backend.
	self, err := n.dial(podB, at(near, 80), 30*time.Second)
	n.must(err)
	n.talk(self)
	if f, ok := n.flow(podB, self.LocalAddr(), at(near, 80), 6); !ok || f.Flags&FlowLoop == 0 {
		t.Errorf("the pod to itself: %v, %+v", ok, f)
	}

	// A port that was chosen may be used towards another service too.
	n.in(podA, func() (err error) {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(at(podA, 4000))), Timeout: 30 * time.Second}
		self, err = d.Dial(network("tcp"), at(near, 80))
		return err
	})
	defer self.Close()
	n.talk(self)
	n.translated(podA, self.LocalAddr(), at(near, 80), 6)

	// A pod that is held.
	ep, _, _ := n.d.Maps().Endpoints.Lookup(addr(podA))
	ep.Held = 1
	set(t, n.d.Maps().Endpoints, addr(podA), ep)
	n.changed()
	if _, err := n.dial(podA, at(near, 80), 300*time.Millisecond); err == nil {
		t.Error("connected a pod that is held")
	}
	n.await(events, "the pod that is held", func(e Event) bool { return e.Reason == ReasonHeld && e.Dst == addr(near) })
	ep.Held = 0
	set(t, n.d.Maps().Endpoints, addr(podA), ep)

	// Sockets in the node's namespace only.
	unset(t, n.d.Maps().Namespaces, n.cookie(podA))
	c, err := n.dial(podA, at(near, 80), 30*time.Second)
	n.must(err)
	n.talk(c)
	n.translated(podA, c.LocalAddr(), at(near, 80), 6)
}

// From one socket, two services with one backend are told apart.
func TestASocketOfAPodHearsWhomItAsked(t *testing.T) { families(t, testASocketOfAPodHearsWhomItAsked) }

func testASocketOfAPodHearsWhomItAsked(t *testing.T) {
	n := newSocketNode(t)
	const second = "10.101.0.82"
	local := Group{Cluster: 1, Weight: 1, Count: 1}
	set(t, n.d.Maps().Services, front(second, 17), Service{ID: 82, Groups: 1, Group: [MaxGroups]Group{local}})
	set(t, n.d.Maps().Backends, SlotKey{Service: 82, Cluster: 1}, Backend{Addr: addr(podB), Port: PortOf(8080)})
	set(t, n.d.Maps().Members, MemberKey{Service: 82, Addr: addr(podB), Port: PortOf(8080)}, Member{})
	n.serve(podB, 8080)
	c := n.open(podA)
	for range 3 {
		for _, to := range []string{at(near, 80), at(second, 80)} {
			if got := n.asks(c, to); got != netip.MustParseAddrPort(to) {
				t.Errorf("asked %s, %v answered", to, got)
			}
		}
	}
	n.given(c.LocalAddr(), 17)
	n.translated(podA, c.LocalAddr(), at(second, 80), 17)
	// Both questions are on their way before either is answered.
	for _, to := range []string{at(near, 80), at(second, 80)} {
		if _, err := c.WriteToUDPAddrPort([]byte(to), netip.MustParseAddrPort(to)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		b := make([]byte, 100)
		size, from, err := c.ReadFromUDPAddrPort(b)
		n.must(err)
		if got := netip.AddrPortFrom(from.Addr().Unmap(), from.Port()).String(); got != string(b[:size]) {
			t.Errorf("asked %s, %s answered", b[:size], got)
		}
	}
}

// opens waits for a packet out of the lane that opens a connection.
func (n *realNode) opens() (syn []byte, pod string) {
	n.Helper()
	for {
		syn, pod = n.leaves(6)
		if syn[headerLen(syn)+13]&0x12 == 2 {
			return syn, pod
		}
	}
}

// leaves waits for a packet of the transport out of the lane and returns it, and which of the
// pods it is for.
func (n *realNode) leaves(proto uint8) (packet []byte, pod string) {
	n.Helper()
	for {
		p := n.lane.receive()
		dst, got := p[16:20], p[9]
		if overIPv6 {
			dst, got = p[24:40], p[6]
		}
		if got != proto {
			continue
		}
		for _, pod := range []string{podC, podD} {
			if bytes.Equal(dst, inFamily(netip.MustParseAddr(pod)).AsSlice()) {
				return p, pod
			}
		}
	}
}

func other(pod string) string { return map[string]string{podC: podD, podD: podC}[pod] }

func nodeOf(pod string) uint32 { return map[string]uint32{podC: 3, podD: 4}[pod] }

// A connected UDP socket goes on with another backend when its own is gone or cut off.
func TestDatagramsOfAPodsSocketMoveOn(t *testing.T) {
	families(t, testDatagramsOfAPodsSocketMoveOn)
}

func testDatagramsOfAPodsSocketMoveOn(t *testing.T) {
	for name, lose := range map[string]func(n *realNode, pod string){
		"dead":   func(n *realNode, pod string) { n.path(pod, PathDead) },
		"silent": func(n *realNode, pod string) { n.path(pod, PathSilent) },
		"removed": func(n *realNode, pod string) {
			unset(n, n.d.Maps().Members, MemberKey{Service: 81, Addr: addr(pod), Port: PortOf(8080)})
			set(n, n.d.Maps().Backends, SlotKey{Service: 81, Cluster: 2}, Backend{Addr: addr(other(pod)), Port: PortOf(8080), Node: uint16(nodeOf(other(pod)))})
			group := Group{Cluster: 2, Weight: 1, Count: 1}
			set(n, n.d.Maps().Services, front(far, 17), Service{ID: 81, Groups: 1, Group: [MaxGroups]Group{group}})
			n.changed()
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newSocketNode(t)
			c := n.udp(podA, at(far, 80))
			local := c.LocalAddr().(*net.UDPAddr).AddrPort()
			ask := func() string {
				t.Helper()
				if _, err := io.WriteString(c, "question"); err != nil {
					t.Fatal(err)
				}
				_, pod := n.leaves(17)
				return pod
			}
			first := ask()
			lose(n, first)
			if second := ask(); second != other(first) {
				t.Fatalf("the second datagram goes to %s as the first", second)
			}
			n.lane.send(ip(other(first), podA, udp(8080, local.Port()).says("answer")))
			b := make([]byte, 100)
			c.SetReadDeadline(time.Now().Add(30 * time.Second))
			if got, err := c.Read(b); err != nil || string(b[:got]) != "answer" {
				t.Errorf("read %q, %v", b[:got], err)
			}
		})
	}
}

// path sets the state of the path to a pod's node.
func (n *realNode) path(pod string, p Path) {
	n.Helper()
	set(n, n.d.Maps().Nodes, nodeOf(pod), Node{Path: p, Keyed: 1, Cluster: 2, Lane: 1})
}

// A connection that was never answered begins again elsewhere when its path is silent; one that is
// open is reset when its path is dead or its backend is gone.
func TestConnectionsOfAPodsSocketMoveOnOrEnd(t *testing.T) {
	families(t, testConnectionsOfAPodsSocketMoveOnOrEnd)
}

func testConnectionsOfAPodsSocketMoveOnOrEnd(t *testing.T) {
	n := newSocketNode(t)
	type result struct {
		c   net.Conn
		err error
	}
	connected := make(chan result)
	dial := func() {
		go func() {
			c, err := n.dial(podA, at(far, 80), 30*time.Second)
			connected <- result{c, err}
		}()
	}
	answer := func(pod string, syn []byte) {
		h := syn[headerLen(syn):]
		n.lane.send(ip(pod, podA, tcp(8080, be16(h), "SA").at(5000, uint32(h[4])<<24|uint32(h[5])<<16|uint32(h[6])<<8|uint32(h[7])+1)))
	}
	finish := func() net.Conn {
		t.Helper()
		r := <-connected
		n.must(r.err)
		if got := r.c.RemoteAddr().String(); got != at(far, 80) {
			t.Errorf("connected to %s", got)
		}
		return r.c
	}
	dial()
	_, first := n.opens()
	n.path(first, PathSilent)
	syn, second := n.opens() // a second later
	if second != other(first) {
		t.Fatalf("the second SYN goes to %s as the first", second)
	}
	answer(second, syn)
	moved := finish()
	n.path(first, PathAlive)

	ends := func(c net.Conn) {
		t.Helper()
		if _, err := io.WriteString(c, strings.Repeat("are you there? ", 1000)); err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read ended with %v, want a reset", err)
		}
	}
	n.path(second, PathDead)
	ends(moved)
	n.path(second, PathAlive)

	events := n.watch()
	dial()
	syn, pod := n.opens()
	answer(pod, syn)
	c := finish()
	n.path(pod, PathDead)
	ends(c)
	n.await(events, "the reset", func(e Event) bool {
		return e.Type == EventReset && e.Reason == ReasonPathDown && e.Service == addr(far) && e.Dst == addr(pod)
	})
	n.path(pod, PathAlive)

	dial()
	syn, pod = n.opens()
	answer(pod, syn)
	c = finish()
	unset(t, n.d.Maps().Members, MemberKey{Service: 81, Addr: addr(pod), Port: PortOf(8080)})
	n.changed()
	for more := true; more; {
		_, more = n.lane.next(50 * time.Millisecond)
	}
	if _, err := io.WriteString(c, "still there?"); err != nil { // its pod is
		t.Fatal(err)
	}
	if _, to := n.leaves(6); to != pod {
		t.Errorf("an open connection to %s goes to %s", pod, to)
	}
	unset(t, n.d.Maps().IPs, addr(pod))
	n.changed()
	ends(c)
}

// With Maglev, a socket with a port of its choice has the backend that its packets would have, and
// one without a port gets any.
func TestMaglevForSocketsOfPods(t *testing.T) { families(t, testMaglevForSocketsOfPods) }

func testMaglevForSocketsOfPods(t *testing.T) {
	n := newSocketNode(t)
	m := n.d.Maps()
	for i, pod := range []string{podC, podD} {
		set(t, m.Backends, SlotKey{Service: 81, Slot: uint32(7 + i)}, Backend{Addr: addr(pod), Port: PortOf(8080), Node: uint16(nodeOf(pod))})
	}
	for piece := range 4 {
		var row MaglevSlots
		for i := range row.Backend {
			row.Backend[i] = uint16(7 + i%2)
		}
		set(t, m.Maglev, MaglevKey{Service: 81, Piece: uint16(piece), Tier: 1, Generation: 5}, row)
	}
	set(t, m.Balancing, 81, Balancing{Weights: [MaxGroups]uint32{1}, Slots: 251, Generation: 5})
	svc, _, _ := m.Services.Lookup(front(far, 17))
	svc.Timeout = svc.Timeout.With(ServiceBalanced)
	set(t, m.Services, front(far, 17), svc)
	ask := func(port uint16) string {
		t.Helper()
		var c net.Conn
		n.in(podA, func() (err error) {
			local := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at(podA, port)))
			d := net.Dialer{}
			if port != 0 {
				d.LocalAddr = local
			}
			c, err = d.Dial(network("udp"), at(far, 80))
			return err
		})
		defer c.Close()
		if _, err := io.WriteString(c, "question"); err != nil {
			t.Fatal(err)
		}
		_, pod := n.leaves(17)
		return pod
	}
	bound, loose := map[string]int{}, map[string]int{}
	for port := uint16(5000); port < 5016; port++ {
		first := ask(port)
		clearer(m.Flows)(t)
		if second := ask(port); second != first {
			t.Errorf("port %d reached %s, then %s", port, first, second)
		}
		bound[first]++
	}
	for range 40 {
		loose[ask(0)]++
	}
	if len(bound) != 2 || len(loose) != 2 {
		t.Errorf("bound sockets reached %v, others %v", bound, loose)
	}
}
