package policy

import (
	"fmt"
	"maps"
	"slices"
)

// portClasses divides the ports of each protocol into classes of ports that every
// policy set treats alike. Class 0 is for ports that none names. As with identities, a
// new range splits the classes of which it holds a part, and classes are merged when the
// last set that names a range goes.
type portClasses map[uint8]*protoPorts

type protoPorts struct {
	specs   map[uint32]portSpec // by number; numbers only grow
	ids     map[portSpec]uint32
	refs    map[uint32]int
	last    uint32
	classes map[uint16]*portClass
	bySig   map[string]*portClass
	unfree  map[uint16]bool // numbers of merged classes that entries still have
}

type portClass struct {
	number uint16
	specs  []uint32 // ascending
	ports  int
}

// room reports whether there are numbers left for the classes of so many new ranges.
func (x portClasses) room(specs []portSpec) error {
	fresh := map[uint8]int{}
	for _, s := range specs {
		if p := x[s.proto]; !s.anyPort() && (p == nil || p.ids[s] == 0) {
			fresh[s.proto]++
		}
	}
	for proto, n := range fresh {
		if p := x[proto]; p != nil && len(p.classes)+len(p.unfree)+2*n > maxPort || 2*n > maxPort {
			return fmt.Errorf("policies distinguish more than %d ports of IP protocol %d; merge some into ranges", maxPort, proto)
		}
	}
	return nil
}

func (x portClasses) of(s portSpec) (classes []uint16) {
	p := x[s.proto]
	for _, c := range p.classes {
		if slices.Contains(c.specs, p.ids[s]) {
			classes = append(classes, c.number)
		}
	}
	slices.Sort(classes)
	return classes
}

// namePorts notes that one more term names a range.
func (t *Tables) namePorts(s portSpec) {
	if s.anyPort() {
		return
	}
	p := t.compiler.ports[s.proto]
	if p == nil {
		p = &protoPorts{specs: map[uint32]portSpec{}, ids: map[portSpec]uint32{}, refs: map[uint32]int{},
			classes: map[uint16]*portClass{}, bySig: map[string]*portClass{}, unfree: map[uint16]bool{}}
		t.compiler.ports[s.proto] = p
	}
	id, ok := p.ids[s]
	if !ok {
		p.last++
		id = p.last
		p.ids[s], p.specs[id] = id, s
		t.splitPorts(p, id)
	}
	p.refs[id]++
}

// unname says that one term fewer names a range.
func (x portClasses) unname(s portSpec) {
	if !s.anyPort() {
		p := x[s.proto]
		p.refs[p.ids[s]]--
	}
}

// fresh returns a new class of the ranges with these numbers.
func (p *protoPorts) fresh(specs []uint32) *portClass {
	number := uint16(1)
	for p.classes[number] != nil || p.unfree[number] {
		number++
	}
	c := &portClass{number: number, specs: specs}
	p.classes[number], p.bySig[signature(specs)] = c, c
	return c
}

// splitPorts divides every class of which a new range holds a part.
func (t *Tables) splitPorts(p *protoPorts, id uint32) {
	s := p.specs[id]
	inside := map[uint16]int{}
	pieces := cut(t.Ports[s.proto], s.first, s.last)
	for _, r := range pieces {
		if within(r, s) {
			inside[r.Class] += size(r)
		}
	}
	to := map[uint16]*portClass{}
	for _, class := range slices.Sorted(maps.Keys(inside)) {
		old := p.classes[class]
		switch {
		case old == nil:
			to[class] = p.fresh([]uint32{id})
		case inside[class] == old.ports:
			delete(p.bySig, signature(old.specs))
			old.specs = append(slices.Clone(old.specs), id)
			p.bySig[signature(old.specs)] = old
			continue
		default:
			to[class] = p.fresh(append(slices.Clone(old.specs), id))
			old.ports -= inside[class]
			t.copyPort(s.proto, class, to[class].number)
		}
		to[class].ports = inside[class]
	}
	for i, r := range pieces {
		if c := to[r.Class]; c != nil && within(r, s) {
			pieces[i].Class = c.number
			t.changes.Ports[s.proto] = append(t.changes.Ports[s.proto], pieces[i])
		}
	}
	t.setPorts(s.proto, pieces)
}

