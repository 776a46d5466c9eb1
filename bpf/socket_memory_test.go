package bpf

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// offer makes a UDP service with one backend, a port of podB.
func (n *realNode) offer(id uint32, address string, backend uint16) {
	n.Helper()
	local := Group{Cluster: 1, Weight: 1, Count: 1}
	set(n, n.d.Maps().Services, front(address, 17), Service{ID: id, Groups: 1, Group: [MaxGroups]Group{local}})
	set(n, n.d.Maps().Backends, SlotKey{Service: id, Cluster: 1}, Backend{Addr: addr(podB), Port: PortOf(backend)})
	set(n, n.d.Maps().Members, MemberKey{Service: id, Addr: addr(podB), Port: PortOf(backend)}, Member{})
}

// withdraw removes the backend of a service that offer has made.
func (n *realNode) withdraw(id uint32, backend uint16) {
	n.Helper()
	unset(n, n.d.Maps().Backends, SlotKey{Service: id, Cluster: 1})
	unset(n, n.d.Maps().Members, MemberKey{Service: id, Addr: addr(podB), Port: PortOf(backend)})
	n.changed()
}

// says sends a datagram from a socket that is not connected.
func (n *realNode) says(c *net.UDPConn, what, to string) {
	n.Helper()
	if _, err := c.WriteToUDPAddrPort([]byte(what), netip.MustParseAddrPort(to)); err != nil {
		n.Fatal(err)
	}
}

// hears expects a datagram from an address and port.
func (n *realNode) hears(c *net.UDPConn, what, from string) {
	n.Helper()
	n.must(c.SetReadDeadline(time.Now().Add(30 * time.Second)))
	b := make([]byte, 100)
	size, who, err := c.ReadFromUDPAddrPort(b)
	if got := netip.AddrPortFrom(who.Addr().Unmap(), who.Port()).String(); err != nil || got != from || string(b[:size]) != what {
		n.Errorf("%s says %q: %v; want %q of %s", got, b[:size], err, what, from)
	}
}

func portOf(c *net.UDPConn) uint16 { return c.LocalAddr().(*net.UDPAddr).AddrPort().Port() }

// A socket that is not connected knows every service that it has asked, however often it asks others
// before the answer comes: from the fifth on, packets do.
func TestAPodsSocketForgetsNoService(t *testing.T) { families(t, testAPodsSocketForgetsNoService) }

func testAPodsSocketForgetsNoService(t *testing.T) {
	n := newSocketNode(t)
	const slow = "10.101.0.90"
	n.offer(90, slow, 8090)
	var server *net.UDPConn
	n.in(podB, func() (err error) {
		server, err = net.ListenUDP(network("udp"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at(podB, 8090))))
		return err
	})
	defer server.Close()
	n.serve(podB, 8080)
	c := n.open(podA)
	n.says(c, "slowly", at(slow, 80))
	n.must(server.SetReadDeadline(time.Now().Add(30 * time.Second)))
	_, client, err := server.ReadFromUDPAddrPort(make([]byte, 100))
	n.must(err)
	for range 2 * 4 {
		if got := n.asks(c, at(near, 80)); got != netip.MustParseAddrPort(at(near, 80)) {
			t.Errorf("%v answered", got)
		}
	}
	_, err = server.WriteToUDPAddrPort([]byte("at last"), client)
	n.must(err)
	n.hears(c, "at last", at(slow, 80))

	given := map[bool]int{}
	for i := range uint16(5) {
		service := fmt.Sprintf("10.101.0.%d", 100+i)
		n.offer(uint32(100+i), service, 8100+i)
		n.serve(podB, 8100+i)
		for range 2 {
			if got := n.asks(c, at(service, 80)); got != netip.MustParseAddrPort(at(service, 80)) {
				t.Errorf("asked %s, %v answered", service, got)
			}
		}
		_, translated := n.flow(podA, c.LocalAddr(), at(service, 80), 17)
		given[!translated]++
	}
	if given[true] != 2 || given[false] != 3 { // beside slow and near
		t.Errorf("the socket was given backends of %d services, and those of %d translated", given[true], given[false])
	}
	n.hearsAll(c, slow, server)
}

