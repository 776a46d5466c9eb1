package bpf

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func mustLoad(t *testing.T, c Config, o options) *Datapath {
	t.Helper()
	d, err := load(c, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestConfigValidate(t *testing.T) {
	if err := Defaults().Validate(); err != nil {
		t.Errorf("defaults: %v", err)
	}
	c := Defaults()
	c.PinDir, c.Limits.Flows, c.EventBytes, c.Limits.Nodes, c.Unreachable = "weft", 0, 5000, 1<<17, "maybe"
	err := c.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, part := range []string{`"weft"`, "limit flows", "5000", "131072", "unreachable is \"maybe\": choose reset or drop"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not mention %s", err, part)
		}
	}
}

func TestExplain(t *testing.T) {
	if err := explain(unix.ENOSYS); !strings.Contains(err.Error(), "CONFIG_BPF_SYSCALL") || !errors.Is(err, unix.ENOSYS) {
		t.Errorf("no BPF: %v", err)
	}
	other := errors.New("other")
	if err := explain(other); err != other {
		t.Errorf("another error became %v", err)
	}
}

func TestLoadNeedsBPFFileSystem(t *testing.T) {
	needRoot(t)
	_, err := Load(smallConfig(filepath.Join(t.TempDir(), "weft")))
	if err == nil || !strings.Contains(err.Error(), "mount -t bpf") {
		t.Errorf("error %v does not say what to mount", err)
	}
}

// Whoever reads a node's maps without an agent sees its rows, and is told where none are.
func TestPinnedMaps(t *testing.T) {
	c := smallConfig(ownNamespaces(t))
	if _, _, err := Pinned(c.PinDir); err == nil || !strings.Contains(err.Error(), "no agent of this version has run there") {
		t.Errorf("before any agent: %v", err)
	}
	d := mustLoad(t, c, options{})
	set(t, d.Maps().Settings, 0, Settings{Revision: 5})
	m, done, err := Pinned(c.PinDir)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	if s, _, err := m.Settings.Lookup(0); s.Revision != 5 || err != nil {
		t.Errorf("settings %+v, %v", s, err)
	}
}

// With both kinds of hooks, a restart keeps what is in the maps and on the devices,
// and Remove removes everything.
func TestGenerations(t *testing.T) {
	for name, o := range map[string]options{"tcx": {}, "clsact": {clsact: true}} {
		t.Run(name, func(t *testing.T) {
			c := smallConfig(ownNamespaces(t))
			a := addVeth(t, "a")
			first := mustLoad(t, c, o)
			set(t, first.Maps().Flows, FlowKey{Proto: 6}, Flow{Seen: 7})
			set(t, first.Maps().Settings, 0, Settings{Revision: 5})
			for range 2 {
				if err := first.AttachPod(a); err != nil {
					t.Fatal(err)
				}
			}
			old := programsOn(t, a)
			if len(old) != 2 {
				t.Fatalf("programs %v, want two", old)
			}
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			if got := programsOn(t, a); !reflect.DeepEqual(got, old) {
				t.Errorf("programs after Close %v, before %v", got, old)
			}

			second := mustLoad(t, c, o)
			if f, ok, err := second.Maps().Flows.Lookup(FlowKey{Proto: 6}); !ok || f.Seen != 7 || err != nil {
				t.Errorf("flow after restart: %+v %v %v", f, ok, err)
			}
			if s, _, _ := second.Maps().Settings.Lookup(0); s.Revision != 5 {
				t.Errorf("settings after restart: %+v", s)
			}
			fresh := programsOn(t, a)
			if len(fresh) != 2 {
				t.Fatalf("programs %v, want two", fresh)
			}
			for id := range fresh {
				if old[id] {
					t.Errorf("program %d is of the generation before", id)
				}
			}
			want := []Attachment{{Role: RolePod, Ifindex: a}}
			if got, err := second.Attached(); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("attached %v, %v", got, err)
			}
			if err := second.Detach(a); err != nil {
				t.Fatal(err)
			}
			if got := programsOn(t, a); len(got) != 0 {
				t.Errorf("programs after Detach %v", got)
			}
			if err := second.Detach(a); err != nil {
				t.Errorf("detach twice: %v", err)
			}
			if err := second.AttachPod(a); err != nil {
				t.Fatal(err)
			}
			if err := second.Remove(); err != nil {
				t.Fatal(err)
			}
			if got := programsOn(t, a); len(got) != 0 {
				t.Errorf("programs after Remove %v", got)
			}
			if _, err := os.Stat(c.PinDir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("pins after Remove: %v", err)
			}
		})
	}
}

// programsOn returns the IDs of a device's programs in both directions.
func programsOn(t *testing.T, ifindex int) map[ebpf.ProgramID]bool {
	t.Helper()
	ids := map[ebpf.ProgramID]bool{}
	for _, way := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		for _, id := range queryTCX(t, ifindex, way) {
			ids[id] = true
		}
	}
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		t.Fatal(err)
	}
	for _, parent := range parents {
		filters, _ := netlink.FilterList(l, parent)
		for _, f := range filters {
			if f, ok := f.(*netlink.BpfFilter); ok {
				ids[ebpf.ProgramID(f.Id)] = true
			}
		}
	}
	return ids
}

