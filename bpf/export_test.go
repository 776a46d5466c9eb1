package bpf

// For the tests of package bpf_test.
var (
	OwnNamespaces = ownNamespaces
	SmallConfig   = smallConfig
)
