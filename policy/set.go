package policy

import (
	"maps"
	"slices"

	"github.com/weft-mesh/weft/identity"
)

// compiledSet holds the terms of one policy set, split by what they depend on. Whoever
// is under other rules gets another set: a set never changes its meaning.
type compiledSet struct {
	id    uint32
	sig   string
	rules []compiledRule
	dirs  [2]struct {
		byPeer   map[uint32][]int // indexes of terms, by number of their peer
		terms    []compiledTerm   // all of them
		whoever  verdicts         // verdicts of the terms that match every peer
		enforced bool
	}
	keys map[uint32][]EntryKey // its entries, by class
}

// compileSet makes the set of the subjects that these rules select.
func (t *Tables) compileSet(rules []uint32) (uint32, error) {
	c := t.compiler
	s := &compiledSet{sig: signature(rules), keys: map[uint32][]EntryKey{}}
	var ports []portSpec
	for _, n := range rules {
		s.rules = append(s.rules, c.rules[n])
		for _, dir := range directions {
			for _, term := range c.rules[n].terms[dir] {
				ports = append(ports, term.ports...)
			}
		}
	}
	if err := c.ports.room(ports); err != nil {
		return 0, err
	}
	for _, p := range ports {
		t.namePorts(p)
	}
	peers := map[uint32]bool{}
	for _, r := range s.rules {
		for _, dir := range directions {
			d := &s.dirs[dir]
			d.enforced = d.enforced || r.enforced[dir]
			for _, term := range r.terms[dir] {
				term.ids = nil
				for _, p := range term.peers {
					if !term.unknown {
						id := t.name(p)
						term.ids = append(term.ids, id)
						peers[id] = true
					}
				}
				d.terms = append(d.terms, term)
			}
		}
	}
	c.lastSet++
	s.id = c.lastSet
	c.sets[s.id], c.setIDs[s.sig] = s, s.id
	t.Sets[s.id] = s.info()
	t.changes.Sets = append(t.changes.Sets, s.id)
	t.resolve(s)

	t.enterSet(s, 0, unknownTerms(identity.Unknown))
	if unknown := c.bySig[unknownMember]; unknown != nil {
		t.enterSet(s, unknown.number, unknownTerms(identity.UnknownMember))
	}
	classes := map[uint32]bool{}
	for id := range peers {
		maps.Copy(classes, c.having[id])
	}
	for _, class := range slices.Sorted(maps.Keys(classes)) {
		t.enterSet(s, class, c.termsOf(c.classes[class].peers))
	}
	return s.id, nil
}

// resolve works out what each term says, and enters what holds for every peer.
func (t *Tables) resolve(s *compiledSet) {
	for _, dir := range directions {
		d := &s.dirs[dir]
		d.whoever, d.byPeer = verdicts{}, map[uint32][]int{}
		for j := range d.terms {
			term := &d.terms[j]
			for _, id := range term.ids {
				d.byPeer[id] = append(d.byPeer[id], j)
			}
			term.says = verdicts{}
			term.says.note(*term, t.compiler.ports)
			if term.any {
				merge(d.whoever, term.says)
			}
		}
		t.put(s, AnyClass, dir, leanest(d.whoever, func(p point, own verdicts) (Entry, bool) { return firstHit(own, p) }))
	}
}

// info describes the set: what it enforces, and by which policies.
func (s *compiledSet) info() SetInfo {
	var info SetInfo
	for _, dir := range directions {
		info.Enforced[dir] = s.dirs[dir].enforced
		for _, r := range s.rules {
			if r.enforced[dir] || len(r.terms[dir]) > 0 {
				info.Policies[dir] = append(info.Policies[dir], PolicyName{r.policy.Kind, r.policy.Namespace, r.policy.Name})
			}
		}
		slices.SortFunc(info.Policies[dir], PolicyName.compare)
		info.Policies[dir] = slices.Compact(info.Policies[dir])
	}
	return info
}

// chooseTerms picks the terms of a set and direction that apply to a class and name
// peers; terms that match every peer are not included.
type chooseTerms func(s *compiledSet, dir Direction) []int

// termsOf chooses for an identity that matches these peers.
func (c *compiler) termsOf(ids []uint32) chooseTerms {
	return func(s *compiledSet, dir Direction) []int {
		var out []int
		for _, id := range ids {
			out = append(out, s.dirs[dir].byPeer[id]...)
		}
		return out
	}
}

// unknownTerms chooses for an identity of which only the number is known: every denial
// that may apply to it, and nothing that allows.
func unknownTerms(n identity.Number) chooseTerms {
	return func(s *compiledSet, dir Direction) []int {
		var out []int
		for i, t := range s.dirs[dir].terms {
			if t.deny && !t.known && slices.ContainsFunc(t.peers, func(p peer) bool { return p.mayMatch(n) }) {
				out = append(out, i)
			}
		}
		return out
	}
}

// enter adds the entries of a new class to all sets.
func (t *Tables) enter(class uint32, choose chooseTerms) {
	for _, s := range t.compiler.sets {
		t.enterSet(s, class, choose)
	}
}

// enterSet adds the entries of one class to one set.
func (t *Tables) enterSet(s *compiledSet, class uint32, choose chooseTerms) {
	for _, dir := range directions {
		d := &s.dirs[dir]
		terms := choose(s, dir)
		if len(terms) == 0 {
			continue
		}
		all := maps.Clone(d.whoever)
		for _, j := range terms {
			merge(all, d.terms[j].says)
		}
		// An entry of the class hides the entries for every peer, so their verdicts
		// are weighed here too.
		t.put(s, class, dir, leanest(all, func(p point, kept verdicts) (Entry, bool) {
			if e, ok := firstHit(kept, p); ok {
				return e, true
			}
			return d.whoever.at(p)
		}))
	}
}