// A device that is gone leaves nothing behind that could disturb another one with its
// number, or the next start.
func TestDeviceGone(t *testing.T) {
	c := smallConfig(ownNamespaces(t))
	d := mustLoad(t, c, options{})
	a, b := addVeth(t, "a"), addVeth(t, "b")
	for _, dev := range []int{a, b} {
		if err := d.AttachPod(dev); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"host-a", "host-b"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkDel(l); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := d.Attached(); err != nil || len(got) != 0 {
		t.Errorf("attached %v, %v", got, err)
	}
	if err := d.Detach(a); err != nil {
		t.Errorf("detach: %v", err)
	}
	if err := d.AttachPod(a); err == nil {
		t.Error("attached to a device that is gone")
	}
	mustLoad(t, c, options{})
	left, _ := filepath.Glob(filepath.Join(c.PinDir, linkPrefix+"*"))
	left = slices.DeleteFunc(left, func(pin string) bool { return strings.Contains(pin, string(RoleWaiting)) })
	if len(left) != 0 {
		t.Errorf("pins left: %v", left)
	}
}

func TestAttachRefusesTheWrongKind(t *testing.T) {
	d := mustLoad(t, smallConfig(ownNamespaces(t)), options{})
	if err := d.AttachTunnel(addVeth(t, "a"), 0); err == nil || !strings.Contains(err.Error(), "link type ether") {
		t.Errorf("veth as tunnel: %v", err)
	}
	if err := d.AttachTunnel(1, 2); err == nil {
		t.Error("lane 2 accepted")
	}
}

// A changed limit moves the rows into a map of the new size.
func TestResize(t *testing.T) {
	c := smallConfig(ownNamespaces(t))
	first := mustLoad(t, c, options{})
	for i := range 600 {
		set(t, first.Maps().Flows, FlowKey{Lport: PortOf(uint16(i))}, Flow{Seen: uint64(i)})
	}
	set(t, first.Maps().Nodes, 63, Node{Path: PathAlive})

	c.Limits.Flows, c.Limits.Nodes = 1<<11, 128
	c.EventBytes *= 2
	var log bytes.Buffer
	c.Log = slog.New(slog.NewTextHandler(&log, nil))
	second := mustLoad(t, c, options{})
	if n, err := second.Maps().Flows.Len(); n != 600 || err != nil || second.Maps().MaxFlows() != 1<<11 {
		t.Errorf("%d flows of %d, %v", n, second.Maps().MaxFlows(), err)
	}
	if _, ok, _ := second.Maps().Nodes.Lookup(63); !ok {
		t.Error("node was lost")
	}
	if !strings.Contains(log.String(), "map=flows from=2048 to=4096") {
		t.Errorf("log says %s", log.String())
	}
	third := mustLoad(t, c, options{})
	if n, _ := third.Maps().Flows.Len(); n != 600 {
		t.Errorf("%d flows after another start", n)
	}
}

// A map that an earlier version created with other flags is replaced by one with ours,
// keeping its rows: an array without BPF_F_MMAPABLE, flows with BPF_F_NO_PREALLOC.
func TestMapsOfBefore(t *testing.T) {
	c := smallConfig(ownNamespaces(t))
	first := mustLoad(t, c, options{})
	flow, node := Flow{Seen: 7, Ifindex: 1}, Node{Path: PathAlive, Keyed: 1}
	for _, before := range []struct {
		name     string
		flags    uint32
		key, row any
	}{
		{"nodes", 0, uint32(7), node},
		{"flows", unix.BPF_F_NO_PREALLOC, FlowKey{Proto: 6}, flow},
	} {
		m := first.maps[before.name]
		old, err := ebpf.NewMap(&ebpf.MapSpec{Type: m.Type(), KeySize: m.KeySize(), ValueSize: m.ValueSize(), MaxEntries: m.MaxEntries(), Flags: before.flags})
		if err != nil {
			t.Fatal(err)
		}
		defer old.Close()
		path := filepath.Join(c.PinDir, pinOf(before.name))
		if err := errors.Join(old.Put(before.key, before.row), os.Remove(path), old.Pin(path)); err != nil {
			t.Fatal(err)
		}
	}
	second := mustLoad(t, c, options{})
	for _, name := range []string{"nodes", "flows"} {
		if got, want := second.maps[name].Flags(), first.maps[name].Flags(); got != want {
			t.Errorf("%s has flags %#x, want %#x", name, got, want)
		}
	}
	nodes := map[uint32]Node{}
	rows, failed := second.Maps().Nodes.All()
	for k, v := range rows {
		nodes[k] = v
	}
	if err := failed(); err != nil || len(nodes) != 1 || nodes[7] != node {
		t.Errorf("nodes %v, %v", nodes, err)
	}
	if got, _, err := second.Maps().Flows.Lookup(FlowKey{Proto: 6}); got != flow || err != nil {
		t.Errorf("flow %+v, %v", got, err)
	}
}

// The flows of the version before, which had no rows for answers, are taken over with
// such rows: open connections go on.
func TestFlowsOfTheVersionBefore(t *testing.T) {
	c := smallConfig(ownNamespaces(t))
	first := mustLoad(t, c, options{})
	m := first.maps["flows"]
	before := described[slices.IndexFunc(described, func(d description) bool { return d.name == "flows" })]
	before.version--
	old, err := ebpf.NewMap(&ebpf.MapSpec{Type: m.Type(), KeySize: m.KeySize(), ValueSize: m.ValueSize(), MaxEntries: m.MaxEntries() / 2})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	direct := FlowKey{Local: addr(podA), Remote: addr(podC), Lport: PortOf(1), Rport: PortOf(80), Proto: 6}
	service := FlowKey{Local: addr(podA), Remote: addr(far), Lport: PortOf(2), Rport: PortOf(80), Proto: 6}
	through := Flow{Seen: 8, Flags: FlowService, Backend: addr(podC), Bport: PortOf(8080), Ifindex: 5, Owner: 5}
	if err := errors.Join(old.Put(direct, Flow{Seen: 7}), old.Put(service, through), old.Pin(filepath.Join(c.PinDir, before.pin()))); err != nil {
		t.Fatal(err)
	}
	again := mustLoad(t, c, options{})
	if n, _ := again.Maps().Flows.Len(); n != 0 {
		t.Errorf("%d rows beside the version before, which had already been left", n)
	}
	if err := os.Remove(filepath.Join(c.PinDir, pinOf("flows"))); err != nil {
		t.Fatal(err)
	}
	second := mustLoad(t, c, options{})
	answers, _ := through.Answers(service)
	want := map[FlowKey]Flow{direct: {Seen: 7}, service: through,
		answers: {Seen: 8, Flags: FlowAnswers, Backend: addr(far), Bport: PortOf(80), Ifindex: 5, Owner: 5}}
	got := map[FlowKey]Flow{}
	rows, failed := second.Maps().Flows.All()
	for k, f := range rows {
		got[k] = f
	}
	if err := failed(); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("flows %+v, %v, want %+v", got, err, want)
	}
	third := mustLoad(t, c, options{})
	if n, _ := third.Maps().Flows.Len(); n != len(want) {
		t.Errorf("%d rows after another start", n)
	}
}

