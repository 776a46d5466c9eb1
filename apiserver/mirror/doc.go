// Package mirror keeps a checked copy of one peer's export in our own store, so that
// agents read only one store and lose nothing when a peer fails.
//
//	peer: cilium/state/… weft/export/…  ──list, then watch──►  claims: may it say so?
//	        │                                                       │
//	        └─ lost: the copy stays, its age shows         ours: cilium/cache/… weft/cache/<peer>/…
//
// Package peering adds and removes peers, and cleans up after them. A Mirror deletes
// entries only when the peer withdraws them or a complete list lacks them; if many go
// at once, it holds the deletions for an operator.
package mirror
