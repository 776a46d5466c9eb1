// Package tunnel keeps an encrypted path open to every node of the mesh: two
// WireGuard devices ("lanes") per node, their keys, addresses and routes.
//
// It is told which nodes exist and what may come from each. Who may talk to
// whom is decided in policy, and which path is alive in tunnel/probe.
//
// # Lanes and epochs
//
// Every node owns two lanes, weft0 and weft1, both configured towards every
// other node at all times. The keys of a node have an epoch E: lane E%2 holds
// the newest key, the other lane the one before. A pair of nodes talks on the
// lane that [Lane] names, so a rotation to E+1 replaces the key of a lane that
// carries nothing, and traffic moves there once a handshake has shown that it
// works. No packet waits for a key. A peer that never answered is asked again
// sooner than WireGuard would.
//
//	epoch      E (in use)          E+1
//	lane E%2   ███ traffic ███▶│    quiet, old key
//	lane other quiet ─ new key ─▶│██ traffic ███▶
package tunnel