// hearsAll asks the slow service again, last.
func (n *realNode) hearsAll(c *net.UDPConn, slow string, server *net.UDPConn) {
	n.Helper()
	n.says(c, "again", at(slow, 80))
	b := make([]byte, 100)
	size, client, err := server.ReadFromUDPAddrPort(b)
	n.must(err)
	_, err = server.WriteToUDPAddrPort(b[:size], client)
	n.must(err)
	n.hears(c, "again", at(slow, 80))
}

// A socket that is not connected stays with a backend that has answered while its path is silent,
// and hears the service when packets have found another one.
func TestDatagramsOfAPodsSocketStay(t *testing.T) { families(t, testDatagramsOfAPodsSocketStay) }

func testDatagramsOfAPodsSocketStay(t *testing.T) {
	n := newSocketNode(t)
	c := n.open(podA)
	ask := func() string {
		t.Helper()
		n.says(c, "question", at(far, 80))
		_, pod := n.leaves(17)
		return pod
	}
	answer := func(pod string) {
		t.Helper()
		n.lane.send(ip(pod, podA, udp(8080, portOf(c)).says("answer")))
		n.hears(c, "answer", at(far, 80))
	}
	first := ask()
	answer(first)
	n.path(first, PathSilent)
	for range 8 {
		if got := ask(); got != first {
			t.Fatal("it moves while the path is only silent")
		}
	}
	answer(first)
	n.path(first, PathDead)
	if got := ask(); got != other(first) {
		t.Fatal("it does not move although the path is dead")
	}
	answer(other(first))
	n.path(first, PathAlive)
	if got := ask(); got != other(first) {
		t.Error("it moves back")
	}
	answer(other(first))
}

// What moves on to another backend is named by the service in events, not by the backend before.
func TestEventsNameTheServiceOfWhatMoves(t *testing.T) {
	families(t, testEventsNameTheServiceOfWhatMoves)
}

func testEventsNameTheServiceOfWhatMoves(t *testing.T) {
	n := newSocketNode(t)
	events := n.watch()
	c := n.udp(podA, at(far, 80))
	ask := func() string {
		t.Helper()
		if _, err := io.WriteString(c, "question"); err != nil {
			t.Fatal(err)
		}
		_, pod := n.leaves(17)
		return pod
	}
	first := ask()
	n.path(first, PathDead)
	second := ask()
	n.await(events, "the flow that moved", func(e Event) bool {
		if e.Proto != 17 || e.Dst != addr(second) {
			return false
		}
		if e.Service != addr(far) || e.ServicePort.Number() != 80 || e.Dport.Number() != 8080 {
			t.Errorf("event %+v, want service %v", e, addr(far))
		}
		return true
	})
	// A reason that comes later knows the new backend, and no service rather than a wrong one.
	set(t, n.d.Maps().Sets, SetKey{Gen: 1, Set: 7}, SetInfo{Enforced: [2]uint8{1, 0}})
	ep, _, _ := n.d.Maps().Endpoints.Lookup(addr(podA))
	ep.Set = 7
	set(t, n.d.Maps().Endpoints, addr(podA), ep)
	n.changed()
	if _, err := io.WriteString(c, "question"); err != nil {
		t.Fatal(err)
	}
	n.await(events, "the denied packet", func(e Event) bool {
		if e.Reason != ReasonPolicyDenied || e.Proto != 17 {
			return false
		}
		if e.Service != (Addr{}) || e.Dst != addr(second) {
			t.Errorf("event %+v, want the backend %v alone", e, addr(second))
		}
		return true
	})
}

// Who was given a backend of a service that is gone has no right to it: it is refused, as if it had
// asked the service.
func TestAPodsSocketEndsWithItsService(t *testing.T) { families(t, testAPodsSocketEndsWithItsService) }

