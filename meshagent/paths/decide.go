package paths

import (
	"strings"
	"time"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/tunnel/probe"
)

// next is a path's next state in the kernel, given what probes say of it now. A path that
// is not judged yet stays as it was found. Only one that worked can become silent: an
// agent that has just started must not soften the verdict on one that was dead all along.
func next(was bpf.Path, now probe.Standing) bpf.Path {
	switch now {
	case probe.Alive:
		return bpf.PathAlive
	case probe.Dead:
		return bpf.PathDead
	case probe.Silent:
		if was != bpf.PathDead {
			return bpf.PathSilent
		}
	}
	return was
}

func clusterRow(path bpf.Path) bpf.Cluster { return bpf.Cluster{Path: path, Member: 1} }

// pathAge is how old the figures in the row of an unchanged path may become.
const pathAge = 5 * time.Second

// same says whether two observations of a path differ in so little that its row may stay.
func same(a, b probe.Observation) bool {
	return b.Answered.Sub(a.Answered) <= pathAge && a.State == b.State && a.Since.Equal(b.Since) && a.Limit == b.Limit
}

func bit(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

func split(key string) (cluster, node string) {
	cluster, node, _ = strings.Cut(key, "/")
	return cluster, node
}
