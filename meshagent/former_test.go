package meshagent

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/statefile"
	"github.com/weft-mesh/weft/wire"
)

// unpeer is what east's API server does when an operator removes west, but for
// the record of it.
func (w *world) unpeer() {
	east := w.clusters["east"]
	peer, _ := east.store.Value(wire.PeerKey("west"))
	p, err := wire.Unmarshal[wire.Peer](peer)
	if err != nil {
		w.t.Fatal(err)
	}
	p.Connected, p.Removing = false, true
	east.put(w.t, wire.PeerKey("west"), p)
	for _, prefix := range []string{wire.PeerCachePrefix("west"), wire.SyncedPrefix("west")} {
		kvs, _, _ := east.store.List(w.t.Context(), prefix)
		for _, kv := range kvs {
			_ = east.store.Delete(w.t.Context(), kv.Key)
		}
	}
	for _, r := range wire.Resources {
		for _, prefix := range []string{r.CachePrefix("west"), r.CacheSyncedKey("west")} {
			kvs, _, _ := east.store.List(w.t.Context(), prefix)
			for _, kv := range kvs {
				_ = east.store.Delete(w.t.Context(), kv.Key)
			}
		}
	}
	_ = east.store.Delete(w.t.Context(), wire.PeerKey("west"))
}

const blockedFlags = bpf.IPMember | bpf.IPFormer

// prefix is the row of a CIDR in the kernel, 0 if there is none.
func (n *testNode) prefix(t *testing.T, cidr string) (bpf.IPInfo, bool) {
	t.Helper()
	row, ok, err := n.maps().Prefixes.Lookup(bpf.PrefixOf(netip.MustParsePrefix(cidr)))
	if err != nil {
		t.Fatal(err)
	}
	return row, ok
}

func (n *testNode) blocks(t *testing.T, when string) {
	t.Helper()
	if row, ok := n.prefix(t, "10.2.0.0/16"); !ok || row != (bpf.IPInfo{Flags: blockedFlags}) {
		t.Errorf("%s: west's CIDR is %+v, %v", when, row, ok)
	}
	for cidr, row := range rowsOf(t, n.maps().Prefixes) {
		if p := cidr.Netip(); p.Bits() > 16 && netip.MustParsePrefix("10.2.0.0/16").Contains(p.Addr()) {
			t.Errorf("%s: %v is %+v", when, p, row)
		}
	}
}

func (n *testNode) problem(table string) string {
	for p := range n.agent.Tables.Problems.All(n.agent.Tables.DB.ReadTxn()) {
		if p.Table == table {
			return p.Error
		}
	}
	return ""
}

func TestTheCIDROfARemovedPeerIsBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, east, _, _ := raise(t)
		c := w.clusters["east"]
		before, _, _ := east.maps().Settings.Lookup(0)
		c.put(t, wire.FormerKey("west"), wire.Former{Name: "west", PodCIDRs: []netip.Prefix{w.clusters["west"].cidr()}, Removed: time.Now()})
		w.unpeer()
		w.step()
		east.blocks(t, "removed")
		after, _, _ := east.maps().Settings.Lookup(0)
		if after.Revision == before.Revision {
			t.Error("open flows are not judged again")
		}
		if got := east.host.Network(); fmt.Sprint(got.Former) != "[10.2.0.0/16]" || len(got.Members) != 1 {
			t.Errorf("routes: %+v", got)
		}
		if why := east.problem("former"); why != "" {
			t.Errorf("problem: %s", why)
		}
		shown, _ := east.agent.Tables.Show("former")
		if len(shown.Rows) != 1 || !strings.HasPrefix(strings.Join(shown.Rows[0], " "), "west 10.2.0.0/16") || shown.Rows[0][4] != "done" {
			t.Errorf("table former: %v", shown.Rows)
		}

		east.stop()
		east.run()
		w.step()
		east.blocks(t, "the agent starts again")

		// The machine boots: maps are empty, and the store cannot be reached.
		east.stop()
		east.datapath = bpftest.NewDatapath()
		c.store.SetAway(true)
		east.run()
		synctest.Wait()
		if row, ok := east.prefix(t, "10.2.0.0/16"); !ok || row.Flags != bpf.IPMember {
			t.Errorf("booted without a store: west's CIDR is %+v, %v", row, ok)
		}
		c.store.SetAway(false)
		time.Sleep(time.Minute)
		w.step()
		east.blocks(t, "booted")

		// Added again, it is a member's; removed again, it is blocked again.
		_ = c.store.Delete(t.Context(), wire.FormerKey("west"))
		w.peer()
		w.step()
		if row, ok := east.prefix(t, "10.2.0.0/16"); !ok || row != (bpf.IPInfo{Cluster: 2, Flags: bpf.IPMember}) {
			t.Errorf("added again: west's CIDR is %+v, %v", row, ok)
		}
		if row, ok := east.prefix(t, "10.2.1.0/24"); !ok || row.Node == 0 {
			t.Errorf("added again: its node's CIDR is %+v, %v", row, ok)
		}
		former := wire.Former{Name: "west", PodCIDRs: []netip.Prefix{w.clusters["west"].cidr()}, Removed: time.Now()}
		c.put(t, wire.FormerKey("west"), former)
		w.unpeer()
		w.step()
		east.blocks(t, "removed again")

		// Until an operator says that it may be anybody's.
		former.Forgotten = time.Now()
		c.put(t, wire.FormerKey("west"), former)
		w.step()
		if row, ok := east.prefix(t, "10.2.0.0/16"); ok {
			t.Errorf("forgotten: west's CIDR is %+v", row)
		}
		if got := east.host.Network(); len(got.Former) != 0 {
			t.Errorf("routes: %+v", got)
		}
	})
}

