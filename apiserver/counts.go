package apiserver

import (
	"context"
	"maps"
	"sync"

	"github.com/weft-mesh/weft/apiserver/state"
	"github.com/weft-mesh/weft/wire"
)

// counts counts the accepted endpoints of each node, as they come and go, so that no server
// has to list them all to answer.
type counts struct {
	state *state.Cache

	mu     sync.Mutex        // guards what follows
	nodeOf map[string]string // by key
	onNode map[string]int
}

func newCounts(s *state.Cache) *counts {
	return &counts{state: s, nodeOf: map[string]string{}, onNode: map[string]int{}}
}

// Run follows the state until ctx ends; then it returns nil.
func (c *counts) Run(ctx context.Context) error {
	_ = c.state.Follow(ctx, func(b state.Batch) error { c.apply(b); return nil }) // only ctx ends it
	return nil
}

func (c *counts) apply(b state.Batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b.Complete {
		clear(c.nodeOf)
		clear(c.onNode)
	}
	for _, ev := range b.Events {
		if _, _, ok := wire.ParseEndpointKey(ev.Key); !ok {
			continue
		}
		if node, there := c.nodeOf[ev.Key]; there {
			delete(c.nodeOf, ev.Key)
			if c.onNode[node]--; c.onNode[node] == 0 {
				delete(c.onNode, node)
			}
		}
		if e, ok := ev.Object.(*wire.Endpoint); ok {
			c.nodeOf[ev.Key] = e.Node
			c.onNode[e.Node]++
		}
	}
}

// byNode returns the number of endpoints on each node that has any.
func (c *counts) byNode() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.onNode)
}
