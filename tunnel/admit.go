package tunnel

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/statedb/part"
)

// Admit refuses wanted peers that contradict each other: two nodes with the same
// public key, or with overlapping addresses. WireGuard would silently give key and
// addresses to the last one configured. A node that is already configured (held)
// keeps what it has and the newcomer is refused; if neither is, both are refused,
// because nothing says which one lies. Admitted peers are returned in order of name,
// with prefixes masked, sorted and without duplicates.
func Admit(want, held []Peer) (admitted []Peer, refused []Refusal) {
	b := newBook()
	for _, p := range want {
		if _, twice := b.wanted[p.Name()]; twice {
			refused = append(refused, Refusal{p.Cluster, p.Node, "wanted twice"})
			continue
		}
		b.put(p)
	}
	h := newHolders()
	for _, p := range held {
		p = normal(p)
		h.put(p.Name(), &p)
	}
	for name, p := range b.wanted {
		if why := b.against(name, *p, h); why != "" {
			refused = append(refused, Refusal{p.Cluster, p.Node, why})
		} else {
			admitted = append(admitted, *p)
		}
	}
	slices.SortFunc(admitted, byName)
	slices.SortStableFunc(refused, func(a, b Refusal) int {
		return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Node, b.Node))
	})
	return admitted, refused
}

// book has the wanted peers and finds those that one contradicts without looking at the
// others.
type book struct {
	wanted roster // normal
	keys   map[Key][]string
	// claims are the names of those that claim a prefix, in order of spot; lengths counts
	// claims by their bits.
	claims  part.Map[string, []string]
	lengths [129]int
}

func newBook() *book { return &book{wanted: roster{}, keys: map[Key][]string{}} }

// put replaces what a peer wants, and returns its name.
func (b *book) put(p Peer) (name string) {
	p, name = normal(p), p.Name()
	if b.wanted.has(name, p) {
		return name
	}
	b.drop(name)
	b.wanted[name] = &p
	for _, key := range p.Keys {
		if !key.IsZero() && !slices.Contains(b.keys[key], name) {
			b.keys[key] = append(b.keys[key], name)
		}
	}
	for _, prefix := range p.Allowed {
		names, _ := b.claims.Get(spot(prefix))
		b.claims = b.claims.Set(spot(prefix), append(slices.Clone(names), name))
		b.lengths[prefix.Bits()]++
	}
	return name
}

func (b *book) drop(name string) {
	p, known := b.wanted[name]
	if !known {
		return
	}
	delete(b.wanted, name)
	other := func(by string) bool { return by == name }
	for _, key := range p.Keys {
		if b.keys[key] = slices.DeleteFunc(b.keys[key], other); len(b.keys[key]) == 0 {
			delete(b.keys, key)
		}
	}
	for _, prefix := range p.Allowed {
		names, _ := b.claims.Get(spot(prefix))
		if names = slices.DeleteFunc(slices.Clone(names), other); len(names) > 0 {
			b.claims = b.claims.Set(spot(prefix), names)
		} else {
			b.claims = b.claims.Delete(spot(prefix))
		}
		b.lengths[prefix.Bits()]--
	}
}

// spot orders prefixes by address and then by length: one comes before all that it
// contains, with nothing else in between.
func spot(p netip.Prefix) string {
	a := p.Addr().As16()
	at := append(make([]byte, 0, 18), 6)
	if p.Addr().Is4() {
		at[0] = 4
	}
	return string(append(append(at, a[:]...), byte(p.Bits())))
}

// rivals calls f with each other peer that contradicts p, and why.
func (b *book) rivals(name string, p Peer, f func(name, why string)) {
	for _, key := range p.Keys {
		for _, other := range b.keys[key] {
			if other != name {
				f(other, fmt.Sprintf("has the same public key %s", key))
			}
		}
	}
	for _, mine := range p.Allowed {
		tell := func(theirs netip.Prefix, names []string) {
			for _, other := range names {
				if other != name {
					f(other, fmt.Sprintf("claims the same addresses (%v and %v)", mine, theirs))
				}
			}
		}
		for bits := range mine.Bits() {
			if b.lengths[bits] > 0 {
				around := netip.PrefixFrom(mine.Addr(), bits).Masked()
				names, _ := b.claims.Get(spot(around))
				tell(around, names)
			}
		}
		for key, names := range b.claims.LowerBound(spot(mine)) {
			within, ok := prefixAt(key)
			if !ok || !mine.Overlaps(within) {
				break
			}
			tell(within, names)
		}
	}
}

