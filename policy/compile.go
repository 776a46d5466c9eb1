package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/weft-mesh/weft/identity"
)

// compiler is what Tables keeps in order to grow.
type compiler struct {
	rules   []compiledRule
	index   peerIndex
	sets    []compiledSet     // set id - 1
	setIDs  map[string]uint32 // by signature of the rules that select the subject
	classes map[string]uint32 // by signature of the peers an identity matches
	next    uint32            // the next new class
	ports   portNumbers
}

type compiledRule struct {
	policy   *Policy
	subject  selector
	enforced [2]bool
	log      string
	terms    [2][]compiledTerm
}

type compiledTerm struct {
	term
	cookie  uint32
	known   bool     // applies to known peers only
	unknown bool     // applies to unknown peers only
	ids     []uint32 // numbers of peers in the index
	says    verdicts
}

// compiledSet holds the terms of one policy set, split by what they depend on.
type compiledSet struct {
	dirs [2]struct {
		byPeer   map[uint32][]int // indexes of terms, by number of their peer
		terms    []compiledTerm   // those with peers
		whoever  verdicts         // verdicts of the terms that match every peer
		enforced bool
	}
}

// Compile makes the tables by which all subjects are judged. The output depends on
// the input alone, not on the order of policies.
//
// Everything is resolved here: a denial beats any policy's allowance, and no entry
// hides a more specific verdict from the kernel's lookup. Two identities that every
// selecting policy treats alike share a class.
func Compile(w World, subjects []identity.Labels) (*Tables, error) {
	c := &compiler{setIDs: map[string]uint32{"": 0}, classes: map[string]uint32{}, next: 1, ports: portNumbers{}}
	for _, labels := range subjects {
		c.ports.number(labels)
	}
	for _, labels := range w.Identities {
		c.ports.number(labels)
	}
	t := &Tables{
		Classes: make(map[identity.Number]uint32, len(w.Identities)),
		Sets:    map[uint32]SetInfo{}, Entries: map[EntryKey]Entry{}, compiler: c,
	}
	if err := t.number(w); err != nil {
		return nil, err
	}
	active := c.selectSubjects(subjects)
	ports, err := c.file(active)
	if err != nil {
		return nil, err
	}
	t.Ports = ports.ranges
	c.resolve(t, ports)

	known := identity.AllReserved()
	maps.Copy(known, w.Identities)
	for key, e := range c.entries(0, unknownTerms(identity.Unknown)) {
		t.Entries[key] = e
	}
	for _, n := range slices.Sorted(maps.Keys(known)) {
		_, entries := t.AddIdentity(n, known[n])
		maps.Copy(t.Entries, entries)
	}
	return t, nil
}

