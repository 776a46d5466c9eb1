package program

import (
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/policy"
)

// Explanation says what the numbers in events mean. It is immutable.
type Explanation struct {
	Gen   uint32
	Rules []policy.RuleInfo         // by cookie
	Sets  map[uint32]policy.SetInfo // by kernel number
	Next  *Explanation              // the generation about to take effect
	Older *Explanation              // the previous generation
}

// Of returns the explanation of a generation, or nil if it is too old.
func (x *Explanation) Of(gen uint32) *Explanation {
	for ; x != nil; x = x.Older {
		if x.Gen == gen {
			return x
		}
		if x.Next != nil && x.Next.Gen == gen {
			return x.Next
		}
	}
	return nil
}

// policies writes compiled policies to the kernel, one generation after another.
type policies struct {
	classes *mirror[bpf.ClassKey, uint32]
	ports   *mirror[uint32, uint16]
	entries *mirror[bpf.PolicyKey, bpf.PolicyEntry]
	sets    *mirror[bpf.SetKey, bpf.SetInfo]

	gen     uint32            // current generation
	current *policy.Tables    // what gen holds; nil until the first compilation
	content map[uint32]uint32 // kernel number to compiled number, of current
	lastSet uint32
	// known are the identities for which current has classes.
	known map[identity.Number]identity.Labels
	// stale is when the last switch or failed compilation left unused rows in the
	// maps; zero if there are none. They stay a little, for programs still running.
	stale time.Time
	// revision of the policies table from which current was made.
	revision uint64
	// behind is set while the maps may lack part of current.
	behind bool

	explain atomic.Pointer[Explanation]
}

func newPolicies(m *bpf.Maps, gen uint32, endpoints map[bpf.Addr]bpf.Endpoint) (*policies, error) {
	p := &policies{gen: gen, content: map[uint32]uint32{}}
	var errs [4]error
	p.classes, errs[0] = newMirror(m.Classes)
	p.ports, errs[1] = newMirror(m.Ports)
	p.entries, errs[2] = newMirror(m.Policy)
	p.sets, errs[3] = newMirror(m.Sets)
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	for _, e := range endpoints {
		p.lastSet = max(p.lastSet, e.Set)
	}
	for k := range p.sets.have {
		p.lastSet = max(p.lastSet, k.Set)
	}
	return p, nil
}

func (p *policies) fresh() uint32 {
	p.lastSet++
	return p.lastSet
}

// rows is one generation as kernel rows.
type rows struct {
	classes map[bpf.ClassKey]uint32
	ports   map[uint32]uint16
	entries map[bpf.PolicyKey]bpf.PolicyEntry
	sets    map[bpf.SetKey]bpf.SetInfo
}

// rowsOf returns a generation's rows under kernel numbers.
func rowsOf(gen uint32, t *policy.Tables, content map[uint32]uint32) rows {
	r := rows{
		classes: make(map[bpf.ClassKey]uint32, len(t.Classes)), ports: map[uint32]uint16{},
		entries: map[bpf.PolicyKey]bpf.PolicyEntry{}, sets: map[bpf.SetKey]bpf.SetInfo{},
	}
	for n, class := range t.Classes {
		if class != 0 {
			r.classes[bpf.ClassKey{Gen: gen, Identity: uint32(n)}] = class
		}
	}
	for proto, ranges := range t.Ports {
		for _, pr := range ranges {
			for port := int(pr.First); port <= int(pr.Last); port++ {
				if i, ok := bpf.PortIndex(gen, proto, uint16(port)); ok {
					r.ports[i] = pr.Class
				}
			}
		}
	}
	numbers := map[uint32][]uint32{}
	for number, compiled := range content {
		numbers[compiled] = append(numbers[compiled], number)
		r.sets[bpf.SetKey{Gen: gen, Set: number}] = setInfo(t.Sets[compiled])
	}
	for k, e := range t.Entries {
		for _, number := range numbers[k.Set] {
			r.entries[entryKey(gen, number, k)] = entry(e)
		}
	}
	return r
}