// prefixAt is the prefix that has a spot.
func prefixAt(key string) (netip.Prefix, bool) {
	if len(key) != 18 {
		return netip.Prefix{}, false
	}
	a := netip.AddrFrom16([16]byte([]byte(key[1:17])))
	if key[0] == 4 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, int(key[17])), true
}

// against is why a wanted peer is refused, "" if it is not. Only those that contradict
// it count.
func (b *book) against(name string, p Peer, held holders) (why string) {
	keeps := held.has(name, p)
	rival := ""
	b.rivals(name, p, func(name, contradiction string) {
		if keeps && !held.has(name, b.wanted.peer(name)) {
			return
		}
		if rival == "" || name < rival {
			rival, why = name, contradiction+" as "+name
		}
	})
	if why == "" && len(p.Allowed) == 0 {
		why = "announces no addresses"
	}
	return why
}

// holders are the nodes that are configured.
type holders struct {
	peers    roster
	byKey    map[Key]string
	byPrefix map[netip.Prefix]string
}

func newHolders() holders { return holders{roster{}, map[Key]string{}, map[netip.Prefix]string{}} }

// put notes that a peer is configured; p is not changed any more. WireGuard takes its keys
// and prefixes from whoever had them.
func (h holders) put(name string, p *Peer) {
	h.drop(name)
	for i, key := range p.Keys {
		other := h.byKey[key]
		if robbed := h.peers.peer(other); !key.IsZero() && robbed.Keys[i] == key {
			robbed.Keys[i] = Key{}
			h.peers[other] = &robbed
		}
	}
	h.peers[name] = p
	for _, prefix := range p.Allowed {
		if other, taken := h.byPrefix[prefix]; taken {
			robbed := h.peers.peer(other)
			robbed.Allowed = slices.DeleteFunc(slices.Clone(robbed.Allowed), func(q netip.Prefix) bool { return q == prefix })
			h.peers[other] = &robbed
		}
		h.byPrefix[prefix] = name
	}
	for _, key := range p.Keys {
		if !key.IsZero() {
			h.byKey[key] = name
		}
	}
}

func (h holders) drop(name string) {
	p := h.peers.peer(name)
	for _, key := range p.Keys {
		if h.byKey[key] == name {
			delete(h.byKey, key)
		}
	}
	for _, prefix := range p.Allowed {
		delete(h.byPrefix, prefix)
	}
	delete(h.peers, name)
}

// inTheWay calls f with the others that have a key or prefix that p wants.
func (h holders) inTheWay(name string, p Peer, f func(name, _ string)) {
	for _, key := range p.Keys {
		if other := h.byKey[key]; other != "" && other != name {
			f(other, "")
		}
	}
	for _, prefix := range p.Allowed {
		if other := h.byPrefix[prefix]; other != "" && other != name {
			f(other, "")
		}
	}
}

func (h holders) knows(name string) bool {
	_, known := h.peers[name]
	return known
}

// has reports whether this peer is configured with these keys and addresses.
func (h holders) has(name string, p Peer) bool {
	known := false
	for _, key := range p.Keys {
		if key.IsZero() {
			continue
		}
		by, taken := h.byKey[key]
		if taken && by != name {
			return false
		}
		known = known || taken
	}
	return known && slices.Equal(h.peers.peer(name).Allowed, p.Allowed)
}

func normal(p Peer) Peer {
	allowed := make([]netip.Prefix, 0, len(p.Allowed))
	for _, prefix := range p.Allowed {
		allowed = append(allowed, prefix.Masked())
	}
	slices.SortFunc(allowed, func(a, b netip.Prefix) int { return a.Compare(b) })
	p.Allowed = slices.Compact(allowed)
	return p
}

func byName(a, b Peer) int {
	return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Node, b.Node))
}
