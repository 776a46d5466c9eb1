package meshagent

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// heap keeps the process small. Reading the mesh makes much garbage, so until all of it
// has been read the collector works as usual: rarely. From then on little changes, and
// room for as much garbage as there is data would be wasted.
type heap struct{ read <-chan struct{} }

// Garbage may take garbageRoom, or garbageShare of what is in use if that is more. With
// 325 changes a second, each some 15 to 25 KiB of garbage, in a mesh of 250 clusters, an
// eighth costs a collection in four seconds or so.
const (
	garbageRoom  = 16 << 20
	garbageShare = 1. / 8
)

// What lies idle is given back if it is idleRooms times the room for garbage, at most once in
// idlePause: the runtime keeps what a burst of changes has taken, and to give it back costs a
// collection.
const (
	idleRooms = 2
	idlePause = 10 * time.Second
)

// percentFor is the collector's setting for this many bytes in use.
func percentFor(live uint64) int {
	const usual = 100
	if live == 0 {
		return usual
	}
	return min(usual, int(100*roomFor(live)/float64(live)))
}

// roomFor is how many bytes of garbage there may be.
func roomFor(live uint64) float64 { return max(garbageRoom, garbageShare*float64(live)) }

// giveBack says whether memory that lies idle is to be given back, so long after the last time.
func giveBack(live, idle uint64, after time.Duration) bool {
	return float64(idle) > idleRooms*roomFor(live) && after >= idlePause
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
	gave := time.Now()
	inUse, _ := memory()
	percent := percentFor(inUse)
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
		inUse, idle := memory()
		if giveBack(inUse, idle, time.Since(gave)) {
			debug.FreeOSMemory()
			gave = time.Now()
		}
		if next := percentFor(inUse); next != percent {
			percent = next
			debug.SetGCPercent(percent)
		}
	}
}

// memory is how many bytes were in use at the last collection, and how many the runtime keeps
// that nothing uses.
func memory() (live, idle uint64) {
	samples := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/free:bytes"}}
	metrics.Read(samples)
	return samples[0].Value.Uint64(), samples[1].Value.Uint64()
}
