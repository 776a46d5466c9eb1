//go:build race

package chaos

// The race detector makes a run ten times as dear.
const ordinary = 8
