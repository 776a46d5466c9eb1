package program

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"sync"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/policy"
	"github.com/weft-mesh/weft/wire"
)

// variants are node-local numbers for endpoints in the mesh that share an identity but
// that policies still distinguish: by an ipBlock that contains the address of one, or
// by the number of a port that a policy refers to by name. A variant's labels are its
// identity's plus what distinguishes it.
//
// Without such policies there are none, and every address has its identity's number. A
// variant gets its number when a row first needs it:
//
//	of ──► news ──know──► the policies have its class ──► rows ──► none ──► unlearned
type variants struct {
	blocks ranges[struct{}]
	ports  map[string]bool // label keys of named ports

	numbers map[variant]identity.Number
	about   map[identity.Number]variant
	// sharing are the variants of an identity.
	sharing map[identity.Number]map[identity.Number]bool
	fresh   func() identity.Number
	// news are the variants that policies do not know yet.
	news map[identity.Number]bool
	// rows counts the kernel rows that have a node-local number. idle are the variants
	// that none has, doomed those that none had a moment ago either.
	rows         map[identity.Number]int
	idle, doomed map[identity.Number]bool
	// bases maps each variant to its identity, for other goroutines.
	bases sync.Map
	// adopted is set once numbers left in the kernel by an earlier agent have been taken
	// over.
	adopted bool
}

// variant is what distinguishes an endpoint.
type variant struct {
	who   identity.Number
	block netip.Prefix // invalid: in no block
	ports string       // labels
}

func newVariants(fresh func() identity.Number, rows iter.Seq[identity.Number]) *variants {
	x := &variants{
		ports: map[string]bool{}, numbers: map[variant]identity.Number{}, about: map[identity.Number]variant{},
		sharing: map[identity.Number]map[identity.Number]bool{}, fresh: fresh, news: map[identity.Number]bool{},
		rows: map[identity.Number]int{}, idle: map[identity.Number]bool{}, doomed: map[identity.Number]bool{},
	}
	for n := range rows {
		x.wrote(0, uint32(n))
	}
	return x
}

// wrote counts a kernel row that had the number was and has the number is.
func (x *variants) wrote(was, is uint32) {
	if was == is {
		return
	}
	if n := identity.Number(was); n.Scope() == identity.ScopeLocal {
		if x.rows[n]--; x.rows[n] == 0 {
			delete(x.rows, n)
			if _, ours := x.about[n]; ours {
				x.idle[n] = true
			}
		}
	}
	if n := identity.Number(is); n.Scope() == identity.ScopeLocal {
		x.rows[n]++
		delete(x.idle, n)
		delete(x.doomed, n)
	}
}

// wanted says whether policies distinguish any endpoints.
func (x *variants) wanted() bool { return !x.blocks.empty() || len(x.ports) > 0 }

// portLabels returns labels for the ports that policies refer to by name.
func (x *variants) portLabels(ports []wire.NamedPort) identity.Labels {
	var out []identity.Label
	for _, p := range ports {
		if l := portLabel(p); x.ports[l.Key] {
			out = append(out, l)
		}
	}
	return identity.NewLabels(out...)
}

func portLabel(p wire.NamedPort) identity.Label {
	return policy.PortLabel(cmp.Or(p.Protocol, "TCP"), p.Name, p.Port)
}

// tell returns what distinguishes an endpoint from others with its identity, or false
// if nothing does.
func (x *variants) tell(e endpointAt) (variant, bool) {
	out := variant{who: e.who}
	for block := range x.blocks.around(e.prefix) {
		out.block = block // the narrowest comes last
	}
	if len(x.ports) > 0 {
		out.ports = x.portLabels(e.ports).String()
	}
	return out, out.block.IsValid() || out.ports != ""
}

// of returns an endpoint's number in the kernel.
func (x *variants) of(e endpointAt) identity.Number {
	key, ok := x.tell(e)
	if !ok {
		return e.who
	}
	n, ok := x.numbers[key]
	if !ok {
		n = x.fresh()
		x.learn(key, n)
	}
	return n
}

// learn gives a variant its number.
func (x *variants) learn(key variant, n identity.Number) {
	x.numbers[key], x.about[n] = n, key
	if x.sharing[key.who] == nil {
		x.sharing[key.who] = map[identity.Number]bool{}
	}
	x.sharing[key.who][n] = true
	x.news[n] = true
	x.bases.Store(n, key.who)
	if x.rows[n] == 0 {
		x.idle[n] = true
	}
}

// forget takes a variant's number back.
func (x *variants) forget(n identity.Number) {
	key := x.about[n]
	delete(x.numbers, key)
	delete(x.about, n)
	if delete(x.sharing[key.who], n); len(x.sharing[key.who]) == 0 {
		delete(x.sharing, key.who)
	}
	delete(x.news, n)
	delete(x.idle, n)
	delete(x.doomed, n)
	x.bases.Delete(n)
}

