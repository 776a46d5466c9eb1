package model

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/weft-mesh/weft/bpf"
)

// Key is a connection from one side: of a pod, or of the node. For ICMP, Port is the
// identifier, and PeerPort the type of the request, with askedByPeer if that came from there.
type Key struct {
	Local, Peer    netip.Addr
	Port, PeerPort uint16
	Proto          uint8
}

const askedByPeer = 256

// Flow is a connection. It has two sides: inside, as its pod sees it, and outside, as the
// other end does. They differ if a service or another source port is in between.
type Flow struct {
	Inside Key
	To     netip.AddrPort // where the other end really is
	As     uint16         // our port, to it

	Service  uint32  // 0: none
	ByPeer   bool    // the other side began: ingress policy judges it
	Replied  bool    // both sides have spoken
	Fin      [2]bool // by bpf.Direction
	Reset    bool
	Loop     bool // a pod with itself
	Waiting  bool // for its node to be known again
	Identity uint32
	Rule     uint32
	Node     uint16
	Cluster  uint16
	Via      bpf.Via
	Device   int // of its pod; 0: the node's own
	Owner    Owned
	Seen     time.Duration

	client  Key            // of a loop: its client side
	verdict map[any]uint64 // what it rests on, as it was
	said    [2]numbers     // TCP, by bpf.Direction
	again   uint32         // sequence number of a SYN within the connection
}

// Owned says who opened a flow.
type Owned struct {
	Device  int
	Clients bool // outside of the mesh
}

// Outside is the flow as the other side sees it, written from our end.
func (f *Flow) Outside() Key {
	return Key{f.Inside.Local, f.To.Addr(), f.As, f.To.Port(), f.Inside.Proto}
}

// Translated tells whether the two sides differ.
func (f *Flow) Translated() bool { return f.Inside != f.Outside() || f.Service != 0 }

// table is all flows. No two have the same inside, and no two the same outside.
type table struct {
	inside, outside map[Key]*Flow
}

func newTable() table { return table{map[Key]*Flow{}, map[Key]*Flow{}} }

// Flows are all there are.
func (n *Node) Flows() map[Key]*Flow { return n.flows.inside }

func (t table) add(f *Flow) {
	if t.inside[f.Inside] != nil || t.outside[f.Outside()] != nil {
		panic(fmt.Sprintf("two flows with one key: %+v", f))
	}
	t.inside[f.Inside], t.outside[f.Outside()] = f, f
}

func (t table) remove(f *Flow) {
	delete(t.inside, f.Inside)
	delete(t.outside, f.Outside())
}

// received finds the flow of what arrives. The inside is looked for as well: for its pod, a
// packet that begins there belongs to no other connection.
func (t table) received(k Key) *Flow {
	if f := t.outside[k]; f != nil {
		return f
	}
	return t.inside[k]
}

// sentKey is what a packet's sender sees.
func (p *Packet) sentKey() Key {
	k := Key{p.Src, p.Dst, p.Sport, p.Dport, p.Proto}
	if p.icmp() && p.sense == answers {
		k.PeerPort |= askedByPeer
	}
	return k
}

// receivedKey is what its receiver sees.
func (p *Packet) receivedKey() Key {
	if !p.icmp() {
		return Key{p.Dst, p.Src, p.Dport, p.Sport, p.Proto}
	}
	k := Key{p.Dst, p.Src, p.Sport, p.Dport, p.Proto}
	if p.sense != answers {
		k.PeerPort |= askedByPeer
	}
	return k
}

// ---- Age ----

func (f *Flow) closing() bool { return f.Reset || f.Fin[0] && f.Fin[1] }

func (f *Flow) lifetime() time.Duration {
	switch {
	case f.Inside.Proto != tcp:
		return bpf.NotTCP
	case f.closing():
		return bpf.TCPClosing
	case f.Replied:
		return bpf.TCPEstablished
	}
	return bpf.TCPOpening
}

func (n *Node) expired(f *Flow) bool { return n.Now-f.Seen > f.lifetime() }

// over tells whether a packet cannot belong to the flow any longer: it expired, or was closed
// and the packet opens a new connection.
func (n *Node) over(f *Flow, p *Packet) bool { return n.expired(f) || p.opens() && f.closing() }

