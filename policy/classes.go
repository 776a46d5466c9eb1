package policy

import (
	"cmp"
	"maps"
	"slices"

	"github.com/weft-mesh/weft/identity"
)

// partition divides the identities into classes: those that match the same peers, of
// the policy sets that there are, share one. A new peer splits the classes of which it
// matches a part; when the last set that names it goes, they are merged again. Both
// cost what the peer matches.
type partition struct {
	crowd
	peers   peerIndex
	ids     map[string]uint32 // numbers of peers, by what they mean
	refs    map[uint32]int    // how many terms name a peer
	classes map[uint32]*class
	bySig   map[string]*class
	having  map[uint32]map[uint32]bool // classes, by a peer that their members match
	last    uint32
	emptied map[uint32]bool // classes that have lost their last member
}

type class struct {
	number  uint32
	peers   []uint32 // ascending: the signature
	sig     string
	members map[identity.Number]struct{}
}

// unknownMember is the signature of identity.UnknownMember. It cannot clash: the length
// of every other signature is a multiple of four.
const unknownMember = "?"

func newPartition() partition {
	return partition{
		crowd: crowd{labels: map[identity.Number]identity.Labels{}, byLabel: map[labelValue]*numbers{}},
		peers: newPeerIndex(), ids: map[string]uint32{}, refs: map[uint32]int{},
		classes: map[uint32]*class{}, bySig: map[string]*class{}, having: map[uint32]map[uint32]bool{}, emptied: map[uint32]bool{},
	}
}

// fresh returns a new class without members.
func (x *partition) fresh(sig string, peers []uint32) *class {
	x.last++
	c := &class{number: x.last, members: map[identity.Number]struct{}{}}
	x.classes[c.number] = c
	x.sign(c, sig, peers)
	return c
}

// sign gives a class its signature.
func (x *partition) sign(c *class, sig string, peers []uint32) {
	x.unsign(c)
	c.sig, c.peers = sig, peers
	x.bySig[sig] = c
	for _, id := range peers {
		if x.having[id] == nil {
			x.having[id] = map[uint32]bool{}
		}
		x.having[id][c.number] = true
	}
}

func (x *partition) unsign(c *class) {
	if x.bySig[c.sig] == c {
		delete(x.bySig, c.sig)
	}
	for _, id := range c.peers {
		delete(x.having[id], c.number)
	}
}

// drop forgets a class without members.
func (x *partition) drop(c *class) {
	x.unsign(c)
	delete(x.classes, c.number)
	delete(x.emptied, c.number)
}

// move puts an identity into a class.
func (t *Tables) move(n identity.Number, to *class) {
	x := &t.compiler.partition
	if from := x.classes[t.Classes[n]]; from != nil && from != to {
		x.leave(n, from)
	}
	to.members[n] = struct{}{}
	t.Classes[n] = to.number
	t.changes.Classes[n] = to.number
}

func (x *partition) leave(n identity.Number, c *class) {
	if delete(c.members, n); len(c.members) == 0 {
		x.emptied[c.number] = true
	}
}

// name returns the number of a peer that one more term names.
func (t *Tables) name(p peer) uint32 {
	x := &t.compiler.partition
	text := p.String()
	id, ok := x.ids[text]
	if !ok {
		id = x.peers.add(p)
		x.ids[text] = id
		t.split(id)
	}
	x.refs[id]++
	return id
}

// split divides every class of which a new peer matches a part. The smaller part moves
// to a new class, which has the entries of the old one before anybody is in it.
func (t *Tables) split(id uint32) {
	c := t.compiler
	hit := map[uint32][]identity.Number{}
	c.matching(c.peers.peers[id], func(n identity.Number) { hit[t.Classes[n]] = append(hit[t.Classes[n]], n) })
	for _, number := range slices.Sorted(maps.Keys(hit)) {
		old, members := c.classes[number], hit[number]
		before := old.peers
		after := append(slices.Clone(before), id)
		if len(members) == len(old.members) {
			c.sign(old, signature(after), after)
			continue
		}
		var fresh *class
		if 2*len(members) <= len(old.members) {
			fresh = c.fresh(signature(after), after)
		} else {
			others := make([]identity.Number, 0, len(old.members)-len(members))
			hits := make(map[identity.Number]struct{}, len(members))
			for _, n := range members {
				hits[n] = struct{}{}
			}
			for n := range old.members {
				if _, ok := hits[n]; !ok {
					others = append(others, n)
				}
			}
			members = others
			c.sign(old, signature(after), after)
			fresh = c.fresh(signature(before), before)
		}
		t.enter(fresh.number, c.termsOf(before))
		for _, n := range members {
			t.move(n, fresh)
		}
	}
}

// unname says that one term fewer names a peer. The peers that nobody names are
// forgotten at the next Sweep.
func (x *partition) unname(id uint32) { x.refs[id]-- }

// merge forgets a peer that no set names and merges the classes that differed by it
// alone. It returns the classes that nobody is in any longer.
func (t *Tables) merge(id uint32) (gone []uint32) {
	c := t.compiler
	for _, number := range slices.Sorted(maps.Keys(c.having[id])) {
		one := c.classes[number]
		peers := slices.DeleteFunc(slices.Clone(one.peers), func(other uint32) bool { return other == id })
		sig := signature(peers)
		other := c.bySig[sig]
		if other == nil {
			c.sign(one, sig, peers)
			continue
		}
		large, small := one, other
		if cmp.Compare(len(one.members), len(other.members)) < 0 {
			large, small = other, one
		}
		for _, n := range slices.Sorted(maps.Keys(small.members)) {
			t.move(n, large)
		}
		c.drop(small)
		c.sign(large, sig, peers)
		gone = append(gone, small.number)
	}
	delete(c.ids, c.peers.peers[id].String())
	c.peers.remove(id)
	delete(c.refs, id)
	delete(c.having, id)
	return gone
}

// empties drops the classes that nobody is in and returns them.
func (x *partition) empties() (gone []uint32) {
	for number := range x.emptied {
		if c := x.classes[number]; c != nil && len(c.members) == 0 {
			x.drop(c)
			gone = append(gone, number)
		}
	}
	clear(x.emptied)
	return gone
}

// AddIdentity classifies one identity. A known identity moves to the class of its new
// labels.
func (t *Tables) AddIdentity(n identity.Number, labels identity.Labels) {
	c := t.compiler
	if n == identity.Unknown {
		return
	}
	c.countPorts(labels, 1)
	if old, ok := c.labels[n]; ok {
		c.countPorts(old, -1)
		c.remove(n)
	}
	c.add(n, labels)
	sig, peers, terms := unknownMember, []uint32(nil), unknownTerms(n)
	if n != identity.UnknownMember {
		peers = c.peers.find(n, labels)
		sig, terms = signature(peers), c.termsOf(peers)
	}
	to, ok := c.bySig[sig]
	if !ok {
		to = c.fresh(sig, peers)
		t.enter(to.number, terms)
	}
	t.move(n, to)
}

// RemoveIdentity forgets an identity.
func (t *Tables) RemoveIdentity(n identity.Number) {
	c := t.compiler
	if _, ok := c.labels[n]; !ok {
		return
	}
	c.countPorts(c.labels[n], -1)
	c.remove(n)
	if from := c.classes[t.Classes[n]]; from != nil {
		c.leave(n, from)
	}
	delete(t.Classes, n)
	t.changes.Classes[n] = 0
}

// Labels returns the labels of a known identity, or nil.
func (t *Tables) Labels(n identity.Number) identity.Labels { return t.compiler.labels[n] }
