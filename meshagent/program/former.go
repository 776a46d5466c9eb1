package program

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// formerCIDRs says which CIDRs used to belong to a member: those of removed peers
// according to the store, and those the kernel still holds as a member's with no
// record of why they ceased to be (memory). A store restored from before a peer was
// added has no trace of it, but this node must not forget. Only an operator
// (Forgotten) returns a CIDR to the network. Both lists are sorted; no entry lies
// within a member's CIDR or another entry.
func formerCIDRs(members iter.Seq[*tables.Cluster], records iter.Seq[*tables.Former], kernel iter.Seq2[bpf.PrefixKey, bpf.IPInfo]) (former, memory []netip.Prefix) {
	var owned, forgotten, recorded, remembered []netip.Prefix
	for c := range members {
		owned = append(owned, c.PodCIDRs()...)
	}
	for r := range records {
		if r.Forgotten.IsZero() {
			recorded = append(recorded, r.PodCIDRs...)
		} else {
			forgotten = append(forgotten, r.PodCIDRs...)
		}
	}
	for k, info := range kernel {
		if info.Flags&bpf.IPMember != 0 {
			remembered = append(remembered, k.Netip())
		}
	}
	add := func(candidates []netip.Prefix, but ...[]netip.Prefix) {
		slices.SortFunc(candidates, wideFirst)
		for _, p := range candidates {
			if p.IsValid() && !within(p, former) && !slices.ContainsFunc(but, func(ps []netip.Prefix) bool { return within(p, ps) }) {
				former = append(former, p)
			}
		}
	}
	add(recorded, owned)
	explained := len(former)
	add(remembered, owned, forgotten)
	memory = slices.Clone(former[explained:])
	slices.SortFunc(former, wideFirst)
	return former, memory
}

func wideFirst(a, b netip.Prefix) int {
	return cmp.Or(cmp.Compare(a.Bits(), b.Bits()), a.Addr().Compare(b.Addr()))
}

// within says whether p lies in one of ps.
func within(p netip.Prefix, ps []netip.Prefix) bool {
	return slices.ContainsFunc(ps, func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) })
}

// learnFormer tells the view which CIDRs used to be a member's.
func (p *Program) learnFormer(v *view) {
	of := p.formerOf
	of.clusters, of.records, of.known = v.tables.Clusters.Revision(v.txn), v.tables.Former.Revision(v.txn), true
	if of != p.formerOf {
		p.former, p.memory = formerCIDRs(maps.Values(v.members), each(v.txn, v.tables.Former), maps.All(p.prefixes.have))
		p.formerOf = of
	}
	v.former, v.memory = p.former, p.memory
}

// remember saves the members' CIDRs if they have changed. It runs before anything is
// removed from the kernel, which is where the next agent finds them otherwise.
func (p *Program) remember(v *view, r *report) {
	if p.cfg.Remember == nil {
		return
	}
	cidrs := slices.Clone(v.former)
	for _, c := range v.members {
		cidrs = append(cidrs, c.PodCIDRs()...)
	}
	slices.SortFunc(cidrs, netip.Prefix.Compare)
	if p.kept != nil && slices.Equal(cidrs, p.kept) {
		return
	}
	if err := p.cfg.Remember(cidrs); err != nil {
		r.fail("former", "", err)
		return
	}
	p.kept = cidrs
}

// each iterates over a table's rows.
func each[P any](txn statedb.ReadTxn, t statedb.Table[P]) iter.Seq[P] {
	return func(yield func(P) bool) {
		for row := range t.All(txn) {
			if !yield(row) {
				return
			}
		}
	}
}
