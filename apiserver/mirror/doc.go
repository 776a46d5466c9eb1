// Package mirror keeps a checked copy of one peer's export in our own store, so
// that agents read one store and a peer's failure takes nothing from them.
//
//	peer: cilium/state/… weft/export/…  ──list, then watch──►  claims: may it say so?
//	        │                                                       │
//	        └─ lost: the copy stays, its age shows         ours: cilium/cache/… weft/cache/<peer>/…
//
// Peers are added and removed by package peering, which also cleans up after
// them. A Mirror itself takes entries away only when the peer withdraws them,
// or when a complete list lacks them; many at once are held for an operator.
package mirror