// mergePorts forgets a range that no set names and merges the classes that differed by
// it alone. It returns the classes that no port is in any longer.
func (t *Tables) mergePorts(proto uint8, id uint32) (gone []uint16) {
	p := t.compiler.ports[proto]
	to := map[uint16]uint16{}
	for _, number := range slices.Sorted(maps.Keys(p.classes)) {
		c := p.classes[number]
		if !slices.Contains(c.specs, id) {
			continue
		}
		delete(p.bySig, signature(c.specs))
		c.specs = slices.DeleteFunc(slices.Clone(c.specs), func(other uint32) bool { return other == id })
		other := p.bySig[signature(c.specs)]
		if len(c.specs) > 0 && other == nil {
			p.bySig[signature(c.specs)] = c
			continue
		}
		to[number] = 0
		if other != nil {
			to[number] = other.number
			other.ports += c.ports
		}
		delete(p.classes, number)
		p.unfree[number] = true
		gone = append(gone, number)
	}
	ranges := slices.Clone(t.Ports[proto])
	for i, r := range ranges {
		if class, ok := to[r.Class]; ok {
			ranges[i].Class = class
			t.changes.Ports[proto] = append(t.changes.Ports[proto], ranges[i])
		}
	}
	t.setPorts(proto, ranges)
	delete(p.ids, p.specs[id])
	delete(p.specs, id)
	delete(p.refs, id)
	return gone
}

// setPorts records the ranges of a protocol: without those that nobody names, and with
// neighbours of one class joined.
func (t *Tables) setPorts(proto uint8, ranges []PortRange) {
	var out []PortRange
	for _, r := range ranges {
		last := len(out) - 1
		switch {
		case r.Class == 0:
		case last >= 0 && out[last].Class == r.Class && int(out[last].Last)+1 == int(r.First):
			out[last].Last = r.Last
		default:
			out = append(out, r)
		}
	}
	if t.Ports[proto] = out; out == nil {
		delete(t.Ports, proto)
	}
}

// cut returns the ranges with cuts at both ends of another, and with ranges of class 0
// in its gaps.
func cut(ranges []PortRange, first, last uint16) (out []PortRange) {
	next := int(first) // the first port of the new range that is not covered yet
	gap := func(to int) {
		if to = min(to, int(last)); next <= to {
			out = append(out, PortRange{First: uint16(next), Last: uint16(to)})
			next = to + 1
		}
	}
	for _, r := range ranges {
		if r.Last >= first && r.First <= last {
			gap(int(r.First) - 1)
		} else if r.First > last {
			gap(int(last))
		}
		begin := int(r.First)
		for _, end := range []int{int(first) - 1, int(last), int(r.Last)} {
			if begin <= end && end <= int(r.Last) {
				out = append(out, PortRange{First: uint16(begin), Last: uint16(end), Class: r.Class})
				begin = end + 1
			}
		}
		next = max(next, int(r.Last)+1)
	}
	gap(int(last))
	return out
}

func within(r PortRange, s portSpec) bool { return s.first <= r.First && r.Last <= s.last }

func size(r PortRange) int { return int(r.Last) - int(r.First) + 1 }

// portClass returns the class of a port, or 0 if no policy names it.
func (t *Tables) portClass(proto uint8, port uint16) uint16 {
	ranges := t.Ports[proto]
	i, found := slices.BinarySearchFunc(ranges, port, func(r PortRange, p uint16) int {
		switch {
		case r.Last < p:
			return -1
		case r.First > p:
			return 1
		}
		return 0
	})
	if !found {
		return 0
	}
	return ranges[i].Class
}
