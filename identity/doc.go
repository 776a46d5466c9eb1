// Package identity says who a workload is: labels, the number that stands for
// them, and which numbers belong to which cluster.
//
// What an identity may do is decided in package policy; where the numbers are
// stored is decided by whoever implements Store.
package identity