// open tells whether its pod would notice the end.
func (f *Flow) open() bool { return f.Inside.Proto == tcp && f.Replied }

// heard tells whether the other side was heard a moment ago, although its path is dead: two
// nodes do not notice at once that it is back.
func (n *Node) heard(f *Flow) bool { return n.Now-f.Seen < 500*time.Millisecond }

// live tells whether a flow keeps others from its key. One in which its pod has never spoken
// does not: it may be a late answer, and would lock the pod out.
func (n *Node) live(f *Flow) bool {
	return f != nil && !f.closing() && !(f.ByPeer && !f.Replied && !f.Loop) && !n.expired(f)
}

// waits tells whether a flow with an unknown node waits for it: for a second, if it was
// answered.
func (n *Node) waits(f *Flow, p *Packet) bool {
	if !f.Replied || f.closing() || p.opens() {
		return false
	}
	if !f.Waiting {
		f.Waiting, f.Seen = true, n.Now
	}
	return n.Now-f.Seen < time.Second
}

// tried notes that somebody still tries, although the packet is dropped.
func (n *Node) tried(f *Flow, why bpf.Reason) {
	if why != bpf.ReasonNoTunnel || !f.Waiting {
		f.Seen = n.Now
	}
}

// advance notes that a packet passed. A silent one proves nothing about the other side.
func (n *Node) advance(f *Flow, p *Packet, dir bpf.Direction, silent bool) {
	replies := (dir == bpf.Egress) == f.ByPeer
	switch {
	case f.Inside.Proto == tcp && !p.later:
		f.follow(p, dir, replies)
	case replies:
		f.Replied = true
	}
	if !silent {
		f.Seen = n.Now
	}
}

// ---- What ends a TCP connection must belong to it ----

// numbers are the last ones of a side: its own, and the one that it expects.
type numbers struct{ seq, ack uint32 }

func (s numbers) known() bool { return s != numbers{} }

const (
	near  = 1 << 18
	ahead = 1 << 24
)

// within tells whether b is at most so far behind a, or ahead of it. Numbers wrap around.
func within(a, b uint32, behind, ahead int64) bool {
	d := int64(int32(b - a))
	return d >= -behind && d <= ahead
}

func (f *Flow) follow(p *Packet, dir bpf.Direction, replies bool) {
	own, other := &f.said[dir], &f.said[1-dir]
	now, acks := numbers{p.Seq, p.Ack}, p.Flags&ack != 0
	if p.opens() {
		switch {
		case !own.known() || !f.Replied:
			*own = now
			if !replies { // who opens may start over with other numbers
				*other = numbers{}
			}
		case !within(own.seq, p.Seq, near, near): // ports used again, or forged: the answer tells
			f.again = p.Seq
		}
		f.Replied = f.Replied || replies
		return
	}
	if p.Flags&syn != 0 && f.again != 0 && p.Ack == f.again+1 {
		*other, *own, f.again = numbers{seq: f.again}, now, 0
		f.Replied = f.Replied || replies
		return
	}
	expected := other.ack != 0 && within(other.ack, p.Seq, near, near)
	close, plausible := true, true
	switch {
	case own.known():
		close = expected || within(own.seq, p.Seq, near, near)
		plausible = expected || within(own.seq, p.Seq, near, ahead) && (!other.known() || within(other.seq, p.Ack, ahead, ahead))
	case other.known():
		close = expected || acks && within(other.seq, p.Ack, near, near)
		plausible = other.ack != 0 && within(other.ack, p.Seq, ahead, ahead) || acks && within(other.seq, p.Ack, ahead, ahead)
	}
	if p.Flags&rst != 0 { // its ack number may be anything
		if close {
			f.Reset, f.Replied = true, f.Replied || replies
		}
		return
	}
	if !plausible {
		return
	}
	f.Replied = f.Replied || replies
	f.Fin[dir] = f.Fin[dir] || p.Flags&fin != 0 && close
	if !own.known() || int32(p.Seq-own.seq) >= 0 || !within(own.seq, p.Seq, ahead, ahead) { // not backwards
		*own = now
	}
}

// ClientPort is that of the client side of a loop.
func (f *Flow) ClientPort() uint16 { return f.client.Port }
