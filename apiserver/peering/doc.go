// Package peering joins and parts clusters: it makes invites, adds and removes peers,
// and runs a mirror for each.
//
// Joining has two independent halves, one for each direction of reading:
//
//	west: invite east   creates user remote-east and a certificate for it     ─► file
//	east: add the file  checks it, writes secret and Peer in one transaction, runs a mirror
//
// Package mirror decides what is copied and believed; the API server decides who may
// call the API.
package peering
