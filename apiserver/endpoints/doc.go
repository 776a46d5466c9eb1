// Package endpoints turns what agents claim about their pods into what the
// cluster vouches for: endpoints with identities, and the endpoint slices of
// services.
//
// Which nodes there are is kept by package nodes, which pods there should be by
// package registry, and numbers are allocated by package identity.
package endpoints
