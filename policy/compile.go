package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/weft-mesh/weft/identity"
)

// compiler is what Tables keeps in order to follow changes.
type compiler struct {
	partition
	ports   portClasses
	cluster string
	groups  []*CIDRGroup
	names   portNumbers
	naming  map[string]map[*Policy]bool // the policies that name a port, by label key
	// renumbered are the ports that gained or lost a number since rules were made for them.
	renumbered map[string]bool
	rules      map[uint32]compiledRule
	subjects   peerIndex           // finds the rules that select a subject
	of         map[string][]uint32 // the rules of a policy
	sets       map[uint32]*compiledSet
	setIDs     map[string]uint32 // by signature of the rules that select the subject
	lastSet    uint32
	worn       int // cookies of policies that are gone
	condemned  condemned
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

// Compile makes the tables by which all subjects are judged. The output depends on
// the input alone, not on the order of policies.
//
// Everything is resolved here: a denial beats any policy's allowance, and no entry
// hides a more specific verdict from the kernel's lookup. Two identities that every
// policy set treats alike share a class.
//
// Revise, AddIdentity and RemoveIdentity then follow what changes, at the cost of what
// the change names and selects. They only add to what the kernel looks up; Sweep removes
// what is no longer needed.
func Compile(w World, subjects []identity.Labels) (*Tables, error) {
	c := &compiler{
		partition: newPartition(), ports: portClasses{}, cluster: w.Cluster,
		names: portNumbers{}, naming: map[string]map[*Policy]bool{}, renumbered: map[string]bool{},
		rules: map[uint32]compiledRule{}, subjects: newPeerIndex(), of: map[string][]uint32{},
		sets: map[uint32]*compiledSet{}, setIDs: map[string]uint32{"": 0},
	}
	for _, labels := range subjects {
		c.names.count(labels, 1)
	}
	for _, labels := range w.Identities {
		c.names.count(labels, 1)
	}
	t := &Tables{
		Classes: make(map[identity.Number]uint32, len(w.Identities)), Ports: map[uint8][]PortRange{},
		Sets: map[uint32]SetInfo{}, Entries: map[EntryKey]Entry{}, Rules: []RuleInfo{{}}, compiler: c, changes: newChanges(),
	}
	if err := t.Revise(nil, w.Policies, w.Groups); err != nil {
		return nil, err
	}
	byText := map[string]identity.Labels{}
	for _, s := range subjects {
		byText[s.String()] = s
	}
	for _, text := range slices.Sorted(maps.Keys(byText)) {
		if _, _, err := t.SetOf(byText[text]); err != nil {
			return nil, err
		}
	}
	known := identity.AllReserved()
	maps.Copy(known, w.Identities)
	c.names = portNumbers{} // counted again, identity by identity
	for _, n := range slices.Sorted(maps.Keys(known)) {
		t.AddIdentity(n, known[n])
	}
	for _, labels := range subjects {
		c.names.count(labels, 1)
	}
	clear(c.renumbered)
	t.Take()
	return t, nil
}

// Revise replaces policies, and the groups that policies refer to. If groups change, the
// policies that refer to them are to be replaced by themselves.
//
// It changes no verdict: the subjects that a replaced policy selects, or did, have to be
// given the set that SetOf now returns.
func (t *Tables) Revise(gone, now []*Policy, groups []*CIDRGroup) error {
	c := t.compiler
	for _, p := range gone {
		for _, id := range c.of[p.String()] {
			r := c.rules[id]
			c.worn += len(r.terms[Egress]) + len(r.terms[Ingress])
			c.subjects.remove(id)
			delete(c.rules, id)
		}
		delete(c.of, p.String())
		for key := range NamedPorts([]*Policy{p}) {
			if delete(c.naming[key], p); len(c.naming[key]) == 0 {
				delete(c.naming, key)
			}
		}
	}
	c.groups = groups
	policies := slices.SortedFunc(slices.Values(now), func(a, b *Policy) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	for _, p := range policies {
		if _, there := c.of[p.String()]; there {
			return fmt.Errorf("%s is given twice; keep one of them", p)
		}
		c.of[p.String()] = []uint32{}
		for key := range NamedPorts([]*Policy{p}) {
			if c.naming[key] == nil {
				c.naming[key] = map[*Policy]bool{}
			}
			c.naming[key][p] = true
		}
		for n, r := range p.rules {
			t.addRule(p, n, r)
		}
	}
	return nil
}

// addRule gives every term of a rule its cookie.
func (t *Tables) addRule(p *Policy, n int, r rule) {
	c := t.compiler
	out := compiledRule{policy: p, subject: r.subject.local(c.cluster), enforced: r.enforced, log: r.log}
	for _, dir := range directions {
		for _, tm := range r.terms[dir] {
			var peers []peer
			for _, named := range tm.peers {
				for _, q := range named.resolved(c.groups) {
					peers = append(peers, q.local(c.cluster))
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
	for _, r := range c.names.unnamed(out) {
		id := c.subjects.add(peer{selector: r.subject})
		c.rules[id] = r
		c.of[p.String()] = append(c.of[p.String()], id)
	}
}

// Worn reports whether most rules that have a cookie are gone. Cookies are not used
// twice, so that none ever means two rules; tables compiled again begin with few.
func (t *Tables) Worn() bool { return t.compiler.worn > 1<<14 && 2*t.compiler.worn > len(t.Rules) }

// SetOf returns the policy set of a subject and compiles it if nobody was under the same
// rules before. ok is false if the subject's ports have new numbers; the tables must
// then be compiled again.
func (t *Tables) SetOf(subject identity.Labels) (set uint32, ok bool, err error) {
	if !t.Knows(subject) {
		return 0, false, nil
	}
	c := t.compiler
	rules := c.subjects.find(identity.Unknown, subject)
	if set, ok := c.setIDs[signature(rules)]; ok {
		return set, true, nil
	}
	set, err = t.compileSet(rules)
	return set, err == nil, err
}

// Enlist notes that n more subjects have these labels, or fewer if n is negative. Rules by
// port name are made for the numbers that subjects and identities have. Compile has enlisted
// its subjects.
func (t *Tables) Enlist(subject identity.Labels, n int) { t.compiler.countPorts(subject, n) }

// Renumbered returns the policies that name a port which has gained or lost a number since
// it was last called. They are to be replaced by themselves.
func (t *Tables) Renumbered() []*Policy {
	c := t.compiler
	policies := map[*Policy]bool{}
	for key := range c.renumbered {
		maps.Copy(policies, c.naming[key])
	}
	clear(c.renumbered)
	return slices.Collect(maps.Keys(policies))
}

// countPorts notes that n more have the ports in labels.
func (c *compiler) countPorts(labels identity.Labels, n int) {
	for _, key := range c.names.count(labels, n) {
		if len(c.naming[key]) > 0 {
			c.renumbered[key] = true
		}
	}
}

// Knows reports whether the tables can judge a subject with these labels. They cannot if
// one of its ports has a number that neither an identity nor an enlisted subject has.
func (t *Tables) Knows(labels identity.Labels) bool { return t.compiler.names.knows(labels) }
