package bpf

// For the tests of package bpf_test.
var (
	OwnNamespaces = ownNamespaces
	SmallConfig   = smallConfig
)

// Forget is what Sweep deletes by.
func (d *Datapath) Forget(dead []FlowKey, now uint64) (int, error) { return d.forget(dead, now) }
