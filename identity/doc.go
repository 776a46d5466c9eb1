// Package identity says who a workload is: its labels, the number that stands for
// them, and which numbers belong to which cluster.
//
// Package policy decides what an identity may do; implementations of Store decide
// where the numbers are kept.
package identity