func testAPodsSocketEndsWithItsService(t *testing.T) {
	n := newSocketNode(t)
	events := n.watch()
	c := n.udp(podA, at(far, 80))
	ask := func() {
		t.Helper()
		if _, err := io.WriteString(c, "question"); err != nil {
			t.Fatal(err)
		}
	}
	ask()
	_, pod := n.leaves(17)
	unset(t, n.d.Maps().Services, front(far, 17))
	for _, pod := range []string{podC, podD} {
		unset(t, n.d.Maps().Members, MemberKey{Service: 81, Addr: addr(pod), Port: PortOf(8080)})
	}
	n.changed()
	ask()
	n.must(c.SetReadDeadline(time.Now().Add(30 * time.Second)))
	if _, err := c.Read(make([]byte, 10)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("read ended with %v, want a refusal", err)
	}
	n.await(events, "the refusal", func(e Event) bool {
		return e.Type == EventRefused && e.Reason == ReasonNoBackend && e.Service == addr(far) && e.ServicePort.Number() == 80 && e.Dst == addr(pod)
	})
	if f, ok := n.flow(podA, c.LocalAddr(), at(pod, 8080), 17); ok {
		t.Errorf("the flow with the backend goes on: %+v", f)
	}
}

// A service that is made again, at the same address, is the one that a socket goes on asking.
func TestAPodsSocketAsksTheServiceThatIsThere(t *testing.T) {
	families(t, testAPodsSocketAsksTheServiceThatIsThere)
}

func testAPodsSocketAsksTheServiceThatIsThere(t *testing.T) {
	n := newSocketNode(t)
	const service = "10.101.0.90"
	n.offer(90, service, 8090)
	n.serve(podB, 8090)
	connected, loose := n.udp(podA, at(service, 80)), n.open(podA)
	n.echoes(connected)
	n.asks(loose, at(service, 80))
	n.withdraw(90, 8090)
	n.offer(91, service, 8090)
	n.changed()
	n.echoes(connected)
	if got := n.asks(loose, at(service, 80)); got != netip.MustParseAddrPort(at(service, 80)) {
		t.Errorf("%v answered", got)
	}
	for _, c := range []*net.UDPConn{connected, loose} {
		if f, ok := n.flow(podA, c.LocalAddr(), at(podB, 8090), 17); !ok || f.Flags&(FlowMember|FlowTranslated) != FlowMember || f.Service != 91 {
			t.Errorf("flow with the backend: %v, %+v", ok, f)
		}
	}
}

// A socket stays where its datagrams went when sockets of its pod begin to be given backends, or no
// longer are.
func TestDatagramsStayWhenSocketsAreGivenBackends(t *testing.T) {
	families(t, testDatagramsStayWhenSocketsAreGivenBackends)
}

func testDatagramsStayWhenSocketsAreGivenBackends(t *testing.T) {
	n := newSocketNode(t)
	ask := func(c *net.UDPConn) string {
		t.Helper()
		n.says(c, "question", at(far, 80))
		_, pod := n.leaves(17)
		n.lane.send(ip(pod, podA, udp(8080, portOf(c)).says("answer")))
		n.hears(c, "answer", at(far, 80))
		return pod
	}
	leave := func() { unset(t, n.d.Maps().Namespaces, n.cookie(podA)) }
	leave()
	old := map[*net.UDPConn]string{}
	for range 8 {
		c := n.open(podA)
		old[c] = ask(c)
	}
	n.giveBackends(podA)
	for c, pod := range old {
		for range 2 {
			if got := ask(c); got != pod {
				t.Errorf("it went to %s, and now to %s", pod, got)
			}
		}
		n.translated(podA, c.LocalAddr(), at(far, 80), 17)
	}
	c := n.open(podA)
	pod := ask(c)
	leave()
	for range 2 {
		if got := ask(c); got != pod {
			t.Errorf("it went to %s, and now to %s", pod, got)
		}
	}
	if f, ok := n.flow(podA, c.LocalAddr(), at(far, 80), 17); ok {
		t.Errorf("its packets are translated: %+v", f)
	}
}

// A backend that a socket asks itself, too, answers as what was asked.
func TestAPodsSocketAsksAServiceAndItsBackend(t *testing.T) {
	families(t, testAPodsSocketAsksAServiceAndItsBackend)
}

