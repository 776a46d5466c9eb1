package wire

import (
	"hash/fnv"
	"math"
	"time"
)

// AgentLeaseTTL is how long what an agent wrote under its lease outlives its last
// sign of life. Its end deletes nothing derived: the API server calls the node
// silent.
const AgentLeaseTTL = 15 * time.Minute

// AgentLease is the lease of a node's agent. Each has one, whose number follows
// from its name: an agent that restarts goes on with it, and no agent can have
// more.
func AgentLease(node string) int64 {
	h := fnv.New64a()
	h.Write([]byte("agent/" + node))
	return max(1, int64(h.Sum64()&math.MaxInt64)) // 0 is no lease
}
