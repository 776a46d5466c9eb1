package program

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/reconcile"
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
	classes *reconcile.Reconciler[bpf.ClassKey, uint32]
	ports   *reconcile.Reconciler[uint32, uint16]
	entries *reconcile.Reconciler[bpf.PolicyKey, bpf.PolicyEntry]
	sets    *reconcile.Reconciler[bpf.SetKey, bpf.SetInfo]

	gen     uint32            // current generation
	current *policy.Tables    // what gen holds; nil until the first compilation
	content map[uint32]uint32 // kernel number to compiled number, of current
	lastSet uint32
	// former are the sets that were removed last: an event that nobody has read yet may
	// name one.
	former map[uint32]policy.SetInfo
	// stale is when rows in the maps were last found to be unused; zero if there are
	// none. They stay a little, for programs still running.
	stale time.Time
	// littered says that the unused rows are not only those that current knows of: a
	// switch, a failed compilation or a failed write left them.
	littered bool
	// quiet is set while identities move between classes that are judged alike.
	quiet bool
	// revision of the policies table from which current was made.
	revision uint64
	// behind is set while the maps may lack part of current.
	behind bool

	explain atomic.Pointer[Explanation]
}

// newPolicies takes over what the maps hold. judged is called for each identity that the
// generation in force judges differently from now on.
func newPolicies(m *bpf.Maps, gen uint32, endpoints iter.Seq2[bpf.Addr, bpf.Endpoint], judged func(identity uint32)) (*policies, error) {
	p := &policies{gen: gen, content: map[uint32]uint32{}}
	var errs [4]error
	p.classes, errs[0] = reconcile.New(m.Classes, batchFrom, func(k bpf.ClassKey, _, _ uint32, _ bool) {
		if k.Gen == p.gen && !p.quiet { // no other generation is in force
			judged(k.Identity)
		}
	})
	p.ports, errs[1] = reconcile.New(m.Ports, batchFrom, nil)
	p.entries, errs[2] = reconcile.New(m.Policy, batchFrom, nil)
	p.sets, errs[3] = reconcile.New(m.Sets, batchFrom, nil)
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	for _, e := range endpoints {
		p.lastSet = max(p.lastSet, e.Set)
	}
	for k := range p.sets.Rows() {
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
		classes: make(map[bpf.ClassKey]uint32, len(t.Classes)),
		entries: map[bpf.PolicyKey]bpf.PolicyEntry{}, sets: map[bpf.SetKey]bpf.SetInfo{},
	}
	for n, class := range t.Classes {
		if class != 0 {
			r.classes[bpf.ClassKey{Gen: gen, Identity: uint32(n)}] = class
		}
	}
	r.ports = portRows(gen, t.Ports)
	numbers := map[uint32][]uint32{}
	for number, compiled := range content {
		numbers[compiled] = append(numbers[compiled], number)
		r.sets[bpf.SetKey{Gen: gen, Set: number}] = setInfo(t.Sets[compiled])
	}
	for k, e := range t.Entries {
		for _, number := range numbers[k.Set] {
			r.add(entryKey(gen, number, k), entry(e))
		}
	}
	return r
}

// add adds an entry, and its shape to those of its set, if that is among the rows.
func (r *rows) add(k bpf.PolicyKey, e bpf.PolicyEntry) {
	r.entries[k] = e
	if info, ok := r.sets[setKeyOf(k)]; ok {
		info.Shapes[k.Dir] |= k.Shape()
		r.sets[setKeyOf(k)] = info
	}
}

func setKeyOf(k bpf.PolicyKey) bpf.SetKey { return bpf.SetKey{Gen: k.Gen, Set: k.Set} }

// portRows are the rows of ranges of ports; later ranges count.
func portRows(gen uint32, of map[uint8][]policy.PortRange) map[uint32]uint16 {
	rows := map[uint32]uint16{}
	for proto, ranges := range of {
		for _, r := range ranges {
			for port := int(r.First); port <= int(r.Last); port++ {
				if i, ok := bpf.PortIndex(gen, proto, uint16(port)); ok {
					rows[i] = r.Class
				}
			}
		}
	}
	return rows
}

func setInfo(s policy.SetInfo) bpf.SetInfo {
	return bpf.SetInfo{
		Enforced: [2]uint8{bit(s.Enforced[0]), bit(s.Enforced[1])},
		Shapes:   [2]bpf.Shapes{bpf.NoShapes, bpf.NoShapes},
	}
}

func entryKey(gen, set uint32, k policy.EntryKey) bpf.PolicyKey {
	return bpf.PolicyKey{Gen: gen, Set: set, Class: k.Class, Port: k.Port, Proto: k.Proto, Dir: bpf.Direction(k.Dir)}
}

func entry(e policy.Entry) bpf.PolicyEntry { return bpf.PolicyEntry{Rule: e.Rule, Deny: bit(e.Deny)} }

