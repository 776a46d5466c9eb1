package bpf

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

// A socket of a pod is given a process of another node as a service's backend: its packets go there
// through the tunnel, and the connection ends when nothing of the node's is offered there.
func TestSocketsOfPodsReachProcessesOfNodes(t *testing.T) {
	n := newSocketNode(t)
	m := n.d.Maps()
	offered := offerKey(otherNode, 6, 6443)
	set(t, m.Nodes, 2, Node{Path: PathAlive, Keyed: 1, Cluster: 1, Lane: 1})
	set(t, m.IPs, addr(otherNode), IPInfo{Identity: 6, Flags: IPNode, Node: 2})
	set(t, m.Services, front(apiServer, 6), Service{ID: 82, Groups: 1, Group: [MaxGroups]Group{{Cluster: 1, Weight: 1, Count: 1}}})
	set(t, m.Backends, SlotKey{Service: 82, Cluster: 1}, Backend{Addr: addr(otherNode), Port: PortOf(6443)})
	set(t, m.Members, memberAt(82, otherNode), Member{})
	set(t, m.Services, offered, Service{ID: 500})
	events := n.watch()

	type result struct {
		c   net.Conn
		err error
	}
	dialled := make(chan result, 1)
	go func() {
		c, err := n.dial(podA, at(apiServer, 80), 30*time.Second)
		dialled <- result{c, err}
	}()
	var syn []byte
	for syn == nil {
		p := n.lane.receive()
		if got := net.IP(p[16:20]).String(); p[9] == 6 && got == otherNode {
			syn = p[headerLen(p):]
		}
	}
	if port := binary.BigEndian.Uint16(syn[2:]); port != 6443 {
		t.Errorf("the first packet is for port %d", port)
	}
	n.lane.send(ip(otherNode, podA, tcp(6443, be16(syn), "SA").at(5000, binary.BigEndian.Uint32(syn[4:])+1)))
	r := <-dialled
	n.must(r.err)
	if got := r.c.RemoteAddr().String(); got != at(apiServer, 80) {
		t.Errorf("connected to %s", got)
	}
	f, ok := n.flow(podA, r.c.LocalAddr(), at(otherNode, 6443), 6)
	if !ok || f.Flags&(FlowMember|FlowTranslated) != FlowMember || f.Service != 82 || f.Node != 2 || f.Via != ViaTunnel || f.Cluster != 0 || f.Identity != 6 {
		t.Errorf("flow with the process: %v, %+v", ok, f)
	}
	n.await(events, "the connection", func(e Event) bool {
		return e.Type == EventNewFlow && e.Service == addr(apiServer) && e.Dst == addr(otherNode) && e.Dport.Number() == 6443 && e.DstIdentity == 6
	})

	// The service has it no more, but another one may: it stays.
	unset(t, m.Members, memberAt(82, otherNode))
	n.changed()
	for more := true; more; {
		_, more = n.lane.next(50 * time.Millisecond)
	}
	if _, err := io.WriteString(r.c, "still there?"); err != nil {
		t.Fatal(err)
	}
	if p := n.lane.receive(); p[9] != 6 || net.IP(p[16:20]).String() != otherNode {
		t.Errorf("an open connection sends %x", p)
	}
	unset(t, m.Services, offered)
	n.changed()
	if _, err := io.WriteString(r.c, "and now?"); err != nil {
		t.Fatal(err)
	}
	n.must(r.c.SetReadDeadline(time.Now().Add(30 * time.Second)))
	if _, err := r.c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read ended with %v, want a reset", err)
	}

	// A new one finds nobody: the packets say so.
	set(t, m.Services, front(apiServer, 6), Service{ID: 82})
	if _, err := n.dial(podA, at(apiServer, 80), 30*time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("without a backend: %v", err)
	}
}
