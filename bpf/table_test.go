package bpf_test

import (
	"errors"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
)

func kernelMaps(t *testing.T, edit func(*bpf.Limits)) *bpf.Maps {
	t.Helper()
	return kernelDatapath(t, edit).Maps()
}

func kernelDatapath(t *testing.T, edit func(*bpf.Limits)) *bpf.Datapath {
	t.Helper()
	c := bpf.SmallConfig(bpf.OwnNamespaces(t))
	if edit != nil {
		edit(&c.Limits)
	}
	d, err := bpf.Load(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// both runs a test against the kernel's tables and against their in-memory twins.
func both(t *testing.T, f func(*testing.T, *bpf.Maps)) {
	t.Run("memory", func(t *testing.T) { f(t, bpftest.New()) })
	t.Run("kernel", func(t *testing.T) { f(t, kernelMaps(t, nil)) })
}

func TestHash(t *testing.T) {
	both(t, func(t *testing.T, m *bpf.Maps) {
		rows := map[bpf.ClassKey]uint32{}
		var keys []bpf.ClassKey
		for i := range uint32(10000) {
			rows[bpf.ClassKey{Gen: 1, Identity: i}] = i
			keys = append(keys, bpf.ClassKey{Gen: 1, Identity: i})
		}
		if err := m.Classes.UpdateBatch(rows); err != nil {
			t.Fatal(err)
		}
		if n, err := m.Classes.Len(); n != len(rows) || err != nil {
			t.Fatalf("%d rows, %v", n, err)
		}
		seen := map[bpf.ClassKey]uint32{}
		all, failed := m.Classes.All()
		for k, v := range all {
			seen[k] = v
		}
		if err := failed(); err != nil || len(seen) != len(rows) || seen[bpf.ClassKey{Gen: 1, Identity: 77}] != 77 {
			t.Fatalf("%d rows seen, %v", len(seen), err)
		}
		for range all {
			break // leaves the rest
		}
		// Half of them, scattered, are already absent.
		for i := 0; i < len(keys); i += 2 {
			if err := m.Classes.Delete(keys[i]); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.Classes.DeleteBatch(append(keys[:9000:9000], bpf.ClassKey{Gen: 9})); err != nil {
			t.Fatal(err)
		}
		if n, err := m.Classes.Len(); n != 500 || err != nil {
			t.Errorf("%d rows left, %v", n, err)
		}
		if err := m.Classes.Delete(keys[0]); err != nil {
			t.Errorf("delete an absent row: %v", err)
		}
		if _, ok, err := m.Classes.Lookup(keys[0]); ok || err != nil {
			t.Errorf("look up an absent row: %v %v", ok, err)
		}
		if v, ok, err := m.Classes.Lookup(keys[9999]); v != 9999 || !ok || err != nil {
			t.Errorf("look up: %v %v %v", v, ok, err)
		}
		if err := m.Classes.UpdateBatch(nil); err != nil {
			t.Errorf("update nothing: %v", err)
		}
	})
}

func TestArray(t *testing.T) {
	both(t, func(t *testing.T, m *bpf.Maps) {
		index, ok := bpf.PortIndex(3, 17, 53)
		if !ok {
			t.Fatal("UDP has no ports")
		}
		if _, ok := bpf.PortIndex(3, 47, 53); ok {
			t.Error("GRE has ports")
		}
		if _, ok, err := m.Ports.Lookup(index); ok || err != nil {
			t.Errorf("zero row is present: %v", err)
		}
		if err := m.Ports.UpdateBatch(map[uint32]uint16{index: 7, index + 1: 8}); err != nil {
			t.Fatal(err)
		}
		if n, err := m.Ports.Len(); n != 2 || err != nil {
			t.Errorf("%d rows, %v", n, err)
		}
		if err := m.Ports.DeleteBatch([]uint32{index}); err != nil {
			t.Fatal(err)
		}
		if v, ok, err := m.Ports.Lookup(index + 1); v != 8 || !ok || err != nil {
			t.Errorf("look up: %v %v %v", v, ok, err)
		}
		if n, _ := m.Ports.Len(); n != 1 {
			t.Errorf("%d rows left", n)
		}
		if err := m.Clusters.Update(bpf.MaxClusters, bpf.Cluster{Path: bpf.PathAlive}); !errors.Is(err, bpf.ErrFull) {
			t.Errorf("row beyond the end: %v", err)
		}
	})
}

func TestPrefixes(t *testing.T) {
	both(t, func(t *testing.T, m *bpf.Maps) {
		wide, narrow := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.1.2.0/24")
		if err := m.Prefixes.UpdateBatch(map[bpf.PrefixKey]bpf.IPInfo{bpf.PrefixOf(wide): {Node: 1}, bpf.PrefixOf(narrow): {Node: 2}}); err != nil {
			t.Fatal(err)
		}
		if v, ok, err := m.Prefixes.Lookup(bpf.PrefixOf(narrow)); v.Node != 2 || !ok || err != nil {
			t.Errorf("look up: %v %v %v", v, ok, err)
		}
		if v, ok, err := m.Prefixes.Lookup(bpf.PrefixOf(netip.MustParsePrefix("10.1.3.0/24"))); ok || err != nil {
			t.Errorf("a shorter prefix answers for an absent one: %v %v", v, err)
		}
		if err := m.Prefixes.DeleteBatch([]bpf.PrefixKey{bpf.PrefixOf(wide)}); err != nil {
			t.Fatal(err)
		}
		all, failed := m.Prefixes.All()
		for k := range all {
			if k.Netip() != narrow {
				t.Errorf("left is %v", k.Netip())
			}
		}
		if err := failed(); err != nil {
			t.Error(err)
		}
	})
}

// What a packet finds in a trie is the longest prefix that covers its key.
func TestTableMatchesTheLongestPrefix(t *testing.T) {
	both(t, func(t *testing.T, m *bpf.Maps) {
		full := func(s string) bpf.PrefixKey {
			a := netip.MustParseAddr(s)
			return bpf.PrefixOf(netip.PrefixFrom(a, a.BitLen()))
		}
		rows := map[bpf.PrefixKey]bpf.IPInfo{}
		for i, p := range []string{"::/0", "10.1.0.0/16", "10.1.2.0/23", "10.1.2.3/32", "fd00:1::/48"} {
			rows[bpf.PrefixOf(netip.MustParsePrefix(p))] = bpf.IPInfo{Node: uint16(i + 1)}
		}
		if err := m.Prefixes.UpdateBatch(rows); err != nil {
			t.Fatal(err)
		}
		for a, want := range map[string]uint16{"10.1.2.3": 4, "10.1.3.3": 3, "10.1.4.3": 2, "10.2.0.1": 1, "fd00:1::7": 5, "fd00:2::7": 1} {
			if v, ok, err := m.Prefixes.Match(full(a)); v.Node != want || !ok || err != nil {
				t.Errorf("%s matches row %d, %v, %v; want %d", a, v.Node, ok, err, want)
			}
		}
		// A prefix is not covered by a longer one.
		if v, ok, err := m.Prefixes.Match(bpf.PrefixOf(netip.MustParsePrefix("10.1.2.0/24"))); v.Node != 3 || !ok || err != nil {
			t.Errorf("10.1.2.0/24 matches row %d, %v, %v", v.Node, ok, err)
		}
		of := func(service uint32, p string) bpf.RangeKey {
			k := bpf.RangeOf(netip.MustParsePrefix(p))
			k.Service = service
			return k
		}
		if err := m.Sources.UpdateBatch(map[bpf.RangeKey]uint32{of(7, "10.1.0.0/16"): 1, of(8, "0.0.0.0/0"): 1}); err != nil {
			t.Fatal(err)
		}
		for k, want := range map[bpf.RangeKey]bool{of(7, "10.1.2.3/32"): true, of(7, "10.2.2.3/32"): false, of(8, "10.2.2.3/32"): true, of(9, "10.1.2.3/32"): false} {
			if _, ok, err := m.Sources.Match(k); ok != want || err != nil {
				t.Errorf("%v of service %d: %v, %v", k.Netip(), k.Service, ok, err)
			}
		}
		// Elsewhere it is the row with the key.
		if err := m.Classes.Update(bpf.ClassKey{Gen: 1, Identity: 2}, 5); err != nil {
			t.Fatal(err)
		}
		v, ok, err := m.Classes.Match(bpf.ClassKey{Gen: 1, Identity: 2})
		if _, other, failed := m.Classes.Match(bpf.ClassKey{Gen: 1, Identity: 3}); v != 5 || !ok || other || errors.Join(err, failed) != nil {
			t.Errorf("classes: %d, %v, %v, %v", v, ok, other, errors.Join(err, failed))
		}
	})
}

func TestFull(t *testing.T) {
	m := kernelMaps(t, func(l *bpf.Limits) { l.Endpoints, l.Classes = 2, 2 })
	for i := range 3 {
		err := m.Endpoints.Update(bpf.Addr{byte(i)}, bpf.Endpoint{})
		var full *bpf.FullError
		if want := i == 2; errors.Is(err, bpf.ErrFull) != want || errors.As(err, &full) != want {
			t.Errorf("row %d: %v", i, err)
		}
		if full != nil && (full.Table != "endpoints" || full.Limit != 2) {
			t.Errorf("error %+v", full)
		}
	}
	if err := m.Classes.UpdateBatch(map[bpf.ClassKey]uint32{{Gen: 1}: 1, {Gen: 2}: 1, {Gen: 3}: 1}); !errors.Is(err, bpf.ErrFull) {
		t.Errorf("batch: %v", err)
	}
	small := bpftest.NewTable[uint32, uint32]("small", 1)
	if err := errors.Join(small.Update(1, 1), small.Update(1, 2)); err != nil {
		t.Error(err)
	}
	if err := small.Update(2, 1); !errors.Is(err, bpf.ErrFull) {
		t.Errorf("twin: %v", err)
	}
}

func TestSweep(t *testing.T) {
	sweep := func(t *testing.T, m *bpf.Maps, forget bpf.Forget) {
		const second = uint64(time.Second)
		now := 10000 * second
		key := func(port uint16, proto uint8) bpf.FlowKey {
			return bpf.FlowKey{Local: bpf.Addr{1}, Remote: bpf.Addr{2}, Lport: bpf.PortOf(port), Rport: bpf.PortOf(80), Proto: proto}
		}
		const finished = bpf.FlowFinLocal | bpf.FlowFinRemote
		// Through another service, to the backend of the dead flow from the same port.
		other := bpf.FlowKey{Local: bpf.Addr{1}, Remote: bpf.Addr{3}, Lport: bpf.PortOf(16), Rport: bpf.PortOf(80), Proto: 17}
		keep := map[bpf.FlowKey]bpf.Flow{
			key(1, 6):  {Seen: now - 59*second},
			key(2, 6):  {Seen: now - 7999*second, Flags: bpf.FlowReplied},
			key(3, 6):  {Seen: now - 7999*second, Flags: bpf.FlowReplied | bpf.FlowFinLocal},
			key(4, 6):  {Seen: now - 9*second, Flags: bpf.FlowReplied | finished},
			key(5, 17): {Seen: now - 59*second, Flags: bpf.FlowReplied},
			key(6, 17): {Seen: now + 5*second}, // a packet came after now was read
			key(7, 17): {Seen: now, Flags: bpf.FlowService, Backend: bpf.Addr{9}, Bport: bpf.PortOf(8080)},
			other:      {Seen: now, Flags: bpf.FlowService, Backend: bpf.Addr{9}, Bport: bpf.PortOf(8080)},
		}
		gone := map[bpf.FlowKey]bpf.Flow{
			key(11, 6):  {Seen: now - 61*second},
			key(12, 6):  {Seen: now - 8001*second, Flags: bpf.FlowReplied},
			key(13, 6):  {Seen: now - 11*second, Flags: bpf.FlowReplied | finished},
			key(14, 6):  {Seen: now - 11*second, Flags: bpf.FlowReplied | bpf.FlowReset},
			key(15, 17): {Seen: now - 61*second, Flags: bpf.FlowService, Backend: bpf.Addr{9}, Bport: bpf.PortOf(8080)},
			key(16, 17): {Seen: now - 61*second, Flags: bpf.FlowService, Backend: bpf.Addr{9}, Bport: bpf.PortOf(8080)},
		}
		// Pods at address 5 (device 50) and 6 (device 60).
		open := func(local, remote byte, device, owner uint32) (bpf.FlowKey, bpf.Flow) {
			k := bpf.FlowKey{Local: bpf.Addr{local}, Remote: bpf.Addr{remote}, Lport: bpf.PortOf(uint16(device)), Rport: bpf.PortOf(uint16(owner)), Proto: 6}
			return k, bpf.Flow{Seen: now, Flags: bpf.FlowReplied, Ifindex: device, Owner: owner}
		}
		for _, c := range []struct {
			local, remote byte
			device, owner uint32
			gone          bool
		}{
			{5, 9, 50, 50, false},
			{5, 9, 50, bpf.SharesNode, false}, // a probe
			{8, 9, 0, bpf.SharesNode, false},  // the node's own
			{5, 6, 50, 60, false},             // opened by the pod next door
			{7, 9, 70, 70, true},              // no pod has the address
			{5, 9, 51, 51, true},              // another pod has it now
			{5, 6, 50, 61, true},              // as if next door
			{6, 7, 60, 70, true},              // next door is nobody
		} {
			k, f := open(c.local, c.remote, c.device, c.owner)
			if c.gone {
				gone[k] = f
			} else {
				keep[k] = f
			}
		}
		// A pod that starts between the walk and the deletion uses a removed one's ports.
		started, left := open(4, 9, 41, 41)
		_, its := open(4, 9, 42, 42)
		// A new connection uses the ports again between the walk and the deletion.
		again := key(20, 17)
		ended := bpf.Flow{Seen: now - 61*second, Flags: bpf.FlowService, Backend: bpf.Addr{9}, Bport: bpf.PortOf(8080)}
		begun := bpf.Flow{Seen: now, Flags: bpf.FlowService, Backend: bpf.Addr{9}, Bport: bpf.PortOf(8080)}
		answers := func(port uint16, backend byte) bpf.FlowKey {
			return bpf.FlowKey{Local: bpf.Addr{1}, Remote: bpf.Addr{backend}, Lport: bpf.PortOf(port), Rport: bpf.PortOf(8080), Proto: 17}
		}
		// These are never seen again: it is the flow that lives.
		row := bpf.Flow{Seen: now - 9000*second, Flags: bpf.FlowAnswers, Backend: bpf.Addr{2}, Bport: bpf.PortOf(80), Ifindex: 33, Owner: 33}
		others := row
		others.Backend, others.Bport = other.Remote, other.Rport
		err := errors.Join(m.Flows.UpdateBatch(keep), m.Flows.UpdateBatch(gone), m.Flows.UpdateBatch(map[bpf.FlowKey]bpf.Flow{
			answers(7, 9): row, answers(15, 9): row, answers(20, 9): row,
			answers(16, 9): others,
			answers(7, 8):  row, // the other CPU's choice
			answers(99, 9): row, // without any flow
		}), m.Flows.Update(again, ended), m.Flows.Update(started, left),
			m.Endpoints.UpdateBatch(map[bpf.Addr]bpf.Endpoint{{5}: {Ifindex: 50}, {6}: {Ifindex: 60}}))
		if err != nil {
			t.Fatal(err)
		}
		keep[again], keep[started] = begun, its
		got, err := bpf.SweepMaps(m, now, func(dead []bpf.FlowKey, now uint64) (int, error) {
			if err := errors.Join(m.Flows.Update(again, begun), m.Flows.Update(started, its), m.Endpoints.Update(bpf.Addr{4}, bpf.Endpoint{Ifindex: 42})); err != nil {
				t.Error(err)
			}
			return forget(dead, now)
		})
		if want := (bpf.Swept{Live: len(keep), Deleted: len(gone), Orphans: 2, Nodes: map[uint16]bool{}}); !reflect.DeepEqual(got, want) || err != nil {
			t.Errorf("swept %+v, %v, want %+v", got, err, want)
		}
		for k := range keep {
			if _, ok, _ := m.Flows.Lookup(k); !ok {
				t.Errorf("flow from port %d is gone", k.Lport.Number())
			}
		}
		live := []bpf.FlowKey{answers(7, 9), answers(16, 9), answers(20, 9)}
		for _, k := range live {
			if _, ok, _ := m.Flows.Lookup(k); !ok {
				t.Errorf("the row for answers of a live flow from port %d is gone", k.Lport.Number())
			}
		}
		if n, _ := m.Flows.Len(); n != len(keep)+len(live) {
			t.Errorf("%d rows left", n)
		}
	}
	t.Run("memory", func(t *testing.T) {
		m := bpftest.New()
		sweep(t, m, bpftest.Forget(m))
	})
	t.Run("kernel", func(t *testing.T) {
		d := kernelDatapath(t, nil)
		sweep(t, d.Maps(), d.Forget)
	})
}

// A connection that begins between the two looks for the flow of a row for answers keeps
// it, also if the second look fails.
func TestSweepLooksTwice(t *testing.T) {
	flow := bpf.FlowKey{Local: bpf.Addr{1}, Remote: bpf.Addr{2}, Lport: bpf.PortOf(5), Rport: bpf.PortOf(80), Proto: 17}
	begun := bpf.Flow{Flags: bpf.FlowService, Backend: bpf.Addr{9}, Bport: bpf.PortOf(8080)}
	row, _ := begun.Answers(flow)
	failed := errors.New("failed on purpose")
	for _, tt := range []struct {
		name string
		then error // of the second look
	}{{"begun", nil}, {"unknown", failed}} {
		t.Run(tt.name, func(t *testing.T) {
			m := bpftest.New()
			if err := m.Flows.Update(row, bpf.Flow{Flags: bpf.FlowAnswers, Backend: flow.Remote, Bport: flow.Rport}); err != nil {
				t.Fatal(err)
			}
			looks := 0
			m.Flows = looked{m.Flows, flow, func() (bpf.Flow, bool, error) {
				looks++
				if looks == 1 {
					return bpf.Flow{}, false, nil
				}
				return begun, true, tt.then
			}}
			got, err := bpf.SweepMaps(m, 0, bpftest.Forget(m))
			if got.Orphans != 0 || looks != 2 || !errors.Is(err, tt.then) {
				t.Errorf("swept %+v after %d looks, %v", got, looks, err)
			}
			if _, ok, _ := m.Flows.Lookup(row); !ok {
				t.Error("the row is gone")
			}
		})
	}
}

// looked is a table of flows in which a test finds one.
type looked struct {
	bpf.Table[bpf.FlowKey, bpf.Flow]
	flow bpf.FlowKey
	find func() (bpf.Flow, bool, error)
}

func (l looked) Lookup(k bpf.FlowKey) (bpf.Flow, bool, error) {
	if k == l.flow {
		return l.find()
	}
	return l.Table.Lookup(k)
}

func TestAddr(t *testing.T) {
	for _, s := range []string{"10.1.2.3", "2001:db8::1"} {
		if got := bpf.AddrOf(netip.MustParseAddr(s)).String(); got != s {
			t.Errorf("%s came back as %s", s, got)
		}
	}
	if bpf.AddrOf(netip.Addr{}) != (bpf.Addr{}) || (bpf.Addr{}).Netip().IsValid() {
		t.Error("no address is not none")
	}
	for _, s := range []string{"10.1.2.0/24", "0.0.0.0/0", "2001:db8::/32", "::/0"} {
		if got := bpf.PrefixOf(netip.MustParsePrefix(s)).Netip().String(); got != s {
			t.Errorf("%s came back as %s", s, got)
		}
	}
	if bpf.PortOf(0x1234) != (bpf.Port{0x12, 0x34}) {
		t.Error("ports are not in network order")
	}
}
