// Package endpoints turns what agents claim about their pods into what the cluster
// vouches for: endpoints with identities, and the endpoint slices of services.
//
// Package nodes keeps the nodes, package registry the pods that are declared, and
// package identity allocates the numbers.
package endpoints
