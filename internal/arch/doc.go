// Package arch enforces the rules of the tree as tests: which part may import which,
// how packages document themselves, and that generated files and documents are up to
// date.
//
// It has no code of its own. Its tests read the files themselves, so that a cached test
// result never hides a change.
package arch
