package tunnel

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// Admit refuses wanted peers that contradict each other: two nodes with the same
// public key, or with overlapping addresses. WireGuard would silently give key and
// addresses to the last one configured. A node that is already configured (held)
// keeps what it has and the newcomer is refused; if neither is, both are refused,
// because nothing says which one lies. Admitted peers are returned in order of name,
// with prefixes masked, sorted and without duplicates.
func Admit(want, held []Peer) (admitted []Peer, refused []Refusal) {
	peers := make([]Peer, 0, len(want))
	for _, p := range want {
		peers = append(peers, normal(p))
	}
	slices.SortStableFunc(peers, byName)

	incumbent := incumbents(held)
	reasons := make([]string, len(peers))
	refuse := func(i, j int, format string, args ...any) {
		keepI, keepJ := incumbent.is(peers[i]), incumbent.is(peers[j])
		why := fmt.Sprintf(format, args...)
		if !keepI || keepJ {
			reasons[i] = cmp.Or(reasons[i], fmt.Sprintf("%s as %s", why, peers[j].Name()))
		}
		if !keepJ || keepI {
			reasons[j] = cmp.Or(reasons[j], fmt.Sprintf("%s as %s", why, peers[i].Name()))
		}
	}

	for i := 1; i < len(peers); i++ {
		if peers[i].Name() == peers[i-1].Name() {
			reasons[i] = "wanted twice"
		}
	}
	sameKey(peers, refuse)
	overlaps(peers, refuse)
	for i, p := range peers {
		if reasons[i] == "" && len(p.Allowed) == 0 {
			reasons[i] = "announces no addresses"
		}
		if reasons[i] != "" {
			refused = append(refused, Refusal{p.Cluster, p.Node, reasons[i]})
			continue
		}
		admitted = append(admitted, p)
	}
	return admitted, refused
}

func sameKey(peers []Peer, refuse func(i, j int, format string, args ...any)) {
	// Across lanes too, because a key belongs to one device.
	owner := map[Key]int{}
	for i, p := range peers {
		for _, key := range p.Keys {
			if key.IsZero() {
				continue
			}
			if j, taken := owner[key]; taken && peers[j].Name() != p.Name() {
				refuse(j, i, "has the same public key %s", key)
				continue
			}
			owner[key] = i
		}
	}
}

func overlaps(peers []Peer, refuse func(i, j int, format string, args ...any)) {
	type claim struct {
		prefix netip.Prefix
		peer   int
	}
	var claims []claim
	for i, p := range peers {
		for _, prefix := range p.Allowed {
			claims = append(claims, claim{prefix, i})
		}
	}
	// Sorted by address and then length, a prefix comes before those that it
	// contains, with nothing else in between.
	slices.SortStableFunc(claims, func(a, b claim) int {
		return cmp.Or(a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.prefix.Bits(), b.prefix.Bits()))
	})
	var open []claim
	for _, c := range claims {
		for len(open) > 0 && !open[len(open)-1].prefix.Overlaps(c.prefix) {
			open = open[:len(open)-1]
		}
		for _, outer := range open {
			if peers[outer.peer].Name() != peers[c.peer].Name() {
				refuse(outer.peer, c.peer, "claims the same addresses (%v and %v)", outer.prefix, c.prefix)
			}
		}
		open = append(open, c)
	}
}

// holders are the keys and addresses of the nodes that are configured.
type holders struct {
	byKey     map[Key]string
	addresses map[string][]netip.Prefix
}

func incumbents(held []Peer) holders {
	h := holders{map[Key]string{}, map[string][]netip.Prefix{}}
	for _, p := range held {
		p = normal(p)
		for _, key := range p.Keys {
			if !key.IsZero() {
				h.byKey[key] = p.Name()
			}
		}
		h.addresses[p.Name()] = p.Allowed
	}
	return h
}

// is reports whether this peer is configured with these keys and addresses.
func (h holders) is(p Peer) bool {
	known := false
	for _, key := range p.Keys {
		if key.IsZero() {
			continue
		}
		name, taken := h.byKey[key]
		if taken && name != p.Name() {
			return false
		}
		known = known || taken
	}
	return known && slices.Equal(h.addresses[p.Name()], p.Allowed)
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
