package program

import (
	"cmp"
	"net/netip"
	"slices"
)

// former knows which CIDRs used to belong to a member.
type former struct {
	// kernel finds the prefixes that the kernel holds as a member's; nil if nobody has
	// to be reminded by it.
	kernel *ranges[struct{}]
	// list are the CIDRs, sorted; memory are those of them that no record explains.
	list, memory []netip.Prefix
	cidrs        ranges[struct{}]
	// recorded and forgotten are those in the records.
	recorded, forgotten []netip.Prefix
}

// formerCIDRs says which CIDRs used to belong to a member: those of removed peers
// according to the store, and those the kernel still holds as a member's with no
// record of why they ceased to be (memory). A store restored from before a peer was
// added has no trace of it, but this node must not forget. Only an operator
// (forgotten) returns a CIDR to the network. Both lists are sorted; no entry lies
// within a member's CIDR or another entry.
func formerCIDRs(owned func(netip.Prefix) bool, recorded, forgotten, remembered []netip.Prefix) (former, memory []netip.Prefix) {
	add := func(candidates []netip.Prefix, but func(netip.Prefix) bool) {
		for _, p := range slices.SortedFunc(slices.Values(candidates), wideFirst) {
			if p.IsValid() && !within(p, former) && !but(p) {
				former = append(former, p)
			}
		}
	}
	add(recorded, owned)
	explained := len(former)
	add(remembered, func(p netip.Prefix) bool { return owned(p) || within(p, forgotten) })
	memory = slices.Clone(former[explained:])
	slices.SortFunc(former, wideFirst)
	return former, memory
}

func wideFirst(a, b netip.Prefix) int {
	return cmp.Or(cmp.Compare(a.Bits(), b.Bits()), a.Addr().Compare(b.Addr()))
}

// within says whether p lies in one of ps.
func within(p netip.Prefix, ps []netip.Prefix) bool {
	return slices.ContainsFunc(ps, func(q netip.Prefix) bool { return q.IsValid() && holds(q, p) })
}

// followFormer brings the list up to date after a change of the records or of members'
// CIDRs (m.ranges), and adds those that it changes to m.ranges. Of the kernel's
// prefixes it looks only at those inside what has changed, unless all is set.
func (v *view) followFormer(all bool, m *moved) {
	f := &v.former
	var recorded, forgotten []netip.Prefix
	for r := range v.tables.Former.All(v.txn) {
		m.row("former", r.Key())
		if r.Forgotten.IsZero() {
			recorded = append(recorded, valid(r.PodCIDRs)...)
		} else {
			forgotten = append(forgotten, valid(r.PodCIDRs)...)
		}
	}
	remembered := slices.Clone(f.memory)
	remind := func(p netip.Prefix) {
		if f.kernel != nil {
			for q := range f.kernel.within(p) {
				remembered = append(remembered, q)
			}
		}
	}
	if all {
		remind(netip.PrefixFrom(netip.IPv4Unspecified(), 0))
		remind(netip.PrefixFrom(netip.IPv6Unspecified(), 0))
	} else {
		for p := range m.ranges {
			remind(p)
		}
		for _, p := range slices.Concat(without(recorded, f.recorded), without(f.recorded, recorded), without(forgotten, f.forgotten), without(f.forgotten, forgotten)) {
			remind(p)
		}
	}
	f.recorded, f.forgotten = recorded, forgotten
	list, memory := formerCIDRs(v.clusters.owners.holdsAny, recorded, forgotten, remembered)
	for _, p := range without(f.list, list) {
		f.cidrs.drop(p)
		m.ranges[p], m.former = true, true
	}
	for _, p := range without(list, f.list) {
		f.cidrs.put(p, struct{}{})
		m.ranges[p], m.former = true, true
	}
	m.former = m.former || !slices.Equal(memory, f.memory)
	f.list, f.memory = list, memory
}

// without returns those of ps that are not in other.
func without[T comparable](ps, other []T) (out []T) {
	for _, p := range ps {
		if !slices.Contains(other, p) {
			out = append(out, p)
		}
	}
	return out
}

// remember saves the members' CIDRs if they have changed. It runs before anything is
// removed from the kernel, which is where the next agent finds them otherwise.
func (p *Program) remember(v *view, r *report) {
	if p.cfg.Remember == nil || !p.unsaved {
		return
	}
	r.row("former", "")
	cidrs := slices.Clone(v.former.list)
	for _, s := range v.clusters.admitted {
		cidrs = append(cidrs, s.pods...)
	}
	slices.SortFunc(cidrs, netip.Prefix.Compare)
	if p.kept != nil && slices.Equal(cidrs, p.kept) {
		p.unsaved = false
		return
	}
	if err := p.cfg.Remember(cidrs); err != nil {
		r.fail("former", "", err)
		return
	}
	p.kept, p.unsaved = cidrs, false
}
