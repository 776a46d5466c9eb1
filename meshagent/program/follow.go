package program

import (
	"fmt"
	"time"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/reconcile"
	"github.com/weft-mesh/weft/policy"
)

// Within a generation, the maps follow what changes: identities, policies, and the rules
// that an endpoint is under. An endpoint under other rules gets another set, so a policy
// change is one write for each endpoint that it concerns, and disturbs only its flows.
// Classes are split and merged as needed, which changes no verdict.

// identities updates the current generation to the given identities without making a
// new one.
func (p *policies) identities(want map[identity.Number]identity.Labels) (changed int, err error) {
	if err := p.catchUp(); err != nil {
		return 0, err
	}
	for n, labels := range want {
		moved, err := p.know(n, labels)
		if err != nil {
			return changed, err
		}
		changed += moved
	}
	for n := range p.current.Classes {
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

// catchUp writes what an earlier write failed to.
func (p *policies) catchUp() error {
	if !p.behind {
		return nil
	}
	want := rowsOf(p.gen, p.current, p.content)
	err := p.write(want)
	class, port := reconcile.In(want.classes), reconcile.In(want.ports)
	p.classes.Prune(func(k bpf.ClassKey) bool { return k.Gen != p.gen || class(k) }, reconcile.First[bpf.ClassKey](&err))
	p.ports.Prune(func(i uint32) bool { return !inHalf(p.gen, i) || port(i) }, reconcile.First[uint32](&err))
	if err != nil {
		return err
	}
	p.behind, p.littered = false, true
	p.tire()
	return nil
}

// inHalf says whether a row of the array of ports belongs to a generation. Two share the
// array.
func inHalf(gen, i uint32) bool {
	first, _ := bpf.PortIndex(gen, 6, 0)
	return i >= first && i < first+bpf.PortRows/2
}

// tire notes that rows are no longer needed.
func (p *policies) tire() {
	if p.stale.IsZero() {
		p.stale = time.Now()
	}
}

// know adds one identity to the current generation. It returns how many identities
// changed.
func (p *policies) know(n identity.Number, labels identity.Labels) (changed int, err error) {
	if _, ok := p.current.Classes[n]; ok && p.current.Labels(n).Equal(labels) {
		return 0, nil
	}
	p.current.AddIdentity(n, labels)
	if err := p.flush(); err != nil {
		return 0, fmt.Errorf("identity %v: %w", n, err)
	}
	return 1, nil
}

// unlearn removes one identity from the current generation; a reserved one is again what
// it is everywhere. It returns how many identities changed.
func (p *policies) unlearn(n identity.Number) (changed int, err error) {
	if labels := identity.ReservedLabels(n); labels != nil {
		return p.know(n, labels)
	}
	if _, ok := p.current.Classes[n]; !ok {
		return 0, nil
	}
	p.current.RemoveIdentity(n)
	if err := p.flush(); err != nil {
		return 0, fmt.Errorf("identity %v: %w", n, err)
	}
	return 1, nil
}

// flushQuietly writes what has changed in the current tables, where that changes no
// verdict.
func (p *policies) flushQuietly() error {
	p.quiet = true
	defer func() { p.quiet = false }()
	return p.flush()
}

// flush writes what has changed in the current tables, in the order that Changes asks
// for. After an error, catchUp and clean do: what comes later may rest on rows that are
// missing, and an identity in a class without all its entries could miss a deny rule.
func (p *policies) flush() (err error) {
	defer func() {
		if err != nil {
			p.behind, p.littered = true, true
			p.tire()
		}
		if p.current.Litter() {
			p.tire()
		}
	}()
	c := p.current.Take()
	if p.behind {
		return p.catchUp()
	}
	r := rows{classes: map[bpf.ClassKey]uint32{}}
	if len(c.Entries)+len(c.Sets) > 0 {
		p.newRows(c, &r)
	}
	if len(c.Ports) > 0 {
		r.ports = portRows(p.gen, c.Ports)
	}
	for n, class := range c.Classes {
		if class != 0 {
			r.classes[bpf.ClassKey{Gen: p.gen, Identity: uint32(n)}] = class
		}
	}
	if err := p.write(r); err != nil {
		return err
	}
	for n, class := range c.Classes {
		if class == 0 {
			if err := p.classes.Drop(bpf.ClassKey{Gen: p.gen, Identity: uint32(n)}); err != nil {
				return err
			}
		}
	}
	if len(c.GoneEntries)+len(c.GoneSets) > 0 {
		return p.remove(c)
	}
	return nil
}

// newRows adds the rows of new entries and sets, under their kernel numbers.
func (p *policies) newRows(c policy.Changes, r *rows) {
	numbers := p.numbers()
	r.entries, r.sets = map[bpf.PolicyKey]bpf.PolicyEntry{}, map[bpf.SetKey]bpf.SetInfo{}
	for _, set := range c.Sets {
		for _, number := range numbers[set] {
			r.sets[bpf.SetKey{Gen: p.gen, Set: number}] = setInfo(p.current.Sets[set])
		}
	}
	for k, e := range c.Entries {
		for _, number := range numbers[k.Set] {
			r.add(entryKey(p.gen, number, k), entry(e))
		}
	}
}

// remove deletes the rows of what is gone.
func (p *policies) remove(c policy.Changes) (err error) {
	numbers := p.numbers()
	var entries []bpf.PolicyKey
	for _, k := range c.GoneEntries {
		for _, number := range numbers[k.Set] {
			entries = append(entries, entryKey(p.gen, number, k))
		}
	}
	p.entries.Delete(entries, reconcile.First[bpf.PolicyKey](&err))
	if len(c.GoneSets) > 0 {
		p.former = map[uint32]policy.SetInfo{}
	}
	for _, set := range c.GoneSets {
		for _, number := range numbers[set] {
			if e := p.sets.Drop(bpf.SetKey{Gen: p.gen, Set: number}); err == nil {
				err = e
			}
			if x := p.explain.Load(); x != nil {
				p.former[number] = x.Sets[number]
			}
			delete(p.content, number)
		}
	}
	return err
}

// numbers returns the kernel numbers of each compiled number.
func (p *policies) numbers() map[uint32][]uint32 {
	numbers := map[uint32][]uint32{}
	for number, compiled := range p.content {
		numbers[compiled] = append(numbers[compiled], number)
	}
	return numbers
}

// setFor returns the kernel number of a subject's rules in the current generation, and
// writes them if no endpoint has used them yet. ok is false if a compilation is
// needed. After an error, nothing is left of rules that no endpoint has used.
func (p *policies) setFor(labels identity.Labels) (set uint32, ok bool, err error) {
	if p.current == nil {
		return 0, false, nil
	}
	if err := p.catchUp(); err != nil {
		return 0, true, err
	}
	compiled, ok, err := p.current.SetOf(labels)
	if !ok || err != nil || compiled == noSet {
		return noSet, ok, err
	}
	best := noSet
	for number, content := range p.content {
		if content == compiled && (best == noSet || number < best) {
			best = number
		}
	}
	if best != noSet {
		return best, true, nil
	}
	best = p.fresh()
	p.content[best] = compiled
	p.explained()
	one := rowsOf(p.gen, &policy.Tables{Sets: p.current.Sets, Entries: p.current.EntriesOf(compiled)}, map[uint32]uint32{best: compiled})
	if err = p.write(one); err == nil {
		err = p.flushQuietly()
	}
	if err != nil {
		p.current.Discard(compiled)
		_ = p.flushQuietly() // else clean removes it
		delete(p.content, best)
		return 0, true, err
	}
	return best, true, nil
}

// sweep removes from the current generation what no endpoint needs. used are the kernel
// numbers of sets that endpoints have.
func (p *policies) sweep(used map[uint32]bool) (again bool, err error) {
	compiled := map[uint32]bool{}
	for number := range used {
		compiled[p.content[number]] = true
	}
	again = p.current.Sweep(func(set uint32) bool { return compiled[set] })
	return again, p.flushQuietly()
}
