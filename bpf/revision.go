package bpf

import (
	"encoding/binary"
	"iter"
)

// A flow keeps the sum of the revisions that its verdict rests on: Settings.Revision,
// those of its two addresses, and that of the other side's identity. Whoever changes a
// row raises the revision of what the row is about, after the row, and then every flow
// that rests on it is judged again at its next packet. lib/revision.h has the details.
const (
	revisionBits = 12
	// RevisionRows is the number of rows of table revisions. Addresses and identities
	// share them by hash.
	RevisionRows = 1 << revisionBits
)

// RevisionOf is the row of table revisions for an address.
func RevisionOf(a Addr) uint32 {
	var x uint32
	for i := 0; i < len(a); i += 4 {
		x ^= binary.NativeEndian.Uint32(a[i:])
	}
	return x * 0x9e3779b1 >> (32 - revisionBits)
}

// RevisionOfIdentity is the row of table revisions for an identity.
func RevisionOfIdentity(identity uint32) uint32 {
	return identity * 0x85ebca77 >> (32 - revisionBits)
}

// narrowBits: a prefix with more addresses than 1 << narrowBits concerns every flow.
const narrowBits = 8

// RevisionsOf yields the rows for the addresses in a prefix; ok is false if there are
// too many, so that Settings.Revision has to be raised instead.
func RevisionsOf(p PrefixKey) (rows iter.Seq[uint32], ok bool) {
	free := 128 - p.Bits
	if p.Bits > 128 || free > narrowBits {
		return nil, false
	}
	return func(yield func(uint32) bool) {
		a := p.Addr
		for i := range 1 << free {
			a[15] = p.Addr[15]&^byte(1<<free-1) | byte(i)
			if !yield(RevisionOf(a)) {
				return
			}
		}
	}, true
}
