// Package scenarios describes what the system does as scripts that run: the tests,
// the demo and the manual in one.
//
// Each .txtar file is a story about clusters in a lab. `weft lab run FILE` runs one,
// and `weft lab verbs` explains the verbs, which belong to package lab.
package scenarios
