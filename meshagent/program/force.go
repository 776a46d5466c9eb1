package program

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/policy"
)

// force are the policies in force, and what they name.
type force struct {
	rows map[string]*tables.Policy
	// named are the prefixes of each policy, count by how many each is named.
	named map[*policy.Policy][]netip.Prefix
	count map[netip.Prefix]int
	// leaving are the prefixes that no policy names any longer, but an endpoint may be
	// under a set that does.
	leaving map[netip.Prefix]bool
	// grouped are the policies that refer to groups, servers those that tell API
	// servers apart.
	grouped, servers map[*policy.Policy]bool
}

func newForce() force {
	return force{
		rows: map[string]*tables.Policy{}, named: map[*policy.Policy][]netip.Prefix{}, count: map[netip.Prefix]int{}, leaving: map[netip.Prefix]bool{},
		grouped: map[*policy.Policy]bool{}, servers: map[*policy.Policy]bool{},
	}
}

// load reads all policies.
func (f *force) load(v *view) {
	leaving := slices.Concat(slices.Collect(maps.Keys(f.leaving)), slices.Collect(maps.Keys(f.count)))
	*f = newForce()
	for row := range v.tables.Policies.All(v.txn) {
		f.rows[row.Key()] = row
	}
	groups := f.groups()
	for _, p := range f.all() {
		f.add(p, groups)
	}
	for _, prefix := range leaving {
		if f.count[prefix] == 0 {
			f.leaving[prefix] = true
		}
	}
}

func (f *force) all() (all []*policy.Policy) {
	for _, row := range f.rows {
		all = append(all, row.Policies...)
	}
	return all
}

func (f *force) groups() (groups []*policy.CIDRGroup) {
	for _, row := range f.rows {
		if row.Group != nil {
			groups = append(groups, row.Group)
		}
	}
	return groups
}

func (f *force) add(p *policy.Policy, groups []*policy.CIDRGroup) {
	for prefix := range p.Prefixes(groups) {
		prefix = bpf.PrefixOf(prefix).Netip()
		f.named[p] = append(f.named[p], prefix)
		f.count[prefix]++
		delete(f.leaving, prefix)
	}
	if p.Grouped() {
		f.grouped[p] = true
	}
	if p.NamesAPIServers() {
		f.servers[p] = true
	}
}

func (f *force) remove(p *policy.Policy) {
	for _, prefix := range f.named[p] {
		if f.count[prefix]--; f.count[prefix] == 0 {
			delete(f.count, prefix)
			f.leaving[prefix] = true
		}
	}
	delete(f.named, p)
	delete(f.grouped, p)
	delete(f.servers, p)
}

// follow takes up changed rows. It returns the policies that are replaced, by themselves
// if only a group that they refer to has changed.
func (f *force) follow(changes []statedb.Change[*tables.Policy]) (gone, now []*policy.Policy) {
	without, with := map[*policy.Policy]bool{}, map[*policy.Policy]bool{}
	var groups []*policy.CIDRGroup
	for _, c := range changes {
		if old := f.rows[c.Object.Key()]; old != nil {
			for _, p := range old.Policies {
				without[p] = true
			}
			groups = append(groups, old.Group)
		}
		if delete(f.rows, c.Object.Key()); !c.Deleted {
			f.rows[c.Object.Key()] = c.Object
			for _, p := range c.Object.Policies {
				with[p] = true
			}
			groups = append(groups, c.Object.Group)
		}
	}
	for _, g := range groups {
		for p := range f.grouped {
			if g != nil && p.RefersTo(g) && !without[p] {
				without[p], with[p] = true, true
			}
		}
	}
	for p := range without {
		f.remove(p)
	}
	all := f.groups()
	for p := range with {
		f.add(p, all)
	}
	return slices.Collect(maps.Keys(without)), slices.Collect(maps.Keys(with))
}

// revise takes up the policies that have changed, and the endpoints whose rules they
// change. It returns false if everything has to be derived again.
func (p *Program) revise(v *view, r *report) (done bool) {
	changes := p.changed.take(v.txn)
	if len(changes) == 0 {
		return true
	}
	servers := len(p.force.servers) > 0
	gone, now := p.force.follow(changes)
	if p.policies.current.Worn() || servers != (len(p.force.servers) > 0) || slices.ContainsFunc(now, (*policy.Policy).TellsPodsApart) {
		return false
	}
	for _, c := range changes {
		r.row("policies", c.Object.Key())
	}
	for _, changed := range now {
		for _, prefix := range p.force.named[changed] {
			if err := p.namePrefix(v, prefix); err != nil {
				return false
			}
		}
	}
	if err := p.policies.current.Revise(gone, now, p.force.groups()); err != nil {
		return false
	}
	for key, s := range p.subjects {
		labels := p.judgedAs(s)
		for _, changed := range slices.Concat(gone, now) {
			if s.placed && changed.Selects(v.own.Name, labels) {
				s.placed = false
				p.subjects[key] = s
			}
		}
	}
	p.policies.revision = v.tables.Policies.Revision(v.txn)
	p.policies.tire()
	return true
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

// unnamePrefixes gives up the prefixes that no policy names, once no endpoint is under
// rules that do.
func (p *Program) unnamePrefixes() {
	for prefix := range p.force.leaving {
		if len(p.force.servers) > 0 && prefix.IsSingleIP() && slices.Contains(p.cfg.APIServers, prefix.Addr()) {
			continue
		}
		delete(p.cidrs, prefix)
		p.named.drop(prefix)
		p.owners.prefix(prefix)
		p.retiring[prefix] = true
	}
	clear(p.force.leaving)
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
