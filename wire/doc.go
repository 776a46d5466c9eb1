// Package wire holds every key and every value that stands in etcd: Cilium
// 1.20's, so that its peers read ours and we read theirs, and Weft's own.
//
// It reads, writes and checks single entries. Who writes which of them when,
// and what follows from them, is decided in apiserver and meshagent.
package wire
