package program

import (
	"testing"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/meshagent/tables"
)

// A pod that is removed while its row is being written does not come back: neither in the
// table, from which the node reports its pods, nor in the kernel.
func TestAPodRemovedDuringAPassStaysRemoved(t *testing.T) {
	for _, phase := range []tables.Phase{tables.Held, tables.Live} {
		t.Run(string(phase), func(t *testing.T) {
			b := newBench(t)
			web := b.pod("web-1", "web", "10.1.1.2", 65537)
			b.write(func(txn statedb.WriteTxn) {
				tables.Edit(txn, b.tab.Endpoints, "shop/web-1", func(e *tables.Endpoint) { e.Phase = phase })
			})
			removed := false
			b.tap.after = func() {
				if _, written := rowsIn(b.maps.Endpoints)[web]; removed || !written {
					return
				}
				removed = true
				b.write(func(txn statedb.WriteTxn) {
					tables.Drop(txn, b.tab.Endpoints, &tables.Endpoint{Namespace: "shop", Pod: "web-1"})
				})
			}
			b.pass()
			b.pass()
			if !removed {
				t.Fatal("its row was never written")
			}
			if e := tables.Get(b.tab.DB.ReadTxn(), b.tab.Endpoints, "shop/web-1"); e != nil {
				t.Errorf("it is back in the table: %+v", e)
			}
			if rows := rowsIn(b.maps.Endpoints); len(rows) > 0 {
				t.Errorf("it is in the kernel: %v", rows)
			}
		})
	}
}

// What happened to a pod's row since the snapshot stays.
func TestAPassKeepsWhatHappenedToAPod(t *testing.T) {
	b := newBench(t)
	web := b.pod("web-1", "web", "10.1.1.2", 65537)
	b.tap.after = func() {
		if _, written := rowsIn(b.maps.Endpoints)[web]; !written {
			return
		}
		b.tap.after = nil
		b.write(func(txn statedb.WriteTxn) {
			tables.Edit(txn, b.tab.Endpoints, "shop/web-1", func(e *tables.Endpoint) { e.Phase = tables.Removing })
		})
	}
	b.pass()
	if e := tables.Get(b.tab.DB.ReadTxn(), b.tab.Endpoints, "shop/web-1"); e == nil || e.Phase != tables.Removing {
		t.Errorf("it is being removed, and the table has %+v", e)
	}
	if _, ok, _ := b.maps.Endpoints.Lookup(web); ok {
		t.Error("its row is still in the kernel")
	}
}
