package peering

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// Our own store goes back in time while the API server keeps running: what the mirrors
// had written after the copy is written again.
func TestMirrorsWriteAgainWhatOurStoreLost(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		east, west := w.cluster(t, "east", 1), w.cluster(t, "west", 2)
		defer func() { east.stop(); west.stop() }()
		east.read(west)
		copied := east.st.Copy()
		second := west.own.PodCIDRs[0].Addr().Next().Next()
		if err := store.Write(t.Context(), west.st, store.Put(wire.IPStateKey(second), fmt.Appendf(nil, `{"IP":"%v","ID":%d}`, second, 2<<16+1)),
			store.Delete(wire.IPStateKey(west.own.PodCIDRs[0].Addr().Next()))); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		before := east.st.Dump("cilium/cache/")
		if err := store.Write(t.Context(), east.st, store.Put("elsewhere", nil)); err != nil {
			t.Fatal(err)
		}
		east.st.PutBack(copied)
		time.Sleep(time.Minute)
		synctest.Wait()
		if diff := cmp.Diff(before, east.st.Dump("cilium/cache/")); diff != "" {
			t.Errorf("our copy (-before +after):\n%s", diff)
		}
	})
}

// The key that tells a peer that it was added here is restored when it vanishes, like
// the export.
func TestAPeerIsToldAgainThatItWasAdded(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		east, west := w.cluster(t, "east", 1), w.cluster(t, "west", 2)
		defer func() { east.stop(); west.stop() }()
		east.read(west)
		west.read(east)
		for range 2 {
			if err := store.Write(t.Context(), east.st, store.Delete(wire.JoinedKey("west"))); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if s := west.status("east"); s.AddedUs == nil || !*s.AddedUs {
				t.Errorf("west is told %+v", s)
			}
			east.restart()
		}
	})
}