// endpointAt is the owner of an address in the mesh.
type endpointAt struct {
	prefix netip.Prefix
	who    identity.Number
	ports  []wire.NamedPort
}

// adopt takes over the numbers that rows have from an earlier agent, where all rows with
// one agree on what it stands for.
func (x *variants) adopt(endpoints iter.Seq[endpointAt], row func(netip.Addr) identity.Number) {
	if x.adopted {
		return
	}
	x.adopted = true
	left := map[identity.Number]map[variant]bool{}
	for e := range endpoints {
		if n := row(e.prefix.Addr()); n.Scope() == identity.ScopeLocal {
			if left[n] == nil {
				left[n] = map[variant]bool{}
			}
			key, _ := x.tell(e)
			left[n][key] = true
		}
	}
	for n, keys := range left {
		for key := range keys {
			if _, taken := x.numbers[key]; len(keys) == 1 && !taken {
				x.learn(key, n)
			}
		}
	}
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
		for ip := range v.tables.EachIP(v.txn) {
			if ip.Prefix.IsSingleIP() && v.nodes.inside.first(ip.Prefix.Addr()) != "" {
				continue // the node's, whoever else claims it
			}
			if c := v.member(ip.Cluster); c != nil && v.doubtful(c, &ip) == "" && !yield(endpointAt{ip.Prefix, ip.Identity, ip.NamedPorts}) {
				return
			}
		}
		for _, s := range v.nodes.known {
			if n := s.believed; n != nil && !v.isSelf(n) {
				for _, a := range n.Internals() {
					if !yield(endpointAt{whole(a), identity.RemoteNode, nil}) {
						return
					}
				}
			}
		}
		for addr := range v.nodes.named.addrs {
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

// numberAll numbers the variants among all endpoints and adds their labels to labels.
func (p *Program) numberAll(v *view, labels map[identity.Number]identity.Labels) {
	x := p.variants
	if x.wanted() || !x.adopted {
		x.adopt(p.meshEndpoints(v), p.rowOf)
		for e := range p.meshEndpoints(v) {
			x.of(e)
		}
	}
	for n, key := range x.about {
		own, ok := labels[key.who]
		if !ok {
			own = identity.ReservedLabels(key.who)
		}
		if own != nil {
			labels[n] = key.with(own)
		}
	}
}

// acquaint lets the policies know the variants that are new. Until then nobody may have
// their numbers.
func (p *Program) acquaint() error {
	for n := range p.variants.news {
		if err := p.relearn(n); err != nil {
			return err
		}
		delete(p.variants.news, n)
	}
	return nil
}

// relabel has the variants of an identity follow its labels.
func (p *Program) relabel(who identity.Number) error {
	for n := range p.variants.sharing[who] {
		if err := p.relearn(n); err != nil {
			return err
		}
	}
	return nil
}

// relearn gives a variant its identity's labels. Where nobody knows the identity, nobody
// knows the variant.
func (p *Program) relearn(n identity.Number) (err error) {
	key := p.variants.about[n]
	if own := p.policies.current.Labels(key.who); own != nil {
		_, err = p.policies.know(n, key.with(own))
	} else {
		_, err = p.policies.unlearn(n)
	}
	return err
}

// retireVariants takes back the numbers that no row has had for a moment. It returns true
// if it is to be called again after a while.
func (p *Program) retireVariants() (again bool, err error) {
	x := p.variants
	for n := range x.doomed {
		if _, err := p.policies.unlearn(n); err != nil {
			return true, err
		}
		x.forget(n)
	}
	for n := range x.idle {
		x.doomed[n] = true
	}
	return len(x.doomed) > 0, nil
}

// introduceVariants gives addresses the numbers by which the next generation
// distinguishes them before it does: in the current one each gets the class the address
// had so far. See introduce.
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
		if now == 0 && before != 0 && p.policies.current == nil {
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

// ported finds the addresses that have a port of some name, by label key. It may find some
// that no longer do. Nil until a policy names a port.
type ported map[string]*spots

func (x ported) put(ip *tables.IP) {
	if x == nil {
		return
	}
	for _, port := range ip.NamedPorts {
		key := portLabel(port).Key
		if x[key] == nil {
			x[key] = &spots{}
		}
		x[key].put(bpf.PrefixOf(ip.Prefix))
	}
}

func (x ported) drop(ip *tables.IP) {
	for _, port := range ip.NamedPorts {
		if key := portLabel(port).Key; x[key] != nil {
			if x[key].drop(bpf.PrefixOf(ip.Prefix)); x[key].count == 0 {
				delete(x, key)
			}
		}
	}
}