func setInfo(s policy.SetInfo) bpf.SetInfo {
	return bpf.SetInfo{Enforced: [2]uint8{bit(s.Enforced[0]), bit(s.Enforced[1])}}
}

func entryKey(gen, set uint32, k policy.EntryKey) bpf.PolicyKey {
	return bpf.PolicyKey{Gen: gen, Set: set, Class: k.Class, Port: k.Port, Proto: k.Proto, Dir: bpf.Direction(k.Dir)}
}

func entry(e policy.Entry) bpf.PolicyEntry { return bpf.PolicyEntry{Rule: e.Rule, Deny: bit(e.Deny)} }

// write adds rows beside the existing ones. Nothing uses them yet.
func (p *policies) write(r rows) (err error) {
	fail := func(e error) {
		if err == nil {
			err = e
		}
	}
	p.ports.update(r.ports, func(_ uint32, e error) { fail(e) })
	p.entries.update(r.entries, func(_ bpf.PolicyKey, e error) { fail(e) })
	p.sets.update(r.sets, func(_ bpf.SetKey, e error) { fail(e) })
	if err != nil {
		return err // a class without all its entries could miss a deny rule
	}
	p.classes.update(r.classes, func(_ bpf.ClassKey, e error) { fail(e) })
	return err
}

// forget drops kernel numbers that no endpoint has.
func (p *policies) forget(used map[uint32]bool) {
	maps.DeleteFunc(p.content, func(number, _ uint32) bool { return !used[number] })
}

// clean removes what the current generation does not need.
func (p *policies) clean() (err error) {
	fail := func(e error) {
		if err == nil {
			err = e
		}
	}
	want := rowsOf(p.gen, p.current, p.content)
	p.classes.remove(want.classes, true, func(_ bpf.ClassKey, e error) { fail(e) })
	p.entries.remove(want.entries, true, func(_ bpf.PolicyKey, e error) { fail(e) })
	p.sets.remove(want.sets, true, func(_ bpf.SetKey, e error) { fail(e) })
	p.ports.remove(want.ports, true, func(_ uint32, e error) { fail(e) })
	return err
}

// grace is how long rows outlive the generation that used them: far longer than a
// program runs.
const grace = 100 * time.Millisecond

// compile compiles all policies and prepares the next generation. present holds the
// kernel numbers of the endpoints that have rows, by name; relabel changes the number
// in an endpoint's row. After it returns nil, the caller switches to p.gen+1 and calls
// switched. After an error, verdicts are unchanged and what was written is removed
// like an older generation.
func (p *policies) compile(w policy.World, subjects map[string]identity.Labels, present map[string]uint32, relabel func(ep string, set uint32) error) (*next, error) {
	n, err := p.prepare(w, subjects, present, relabel)
	if err != nil && p.current != nil && p.stale.IsZero() {
		p.stale = time.Now()
	}
	return n, err
}

func (p *policies) prepare(w policy.World, subjects map[string]identity.Labels, present map[string]uint32, relabel func(ep string, set uint32) error) (*next, error) {
	t, err := policy.Compile(w, slices.Collect(maps.Values(subjects)))
	if err != nil {
		return nil, fmt.Errorf("compile policies: %w", err)
	}
	compiled := map[string]uint32{}
	for ep, labels := range subjects {
		set, ok := t.SetOf(labels)
		if !ok {
			return nil, fmt.Errorf("compile policies: no set for endpoint %s", ep)
		}
		compiled[ep] = set
	}
	a := assign(present, compiled, p.fresh)
	if err := p.splitRows(a, relabel); err != nil {
		return nil, err
	}
	gen := p.gen + 1
	r := rowsOf(gen, t, a.content)
	// Two generations share the array of ports: what an older one left in this half
	// must go before the half is used again.
	half := func(i uint32) bool { j, _ := bpf.PortIndex(gen, 6, 0); return i >= j && i < j+bpf.PortRows/2 }
	for i := range p.ports.have {
		if _, ok := r.ports[i]; !ok && half(i) {
			if err := p.ports.drop(i); err != nil {
				return nil, err
			}
		}
	}
	if err := p.abandon(gen, r); err != nil {
		return nil, err
	}
	if err := p.write(r); err != nil {
		return nil, err
	}
	known := maps.Clone(w.Identities)
	return &next{gen: gen, tables: t, assignment: a, known: known}, nil
}

