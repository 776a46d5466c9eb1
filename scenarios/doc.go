// Package scenarios holds what the system does, as scripts that run: the
// tests, the demo and the manual in one.
//
// Each .txtar file is a story about clusters in a lab; `weft lab run FILE` runs
// one and `weft lab verbs` explains the words. The language and the verbs are
// package lab's.
package scenarios
