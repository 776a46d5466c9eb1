package nodes

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// roster is the register as it was read, with indexes of what no two nodes may share: to
// admit a node costs the same however many there are.
type roster struct {
	// turn is the revision of the register's last change.
	turn int64
	// peers are the CIDRs of pods and services of the connected peers, by peer.
	peers map[string][]netip.Prefix

	nodes     map[string]wire.Registration
	addresses map[netip.Addr]string
	cidrs     map[netip.Prefix]string
	// within counts the pod CIDRs that lie in a prefix, whatever its length.
	within map[netip.Prefix]int
	// firsts are the nodes by the length of their first address.
	firsts map[int]map[string]bool
	// free is where the search for a free part of a CIDR goes on: those before are taken.
	free map[netip.Prefix]netip.Addr
}

// roster reads the register.
func (r *Registrar) roster(ctx context.Context) (*roster, error) {
	guard, err := r.conf.Store.Get(ctx, wire.RegistrationsTurnKey)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	register, err := r.Register(ctx)
	if err != nil {
		return nil, err
	}
	peers, err := r.peerCIDRs(ctx)
	if err != nil {
		return nil, err
	}
	o := newRoster(register)
	o.turn, o.peers = guard.Modified, peers
	return o, nil
}

func newRoster(register map[string]wire.Registration) *roster {
	o := &roster{
		nodes: map[string]wire.Registration{}, addresses: map[netip.Addr]string{}, cidrs: map[netip.Prefix]string{},
		within: map[netip.Prefix]int{}, firsts: map[int]map[string]bool{}, free: map[netip.Prefix]netip.Addr{},
	}
	for _, reg := range register {
		o.put(reg)
	}
	return o
}

// put adds a node, or replaces it.
func (o *roster) put(reg wire.Registration) {
	o.remove(reg.Name)
	o.nodes[reg.Name] = reg
	for _, a := range reg.Addresses {
		o.addresses[a] = reg.Name
	}
	for _, p := range reg.PodCIDRs {
		o.cidrs[p] = reg.Name
		for whole := range upwards(p) {
			o.within[whole]++
		}
	}
	if len(reg.Addresses) > 0 {
		bits := reg.Addresses[0].BitLen()
		if o.firsts[bits] == nil {
			o.firsts[bits] = map[string]bool{}
		}
		o.firsts[bits][reg.Name] = true
	}
}

// remove takes a node out.
func (o *roster) remove(node string) {
	reg, there := o.nodes[node]
	if !there {
		return
	}
	delete(o.nodes, node)
	for _, a := range reg.Addresses {
		if o.addresses[a] == node {
			delete(o.addresses, a)
		}
	}
	for _, p := range reg.PodCIDRs {
		if o.cidrs[p] == node {
			delete(o.cidrs, p)
		}
		for whole := range upwards(p) {
			if o.within[whole]--; o.within[whole] <= 0 {
				delete(o.within, whole)
			}
		}
	}
	if len(reg.Addresses) > 0 {
		delete(o.firsts[reg.Addresses[0].BitLen()], node)
	}
	clear(o.free) // something is free that was not
}

// upwards are a prefix and all that it lies in.
func upwards(p netip.Prefix) func(yield func(netip.Prefix) bool) {
	return func(yield func(netip.Prefix) bool) {
		for bits := p.Bits(); bits >= 0; bits-- {
			if !yield(netip.PrefixFrom(p.Addr(), bits).Masked()) {
				return
			}
		}
	}
}

// overlapping returns a pod CIDR that shares addresses with p, and its node.
func (o *roster) overlapping(p netip.Prefix) (cidr netip.Prefix, node string, found bool) {
	for whole := range upwards(p) {
		if node, there := o.cidrs[whole]; there {
			return whole, node, true
		}
	}
	if o.within[p.Masked()] == 0 {
		return cidr, "", false
	}
	for _, name := range slices.Sorted(maps.Keys(o.nodes)) { // who it is, for people
		for _, q := range o.nodes[name].PodCIDRs {
			if q.Overlaps(p) {
				return q, name, true
			}
		}
	}
	return cidr, "", false
}

// taken reports whether a node has a part of p.
func (o *roster) taken(p netip.Prefix) bool {
	if o.within[p] > 0 {
		return true
	}
	for whole := range upwards(p) {
		if _, there := o.cidrs[whole]; there {
			return true
		}
	}
	return false
}

// freeCIDR returns the first part of the CIDRs that no node has.
func (o *roster) freeCIDR(whole []netip.Prefix) (netip.Prefix, bool) {
	for _, w := range whole {
		bits := max(w.Bits(), defaultBits(w))
		a, ok := o.free[w]
		if !ok {
			a = w.Masked().Addr()
		}
		for ; w.Contains(a); a = wire.LastAddr(netip.PrefixFrom(a, bits)).Next() {
			if p := netip.PrefixFrom(a, bits); !o.taken(p) {
				o.free[w] = a
				return p, true
			}
		}
		o.free[w] = a
	}
	return netip.Prefix{}, false
}

// ofOtherFamily returns a node whose first address is of another IP family than ip.
func (o *roster) ofOtherFamily(ip netip.Addr) (node string, found bool) {
	for bits, nodes := range o.firsts {
		if bits != ip.BitLen() && len(nodes) > 0 {
			return slices.Min(slices.Collect(maps.Keys(nodes))), true
		}
	}
	return "", false
}