// abandon removes what a failed attempt left of a generation, which would otherwise
// become effective with it.
func (p *policies) abandon(gen uint32, r rows) (err error) {
	fail := func(e error) {
		if err == nil {
			err = e
		}
	}
	p.classes.removeBut(r.classes, true, func(k bpf.ClassKey) bool { return k.Gen != gen }, func(_ bpf.ClassKey, e error) { fail(e) })
	p.entries.removeBut(r.entries, true, func(k bpf.PolicyKey) bool { return k.Gen != gen }, func(_ bpf.PolicyKey, e error) { fail(e) })
	p.sets.removeBut(r.sets, true, func(k bpf.SetKey) bool { return k.Gen != gen }, func(_ bpf.SetKey, e error) { fail(e) })
	return err
}

// next is a generation that is written but not yet in effect.
type next struct {
	gen        uint32
	tables     *policy.Tables
	assignment assignment
	known      map[identity.Number]identity.Labels
}

// splitRows gives rows numbers of their own under the current generation.
func (p *policies) splitRows(a assignment, relabel func(string, uint32) error) error {
	for _, to := range a.split {
		info := p.sets.have[bpf.SetKey{Gen: p.gen, Set: to.like}]
		if err := p.sets.put(bpf.SetKey{Gen: p.gen, Set: to.number}, info); err != nil {
			return err
		}
		for k, e := range p.entries.have {
			if k.Gen != p.gen || k.Set != to.like || to.like == noSet {
				continue
			}
			k.Set = to.number
			if err := p.entries.put(k, e); err != nil {
				return err
			}
		}
		p.adopt(to)
	}
	for ep, to := range a.split {
		if err := relabel(ep, to.number); err != nil {
			return err
		}
	}
	return nil
}

// adopt adds a number split off for a switch to the current generation, because rows
// keep it even if the switch never happens.
func (p *policies) adopt(to splitTo) {
	if p.current == nil {
		return
	}
	meaning, known := p.content[to.like]
	if known || to.like == noSet {
		p.content[to.number] = meaning
		p.explained()
	}
}

// announce publishes what the numbers will mean, so that even the first packet judged
// by the next generation can be explained.
func (p *policies) announce(n *next) {
	x := Explanation{Gen: p.gen}
	if now := p.explain.Load(); now != nil {
		x = *now
	}
	x.Next = explanation(n.gen, n.tables, n.assignment.content)
	p.explain.Store(&x)
}

// switched makes the prepared generation the current one.
func (p *policies) switched(n *next, now time.Time) {
	p.gen, p.current, p.content, p.known, p.stale, p.behind = n.gen, n.tables, n.assignment.content, n.known, now, false
	p.explained()
}

// explained publishes what the numbers mean now.
func (p *policies) explained() {
	x := explanation(p.gen, p.current, p.content)
	if older := p.explain.Load(); older != nil {
		if older.Gen == x.Gen {
			x.Older = older.Older
		} else {
			last := *older
			last.Next, last.Older = nil, nil
			x.Older = &last
		}
	}
	p.explain.Store(x)
}

// explanation explains a generation whose kernel numbers stand for these compiled
// numbers.
func explanation(gen uint32, t *policy.Tables, content map[uint32]uint32) *Explanation {
	x := &Explanation{Gen: gen, Rules: t.Rules, Sets: map[uint32]policy.SetInfo{}}
	for number, compiled := range content {
		x.Sets[number] = t.Sets[compiled]
	}
	return x
}