// write adds rows. Nobody is in a class before all its entries are there, and no entry is
// there before its set says that such ones exist.
func (p *policies) write(r rows) (err error) {
	wider := p.widen(r)
	p.sets.Update(wider, reconcile.First[bpf.SetKey](&err))
	if err != nil {
		return err
	}
	p.entries.Update(r.entries, reconcile.First[bpf.PolicyKey](&err))
	p.sets.Update(r.sets, reconcile.First[bpf.SetKey](&err))
	if err != nil {
		return err // a class without all its entries could miss a deny rule
	}
	p.ports.Update(r.ports, reconcile.First[uint32](&err))
	p.classes.Update(r.classes, reconcile.First[bpf.ClassKey](&err))
	return err
}

// widen returns the rows that sets have until the entries are there: what is in force, with
// the shapes of the new entries. It adds the shapes to the sets among r as well: those that
// exist may have entries of shapes that are not among r's.
func (p *policies) widen(r rows) map[bpf.SetKey]bpf.SetInfo {
	wider := map[bpf.SetKey]bpf.SetInfo{}
	for k := range r.entries {
		if info, ok := p.sets.Row(setKeyOf(k)); ok && !info.Shapes[k.Dir].Have(k) {
			if w, ok := wider[setKeyOf(k)]; ok {
				info = w
			}
			info.Shapes[k.Dir] |= k.Shape()
			wider[setKeyOf(k)] = info
		}
	}
	for k, info := range r.sets {
		is, ok := wider[k]
		if !ok {
			is, ok = p.sets.Row(k)
		}
		if !ok {
			continue
		}
		for dir, have := range is.Shapes {
			if info.Shapes[dir] |= have; have == 0 {
				info.Shapes[dir] = 0 // an older agent's, and may have any
			}
		}
		r.sets[k] = info
	}
	return wider
}

// forget drops kernel numbers that no endpoint has.
func (p *policies) forget(used map[uint32]bool) {
	maps.DeleteFunc(p.content, func(number, _ uint32) bool { return !used[number] })
}

// clean removes what the current generation does not need.
func (p *policies) clean() (err error) {
	want := rowsOf(p.gen, p.current, p.content)
	p.classes.Prune(reconcile.In(want.classes), reconcile.First[bpf.ClassKey](&err))
	p.entries.Prune(reconcile.In(want.entries), reconcile.First[bpf.PolicyKey](&err))
	p.sets.Prune(reconcile.In(want.sets), reconcile.First[bpf.SetKey](&err))
	p.ports.Prune(reconcile.In(want.ports), reconcile.First[uint32](&err))
	if err == nil && !p.behind {
		// The shapes of the entries that are gone.
		p.sets.Update(want.sets, reconcile.First[bpf.SetKey](&err))
	}
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
	if err != nil && p.current != nil {
		p.littered = true
		p.tire()
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
		set, ok, err := t.SetOf(labels)
		if !ok {
			return nil, fmt.Errorf("compile policies: no set for endpoint %s: %w", ep, err)
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
	for i := range p.ports.Rows() {
		if _, ok := r.ports[i]; !ok && inHalf(gen, i) {
			if err := p.ports.Drop(i); err != nil {
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
	return &next{gen: gen, tables: t, assignment: a}, nil
}

// abandon removes what a failed attempt left of a generation, which would otherwise
// become effective with it.
func (p *policies) abandon(gen uint32, r rows) (err error) {
	wantedClass, wantedEntry, wantedSet := reconcile.In(r.classes), reconcile.In(r.entries), reconcile.In(r.sets)
	p.classes.Prune(func(k bpf.ClassKey) bool { return k.Gen != gen || wantedClass(k) }, reconcile.First[bpf.ClassKey](&err))
	p.entries.Prune(func(k bpf.PolicyKey) bool { return k.Gen != gen || wantedEntry(k) }, reconcile.First[bpf.PolicyKey](&err))
	p.sets.Prune(func(k bpf.SetKey) bool { return k.Gen != gen || wantedSet(k) }, reconcile.First[bpf.SetKey](&err))
	return err
}

// next is a generation that is written but not yet in effect.
type next struct {
	gen        uint32
	tables     *policy.Tables
	assignment assignment
}

// splitRows gives rows numbers of their own under the current generation.
func (p *policies) splitRows(a assignment, relabel func(string, uint32) error) error {
	for _, to := range a.split {
		info, _ := p.sets.Row(bpf.SetKey{Gen: p.gen, Set: to.like})
		if err := p.sets.Put(bpf.SetKey{Gen: p.gen, Set: to.number}, info); err != nil {
			return err
		}
		for k, e := range p.entries.Rows() {
			if k.Gen != p.gen || k.Set != to.like || to.like == noSet {
				continue
			}
			k.Set = to.number
			if err := p.entries.Put(k, e); err != nil {
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
	p.gen, p.current, p.content, p.stale, p.littered, p.behind = n.gen, n.tables, n.assignment.content, now, true, false
	p.explained()
}

// explained publishes what the numbers mean now.
func (p *policies) explained() {
	x := explanation(p.gen, p.current, p.content)
	maps.Copy(x.Sets, p.former)
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
