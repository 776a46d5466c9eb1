package model

import (
	"slices"

	"github.com/weft-mesh/weft/bpf"
)

// verdict is what a pod's policies say of a flow.
type verdict struct {
	why  bpf.Reason // 0: allowed
	rule uint32
}

// judge asks the policies that select a pod about a flow with somebody. Port is the type of
// ICMP. The most specific rule decides: one about the class of the other side before one about
// everybody, and of those, one with a port before one with a protocol before one with neither.
func (n *Node) judge(set uint32, dir bpf.Direction, identity uint32, proto uint8, port uint16) verdict {
	if set == 0 {
		return verdict{}
	}
	s := n.Sets[set]
	if s == nil {
		return verdict{why: bpf.ReasonNoPolicy}
	}
	var best *Rule
	for i := range s.Rules {
		r := &s.Rules[i]
		if r.Dir == dir && (r.Class == bpf.AnyClass || r.Class == n.Class[identity]) && (r.Proto == 0 || r.Proto == proto) &&
			(len(r.Ports) == 0 || slices.Contains(r.Ports, port)) && (best == nil || r.weight() > best.weight()) {
			best = r
		}
	}
	switch {
	case best != nil && best.Deny:
		return verdict{bpf.ReasonPolicyDenied, best.ID}
	case best != nil:
		return verdict{rule: best.ID}
	case !s.Enforced[dir]:
		return verdict{}
	case identity == unknownMember:
		return verdict{why: bpf.ReasonUnknownMember}
	}
	return verdict{why: bpf.ReasonPolicyDenied}
}

// weight orders rules by how much they say.
func (r *Rule) weight() (w int) {
	if r.Class != bpf.AnyClass {
		w += 4
	}
	if r.Proto != 0 {
		w++
	}
	if len(r.Ports) > 0 {
		w++
	}
	return w
}
