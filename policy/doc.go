// Package policy compiles Cilium's and Kubernetes' policy manifests into the tables
// by which the kernel judges packets, and explains what is wrong with a manifest.
//
// It does not decide who a workload is (package identity) and writes nothing
// to the kernel; connection tracking belongs to the datapath.
//
//	Parse ──► []*Policy ──► Compile(World, subjects) ──► Tables
//	                           │                           │
//	                        Evaluate, the oracle ── same verdicts ── Verdict
package policy
