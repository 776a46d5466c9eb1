// Package tunnel keeps an encrypted path open to every node of the mesh: two
// WireGuard devices ("lanes") per node, their keys, addresses and routes.
//
// Its callers say which nodes exist and which addresses each may use. Who may talk to
// whom is decided in package policy, and which path is alive in tunnel/probe.
//
// # Lanes and epochs
//
// Every node has two lanes, weft0 and weft1, both always configured towards every
// other node. The keys of a node have an epoch E: lane E%2 has the newest key, the
// other lane the previous one. Two nodes use the lane that [Lane] returns, so a
// rotation to E+1 replaces the key of a lane that carries nothing, and traffic moves
// there once a handshake has shown that it works and has settled. No packet waits for a key. Of two nodes
// one calls, so that handshakes do not cross.
// Handshakes that a peer never answered are repeated sooner than WireGuard would.
//
//	epoch      E (in use)          E+1
//	lane E%2   ███ traffic ███▶│    quiet, old key
//	lane other quiet ─ new key ─▶│██ traffic ███▶
package tunnel
