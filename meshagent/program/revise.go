package program

import (
	"net/netip"
	"slices"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/reconcile"
	"github.com/weft-mesh/weft/policy"
)

// revise takes up the policies that have changed, and the endpoints whose rules they
// change. It returns false if everything has to be derived again.
func (p *Program) revise(v *view, r *report) (done bool) {
	changes := p.changed.take(v.txn)
	if len(changes) == 0 {
		return true
	}
	servers := len(p.force.servers) > 0
	gone, now := p.force.follow(changes)
	if p.policies.current.Worn() || servers != (len(p.force.servers) > 0) {
		return false
	}
	for _, c := range changes {
		r.row("policies", c.Object.Key())
	}
	for _, changed := range now {
		for _, prefix := range p.force.named[changed].prefixes {
			if err := p.namePrefix(v, prefix); err != nil {
				return false
			}
		}
	}
	if err := p.tellApart(v, now); err != nil {
		return false
	}
	if err := p.policies.current.Revise(gone, now, p.force.groups()); err != nil {
		return false
	}
	p.unplace(v, slices.Concat(gone, now))
	p.policies.revision = v.tables.Policies.Revision(v.txn)
	p.policies.tire()
	return true
}

// unplace notes that the subjects of some policies are under other rules.
func (p *Program) unplace(v *view, policies []*policy.Policy) {
	for key, s := range p.subjects {
		labels := p.judgedAs(s)
		if s.placed && slices.ContainsFunc(policies, func(q *policy.Policy) bool { return q.Selects(v.own.Name, labels) }) {
			s.placed = false
			p.subjects[key] = s
		}
	}
}

// namePrefix gives a prefix that policies are about to name a number, and the addresses
// in it its class. By the rules in force it is judged as the addresses were so far.
func (p *Program) namePrefix(v *view, prefix netip.Prefix) error {
	if _, ok := p.cidrs[prefix]; ok {
		return nil
	}
	n := p.numbers.of(prefix)
	if _, err := p.policies.know(n, policy.CIDRLabels(prefix)); err != nil {
		return err
	}
	if !v.inMesh(prefix) && !p.stands(prefix) {
		if err := p.prefixes.Put(bpf.PrefixOf(prefix), bpf.IPInfo{Identity: uint32(n)}); err != nil {
			return err
		}
	}
	p.cidrs[prefix] = n
	p.named.put(prefix, struct{}{})
	p.owners.prefix(prefix)
	return nil
}

// tellApart gives addresses the numbers by which policies are about to distinguish them
// before they do. By the rules in force they are judged as they were so far.
func (p *Program) tellApart(v *view, now []*policy.Policy) error {
	concerned, news := map[bpf.PrefixKey]bool{}, false
	for _, q := range now {
		for _, block := range p.force.named[q].blocks {
			if _, ok := p.variants.blocks.get(block); !ok {
				p.variants.blocks.put(block, struct{}{})
				p.inBlock(block, concerned)
				news = true
			}
		}
		for _, port := range p.force.named[q].ports {
			if !p.variants.ports[port] {
				p.variants.ports[port] = true
				p.withPort(v, port, concerned)
				news = true
			}
		}
	}
	if !news {
		return nil
	}
	w := newOwnerRows(0)
	for key := range concerned {
		if prefix := key.Netip(); prefix.IsSingleIP() {
			p.addrRow(v, bpf.AddrOf(prefix.Addr()), &w)
		} else {
			p.prefixRow(v, key, &w)
		}
	}
	pods := map[bpf.Addr]bpf.Endpoint{}
	for _, s := range p.subjects {
		if row, ok := p.endpoints.Row(s.addr); ok && p.Identity(identity.Number(row.Identity)) == s.identity {
			row.Identity = uint32(p.variants.of(s.at()))
			pods[s.addr] = row
		}
	}
	p.enlist()
	err := p.acquaint()
	defer func() {
		if err != nil { // then the rows follow like others
			for key := range concerned {
				p.owners.ip(key)
			}
			p.epoch++
		}
	}()
	if err != nil {
		return err
	}
	// What else is new about these addresses is not the policies' concern.
	p.addrs.Update(told(p, w.addrs, p.addrs), reconcile.First[bpf.Addr](&err))
	p.prefixes.Update(told(p, w.prefixes, p.prefixes), reconcile.First[bpf.PrefixKey](&err))
	p.endpoints.Update(pods, reconcile.First[bpf.Addr](&err))
	return err
}

