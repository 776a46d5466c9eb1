// Package wire defines every key and value in etcd: Cilium 1.20's, so that Cilium
// clusters can read our export and we theirs, and Weft's own.
//
// It reads, writes and checks single entries. Who writes which of them when, and what
// follows from them, is decided in apiserver and meshagent.
package wire
