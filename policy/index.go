package policy

import (
	"encoding/binary"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/identity"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// peerIndex finds the peers that an identity matches without trying each.
//
// A label peer is filed under its most selective equality; an identity looks under each
// of its labels and checks what it finds there in full.
type peerIndex struct {
	peers   map[uint32]peer // by number; numbers only grow
	last    uint32
	byLabel map[labelValue][]uint32
	cidrs   []uint32
	rest    []uint32 // peers without an equality to file them under
}

type labelValue struct{ key, value string }

func newPeerIndex() peerIndex {
	return peerIndex{peers: map[uint32]peer{}, byLabel: map[labelValue][]uint32{}}
}

// add files a peer and returns its number, higher than all before.
func (x *peerIndex) add(p peer) uint32 {
	x.last++
	x.peers[x.last] = p
	keys, list := x.under(p)
	for _, k := range keys {
		x.byLabel[k] = append(x.byLabel[k], x.last)
	}
	if list != nil {
		*list = append(*list, x.last)
	}
	return x.last
}

// remove takes a peer out.
func (x *peerIndex) remove(id uint32) {
	without := func(ids []uint32) []uint32 {
		return slices.DeleteFunc(ids, func(other uint32) bool { return other == id })
	}
	keys, list := x.under(x.peers[id])
	for _, k := range keys {
		if x.byLabel[k] = without(x.byLabel[k]); len(x.byLabel[k]) == 0 {
			delete(x.byLabel, k)
		}
	}
	if list != nil {
		*list = without(*list)
	}
	delete(x.peers, id)
}

// under says where a peer is filed: under labels, or in a list.
func (x *peerIndex) under(p peer) (keys []labelValue, list *[]uint32) {
	switch {
	case p.kind == peerCIDR && p.mesh:
		return nil, &x.rest
	case p.kind == peerCIDR:
		return nil, &x.cidrs
	}
	if keys = telling(p.selector); keys == nil {
		return nil, &x.rest
	}
	return keys, nil
}

// telling chooses the equality to file a selector under. Namespace and cluster come
// last, because nearly every selector has them.
func telling(s selector) []labelValue {
	var best []labelValue
	rank := 0
	for _, r := range s {
		keys, mine := equalities(r), 3
		switch r.key {
		case identity.KeyNamespace:
			mine = 2
		case identity.KeyCluster:
			mine = 1
		}
		if keys != nil && mine > rank {
			best, rank = keys, mine
		}
	}
	return best
}

// equalities are the labels of which an identity must have one to meet a requirement;
// nil if the requirement does not say.
func equalities(r requirement) (keys []labelValue) {
	switch {
	case r.source == identity.SourceReserved:
		// Words that are not a label cannot be filed under one.
		if _, err := identity.ParseNumber(r.key); err == nil && r.op == metav1.LabelSelectorOpExists && !strings.HasPrefix(r.key, identity.World.String()) {
			keys = []labelValue{{r.key, ""}}
		}
	case r.op == metav1.LabelSelectorOpIn:
		for _, v := range r.values {
			keys = append(keys, labelValue{r.key, v})
		}
	}
	return keys
}

// find returns the numbers of the peers that the identity matches, ascending.
func (x *peerIndex) find(n identity.Number, labels identity.Labels) (found []uint32) {
	ask := func(ids []uint32) {
		for _, id := range ids {
			if x.peers[id].matches(n, labels) {
				found = append(found, id)
			}
		}
	}
	for _, l := range labels {
		ask(x.byLabel[labelValue{l.Key, l.Value}])
	}
	ask(x.rest)
	if hasAddress(n, labels) {
		ask(x.cidrs)
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// hasAddress says whether a peer by address may match an identity without matching
// everybody.
func hasAddress(n identity.Number, labels identity.Labels) bool {
	return n.Reserved() || slices.ContainsFunc(labels, func(l identity.Label) bool { return l.Source == identity.SourceCIDR })
}

// crowd finds the identities that a peer matches without trying each.
type crowd struct {
	labels    map[identity.Number]identity.Labels
	byLabel   map[labelValue]*numbers
	addressed numbers // those that hasAddress
}

// numbers is a set of identities. Most labels belong to few.
type numbers struct {
	few  []identity.Number
	many map[identity.Number]struct{} // nil while they are few
}

const few = 16

func (s *numbers) add(n identity.Number) {
	switch {
	case s.many != nil:
		s.many[n] = struct{}{}
	case slices.Contains(s.few, n):
	case len(s.few) < few:
		s.few = append(s.few, n)
	default:
		s.many = map[identity.Number]struct{}{n: {}}
		for _, m := range s.few {
			s.many[m] = struct{}{}
		}
		s.few = nil
	}
}

func (s *numbers) remove(n identity.Number) {
	delete(s.many, n)
	s.few = slices.DeleteFunc(s.few, func(m identity.Number) bool { return m == n })
}

func (s *numbers) len() int { return len(s.few) + len(s.many) }

func (s *numbers) each(f func(identity.Number)) {
	for _, n := range s.few {
		f(n)
	}
	for n := range s.many {
		f(n)
	}
}

// add files an identity that is not there yet.
func (c *crowd) add(n identity.Number, labels identity.Labels) {
	c.labels[n] = labels
	for _, l := range labels {
		key := labelValue{l.Key, l.Value}
		if c.byLabel[key] == nil {
			c.byLabel[key] = &numbers{}
		}
		c.byLabel[key].add(n)
	}
	if hasAddress(n, labels) {
		c.addressed.add(n)
	}
}

func (c *crowd) remove(n identity.Number) {
	for _, l := range c.labels[n] {
		key := labelValue{l.Key, l.Value}
		if s := c.byLabel[key]; s != nil {
			if s.remove(n); s.len() == 0 {
				delete(c.byLabel, key)
			}
		}
	}
	c.addressed.remove(n)
	delete(c.labels, n)
}

// matching calls f for each identity that a peer matches. It looks at those with the
// rarest of the labels that the peer requires.
func (c *crowd) matching(p peer, f func(identity.Number)) {
	ask := func(n identity.Number) {
		if p.matches(n, c.labels[n]) {
			f(n)
		}
	}
	if p.kind == peerCIDR && (!p.mesh || p.cidr.Bits() > 0) {
		c.addressed.each(ask)
		return
	}
	var rarest []labelValue
	least := len(c.labels)
	for _, r := range p.selector {
		if keys := equalities(r); keys != nil {
			n := 0
			for _, k := range keys {
				if s := c.byLabel[k]; s != nil {
					n += s.len()
				}
			}
			if n < least {
				least, rarest = n, keys
			}
		}
	}
	if rarest == nil {
		for n := range c.labels {
			ask(n)
		}
		return
	}
	for _, k := range rarest {
		if s := c.byLabel[k]; s != nil {
			s.each(ask)
		}
	}
}

// signature encodes an ascending list of numbers as a map key.
func signature(ids []uint32) string {
	out := make([]byte, 0, 4*len(ids))
	for _, id := range ids {
		out = binary.BigEndian.AppendUint32(out, id)
	}
	return string(out)
}
