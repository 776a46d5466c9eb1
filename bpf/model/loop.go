package model

import (
	"net/netip"

	"github.com/weft-mesh/weft/bpf"
)

// openLoop opens both sides of a pod that reaches itself through a service:
//
//	client side           server side
//	pod:c → vip:v   ──►   vip:c → pod:b
//	vip:v → pod:c   ◄──   pod:b → vip:c
//
// Nobody else is involved, so no policy is asked.
func (n *Node) openLoop(f *Flow) (*Flow, verdict) {
	f.Loop, f.Via = true, bpf.ViaPod
	server := func(port uint16) Key {
		return Key{f.Inside.Local, f.Inside.Peer, f.To.Port(), port, f.Inside.Proto}
	}
	why := n.claim(f, func(port uint16) bool { return server(port) != f.Inside && n.free(server(port)) })
	if why != 0 {
		return nil, verdict{why: why}
	}
	k := server(f.As)
	s := &Flow{
		Inside: k, To: netip.AddrPortFrom(k.Peer, k.PeerPort), As: k.Port, ByPeer: true, Loop: true, Service: f.Service, client: f.Inside,
		Via: f.Via, Device: f.Device, Owner: f.Owner, Seen: f.Seen,
	}
	f.client = f.Inside
	n.flows.add(f)
	n.flows.add(s)
	return f, verdict{}
}

// turn sends what a pod says to itself back to it, as the other side.
func (n *Node) turn(f *Flow, p *Packet) Outcome {
	from, to := netip.AddrPortFrom(f.Inside.Peer, f.As), netip.AddrPortFrom(f.Inside.Local, f.To.Port())
	other := Key{f.Inside.Local, f.Inside.Peer, to.Port(), from.Port(), f.Inside.Proto}
	if f.ByPeer {
		from, to = netip.AddrPortFrom(f.client.Peer, f.client.PeerPort), netip.AddrPortFrom(f.Inside.Local, f.client.Port)
		other = f.client
	}
	o := n.flows.inside[other]
	if o == nil {
		return drop(bpf.ReasonInvalid, bpf.Egress)
	}
	n.advance(o, p, bpf.Ingress, false)
	if why := p.rewrite(destination, to); why != 0 {
		return drop(why, bpf.Egress)
	}
	if why := p.rewrite(source, from); why != 0 {
		return drop(why, bpf.Egress)
	}
	pod := n.Pods[to.Addr()]
	if pod == nil {
		return drop(bpf.ReasonNoEndpoint, bpf.Egress)
	}
	return handOver(p, pod, false)
}