func testAPodsSocketAsksAServiceAndItsBackend(t *testing.T) {
	n := newSocketNode(t)
	n.serve(podB, 8080)
	c := n.open(podA)
	for range 3 {
		for _, to := range []string{at(near, 80), at(podB, 8080)} {
			if got := n.asks(c, to); got != netip.MustParseAddrPort(to) {
				t.Errorf("asked %s, %v answered", to, got)
			}
		}
	}
	for _, to := range []string{at(near, 80), at(podB, 8080)} { // before either is answered
		n.says(c, to, to)
	}
	heard := map[string]bool{}
	for range 2 {
		b := make([]byte, 100)
		n.must(c.SetReadDeadline(time.Now().Add(30 * time.Second)))
		size, from, err := c.ReadFromUDPAddrPort(b)
		n.must(err)
		if got := netip.AddrPortFrom(from.Addr().Unmap(), from.Port()).String(); got != string(b[:size]) {
			t.Errorf("asked %s, %s answered", b[:size], got)
		}
		heard[string(b[:size])] = true
	}
	if len(heard) != 2 {
		t.Errorf("heard %v", heard)
	}
	// A pod that asks itself through a service, from one socket.
	self := n.open(podB)
	for range 2 {
		if got := n.asks(self, at(near, 80)); got != netip.MustParseAddrPort(at(near, 80)) {
			t.Errorf("%v answered the pod itself", got)
		}
	}
}

// A flow with a backend that a socket was given knows its service also when it stands beside the
// answers of another one.
func TestAFlowBesideKnowsItsService(t *testing.T) { families(t, testAFlowBesideKnowsItsService) }

func testAFlowBesideKnowsItsService(t *testing.T) {
	n := newSocketNode(t)
	events := n.watch()
	const second = "10.101.0.82"
	n.offer(82, second, 8080)
	n.serve(podB, 8080)
	c := n.open(podA)
	ask := func(service string) {
		t.Helper()
		if got := n.asks(c, at(service, 80)); got != netip.MustParseAddrPort(at(service, 80)) {
			t.Errorf("asked %s, %v answered", service, got)
		}
	}
	ask(second)
	clearer(n.d.Maps().Flows)(t) // idle for too long
	// Packets find near's backend, and claim its answers at the socket's own port.
	unset(t, n.d.Maps().Namespaces, n.cookie(podA))
	ask(near)
	n.translated(podA, c.LocalAddr(), at(near, 80), 17)
	ask(second)
	ask(near)
	key := FlowKey{Local: addr(podA), Remote: addr(podB), Lport: PortOf(portOf(c)), Rport: PortOf(8080), Proto: 17, Beside: 1}
	f, ok, err := n.d.Maps().Flows.Lookup(key)
	n.must(err)
	if !ok || f.Flags&(FlowMember|FlowDirect|FlowService) != FlowMember|FlowDirect || f.Service != 82 {
		t.Errorf("the flow beside: %v, %+v", ok, f)
	}
	n.withdraw(82, 8080)
	n.says(c, "anybody?", at(second, 80))
	n.await(events, "the refusal", func(e Event) bool {
		return e.Type == EventRefused && e.Reason == ReasonNoBackend && e.Service == addr(second) && e.Dst == addr(podB)
	})
	ask(near)
}

// The programs that turn backends into services again are attached before those that give
// backends.
func TestWhatTurnsBackComesFirst(t *testing.T) {
	n := newNode(t)
	for _, hook := range []string{"connect4", "connect6", "sendmsg4", "sendmsg6"} {
		n.sockets[hook].Close()
	}
	if err := n.AttachSockets(ownCgroup(t)); err == nil || !strings.Contains(err.Error(), "connect4") {
		t.Fatalf("attached programs that are closed: %v", err)
	}
	pins, err := filepath.Glob(filepath.Join(n.config.PinDir, socketPin("*")))
	if err != nil {
		t.Fatal(err)
	}
	for i, pin := range pins {
		pins[i] = strings.TrimPrefix(filepath.Base(pin), socketPin(""))
	}
	slices.Sort(pins)
	if want := []string{"getpeername4", "getpeername6", "recvmsg4", "recvmsg6"}; !slices.Equal(pins, want) {
		t.Errorf("attached %v first, want %v", pins, want)
	}
}