func (t *Tables) put(s *compiledSet, class uint32, dir Direction, lean verdicts) {
	for p, e := range lean {
		key := EntryKey{Set: s.id, Class: class, Port: p.port, Proto: p.proto, Dir: dir}
		s.keys[class] = append(s.keys[class], key)
		t.Entries[key], t.changes.Entries[key] = e, e
	}
}

// EntriesOf returns the entries of a set.
func (t *Tables) EntriesOf(set uint32) map[EntryKey]Entry {
	out := map[EntryKey]Entry{}
	if s := t.compiler.sets[set]; s != nil {
		for _, keys := range s.keys {
			for _, key := range keys {
				out[key] = t.Entries[key]
			}
		}
	}
	return out
}

func (t *Tables) remove(key EntryKey) {
	delete(t.Entries, key)
	delete(t.changes.Entries, key)
	t.changes.GoneEntries = append(t.changes.GoneEntries, key)
}

// copyPort gives a new class of ports the verdicts of the one it is split from.
func (t *Tables) copyPort(proto uint8, from, to uint16) {
	old, fresh := point{proto, from}, point{proto, to}
	repeat := func(v verdicts) {
		if e, ok := v[old]; ok {
			v[fresh] = e
		}
	}
	for _, s := range t.compiler.sets {
		for _, dir := range directions {
			repeat(s.dirs[dir].whoever)
			for _, term := range s.dirs[dir].terms {
				repeat(term.says)
			}
		}
		for class, keys := range s.keys {
			for _, key := range keys {
				if key.Proto == proto && key.Port == from {
					e := t.Entries[key]
					key.Port = to
					s.keys[class] = append(s.keys[class], key)
					t.Entries[key], t.changes.Entries[key] = e, e
				}
			}
		}
	}
}

// condemned is what nobody uses any longer, but a packet that is just being judged may.
type condemned struct {
	sets    []uint32
	classes []uint32
	ports   []protoPort
}

type protoPort struct {
	proto uint8
	class uint16
}

// Sweep removes what earlier calls found unused, and finds what is unused now: sets that
// no subject has any longer, and what only they distinguished. Between two calls, the
// caller waits until no packet that was being judged at the first is any longer. It
// returns true if another call is due.
func (t *Tables) Sweep(used func(set uint32) bool) bool {
	c := t.compiler
	due := c.condemned
	c.condemned = condemned{}
	for _, id := range due.sets {
		if s := c.sets[id]; s != nil && !used(id) {
			t.dropSet(s)
		}
	}
	for _, class := range due.classes {
		for _, s := range c.sets {
			for _, key := range s.keys[class] {
				t.remove(key)
			}
			delete(s.keys, class)
		}
	}
	for _, p := range due.ports {
		t.dropPort(p.proto, p.class)
	}

	for id := range c.sets {
		if !used(id) {
			c.condemned.sets = append(c.condemned.sets, id)
		}
	}
	for id, n := range c.refs {
		if n == 0 {
			c.condemned.classes = append(c.condemned.classes, t.merge(id)...)
		}
	}
	c.condemned.classes = append(c.condemned.classes, c.empties()...)
	for proto, p := range c.ports {
		for id, n := range p.refs {
			if n == 0 {
				for _, class := range t.mergePorts(proto, id) {
					c.condemned.ports = append(c.condemned.ports, protoPort{proto, class})
				}
			}
		}
	}
	return len(c.condemned.sets)+len(c.condemned.classes)+len(c.condemned.ports) > 0
}

// Discard removes a set at once. Nobody may ever have had it.
func (t *Tables) Discard(set uint32) { t.dropSet(t.compiler.sets[set]) }

// Litter reports whether a class has lost its last member, so that Sweep has something to
// do that no call of SetOf or Revise has led to.
func (t *Tables) Litter() bool { return len(t.compiler.emptied) > 0 }

func (t *Tables) dropSet(s *compiledSet) {
	c := t.compiler
	for _, keys := range s.keys {
		for _, key := range keys {
			t.remove(key)
		}
	}
	for _, dir := range directions {
		for _, term := range s.dirs[dir].terms {
			for _, id := range term.ids {
				c.unname(id)
			}
			for _, p := range term.ports {
				c.ports.unname(p)
			}
		}
	}
	delete(c.sets, s.id)
	delete(c.setIDs, s.sig)
	delete(t.Sets, s.id)
	t.changes.GoneSets = append(t.changes.GoneSets, s.id)
}

// dropPort forgets a class that no port is in.
func (t *Tables) dropPort(proto uint8, class uint16) {
	for _, s := range t.compiler.sets {
		for _, dir := range directions {
			delete(s.dirs[dir].whoever, point{proto, class})
			for _, term := range s.dirs[dir].terms {
				delete(term.says, point{proto, class})
			}
		}
		for of, keys := range s.keys {
			s.keys[of] = slices.DeleteFunc(keys, func(key EntryKey) bool {
				if key.Proto != proto || key.Port != class {
					return false
				}
				t.remove(key)
				return true
			})
		}
	}
	delete(t.compiler.ports[proto].unfree, class)
}
