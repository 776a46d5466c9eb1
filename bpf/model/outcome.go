package model

import (
	"fmt"

	"github.com/weft-mesh/weft/bpf"
)

// Verdict is what becomes of a frame.
type Verdict int

const (
	Pass Verdict = iota
	Drop
	Redirect // out of a device
	Into     // the pod behind a device
)

func (v Verdict) String() string { return []string{"pass", "drop", "redirect", "into"}[v] }

// Outcome is what a program does with a frame.
type Outcome struct {
	Verdict Verdict
	Device  int // of Redirect and Into
	Reason  bpf.Reason
	Dir     bpf.Direction // it is counted in
	Frame   []byte        // as it leaves; nil if it does not
	Event   bpf.EventType // that is reported; 0: none
	Rule    uint32        // of a drop by policy
}

func (o Outcome) String() string {
	s := fmt.Sprintf("%v (%v), %v", o.Reason, o.Dir, o.Verdict)
	if o.Device != 0 {
		s += fmt.Sprintf(" %d", o.Device)
	}
	if o.Event != 0 {
		s += fmt.Sprintf(", event %d", o.Event)
	}
	if o.Rule != 0 {
		s += fmt.Sprintf(", rule %d", o.Rule)
	}
	return s
}

// complain notes that the kernel drew what it may not.
func (n *Node) complain(format string, args ...any) {
	n.complaints = append(n.complaints, fmt.Sprintf(format, args...))
}

// Complaints are since the last call.
func (n *Node) Complaints() []string {
	c := n.complaints
	n.complaints = nil
	return c
}

func pass(p *Packet, why bpf.Reason, dir bpf.Direction) Outcome {
	return Outcome{Reason: why, Dir: dir, Frame: p.Frame}
}

func drop(why bpf.Reason, dir bpf.Direction) Outcome {
	return Outcome{Verdict: Drop, Reason: why, Dir: dir, Event: bpf.EventDrop}
}

// dropBy is a drop by a policy.
func dropBy(v verdict, dir bpf.Direction) Outcome {
	o := drop(v.why, dir)
	if v.why == bpf.ReasonPolicyDenied || v.why == bpf.ReasonUnknownMember {
		o.Rule = v.rule
	}
	return o
}

// tunnel sends a packet to a node.
func (n *Node) tunnel(p *Packet, node uint16) Outcome {
	lane := n.lane(node)
	if lane == 0 {
		return drop(bpf.ReasonNoTunnel, bpf.Egress)
	}
	return Outcome{Verdict: Redirect, Device: lane, Reason: bpf.ReasonTunnelled, Frame: p.Frame}
}

// handOver sends a packet into a pod: the mesh counts as one hop, which ends here. What the
// stack sends is on its way there already.
func handOver(p *Packet, pod *Pod, byStack bool) Outcome {
	if byStack {
		return pass(p, bpf.ReasonDelivered, bpf.Ingress)
	}
	copy(p.Frame, pod.MAC[:])
	copy(p.Frame[6:], pod.Host[:])
	p.Frame[12], p.Frame[13] = 8, 0
	if p.ipv6() {
		p.Frame[12], p.Frame[13] = 0x86, 0xdd
	}
	p.hop()
	return Outcome{Verdict: Into, Device: pod.Device, Reason: bpf.ReasonDelivered, Dir: bpf.Ingress, Frame: p.Frame}
}
