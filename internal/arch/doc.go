// Package arch holds the rules of the tree as tests: which part may import
// which, what every package must say of itself, and that what is generated or
// written in documents is current.
//
// It has no code of its own and reads the files themselves, so that a cached
// test result never hides a change.
package arch
