package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/weft-mesh/weft/internal/benchmesh/peers"
)

// millionsShape is the largest mesh that is looked at: 200 clusters of 300 nodes with 50
// endpoints each, three million in all.
func millionsShape(s peers.Shape) peers.Shape {
	s.Nodes, s.Endpoints, s.Services, s.Backends, s.Large = 300, 15_000, 0, 0, 0
	return s
}

// millionsClusters is the size of that mesh, the real cluster included.
const millionsClusters = 201

// millionsStep is how many clusters are added between two looks at the memory.
const millionsStep = 10

// millions adds clusters until the agent knows three million endpoints, or until the
// processes take more memory than they may, and prints what the agent takes by then.
func (b *bench) millions(ctx context.Context) error {
	failed := errors.New("not even one cluster was joined")
	var sum, maps uint64
	defer func() {
		b.figure("millions", "", mib(sum), failed, map[string]float64{"maps_mib": mib(maps)})
	}()
	for all := len(b.hub.world.Clusters); b.hub.joined < all; {
		if err := b.joinAll(ctx, min(all, b.hub.joined+millionsStep)); err != nil {
			failed = fmt.Errorf("stopped at %d of %d clusters: %w", b.hub.joined, all, errors.Join(context.Cause(ctx), err))
			return nil
		}
		var err error
		if sum, maps, err = b.taken(); err != nil {
			return err
		}
	}
	failed = b.check()
	return nil
}
