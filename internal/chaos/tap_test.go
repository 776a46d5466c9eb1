package chaos

import (
	"errors"
	"slices"
	"time"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
)

// refusal says since when and until when a node's kernel has refused writes that were tried
// again and again.
type refusal struct{ first, last time.Time }

// refuseLocked notes a write that fails, with r.mu held.
func (r *runner) refuseLocked(node string) {
	now, was := time.Now(), r.refused[node]
	if now.Sub(was.last) > retried {
		was.first = now
	}
	r.refused[node] = refusal{was.first, now}
}

// spareLocked reports whether a write succeeds although some fail, with r.mu held.
func (r *runner) spareLocked(node, table string) bool {
	r.tried++
	switch r.sparing[node] {
	case "some":
		return r.tried%3 != 0
	case "policies":
		return !slices.Contains([]string{"classes", "policy", "sets"}, table)
	}
	return false
}

// refusing reports whether a node's kernel has refused all writes for d, and still does: what
// it was asked to write is wanted now as it was then.
func (r *runner) refusing(node string, d time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	is := r.refused[node]
	for _, changed := range r.since {
		if time.Since(changed) < retried {
			return false
		}
	}
	return r.failing[node] && r.sparing[node] == "" && time.Since(is.first) >= d && time.Since(is.last) <= retried
}

var errKernel = errors.New("no memory")

// onTable calls deleted, with r.mu held, before a row of a node's table is deleted, and makes
// writes fail while they are meant to.
func onTable[K, V comparable](r *runner, table bpf.Table[K, V], node string, deleted func(K)) {
	table.(*bpftest.Table[K, V]).Fail(func(op string, k K) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.failing[node] && !r.spareLocked(node, table.Name()) {
			r.refuseLocked(node)
			return errKernel
		}
		if op == "delete" && deleted != nil {
			deleted(k)
		}
		return nil
	})
}
