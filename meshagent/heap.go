package meshagent

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// heap keeps the process small. Reading the mesh makes much garbage, so until all of it
// has been read the collector works as usual: rarely. From then on little changes, and
// room for as much garbage as there is data would be wasted.
type heap struct{ read <-chan struct{} }

// Garbage may take garbageRoom, or garbageShare of what is in use if that is more. With
// 325 changes a second, each some 15 to 25 KiB of garbage, in a mesh of 250 clusters, a
// quarter costs a collection in ten seconds or so.
const (
	garbageRoom  = 32 << 20
	garbageShare = 1. / 4
)

// percentFor is the collector's setting for this many bytes in use.
func percentFor(live uint64) int {
	const usual = 100
	if live == 0 {
		return usual
	}
	room := max(garbageRoom, garbageShare*float64(live))
	return min(usual, int(100*room/float64(live)))
}

// Run works until ctx ends, and then leaves the collector as it was. Whoever sets GOGC
// has decided otherwise.
func (h heap) Run(ctx context.Context) error {
	if os.Getenv("GOGC") != "" {
		return nil
	}
	select {
	case <-ctx.Done():
		return nil
	case <-h.read:
	}
	debug.FreeOSMemory() // it collects first
	percent := percentFor(live())
	before := debug.SetGCPercent(percent)
	defer debug.SetGCPercent(before)
	collected := make(chan struct{}, 1)
	for {
		// The runtime does not tell when it has collected, except by the end of an object.
		runtime.AddCleanup(&struct{ to *chan struct{} }{&collected}, func(to chan struct{}) {
			select {
			case to <- struct{}{}:
			default:
			}
		}, collected)
		select {
		case <-ctx.Done():
			return nil
		case <-collected:
		}
		if next := percentFor(live()); next != percent {
			percent = next
			debug.SetGCPercent(percent)
		}
	}
}

// live is how many bytes were in use at the last collection.
func live() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}
