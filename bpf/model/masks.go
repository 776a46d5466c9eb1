package model

import (
	"net/netip"
	"slices"

	"github.com/weft-mesh/weft/bpf"
)

// mask is a connection that has another address or port beyond this node than before it. As for
// flows, no two have the same key on either side.
//
//	a pod's:       pod → world             ──►  node → world
//	a node port's: backend → client        ──►  node port → client, and back
//	a client's:    client → backend        ──►  ingress address → backend, elsewhere
type mask struct {
	kind bpf.MasqueradeKind
	out  Key // of what is sent out; Local is whoever sends
	in   Key // of what comes back; Local is what stands for that
}

type masks struct{ out, in map[Key]*mask }

func newMasks() masks { return masks{map[Key]*mask{}, map[Key]*mask{}} }

func (m masks) add(x *mask) { m.out[x.out], m.in[x.in] = x, x }

func (m masks) remove(x *mask) {
	delete(m.out, x.out)
	delete(m.in, x.in)
}

// leaving is the mask of a kind by what is sent out.
func (m masks) leaving(k Key, kinds ...bpf.MasqueradeKind) *mask {
	if x := m.out[k]; x != nil && slices.Contains(kinds, x.kind) {
		return x
	}
	return nil
}

// coming is one by what comes back.
func (m masks) coming(k Key, kinds ...bpf.MasqueradeKind) *mask {
	if x := m.in[k]; x != nil && slices.Contains(kinds, x.kind) {
		return x
	}
	return nil
}

// plain is the flow with this key outside, if it is the same inside.
func (t table) plain(k Key) *Flow {
	if f := t.outside[k]; f != nil {
		if f.Translated() {
			return nil
		}
		return f
	}
	return t.inside[k]
}

// inUse tells whether the connection of a mask is alive.
func (n *Node) inUse(x *mask) bool {
	var f *Flow
	switch x.kind {
	case bpf.MasqueradePod:
		f = n.flows.received(x.out)
	case bpf.MasqueradeExposed:
		f = n.flows.plain(x.out)
		client := Key{x.out.Peer, x.out.Local, x.out.PeerPort, x.out.Port, x.out.Proto}
		if c := n.masks.leaving(client, bpf.MasqueradeClient); f == nil && c != nil { // the backend is elsewhere
			f = n.flows.plain(c.in)
		}
	case bpf.MasqueradeClient:
		f = n.flows.plain(x.in)
	}
	return f != nil && !n.expired(f)
}

// vacant tells whether no live connection has a key; one that is over gives way.
func (n *Node) vacant(k Key) bool {
	for _, x := range []*mask{n.masks.in[k], n.masks.out[k]} {
		if x == nil {
			continue
		}
		if n.inUse(x) {
			return false
		}
		n.masks.remove(x)
	}
	return true
}

func (k Key) local() netip.AddrPort { return netip.AddrPortFrom(k.Local, k.Port) }

// leaveAs gives what leaves the address and ports that its mask says.
func (p *Packet) leaveAs(x *mask) bpf.Reason {
	if x.in.PeerPort != x.out.PeerPort {
		if why := p.rewrite(destination, netip.AddrPortFrom(p.Dst, x.in.PeerPort)); why != 0 {
			return why
		}
	}
	return p.rewrite(source, x.in.local())
}

// masquerade lets what a pod sends to the world come from the node, if it has to.
func (n *Node) masquerade(p *Packet, pod *Pod) bpf.Reason {
	if p.err {
		return n.masqueradeError(p)
	}
	key := p.sentKey()
	if x := n.masks.leaving(key, bpf.MasqueradeExposed); x != nil {
		return p.leaveAs(x)
	}
	mine := n.Outside[family(p.Src)]
	if !mine.IsValid() {
		return 0
	}
	x := n.masks.out[key]
	if x != nil && x.in.Local == mine {
		return p.rewrite(source, x.in.local())
	}
	if slices.ContainsFunc(n.Native, func(p netip.Prefix) bool { return p.Contains(key.Peer) }) {
		return 0
	}
	// What the world opened, and what it has answered to the pod's own address, stays so.
	if f := n.flows.plain(key); f != nil && (f.ByPeer || x == nil && f.Replied) {
		return 0
	}
	if p.icmp() && p.sense == tells { // nobody answers it
		return p.rewrite(source, netip.AddrPortFrom(mine, p.Sport))
	}
	in := key
	in.Local = mine
	var why bpf.Reason
	if in.Port, why = n.drawPort(key, in, pod.ID); why != 0 {
		return why
	}
	n.masks.add(&mask{bpf.MasqueradePod, key, in})
	return p.rewrite(source, in.local())
}