// number gives every term of every policy its cookie.
func (t *Tables) number(w World) error {
	policies := slices.SortedFunc(slices.Values(w.Policies), func(a, b *Policy) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	t.Rules = []RuleInfo{{}}
	for i, p := range policies {
		if i > 0 && policies[i-1].String() == p.String() {
			return fmt.Errorf("%s is given twice; keep one of them", p)
		}
		for n, r := range p.rules {
			out := compiledRule{policy: p, subject: r.subject.local(w.Cluster), enforced: r.enforced, log: r.log}
			for _, dir := range directions {
				for _, tm := range r.terms[dir] {
					var peers []peer
					for _, named := range tm.peers {
						for _, q := range named.resolved(w.Groups) {
							peers = append(peers, q.local(w.Cluster))
						}
					}
					tm.peers = peers
					out.terms[dir] = append(out.terms[dir], compiledTerm{term: tm, cookie: uint32(len(t.Rules))})
					t.Rules = append(t.Rules, RuleInfo{
						Kind: p.Kind, Namespace: p.Namespace, Name: p.Name,
						Spec: n, List: tm.list, Index: tm.index, Deny: tm.deny, Log: r.log,
					})
				}
			}
			t.compiler.rules = append(t.compiler.rules, t.compiler.ports.unnamed(out)...)
		}
	}
	return nil
}

// selecting returns the numbers of the rules that select a subject.
func (c *compiler) selecting(subject identity.Labels) []uint32 {
	var out []uint32
	for i, r := range c.rules {
		if r.subject.matches(subject) {
			out = append(out, uint32(i))
		}
	}
	return out
}

// selectSubjects gives each distinct combination of rules a set, and returns the rules
// of each set.
func (c *compiler) selectSubjects(subjects []identity.Labels) [][]uint32 {
	byText := map[string]identity.Labels{}
	for _, s := range subjects {
		byText[s.String()] = s
	}
	var sets [][]uint32
	for _, text := range slices.Sorted(maps.Keys(byText)) {
		rules := c.selecting(byText[text])
		sig := signature(rules)
		if _, ok := c.setIDs[sig]; ok {
			continue
		}
		sets = append(sets, rules)
		c.setIDs[sig] = uint32(len(sets))
	}
	c.sets = make([]compiledSet, len(sets))
	for i, rules := range sets {
		for _, dir := range directions {
			d := &c.sets[i].dirs[dir]
			d.byPeer = map[uint32][]int{}
			for _, n := range rules {
				d.enforced = d.enforced || c.rules[n].enforced[dir]
			}
		}
	}
	return sets
}

// file adds the peers of all rules in use to the index, each once, and classifies their
// ports.
func (c *compiler) file(sets [][]uint32) (portClasses, error) {
	var (
		used  = make([]bool, len(c.rules))
		ids   = map[string]uint32{}
		specs []portSpec
	)
	for _, rules := range sets {
		for _, n := range rules {
			used[n] = true
		}
	}
	for n := range c.rules {
		if !used[n] {
			continue
		}
		for _, dir := range directions {
			for i := range c.rules[n].terms[dir] {
				t := &c.rules[n].terms[dir][i]
				specs = append(specs, t.ports...)
				if t.unknown {
					continue
				}
				for _, p := range t.peers {
					id, ok := ids[p.String()]
					if !ok {
						id = c.index.add(p)
						ids[p.String()] = id
					}
					t.ids = append(t.ids, id)
				}
			}
		}
	}
	for i, rules := range sets {
		for _, n := range rules {
			for _, dir := range directions {
				c.sets[i].add(dir, c.rules[n].terms[dir])
			}
		}
	}
	return classifyPorts(specs)
}

func (s *compiledSet) add(dir Direction, terms []compiledTerm) {
	d := &s.dirs[dir]
	for _, t := range terms {
		for _, id := range t.ids {
			d.byPeer[id] = append(d.byPeer[id], len(d.terms))
		}
		d.terms = append(d.terms, t)
	}
}

// SetOf returns the policy set of a subject. ok is false if no subject of Compile was
// selected by the same rules, or if its ports have new numbers; the tables must then be
// compiled again.
func (t *Tables) SetOf(subject identity.Labels) (set uint32, ok bool) {
	if !t.Knows(subject) {
		return 0, false
	}
	set, ok = t.compiler.setIDs[signature(t.compiler.selecting(subject))]
	return set, ok
}

// Knows reports whether the tables can judge an identity with these labels. They cannot
// if a policy names one of its ports and nobody had that port's number at Compile.
func (t *Tables) Knows(labels identity.Labels) bool { return t.compiler.ports.knows(labels) }

// AddIdentity classifies one identity and records it. It returns its class and the
// entries that must be in the kernel before the class is, which are recorded too; there
// are none if the class already exists. A known identity moves to the class of its new
// labels.
func (t *Tables) AddIdentity(n identity.Number, labels identity.Labels) (class uint32, entries map[EntryKey]Entry) {
	c := t.compiler
	if n == identity.Unknown {
		return 0, nil
	}
	sig, terms := unknownMember, unknownTerms(n)
	if n != identity.UnknownMember {
		ids := c.index.find(n, labels, nil)
		sig, terms = signature(ids), c.termsOf(ids)
	}
	class, ok := c.classes[sig]
	if !ok {
		class = c.next
		c.next++
		c.classes[sig] = class
		entries = c.entries(class, terms)
		maps.Copy(t.Entries, entries)
	}
	t.Classes[n] = class
	return class, entries
}

// RemoveIdentity forgets an identity. Its class and entries stay for the others.
func (t *Tables) RemoveIdentity(n identity.Number) { delete(t.Classes, n) }

// unknownMember is the signature of identity.UnknownMember. It cannot clash: the length
// of every other signature is a multiple of four.
const unknownMember = "?"
