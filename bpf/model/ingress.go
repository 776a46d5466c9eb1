package model

import (
	"net/netip"

	"github.com/weft-mesh/weft/bpf"
)

// origin is where a packet for a pod comes from.
type origin struct {
	via     bpf.Via
	host    bool // this node itself sent it
	byStack bool // it is on its way into the pod already
}

// ToPod is what the node's stack sends to a pod; forwarded if somebody else sent it.
func (n *Node) ToPod(device int, forwarded bool, frame []byte) Outcome {
	p, why := n.read(frame, 0)
	switch {
	case why == bpf.ReasonNotOurs:
		return pass(p, why, bpf.Ingress)
	case why != 0:
		return drop(why, bpf.Ingress)
	case !n.Ready:
		return drop(bpf.ReasonNotReady, bpf.Ingress)
	}
	pod := n.Pods[p.Dst]
	if pod == nil || pod.Device != device {
		return drop(bpf.ReasonNoEndpoint, bpf.Ingress)
	}
	if forwarded {
		if why := inTheClear(n.who(p.Src)); why != 0 {
			return drop(why, bpf.Ingress)
		}
	}
	return n.arrive(p, pod, origin{via: bpf.ViaStack, host: !forwarded, byStack: true})
}

// FromTunnel is what comes out of a lane.
func (n *Node) FromTunnel(frame []byte) Outcome {
	p, why := n.read(frame, 0)
	switch {
	case why == bpf.ReasonNotOurs: // nobody keeps a link there
		return drop(bpf.ReasonNotSupported, bpf.Ingress)
	case why != 0:
		return drop(why, bpf.Ingress)
	case !n.Ready:
		return drop(bpf.ReasonNotReady, bpf.Ingress)
	}
	if pod := n.Pods[p.Dst]; pod != nil {
		return n.arrive(p, pod, origin{via: bpf.ViaTunnel})
	}
	switch {
	case n.own(p.Dst):
		if why := n.accepts(p); why != 0 {
			return drop(why, bpf.Ingress)
		}
		return pass(p, bpf.ReasonToStack, bpf.Ingress)
	case n.isIngress(p.Dst):
		return n.toClient(p)
	}
	if why := n.reachesProcess(p); why != 0 {
		return drop(why, bpf.Ingress)
	}
	return pass(p, bpf.ReasonToStack, bpf.Ingress)
}

// arrive is a packet for a pod, from anywhere but next door.
func (n *Node) arrive(p *Packet, pod *Pod, from origin) Outcome {
	if p.TTL <= 1 && !from.byStack {
		return drop(bpf.ReasonTTLExceeded, bpf.Ingress)
	}
	return n.deliver(p, pod, from)
}

// deliver delivers a packet to a pod if its policy allows it.
func (n *Node) deliver(p *Packet, pod *Pod, from origin) Outcome {
	if pod.Held {
		return drop(bpf.ReasonHeld, bpf.Ingress)
	}
	if p.err {
		if why := n.errorForPod(p, from); why.why != 0 {
			return dropBy(why, bpf.Ingress)
		}
		return handOver(p, pod, from.byStack)
	}
	key := p.receivedKey()
	f := n.flows.received(key)
	begins := f == nil || n.over(f, p)
	if !begins {
		switch again, v := n.judgeAgain(f); {
		case again == renewed:
			begins = true
		case again == denied:
			n.tried(f, v.why)
			return dropBy(v, f.direction())
		case f.Via != from.via: // its packets come from nowhere else
			return drop(bpf.ReasonSpoofedSource, bpf.Ingress)
		}
	}
	if begins {
		if f != nil {
			n.flows.remove(f)
		}
		f, v := n.openForPod(p, pod, key, from)
		if v.why != 0 {
			return dropBy(v, bpf.Ingress)
		}
		n.flows.add(f)
		return handOver(p, pod, from.byStack)
	}
	n.advance(f, p, bpf.Ingress, false)
	if key == f.Outside() && f.Translated() {
		if f.Inside.Port != p.Dport {
			if why := p.rewrite(destination, netip.AddrPortFrom(p.Dst, f.Inside.Port)); why != 0 {
				return drop(why, bpf.Ingress)
			}
		}
		if why := p.rewrite(source, netip.AddrPortFrom(f.Inside.Peer, f.Inside.PeerPort)); why != 0 {
			return drop(why, bpf.Ingress)
		}
	}
	return handOver(p, pod, from.byStack)
}

// openForPod opens a flow for what a pod is sent.
func (n *Node) openForPod(p *Packet, pod *Pod, key Key, from origin) (*Flow, verdict) {
	no := func(why bpf.Reason) (*Flow, verdict) { return nil, verdict{why: why} }
	if p.unasked() {
		return no(bpf.ReasonInvalid)
	}
	at := place{}
	switch {
	case from.host:
		at.identity = host
	case from.via == bpf.ViaPod:
		at, _ = n.locate(p.Src)
	default:
		at = n.who(p.Src)
	}
	if from.via == bpf.ViaTunnel && !at.member { // only members send through tunnels
		return no(bpf.ReasonSpoofedSource)
	}
	if from.via == bpf.ViaStack && !from.host {
		if why := inTheClear(at); why != 0 {
			return no(why)
		}
	}
	v := verdict{}
	if !from.host { // the node reaches its pods whatever their policy
		port := key.Port
		if p.icmp() {
			port = p.Dport
		}
		if v = n.judge(pod.Set, bpf.Ingress, at.identity, p.Proto, port); v.why != 0 {
			return nil, v
		}
	}
	if !n.free(key) {
		return no(bpf.ReasonFlowClash)
	}
	f := &Flow{
		Inside: key, To: netip.AddrPortFrom(key.Peer, key.PeerPort), As: key.Port, ByPeer: true, Identity: at.identity, Rule: v.rule,
		Node: at.node, Cluster: at.cluster, Via: from.via, Device: pod.Device, Owner: Owned{Device: p.charged(pod, from)}, Seen: n.Now,
	}
	f.said[bpf.Ingress] = numbers{p.Seq, p.Ack}
	f.Fin[bpf.Ingress] = p.Proto == tcp && p.Flags&fin != 0
	n.stamp(f)
	return f, v
}

// charged is the device whose share a flow takes that somebody opens with a pod: the sender's
// if that is a pod of this node, otherwise the receiver's, and the node's own for what it opens.
func (p *Packet) charged(pod *Pod, from origin) int {
	switch {
	case from.host:
		return 0
	case from.via == bpf.ViaPod:
		return p.from.device
	}
	return pod.Device
}
