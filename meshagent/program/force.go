package program

import (
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/policy"
)

// force are the policies in force, and what they name.
type force struct {
	rows  map[string]*tables.Policy
	named map[*policy.Policy]names
	// prefixes are named by address; blocks are those of them that tell apart addresses
	// inside the mesh, too; ports are label keys.
	prefixes, blocks tally[netip.Prefix]
	ports            tally[string]
	// grouped are the policies that refer to groups, servers those that tell API
	// servers apart.
	grouped, servers map[*policy.Policy]bool
}

// names is what a policy names.
type names struct {
	prefixes, blocks []netip.Prefix
	ports            []string
}

// tally counts how many policies name a thing.
type tally[K comparable] struct {
	count map[K]int
	// leaving are those that no policy names any longer, but an endpoint may be under a
	// set that does.
	leaving map[K]bool
}

func newTally[K comparable]() tally[K] { return tally[K]{map[K]int{}, map[K]bool{}} }

func (t tally[K]) add(keys []K) {
	for _, k := range keys {
		t.count[k]++
		delete(t.leaving, k)
	}
}

func (t tally[K]) remove(keys []K) {
	for _, k := range keys {
		if t.count[k]--; t.count[k] == 0 {
			delete(t.count, k)
			t.leaving[k] = true
		}
	}
}

// succeed takes over what another knew.
func (t tally[K]) succeed(before tally[K]) {
	for _, keys := range []iter.Seq[K]{maps.Keys(before.count), maps.Keys(before.leaving)} {
		for k := range keys {
			if t.count[k] == 0 {
				t.leaving[k] = true
			}
		}
	}
}

// all yields what has to be told apart.
func (t tally[K]) all() iter.Seq[K] {
	return func(yield func(K) bool) {
		for k := range t.count {
			if !yield(k) {
				return
			}
		}
		for k := range t.leaving {
			if !yield(k) {
				return
			}
		}
	}
}

func newForce() force {
	return force{
		rows: map[string]*tables.Policy{}, named: map[*policy.Policy]names{},
		prefixes: newTally[netip.Prefix](), blocks: newTally[netip.Prefix](), ports: newTally[string](),
		grouped: map[*policy.Policy]bool{}, servers: map[*policy.Policy]bool{},
	}
}

// load reads all policies.
func (f *force) load(v *view) {
	before := *f
	*f = newForce()
	for row := range v.tables.Policies.All(v.txn) {
		f.rows[row.Key()] = row
	}
	groups := f.groups()
	for _, p := range f.all() {
		f.add(p, groups)
	}
	f.prefixes.succeed(before.prefixes)
	f.blocks.succeed(before.blocks)
	f.ports.succeed(before.ports)
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
	one := []*policy.Policy{p}
	n := names{blocks: slices.Collect(maps.Keys(policy.Blocks(one))), ports: slices.Collect(maps.Keys(policy.NamedPorts(one)))}
	for prefix := range p.Prefixes(groups) {
		n.prefixes = append(n.prefixes, bpf.PrefixOf(prefix).Netip())
	}
	f.named[p] = n
	f.prefixes.add(n.prefixes)
	f.blocks.add(n.blocks)
	f.ports.add(n.ports)
	if p.Grouped() {
		f.grouped[p] = true
	}
	if p.NamesAPIServers() {
		f.servers[p] = true
	}
}

func (f *force) remove(p *policy.Policy) {
	n := f.named[p]
	f.prefixes.remove(n.prefixes)
	f.blocks.remove(n.blocks)
	f.ports.remove(n.ports)
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
