package apiserver

import (
	"context"
	"log/slog"
	"maps"
	"sync"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// counts counts the accepted endpoints of each node. It follows the store, so that every
// API server knows them and none has to list them all to answer.
type counts struct {
	store store.Store
	log   *slog.Logger

	mu     sync.Mutex        // guards what follows
	nodeOf map[string]string // by key
	onNode map[string]int
}

func newCounts(s store.Store, log *slog.Logger) *counts {
	return &counts{store: s, log: log, nodeOf: map[string]string{}, onNode: map[string]int{}}
}

// Run follows the store until ctx ends.
func (c *counts) Run(ctx context.Context) error {
	return store.Persist(ctx, c.log, "counting endpoints", func(ctx context.Context) error {
		return store.Follow(ctx, c.store, wire.EndpointsPrefix, func(b store.Batch) error {
			c.apply(b)
			return nil
		})
	})
}

func (c *counts) apply(b store.Batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b.Complete {
		clear(c.nodeOf)
		clear(c.onNode)
	}
	for _, ev := range b.Events {
		if node, there := c.nodeOf[ev.Key]; there {
			delete(c.nodeOf, ev.Key)
			if c.onNode[node]--; c.onNode[node] == 0 {
				delete(c.onNode, node)
			}
		}
		if e, err := wire.Unmarshal[wire.Endpoint](ev.Value); err == nil && !ev.Deleted {
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
