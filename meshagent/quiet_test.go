package meshagent

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/wire"
)

// Reading the tunnels costs time for every node of the mesh, so an agent at rest does it
// rarely. While a handshake or a rotation is awaited, it looks often.
func TestTunnelsAreReadRarelyAtRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, east, _, _ := raise(t)
		reads := func(d time.Duration) int {
			before := east.lanes.Reads()
			time.Sleep(d)
			synctest.Wait()
			return east.lanes.Reads() - before
		}
		reads(10 * time.Second)
		if n := reads(time.Minute); n < 20 || n > 31 {
			t.Errorf("at rest: %d reads in a minute, want one every 2 s", n)
		}
		// A rotation that waits for the other node.
		w.clusters["east"].put(t, wire.RotationKey, wire.Rotation{Epoch: 3})
		if n := reads(time.Minute); n < 110 {
			t.Errorf("with a rotation awaited: %d reads in a minute, want one every 0.5 s", n)
		}
		w.clusters["east"].put(t, wire.RotationKey, wire.Rotation{})
		reads(time.Second)
		if n := reads(time.Minute); n > 31 {
			t.Errorf("after it: %d reads in a minute, want one every 2 s", n)
		}
	})
}

// A path that goes down is two writes: one when it has been so for a second, one
// when it is over. A path that is merely slow to come up is none.
func TestTheClusterIsToldOfPathsThatAreDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, east, _, _ := raise(t)
		key := wire.NodePathsKey(east.name)
		said := func() wire.NodePaths {
			text, ok := w.clusters["east"].store.Value(key)
			if !ok {
				return wire.NodePaths{}
			}
			v, err := wire.Unmarshal[wire.NodePaths](text)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		if v := said(); len(v.Paths) != 0 {
			t.Errorf("while all is well it says %+v", v)
		}
		w.setCut("west", true)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		v := said()
		if len(v.Paths) != 1 || v.Paths[0].Cluster != "west" || v.Paths[0].Node != "" || v.Paths[0].Probed != 1 || time.Since(v.Paths[0].Since) > 3*time.Second {
			t.Errorf("cut: %+v", v)
		}
		_, before, _ := w.clusters["east"].store.List(t.Context(), key)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if _, after, _ := w.clusters["east"].store.List(t.Context(), key); after != before {
			t.Errorf("nothing changed, and the store went from revision %d to %d", before.Revision, after.Revision)
		}
		w.setCut("west", false)
		time.Sleep(time.Second)
		synctest.Wait()
		if v := said(); len(v.Paths) != 0 {
			t.Errorf("healed: %+v", v)
		}
	})
}