// A store that was restored from before a peer was added knows nothing of it. What
// the node remembers stays blocked, and it says so.
func TestAMemberThatNobodyExplainsIsBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, east, _, _ := raise(t)
		w.unpeer()
		w.step()
		east.blocks(t, "gone")
		if why := east.problem("former"); !strings.Contains(why, "`weft peer forget 10.2.0.0/16`") {
			t.Errorf("problem: %q", why)
		}
		now := time.Now()
		w.clusters["east"].put(t, wire.FormerKey("10.2.0.0-16"), wire.Former{Name: "10.2.0.0-16", PodCIDRs: []netip.Prefix{w.clusters["west"].cidr()}, Removed: now, Forgotten: now})
		w.step()
		if row, ok := east.prefix(t, "10.2.0.0/16"); ok {
			t.Errorf("forgotten: west's CIDR is %+v", row)
		}
		if why := east.problem("former"); why != "" {
			t.Errorf("problem: %q", why)
		}
	})
}

// Part of a peer's CIDRs is taken from it: that part is blocked, the rest goes on.
func TestTheCIDRThatAPeerGivesUpIsBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, east, _, _ := raise(t)
		c := w.clusters["east"]
		c.put(t, wire.FormerKey("west"), wire.Former{Name: "west", PodCIDRs: []netip.Prefix{w.clusters["west"].cidr()}, Removed: time.Now()})
		c.put(t, wire.PeerKey("west"), wire.Peer{Name: "west", ID: 2, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/17")}, MaxConnectedClusters: 255, Connected: true})
		w.step()
		if row, ok := east.prefix(t, "10.2.0.0/16"); !ok || row.Flags != blockedFlags {
			t.Errorf("what it had: %+v, %v", row, ok)
		}
		if row, ok := east.prefix(t, "10.2.0.0/17"); !ok || row != (bpf.IPInfo{Cluster: 2, Flags: bpf.IPMember}) {
			t.Errorf("what it has: %+v, %v", row, ok)
		}
		if row, ok := east.prefix(t, "10.2.1.0/24"); !ok || row.Node == 0 {
			t.Errorf("its node: %+v, %v", row, ok)
		}
	})
}

func TestNodesAddressesOutsideOfTheMesh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, east, west, _ := raise(t)
		row, ok, _ := east.maps().IPs.Lookup(bpf.AddrOf(west.ip()))
		if !ok || row.Flags != bpf.IPNode || row.Node != 0 {
			t.Errorf("west-1's own address is %+v, %v", row, ok)
		}
		row, ok, _ = east.maps().IPs.Lookup(bpf.AddrOf(east.ip()))
		if !ok || row.Flags != 0 || row.Identity != 1 {
			t.Errorf("our own address is %+v, %v", row, ok)
		}
	})
}

func TestMembersOnDisk(t *testing.T) {
	f := membersFile(filepath.Join(t.TempDir(), "members"))
	log := slog.New(slog.DiscardHandler)
	if got, err := f.read(log); err != nil || got != nil {
		t.Errorf("before it was written: %v, %v", got, err)
	}
	want := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")}
	if err := f.write(want); err != nil {
		t.Fatal(err)
	}
	if got, err := f.read(log); err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("read back %v, %v", got, err)
	}
	// Cut short, or scribbled over: what can be read counts.
	if err := os.WriteFile(string(f), []byte("10.1.0.0/16\n\x00\n0.0.0.0/0\n10.2.0.1/16\n10.3.0.0/16\n10.2.0"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := f.read(log); err != nil || fmt.Sprint(got) != "[10.1.0.0/16 10.3.0.0/16]" {
		t.Errorf("damaged: %v, %v", got, err)
	}
	// The damaged file is kept once, where status finds it.
	if got, err := f.read(log); err != nil || fmt.Sprint(got) != "[10.1.0.0/16 10.3.0.0/16]" {
		t.Errorf("after damage: %v, %v", got, err)
	}
	if kept := statefile.Damages(filepath.Dir(string(f))); len(kept) != 1 || kept[0].Path != string(f) {
		t.Errorf("kept %v", kept)
	}
	if err := membersFile(filepath.Join(string(f), "members")).write(want); err == nil {
		t.Error("no error where no folder can be")
	}
}

// What is read as a CIDR reads back the same, and is none that holds every address.
func FuzzMembersOnDisk(f *testing.F) {
	f.Add("10.1.0.0/16\n10.2.0.0/16\n")
	f.Add("10.1.0.0/16\r\n\n ::/0 \n::ffff:10.0.0.0/104\nfd00::/8")
	f.Fuzz(func(t *testing.T, text string) {
		cidrs, _ := parseMembers(text)
		var again strings.Builder
		for _, p := range cidrs {
			if p.Bits() == 0 || p != p.Masked() {
				t.Errorf("took %v", p)
			}
			fmt.Fprintln(&again, p)
		}
		if back, bad := parseMembers(again.String()); bad != 0 || fmt.Sprint(back) != fmt.Sprint(cidrs) {
			t.Errorf("%v reads back as %v, %d bad", cidrs, back, bad)
		}
	})
}