// drawPort is a port of the node that is free towards a peer: one of those that belong to
// nobody, or of the pod's own few.
func (n *Node) drawPort(key, in Key, pod uint16) (uint16, bpf.Reason) {
	if n.First > n.Last {
		return 0, bpf.ReasonNoPort
	}
	count := uint16(n.Last - n.First + 1)
	few := count / 4 / 256
	common := count - few*256
	var hat []uint16
	for i := range count {
		if i < common || (i-common)/max(few, 1) == pod%256 {
			hat = append(hat, n.First+i)
		}
	}
	if key.Proto == sctp { // its checksum covers its ports
		hat = []uint16{key.Port}
	}
	free := func(port uint16) bool {
		in.Port = port
		x := n.masks.in[in]
		return x == nil || !n.inUse(x)
	}
	if !slices.ContainsFunc(hat, free) {
		return 0, bpf.ReasonNoPort
	}
	drawn, ok := n.Witness.Mask(key)
	if !ok || !slices.Contains(hat, drawn) || !free(drawn) {
		n.complain("%v leaves with port %d (known: %v), not a free one of %d to %d", key, drawn, ok, n.First, n.Last)
	}
	if in.Port = drawn; n.masks.in[in] != nil {
		n.masks.remove(n.masks.in[in])
	}
	return drawn, 0
}

// masqueradeError is a pod's error about what the world sent it: that was sent to the node.
func (n *Node) masqueradeError(p *Packet) bpf.Reason {
	q, ok := p.readQuote()
	if !ok {
		return bpf.ReasonInvalid
	}
	x := n.masks.leaving(q.receivedKey(), bpf.MasqueradePod, bpf.MasqueradeExposed)
	if x == nil {
		return 0
	}
	if x.in.PeerPort != x.out.PeerPort {
		p.restore(&q, source, netip.AddrPortFrom(q.src, x.in.PeerPort))
	}
	p.restore(&q, destination, x.in.local())
	return p.rewrite(source, netip.AddrPortFrom(x.in.Local, 0))
}

// unmasquerade turns what the world answers to the node into an answer to the pod that asked.
func (n *Node) unmasquerade(p *Packet) bpf.Reason {
	if p.err {
		return n.unmasqueradeError(p)
	}
	mine := n.Outside[family(p.Src)]
	if !mine.IsValid() || p.Dst != mine || p.opens() { // the world opens connections to the node
		return 0
	}
	if x := n.masks.coming(p.receivedKey(), bpf.MasqueradePod); x != nil {
		return p.rewrite(destination, x.out.local())
	}
	return 0
}

// unmasqueradeError is an error about what a pod, or a node port, sent to the world.
func (n *Node) unmasqueradeError(p *Packet) bpf.Reason {
	q, ok := p.readQuote()
	if !ok || p.Dst != q.src {
		return 0 // the node will know
	}
	x := n.masks.coming(q.sentKey(), bpf.MasqueradePod, bpf.MasqueradeExposed)
	if x == nil {
		return 0
	}
	if x.in.PeerPort != x.out.PeerPort {
		p.restore(&q, destination, netip.AddrPortFrom(q.dst, x.out.PeerPort))
	}
	p.restore(&q, source, x.out.local())
	if why := p.rewrite(destination, netip.AddrPortFrom(x.out.Local, 0)); why != 0 || x.kind == bpf.MasqueradePod {
		return why
	}
	// A backend elsewhere saw the ingress address instead of the client.
	client := Key{x.out.Peer, x.out.Local, x.out.PeerPort, x.out.Port, x.out.Proto}
	if c := n.masks.leaving(client, bpf.MasqueradeClient); c != nil {
		p.restore(&q, destination, c.in.local())
		return p.rewrite(source, netip.AddrPortFrom(c.in.Local, 0))
	}
	return 0
}

// toClient is a backend's answer to the ingress address.
func (n *Node) toClient(p *Packet) Outcome {
	key, q, ok := p.receivedKey(), quote{}, true
	if p.err {
		if q, ok = p.readQuote(); !ok || q.src != p.Dst {
			return drop(bpf.ReasonInvalid, bpf.Ingress)
		}
		key = q.sentKey()
	}
	f, x := n.flows.plain(key), n.masks.coming(key, bpf.MasqueradeClient)
	if f == nil || n.over(f, p) || x == nil {
		return drop(bpf.ReasonNodeClosed, bpf.Ingress)
	}
	client := x.out.local()
	if p.err {
		if n.who(p.Src).cluster != f.Cluster {
			return drop(bpf.ReasonSpoofedSource, bpf.Ingress)
		}
		p.restore(&q, source, client)
		client = netip.AddrPortFrom(client.Addr(), 0)
	} else {
		n.advance(f, p, bpf.Ingress, false)
	}
	if why := p.rewrite(destination, client); why != 0 {
		return drop(why, bpf.Ingress)
	}
	return pass(p, bpf.ReasonToStack, bpf.Ingress)
}

// MaskRow is one of the two rows of a mask, as it is in table masquerades.
type MaskRow struct {
	Kind   bpf.MasqueradeKind
	Answer bool
	To     netip.AddrPort
	Other  uint16 // the other row's port of the client, if it is another
}

// MaskRows are all of them, by their keys.
func (n *Node) MaskRows() map[Key]MaskRow {
	rows := map[Key]MaskRow{}
	for _, x := range n.masks.out {
		out, in := MaskRow{x.kind, false, x.in.local(), 0}, MaskRow{x.kind, true, x.out.local(), 0}
		if x.in.PeerPort != x.out.PeerPort {
			out.Other, in.Other = x.in.PeerPort, x.out.PeerPort
		}
		rows[x.out], rows[x.in] = out, in
	}
	return rows
}
