package wire

import (
	"hash/fnv"
	"math"
	"time"
)

// AgentLeaseTTL is how long an agent's keys outlive its last sign of life. When they
// expire, nothing derived from them is deleted; the API server reports the node as
// silent.
const AgentLeaseTTL = 15 * time.Minute

// AgentLease returns the ID of the one lease that a node's agent has. It is derived
// from the node's name, so a restarted agent continues its lease, and no agent can
// have more than one.
func AgentLease(node string) int64 {
	h := fnv.New64a()
	h.Write([]byte("agent/" + node))
	return max(1, int64(h.Sum64()&math.MaxInt64)) // 0 is no lease
}
