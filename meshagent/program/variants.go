package program

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/policy"
	"github.com/weft-mesh/weft/wire"
)

// variants are node-local numbers for endpoints in the mesh that share an identity but
// that policies still distinguish: by an ipBlock that contains the address of one, or
// by the number of a port that a policy refers to by name. A variant's labels are its
// identity's plus what distinguishes it.
//
// Without such policies there are none, and every address has its identity's number.
type variants struct {
	blocks  map[netip.Prefix]bool
	lengths []int           // of the blocks, longest first
	names   map[string]bool // label keys of named ports

	numbers map[variant]identity.Number
	labels  map[identity.Number]identity.Labels
	base    map[identity.Number]identity.Number
	adopted bool // numbers left in the kernel by an earlier agent have been taken over
}

// variant is what distinguishes an endpoint.
type variant struct {
	who   identity.Number
	block netip.Prefix // invalid: in no block
	ports string       // labels
}

func newVariants() *variants {
	return &variants{
		numbers: map[variant]identity.Number{}, labels: map[identity.Number]identity.Labels{}, base: map[identity.Number]identity.Number{},
	}
}

// follow reads from the policies what they distinguish.
func (x *variants) follow(policies []*policy.Policy) {
	x.blocks, x.names, x.lengths = policy.Blocks(policies), policy.NamedPorts(policies), nil
	for block := range x.blocks {
		if i, there := slices.BinarySearchFunc(x.lengths, block.Bits(), func(a, b int) int { return b - a }); !there {
			x.lengths = slices.Insert(x.lengths, i, block.Bits())
		}
	}
}

// wanted says whether policies distinguish any endpoints.
func (x *variants) wanted() bool { return len(x.blocks)+len(x.names) > 0 }

// none says that every address has its identity's number, and always had.
func (x *variants) none() bool { return !x.wanted() && len(x.numbers) == 0 && x.adopted }

// portLabels returns labels for the ports that policies refer to by name.
func (x *variants) portLabels(ports []wire.NamedPort) identity.Labels {
	var out []identity.Label
	for _, p := range ports {
		l := policy.PortLabel(cmp.Or(p.Protocol, "TCP"), p.Name, p.Port)
		if x.names[l.Key] {
			out = append(out, l)
		}
	}
	return identity.NewLabels(out...)
}

// tell returns what distinguishes an endpoint from others with its identity, or false
// if nothing does.
func (x *variants) tell(e endpointAt) (variant, bool) {
	out := variant{who: e.who}
	for _, bits := range x.lengths {
		if block := netip.PrefixFrom(e.prefix.Addr(), bits).Masked(); bits <= e.prefix.Bits() && x.blocks[block] {
			out.block = block
			break
		}
	}
	if len(x.names) > 0 {
		out.ports = x.portLabels(e.ports).String()
	}
	return out, out.block.IsValid() || out.ports != ""
}

// of returns an endpoint's number in the kernel.
func (x *variants) of(e endpointAt) identity.Number {
	if key, ok := x.tell(e); ok {
		if n, ok := x.numbers[key]; ok {
			return n
		}
	}
	return e.who
}

// endpointAt is the owner of an address in the mesh.
type endpointAt struct {
	prefix netip.Prefix
	who    identity.Number
	ports  []wire.NamedPort
}

// learn numbers the variants among these endpoints and adds their labels to labels. A
// variant no longer wanted keeps its number and labels while a kernel row has it.
func (x *variants) learn(endpoints iter.Seq[endpointAt], labels map[identity.Number]identity.Labels, fresh func() identity.Number, row func(netip.Addr) identity.Number, rows iter.Seq[identity.Number]) {
	if x.none() {
		return
	}
	wanted := map[variant]bool{}
	left := map[identity.Number]map[variant]bool{} // by an earlier agent
	for e := range endpoints {
		key, ok := x.tell(e)
		if ok {
			wanted[key] = true
		}
		if n := row(e.prefix.Addr()); !x.adopted && n.Scope() == identity.ScopeLocal {
			if left[n] == nil {
				left[n] = map[variant]bool{}
			}
			left[n][key] = true
		}
	}
	x.adopted = true
	for n, keys := range left {
		for key := range keys {
			if _, taken := x.numbers[key]; len(keys) == 1 && !taken {
				x.numbers[key] = n
			}
		}
	}
	standing := map[identity.Number]bool{}
	if len(x.numbers) > 0 {
		for n := range rows {
			standing[n] = true
		}
	}
	for key, n := range x.numbers {
		if !wanted[key] && !standing[n] {
			delete(x.numbers, key)
		}
	}
	for key := range wanted {
		if _, ok := x.numbers[key]; !ok {
			x.numbers[key] = fresh()
		}
	}
	old := x.labels
	x.labels, x.base = map[identity.Number]identity.Labels{}, map[identity.Number]identity.Number{}
	for key, n := range x.numbers {
		own, ok := labels[key.who]
		if !ok {
			own = identity.ReservedLabels(key.who)
		}
		x.base[n] = key.who
		switch {
		case own != nil:
			x.labels[n] = key.with(own)
		case old[n] != nil:
			x.labels[n] = old[n] // the identity is removed before its last address
		}
	}
	maps.Copy(labels, x.labels)
}