// identities updates the current generation to the given identities without making a
// new one.
func (p *policies) identities(want map[identity.Number]identity.Labels) (changed int, err error) {
	if p.behind {
		if err := p.write(rowsOf(p.gen, p.current, p.content)); err != nil {
			return 0, err
		}
		p.behind = false
	}
	numbers := p.numbers()
	for n, labels := range want {
		moved, err := p.know(n, labels, numbers)
		if err != nil {
			return changed, err
		}
		changed += moved
	}
	for n := range p.known {
		if _, ok := want[n]; ok {
			continue
		}
		moved, err := p.unlearn(n)
		if err != nil {
			return changed, err
		}
		changed += moved
	}
	return changed, nil
}

// numbers returns the kernel numbers of each compiled number.
func (p *policies) numbers() map[uint32][]uint32 {
	numbers := map[uint32][]uint32{}
	for number, compiled := range p.content {
		numbers[compiled] = append(numbers[compiled], number)
	}
	return numbers
}

// know adds one identity to the current generation: first the entries, then the class
// that leads to them. It returns how many identities changed.
func (p *policies) know(n identity.Number, labels identity.Labels, numbers map[uint32][]uint32) (changed int, err error) {
	if old, ok := p.known[n]; ok && old.Equal(labels) {
		return 0, nil
	}
	// On failure the compiled tables have what the kernel does not.
	defer func() { p.behind = p.behind || err != nil }()
	class, entries := p.current.AddIdentity(n, labels)
	for k, e := range entries {
		for _, number := range numbers[k.Set] {
			if err := p.entries.put(entryKey(p.gen, number, k), entry(e)); err != nil {
				return 0, fmt.Errorf("identity %v: %w", n, err)
			}
		}
	}
	key := bpf.ClassKey{Gen: p.gen, Identity: uint32(n)}
	if class == 0 {
		err = p.classes.drop(key)
	} else {
		err = p.classes.put(key, class)
	}
	if err != nil {
		return 0, fmt.Errorf("identity %v: %w", n, err)
	}
	p.known[n] = labels
	return 1, nil
}

// unlearn removes one identity from the current generation. It returns how many
// identities changed.
func (p *policies) unlearn(n identity.Number) (changed int, err error) {
	if _, ok := p.known[n]; !ok {
		return 0, nil
	}
	if err := p.classes.drop(bpf.ClassKey{Gen: p.gen, Identity: uint32(n)}); err != nil {
		p.behind = true
		return 0, fmt.Errorf("identity %v: %w", n, err)
	}
	p.current.RemoveIdentity(n)
	delete(p.known, n)
	return 1, nil
}

// lacks says whether one of these identities has a named port whose number was unknown
// when the current rules were compiled.
func (p *policies) lacks(labels map[identity.Number]identity.Labels) bool {
	for _, ls := range labels {
		if !p.current.Knows(ls) {
			return true
		}
	}
	return false
}

// setFor returns the kernel number of a subject's rules in the current generation, and
// writes them if no endpoint has used them yet. ok is false if a compilation is
// needed.
func (p *policies) setFor(labels identity.Labels) (set uint32, ok bool, err error) {
	if p.current == nil {
		return 0, false, nil
	}
	compiled, ok := p.current.SetOf(labels)
	if !ok {
		return 0, false, nil
	}
	if compiled == noSet {
		return noSet, true, nil
	}
	best := noSet
	for number, content := range p.content {
		if content == compiled && (best == noSet || number < best) {
			best = number
		}
	}
	if best == noSet {
		best = p.fresh()
	}
	one := rowsOf(p.gen, &policy.Tables{Sets: p.current.Sets, Entries: p.current.Entries}, map[uint32]uint32{best: compiled})
	if err := p.write(one); err != nil {
		return 0, true, err
	}
	p.content[best] = compiled
	p.explained()
	return best, true, nil
}
