// Package identities gives numbers to labels, and frees those that no endpoint uses any
// more.
//
// Everything it knows is in the store, so that any number of API servers may allocate at
// once. Package identity says what labels and numbers mean.
package identities
