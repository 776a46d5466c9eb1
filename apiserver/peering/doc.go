// Package peering joins clusters and parts them: invites, the peers there are,
// a mirror running for each, and nothing left of one that was removed.
//
// Joining is two halves that know nothing of each other, one for each direction
// of reading:
//
//	west: invite east   a user remote-east, a certificate for it     ─► file
//	east: add the file  checked; secret and Peer in one write; mirror runs
//
// What is copied and believed is decided in package mirror; who may call the
// API, by the API server.
package peering
