package program

import (
	"fmt"
	"net/netip"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
)

// stands says whether a prefix has a kernel row.
func (p *Program) stands(prefix netip.Prefix) bool {
	_, ok := p.prefixes.Row(bpf.PrefixOf(prefix))
	return ok
}

// carries says whether the kernel row of a prefix has this number.
func (p *Program) carries(prefix netip.Prefix, n identity.Number) bool {
	row, ok := p.prefixes.Row(bpf.PrefixOf(prefix))
	return ok && row.Identity == uint32(n)
}

// introduce writes the prefixes that policies are about to name before they do: in the
// current generation each gets the class its addresses had so far. Were they written
// after the switch, rules made for them would be applied to their addresses' old
// identity first.
func (p *Program) introduce(v *view) error {
	if p.settings.Revision == 0 {
		return nil // nothing is judged yet
	}
	for prefix, n := range p.cidrs {
		if v.inMesh(prefix) || p.stands(prefix) {
			continue
		}
		gen := p.policies.gen
		if class, ok := p.policies.classes.Row(bpf.ClassKey{Gen: gen, Identity: uint32(p.takenFor(prefix))}); ok && p.policies.current == nil {
			if err := p.policies.classes.Put(bpf.ClassKey{Gen: gen, Identity: uint32(n)}, class); err != nil {
				return fmt.Errorf("introduce %v: %w", prefix, err)
			}
		}
		if err := p.prefixes.Put(bpf.PrefixOf(prefix), bpf.IPInfo{Identity: uint32(n)}); err != nil {
			return fmt.Errorf("introduce %v: %w", prefix, err)
		}
	}
	return nil
}

// takenFor is the identity that addresses in a prefix have now.
func (p *Program) takenFor(prefix netip.Prefix) identity.Number {
	return around(prefix, func(k bpf.PrefixKey) (bpf.IPInfo, bool) {
		info, ok := p.prefixes.Row(k)
		return info, ok
	})
}

// around is the identity of the narrowest prefix with a row that contains all of
// prefix, or the world if there is none. It does one lookup per length: a policy may
// name thousands of prefixes, and the loop that fills the kernel waits for each.
func around(prefix netip.Prefix, row func(bpf.PrefixKey) (bpf.IPInfo, bool)) identity.Number {
	for bits := prefix.Bits(); bits >= 0; bits-- {
		if info, ok := row(bpf.PrefixOf(netip.PrefixFrom(prefix.Addr(), bits))); ok {
			return identity.Number(info.Identity)
		}
	}
	return identity.World
}
