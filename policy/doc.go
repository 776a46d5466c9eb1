// Package policy turns Cilium's and Kubernetes' policy manifests into the tables
// the kernel judges packets by, and says what is wrong with a manifest.
//
// It does not decide who a workload is (package identity) and writes nothing
// to the kernel; tracking of established connections is the datapath's.
//
//	Parse ──► []*Policy ──► Compile(World, subjects) ──► Tables
//	                           │                           │
//	                        Evaluate, the oracle ── same verdicts ── Verdict
package policy