// with adds to an identity's labels what distinguishes the variant.
func (k variant) with(own identity.Labels) identity.Labels {
	out := slices.Clone(own)
	if k.block.IsValid() {
		out = append(out, policy.BlockLabel(k.block))
	}
	ports, _ := identity.ParseLabels(k.ports)
	return identity.NewLabels(append(out, ports...)...)
}

// meshEndpoints yields the owners of all addresses in the mesh, as written to the
// kernel.
func (p *Program) meshEndpoints(v *view) iter.Seq[endpointAt] {
	return func(yield func(endpointAt) bool) {
		for ip := range v.tables.IPs.All(v.txn) {
			if c := v.member(ip.Cluster); c != nil && v.doubtful(c, ip) == "" && !yield(endpointAt{ip.Prefix, ip.Identity, ip.NamedPorts}) {
				return
			}
		}
		for _, s := range v.nodes.known {
			if n := s.believed; n != nil && !v.isSelf(n) && !yield(endpointAt{whole(n.Internal()), identity.RemoteNode, nil}) {
				return
			}
		}
		for addr := range v.nodes.named {
			if key, who := v.outside(addr, v.selfKey()); key != "" && !yield(endpointAt{whole(addr), who, nil}) {
				return
			}
		}
		for _, s := range p.subjects {
			if !yield(s.at()) {
				return
			}
		}
	}
}

// rowOf returns the number the kernel has for an address in the mesh.
func (p *Program) rowOf(a netip.Addr) identity.Number {
	if row, ok := p.endpoints.Row(bpf.AddrOf(a)); ok {
		return identity.Number(row.Identity)
	}
	row, _ := p.addrs.Row(bpf.AddrOf(a))
	return identity.Number(row.Identity)
}

// numbersInRows yields the numbers of all addresses, as the kernel has them.
func (p *Program) numbersInRows() iter.Seq[identity.Number] {
	return func(yield func(identity.Number) bool) {
		for _, row := range p.addrs.Rows() {
			if !yield(identity.Number(row.Identity)) {
				return
			}
		}
		for _, row := range p.prefixes.Rows() {
			if !yield(identity.Number(row.Identity)) {
				return
			}
		}
		for _, row := range p.endpoints.Rows() {
			if !yield(identity.Number(row.Identity)) {
				return
			}
		}
	}
}

// introduceVariants gives addresses the numbers by which policies are about to
// distinguish them before they do: in the current generation each gets the class the
// address had so far. See introduce.
func (p *Program) introduceVariants(v *view) error {
	if p.settings.Revision == 0 || !p.variants.wanted() {
		return nil
	}
	classes := p.policies.classes
	class := func(n identity.Number) (bpf.ClassKey, uint32) {
		key := bpf.ClassKey{Gen: p.policies.gen, Identity: uint32(n)}
		class, _ := classes.Row(key)
		return key, class
	}
	for e := range p.meshEndpoints(v) {
		addr := bpf.AddrOf(e.prefix.Addr())
		n, was := p.variants.of(e), p.rowOf(e.prefix.Addr())
		if n == e.who || n == was || !e.prefix.IsSingleIP() {
			continue
		}
		key, now := class(n)
		_, before := class(was)
		if now == 0 && before != 0 {
			if err := classes.Put(key, before); err != nil {
				return fmt.Errorf("introduce %v: %w", e.prefix, err)
			}
			now = before
		}
		if now != before {
			continue // others like it were judged differently; it follows after the switch
		}
		if row, ok := p.endpoints.Row(addr); ok {
			row.Identity = uint32(n)
			if err := p.endpoints.Put(addr, row); err != nil {
				return fmt.Errorf("introduce %v: %w", e.prefix, err)
			}
		}
		if row, ok := p.addrs.Row(addr); ok {
			row.Identity = uint32(n)
			if err := p.addrs.Put(addr, row); err != nil {
				return fmt.Errorf("introduce %v: %w", e.prefix, err)
			}
		}
	}
	return nil
}