// Rows of the version before, which were shorter, are taken over.
func TestMasqueradesOfTheVersionBefore(t *testing.T) {
	c := smallConfig(ownNamespaces(t))
	first := mustLoad(t, c, options{})
	m := first.maps["masquerades"]
	before := described[slices.IndexFunc(described, func(d description) bool { return d.name == "masquerades" })]
	before.version--
	old, err := ebpf.NewMap(&ebpf.MapSpec{Type: m.Type(), Flags: m.Flags(), KeySize: m.KeySize(), ValueSize: 20, MaxEntries: m.MaxEntries()})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	key := FlowKey{Local: addr(outside), Remote: addr(world), Lport: PortOf(5000), Rport: PortOf(443), Proto: 6}
	row := struct { // as it was
		Addr   Addr
		Port   Port
		Answer uint8
		Kind   MasqueradeKind
	}{addr(podA), PortOf(2000), 1, MasqueradePod}
	if err := errors.Join(old.Put(key, row), old.Pin(filepath.Join(c.PinDir, before.pin())), os.Remove(filepath.Join(c.PinDir, pinOf("masquerades")))); err != nil {
		t.Fatal(err)
	}
	// A start that ends before it has the rows leaves them to the next one.
	spec, err := loadDatapath()
	if err != nil {
		t.Fatal(err)
	}
	if err := configure(spec, c, options{}); err != nil {
		t.Fatal(err)
	}
	maps, moved, err := openMaps(spec, c.PinDir, slog.New(slog.DiscardHandler))
	if err != nil || !moved["masquerades"].former {
		t.Fatalf("masquerades of the version before are not seen: %v", err)
	}
	moved["masquerades"].old.Close()
	closeMaps(maps)

	second := mustLoad(t, c, options{})
	if _, err := os.Stat(filepath.Join(c.PinDir, pinOf("masquerades"))); err != nil {
		t.Error(err)
	}
	want := Masquerade{Addr: row.Addr, Port: row.Port, Answer: 1, Kind: MasqueradePod}
	if got, ok, err := second.Maps().Masquerades.Lookup(key); got != want || !ok || err != nil {
		t.Errorf("row %+v, %v, %v", got, ok, err)
	}
}

func queryTCX(t *testing.T, ifindex int, way ebpf.AttachType) (ids []ebpf.ProgramID) {
	t.Helper()
	if !haveTCX() {
		return nil
	}
	res, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: way})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range res.Programs {
		ids = append(ids, p.ID)
	}
	return ids
}

func pinOf(name string) string {
	return described[slices.IndexFunc(described, func(d description) bool { return d.name == name })].pin()
}
