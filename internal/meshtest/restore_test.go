package meshtest_test

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/internal/meshtest"
	"github.com/weft-mesh/weft/store/storetest"
)

var late = bpf.AddrOf(netip.MustParseAddr("10.2.1.3"))

// deletions notes which addresses are deleted from a node's map.
func deletions(n *meshtest.Node) (all func() []bpf.Addr) {
	var gone []bpf.Addr
	n.Maps().IPs.(*bpftest.Table[bpf.Addr, bpf.IPInfo]).Fail(func(op string, a bpf.Addr) error {
		if op == "delete" {
			gone = append(gone, a)
		}
		return nil
	})
	return func() []bpf.Addr { synctest.Wait(); return gone }
}

// A restored store has an old copy of what its peers export. Until its API server has read
// them again, its nodes go on with what they know of them, also those that start meanwhile;
// then they follow what has changed.
func TestARestoredStoreTakesNoPeersAddressAway(t *testing.T) {
	for name, restart := range map[string]bool{"agent goes on": false, "agent restarts": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, east, west, e, w := raise(t)
				copied := east.Store.Copy()
				w.Pod("shop", "late", "web")
				west.Delete("pods", "shop", "web")
				m.Pass(converge)
				before := identityOf(e, late)
				if before == 0 || identityOf(e, web) != 0 {
					t.Fatal("east does not know of the late pod, or still of the first")
				}
				gone := deletions(e)

				m.SetControl(east, west, storetest.Cut)
				if restart {
					e.Stop()
				}
				east.Restore(copied, false)
				if restart {
					e.Start()
				}
				m.Pass(5 * time.Minute)
				if now, deleted := identityOf(e, late), gone(); now != before || len(deleted) > 0 {
					t.Errorf("restored, late is %v, was %v; deleted: %v", now, before, deleted)
				}
				if !restart && identityOf(e, web) != 0 {
					t.Error("what west withdrew is back")
				}

				// Nobody needs east's store for what west says then.
				m.SetControl(east, west, storetest.Works)
				m.Pass(time.Minute)
				if deleted := gone(); slices.Contains(deleted, late) || identityOf(e, late) != before || identityOf(e, web) != 0 {
					t.Errorf("west was read again, and late is %v, web %v, deleted: %v", identityOf(e, late), identityOf(e, web), deleted)
				}
				west.Delete("pods", "shop", "late")
				m.Pass(converge)
				if identityOf(e, late) != 0 {
					t.Error("east still knows a pod that west has deleted")
				}
			})
		})
	}
}

// What west withdrew while nobody read it goes once it is read.
func TestWhatWentMeanwhileGoesOnceItsClusterIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, east, west, e, w := raise(t)
		copied := east.Store.Copy()
		w.Pod("shop", "late", "web")
		m.Pass(converge)
		m.SetControl(east, west, storetest.Cut)
		east.Restore(copied, false)
		west.Delete("pods", "shop", "late")
		m.Pass(time.Minute)
		if identityOf(e, late) == 0 {
			t.Fatal("east forgot a pod that nobody has withdrawn")
		}
		m.SetControl(east, west, storetest.Works)
		m.Pass(time.Minute)
		if identityOf(e, late) != 0 || identityOf(e, web) == 0 {
			t.Errorf("late is %v, web %v", identityOf(e, late), identityOf(e, web))
		}
	})
}

// A peer that the restored store does not know is none.
func TestAPeerThatABackupLacksLeavesTheMaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, all := meshtest.New(t, "east", "west")
		east, west := all[0], all[1]
		e, w := east.Node(), west.Node()
		copied := east.Store.Copy()
		m.Join(east, west)
		w.Pod("shop", "web", "web")
		m.Pass(2 * converge)
		if identityOf(e, web) == 0 {
			t.Fatal("east does not know web")
		}
		east.Restore(copied, false)
		m.Pass(time.Minute)
		if identityOf(e, web) != 0 {
			t.Error("east still knows a pod of a cluster that is not its peer")
		}
		if s := e.Agent.Status(); len(s.Sources) == 0 {
			t.Error("no sources")
		} else {
			for _, source := range s.Sources {
				if source.Keys != 0 && source.Prefix == "cilium/cache/" {
					t.Errorf("keys are left: %+v", source)
				}
			}
		}
	})
}
