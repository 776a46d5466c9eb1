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

// formerCIDRs says which CIDRs were a member's and are no longer: those of peers
// that were removed, by the store's records, and those that the kernel holds as a
// member's although nobody explains how they ceased to be one (memory): a store
// restored from before the peer was added forgets that it ever was, and this node
// must not. Only an operator's word (Forgotten) gives a CIDR back to the network.
// Both are sorted, and lie neither within a member nor within one another.
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

// learnFormer says in the view which CIDRs were a member's.
func (p *Program) learnFormer(v *view) {
	of := p.formerOf
	of.clusters, of.records, of.known = v.tables.Clusters.Revision(v.txn), v.tables.Former.Revision(v.txn), true
	if of != p.formerOf {
		p.former, p.memory = formerCIDRs(maps.Values(v.members), each(v.txn, v.tables.Former), maps.All(p.prefixes.have))
		p.formerOf = of
	}
	v.former, v.memory = p.former, p.memory
}

// remember has the members' CIDRs kept, if they have changed. Before anything is
// taken out of the kernel: there they are what the next agent remembers by.
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

// each goes through a table's rows.
func each[P any](txn statedb.ReadTxn, t statedb.Table[P]) iter.Seq[P] {
	return func(yield func(P) bool) {
		for row := range t.All(txn) {
			if !yield(row) {
				return
			}
		}
	}
}