// inBlock and withPort add what the kernel has rows of.
func (p *Program) inBlock(block netip.Prefix, to map[bpf.PrefixKey]bool) {
	for key := range p.spots.within(block) {
		to[key] = true
	}
	for prefix := range p.members.within(block) {
		to[bpf.PrefixOf(prefix)] = true
	}
}

func (p *Program) withPort(v *view, port string, to map[bpf.PrefixKey]bool) {
	if p.ported == nil {
		p.learnPorts(v)
	}
	if at := p.ported[port]; at != nil {
		for key := range at.all() {
			to[key] = true
		}
	}
}

// told are the rows that there are, with the numbers that they are to have.
func told[K comparable](p *Program, want map[K]bpf.IPInfo, have *reconcile.Reconciler[K, bpf.IPInfo]) map[K]bpf.IPInfo {
	out := map[K]bpf.IPInfo{}
	for k, is := range want {
		row, ok := have.Row(k)
		if ok && p.Identity(identity.Number(row.Identity)) == p.Identity(identity.Number(is.Identity)) {
			row.Identity = is.Identity
			out[k] = row
		}
	}
	return out
}

// unname gives up what no policy names, once no endpoint is under rules that do.
func (p *Program) unname(v *view) {
	concerned := map[bpf.PrefixKey]bool{}
	for block := range p.force.blocks.leaving {
		p.variants.blocks.drop(block)
		p.inBlock(block, concerned)
	}
	for port := range p.force.ports.leaving {
		delete(p.variants.ports, port)
		p.withPort(v, port, concerned)
	}
	for key := range concerned {
		p.owners.ip(key)
	}
	if len(p.force.blocks.leaving)+len(p.force.ports.leaving) > 0 {
		p.epoch++ // for the pods of this node
	}
	clear(p.force.blocks.leaving)
	clear(p.force.ports.leaving)
	for prefix := range p.force.prefixes.leaving {
		if len(p.force.servers) > 0 && prefix.IsSingleIP() && slices.Contains(p.beliefs.view.apiServers, prefix.Addr()) {
			continue
		}
		delete(p.cidrs, prefix)
		p.named.drop(prefix)
		p.owners.prefix(prefix)
		p.retiring[prefix] = true
	}
	clear(p.force.prefixes.leaving)
}

// numberGoes notes that the kernel row of a prefix no longer has its number, whether the row
// is gone or has become a member's. If no policy names the prefix, the number goes too.
func (p *Program) numberGoes(prefix netip.Prefix, was, is uint32) {
	if n, ok := p.numbers.byPrefix[prefix]; ok && was != is && uint32(n) == was {
		p.retiring[prefix] = true
		p.policies.tire()
	}
}

// retireNumbers takes back the numbers of prefixes that no row has any longer. Those
// that one still has wait until it goes.
func (p *Program) retireNumbers() error {
	for prefix := range p.retiring {
		n, ok := p.numbers.byPrefix[prefix]
		if _, named := p.cidrs[prefix]; ok && !named {
			if p.carries(prefix, n) {
				continue
			}
			if _, err := p.policies.unlearn(n); err != nil {
				return err
			}
			delete(p.numbers.byPrefix, prefix)
		}
		delete(p.retiring, prefix)
	}
	return nil
}

// of returns the number of a prefix, the same as before if it had one.
func (n *numbering) of(prefix netip.Prefix) identity.Number {
	if _, ok := n.byPrefix[prefix]; !ok {
		n.byPrefix[prefix] = n.fresh()
	}
	return n.byPrefix[prefix]
}

// renumber has policies follow the numbers of the ports that they name, and says whether any
// had to. ok is false if everything has to be derived again.
func (p *Program) renumber(v *view) (revised, ok bool) {
	stale := p.policies.current.Renumbered()
	if len(stale) == 0 {
		return false, true
	}
	if err := p.policies.current.Revise(stale, stale, p.force.groups()); err != nil {
		return true, false
	}
	p.unplace(v, stale)
	p.renumbered = true
	p.policies.tire()
	return true, true
}
