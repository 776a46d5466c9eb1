package policy

import (
	"maps"
	"slices"

	"github.com/weft-mesh/weft/identity"
)

// point is where a verdict applies: a protocol and a port class, 0 meaning any. The
// three levels are (0, 0), (protocol, 0) and (protocol, class).
type point struct {
	proto uint8
	port  uint16
}

func (p point) level() int {
	switch {
	case p.proto == 0:
		return 0
	case p.port == 0:
		return 1
	}
	return 2
}

// verdicts holds what terms say at each point they name.
type verdicts map[point]Entry

// note adds what a term says at its points. A denial beats an allowance; between
// equals, the rule with the lower cookie is named.
func (v verdicts) note(t compiledTerm, ports portClasses) {
	mine := Entry{Deny: t.deny, Rule: t.cookie}
	if t.ports == nil {
		v.put(point{}, mine)
	}
	for _, s := range t.ports {
		if s.anyPort() {
			v.put(point{proto: s.proto}, mine)
			continue
		}
		for _, class := range ports.of[s] {
			v.put(point{s.proto, class}, mine)
		}
	}
}

func (v verdicts) put(at point, e Entry) {
	if old, ok := v[at]; !ok || stronger(e, old) {
		v[at] = e
	}
}

func stronger(a, b Entry) bool {
	if a.Deny != b.Deny {
		return a.Deny
	}
	return a.Rule < b.Rule
}

// at returns the verdict at a point: the strongest of what is said there and at the
// wider points around it.
func (v verdicts) at(p point) (Entry, bool) {
	best, ok := v[p]
	for _, wider := range []point{{proto: p.proto}, {}} {
		if e, there := v[wider]; there && (!ok || stronger(e, best)) {
			best, ok = e, true
		}
	}
	return best, ok
}

// resolve fills in the sets and the entries that apply to every peer.
func (c *compiler) resolve(t *Tables, ports portClasses) {
	for i := range c.sets {
		id := uint32(i + 1)
		var info SetInfo
		for _, dir := range directions {
			d := &c.sets[i].dirs[dir]
			d.whoever = verdicts{}
			for j := range d.terms {
				d.terms[j].says = verdicts{}
				d.terms[j].says.note(d.terms[j], ports)
				if d.terms[j].any {
					merge(d.whoever, d.terms[j].says)
				}
			}
			for p, e := range leanest(d.whoever, func(p point, own verdicts) (Entry, bool) { return firstHit(own, p) }) {
				t.Entries[EntryKey{Set: id, Class: AnyClass, Port: p.port, Proto: p.proto, Dir: dir}] = e
			}
			info.Enforced[dir] = d.enforced
		}
		t.Sets[id] = info
	}
	c.name(t)
}

// name lists, for each set and direction, the policies that apply there.
func (c *compiler) name(t *Tables) {
	for sig, id := range c.setIDs {
		if id == 0 {
			continue
		}
		info := t.Sets[id]
		for _, n := range readSignature(sig) {
			r := c.rules[n]
			for _, dir := range directions {
				if r.enforced[dir] || len(r.terms[dir]) > 0 {
					info.Policies[dir] = append(info.Policies[dir], PolicyName{r.policy.Kind, r.policy.Namespace, r.policy.Name})
				}
			}
		}
		for _, dir := range directions {
			slices.SortFunc(info.Policies[dir], PolicyName.compare)
			info.Policies[dir] = slices.Compact(info.Policies[dir])
		}
		t.Sets[id] = info
	}
}

func merge(into, from verdicts) {
	for p, e := range from {
		into.put(p, e)
	}
}

// leanest keeps only the verdicts that a lookup would not find without them, going from
// the widest point to the narrowest.
func leanest(all verdicts, hit func(p point, kept verdicts) (Entry, bool)) verdicts {
	kept := verdicts{}
	points := slices.SortedFunc(maps.Keys(all), func(a, b point) int { return a.level() - b.level() })
	for _, p := range points {
		want, ok := all.at(p)
		if !ok {
			continue
		}
		if got, found := hit(p, kept); !found || got.Deny != want.Deny {
			kept[p] = want
		}
	}
	return kept
}

// firstHit looks up in the kernel's order within one class.
func firstHit(v verdicts, p point) (Entry, bool) {
	for _, q := range []point{p, {proto: p.proto}, {}} {
		if e, ok := v[q]; ok {
			return e, true
		}
	}
	return Entry{}, false
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

// entries returns the entries of one class in all sets.
func (c *compiler) entries(class uint32, choose chooseTerms) map[EntryKey]Entry {
	out := map[EntryKey]Entry{}
	for i := range c.sets {
		s := &c.sets[i]
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
			lean := leanest(all, func(p point, kept verdicts) (Entry, bool) {
				if e, ok := firstHit(kept, p); ok {
					return e, true
				}
				return d.whoever.at(p)
			})
			for p, e := range lean {
				out[EntryKey{Set: uint32(i + 1), Class: class, Port: p.port, Proto: p.proto, Dir: dir}] = e
			}
		}
	}
	return out
}

// Verdict judges a new flow of a subject under a policy set with the same steps as the
// kernel. port is the destination port, or the type for ICMP.
func (t *Tables) Verdict(set uint32, dir Direction, peer identity.Number, proto uint8, port uint16) Verdict {
	class := t.Classes[peer]
	portClass := t.portClass(proto, port)
	for _, key := range []EntryKey{
		{set, class, portClass, proto, dir},
		{set, class, 0, proto, dir},
		{set, class, 0, 0, dir},
		{set, AnyClass, portClass, proto, dir},
		{set, AnyClass, 0, proto, dir},
		{set, AnyClass, 0, 0, dir},
	} {
		if e, ok := t.Entries[key]; ok {
			return Verdict{Allow: !e.Deny, Rule: e.Rule}
		}
	}
	return Verdict{Allow: !t.Sets[set].Enforced[dir], Default: true}
}
