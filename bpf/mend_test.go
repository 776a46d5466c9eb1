package bpf

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// With both kinds of hooks, what somebody takes away is there again after one look,
// and what this agent took away itself stays away.
func TestMend(t *testing.T) {
	for name, o := range map[string]options{"tcx": {}, "clsact": {clsact: true}} {
		t.Run(name, func(t *testing.T) {
			c := smallConfig(ownNamespaces(t))
			a, b, gone := addVeth(t, "a"), addVeth(t, "b"), addVeth(t, "gone")
			d := mustLoad(t, c, o)
			for _, index := range []int{a, b, gone} {
				if err := d.AttachPod(index); err != nil {
					t.Fatal(err)
				}
			}
			if err := d.Detach(b); err != nil {
				t.Fatal(err)
			}
			if mended, failed := d.Mend(); len(mended)+len(failed) != 0 {
				t.Errorf("nothing was taken away: mended %v, failed %v", mended, failed)
			}

			set(t, d.Maps().Settings, 0, Settings{Revision: 5})
			entries, err := filepath.Glob(filepath.Join(c.PinDir, "*"))
			if err != nil || len(entries) == 0 {
				t.Fatal(entries, err)
			}
			for _, e := range entries {
				if err := os.Remove(e); err != nil {
					t.Fatal(err)
				}
			}
			link, err := netlink.LinkByIndex(a)
			if err != nil {
				t.Fatal(err)
			}
			for _, parent := range parents {
				filters, _ := netlink.FilterList(link, parent)
				for _, f := range filters {
					if err := netlink.FilterDel(f); err != nil {
						t.Fatal(err)
					}
				}
			}
			if link, err = netlink.LinkByIndex(gone); err != nil {
				t.Fatal(err)
			}
			if err := netlink.LinkDel(link); err != nil {
				t.Fatal(err)
			}
			mended, failed := d.Mend()
			// The kernel may take a moment to let go of a link without a pin.
			for end := time.Now().Add(10 * time.Second); len(failed) == 0 && !slices.Contains(mended, "programs of pod device host-a") && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				var more []string
				more, failed = d.Mend()
				mended = append(mended, more...)
			}
			if len(failed) != 0 || !slices.Contains(mended, "programs of pod device host-a") || !slices.Contains(mended, "pin of map settings") {
				t.Errorf("mended %v, failed %v", mended, failed)
			}
			got, err := d.Attached()
			if err != nil || len(got) != 1 || got[0].Ifindex != a {
				t.Errorf("attached %v, %v; want a alone", got, err)
			}
			if ok, err := d.hooks.holds(Attachment{Role: RolePod, Ifindex: a}); !ok || err != nil {
				t.Errorf("both programs of a: %v, %v", ok, err)
			}
			if mended, failed := d.Mend(); len(mended)+len(failed) != 0 {
				t.Errorf("a second look: mended %v, failed %v", mended, failed)
			}

			// The next generation finds the same maps.
			second := mustLoad(t, c, o)
			if s, _, err := second.Maps().Settings.Lookup(0); err != nil || s.Revision != 5 {
				t.Errorf("settings %+v, %v", s, err)
			}
			// And the programs of the generation before are not its own.
			if mended, failed := second.Mend(); len(mended)+len(failed) != 0 {
				t.Errorf("after a restart: mended %v, failed %v", mended, failed)
			}
		})
	}
}
