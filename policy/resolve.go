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
// equals, the rule that was known first is named.
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
		for _, class := range ports.of(s) {
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
