package bpf

// For the tests of package bpf_test.
var (
	OwnNamespaces = ownNamespaces
	SmallConfig   = smallConfig
)

// Forget is how Sweep deletes flows.
func (d *Datapath) Forget(dead []FlowKey, now uint64) (int, error) { return d.forget(dead, now) }
