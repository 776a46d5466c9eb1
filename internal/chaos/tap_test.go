package chaos

import (
	"errors"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
)

var errKernel = errors.New("no memory")

// onTable calls deleted, with r.mu held, before a row of a node's table is deleted, and makes
// writes fail while they are meant to.
func onTable[K, V comparable](r *runner, table bpf.Table[K, V], node string, deleted func(K)) {
	table.(*bpftest.Table[K, V]).Fail(func(op string, k K) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.failing[node] {
			return errKernel
		}
		if op == "delete" && deleted != nil {
			deleted(k)
		}
		return nil
	})
}
