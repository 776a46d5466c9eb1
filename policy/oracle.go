package policy

import (
	"net/netip"
	"slices"
	"strconv"

	"github.com/weft-mesh/weft/identity"
)

// Flow is a connection attempt, seen from the end whose policies are consulted.
type Flow struct {
	Subject   identity.Labels // the end whose policies are consulted
	Direction Direction       // as the subject sees it
	Peer      identity.Number // the other end
	Proto     uint8
	Port      uint16 // destination port, or the type for ICMP
}

// Judgement is a verdict with everything that led to it.
type Judgement struct {
	Allow    bool
	Selected []*Policy  // policies that select the subject
	Enforced bool       // one of them denies by default in this direction
	Allowing []RuleInfo // rules that would let the flow pass
	Denying  []RuleInfo // rules that forbid it; any one is decisive
}

// Selects reports whether the policy of a cluster applies to a pod with these labels.
func (p *Policy) Selects(cluster string, pod identity.Labels) bool {
	return slices.ContainsFunc(p.rules, func(r rule) bool { return r.subject.local(cluster).matches(pod) })
}

// Evaluate judges one flow by what the policies mean, rule by rule, with no table in
// between. It is slow, and the reference for Compile.
//
// A subject without default deny may do whatever no rule forbids. A peer of which
// nothing is known, neither in w nor reserved, is allowed only by rules that match
// everyone, and denied by every denial that could apply to it.
func Evaluate(w World, f Flow) Judgement {
	labels, known := w.Identities[f.Peer]
	if !known {
		labels = identity.ReservedLabels(f.Peer)
		known = labels != nil
	}
	if f.Peer == identity.UnknownMember {
		known = false
	}
	var out Judgement
	for _, p := range w.Policies {
		for n, r := range p.rules {
			if !r.subject.local(w.Cluster).matches(f.Subject) {
				continue
			}
			if !slices.Contains(out.Selected, p) {
				out.Selected = append(out.Selected, p)
			}
			out.Enforced = out.Enforced || r.enforced[f.Direction]
			for _, t := range r.terms[f.Direction] {
				if !t.meansPort(f, labels, known) || !t.meansPeer(w, f.Peer, labels, known) {
					continue
				}
				info := RuleInfo{Kind: p.Kind, Namespace: p.Namespace, Name: p.Name, Spec: n, List: t.list, Index: t.index, Deny: t.deny, Log: r.log}
				if t.deny {
					out.Denying = append(out.Denying, info)
				} else {
					out.Allowing = append(out.Allowing, info)
				}
			}
		}
	}
	out.Allow = len(out.Denying) == 0 && (len(out.Allowing) > 0 || !out.Enforced)
	return out
}

func (t term) meansPort(f Flow, peer identity.Labels, known bool) bool {
	if t.ports == nil {
		return true
	}
	return slices.ContainsFunc(t.ports, func(s portSpec) bool {
		if s.name == "" {
			return s.covers(f.Proto, f.Port)
		}
		if s.proto != f.Proto {
			return false
		}
		// The destination decides which port has the name.
		end := f.Subject
		if f.Direction == Egress {
			if !known {
				return t.deny
			}
			end = peer
		}
		value, _ := end.Get(identity.SourcePort, PortName{s.proto, s.name}.key())
		return value == strconv.Itoa(int(f.Port))
	})
}

func (t term) meansPeer(w World, n identity.Number, labels identity.Labels, known bool) bool {
	if t.any {
		return true
	}
	means := func(p peer) bool {
		if !known {
			return t.deny && p.mayMatch(n)
		}
		return p.local(w.Cluster).matches(n, labels)
	}
	return slices.ContainsFunc(t.peers, func(p peer) bool {
		if p.kind != peerGroup {
			return means(p)
		}
		for _, g := range w.Groups {
			if p.means(g) && slices.ContainsFunc(g.CIDRs, func(cidr netip.Prefix) bool { return means(peer{kind: peerCIDR, cidr: cidr}) }) {
				return true
			}
		}
		return false
	})
}
