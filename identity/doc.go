// Package identity says who a workload is: its labels, the number that stands for
// them, and which numbers belong to which cluster.
//
// Package policy decides what an identity may do; the API server's package identities
// decides which labels have which number.
package identity
