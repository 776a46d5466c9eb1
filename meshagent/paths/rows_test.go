package paths

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/tunnel/probe"
)

func TestNext(t *testing.T) {
	for name, c := range map[string]struct {
		was  bpf.Path
		now  probe.Standing
		want bpf.Path
	}{
		"answers":                             {bpf.PathAlive, probe.Alive, bpf.PathAlive},
		"falls silent":                        {bpf.PathAlive, probe.Silent, bpf.PathSilent},
		"stays silent":                        {bpf.PathSilent, probe.Dead, bpf.PathDead},
		"answers in time":                     {bpf.PathSilent, probe.Alive, bpf.PathAlive},
		"comes back":                          {bpf.PathDead, probe.Alive, bpf.PathAlive},
		"was dead before the agent started":   {bpf.PathDead, probe.Silent, bpf.PathDead},
		"was dead and is not judged yet":      {bpf.PathDead, probe.Unjudged, bpf.PathDead},
		"was alive and is not judged yet":     {bpf.PathAlive, probe.Unjudged, bpf.PathAlive},
		"was silent, and its agent restarted": {bpf.PathSilent, probe.Unjudged, bpf.PathSilent},
	} {
		if got := next(c.was, c.now); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// counted counts the system calls that write to a map.
type counted[V comparable] struct {
	bpf.Table[uint32, V]
	writes *int
}

func (c counted[V]) Update(k uint32, v V) error {
	*c.writes++
	return c.Table.Update(k, v)
}

func (c counted[V]) UpdateBatch(rows map[uint32]V) error {
	*c.writes++
	return c.Table.UpdateBatch(rows)
}

// meet assigns n nodes of each cluster, with a tunnel, and returns them with the number
// of writes from then on.
func meet(t testing.TB, m *bpf.Maps, clusters, n int) (*Rows, *int) {
	t.Helper()
	writes := new(int)
	m.Nodes, m.Clusters = counted[bpf.Node]{m.Nodes, writes}, counted[bpf.Cluster]{m.Clusters, writes}
	r, err := NewRows(tables.New(), m)
	if err != nil {
		t.Fatal(err)
	}
	lanes := map[string]Lane{}
	for c := range clusters {
		r.Admit(identity.ClusterID(c + 2))
		for i := range n {
			key := fmt.Sprintf("c%d/n%d", c, i)
			cidr := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(c), byte(i), 0}), 24)
			if _, err := r.Assign(Member{Key: key, Cluster: identity.ClusterID(c + 2), CIDRs: []netip.Prefix{cidr}}); err != nil {
				t.Fatal(err)
			}
			lanes[key] = Lane{0, true}
		}
	}
	if f := r.Flush(); len(f.Nodes)+len(f.Clusters) > 0 {
		t.Fatal(f)
	}
	if err := r.SetLanes(lanes); err != nil {
		t.Fatal(err)
	}
	*writes = 0
	return r, writes
}

// down is what is seen of n nodes of each cluster when all have been silent for that long.
func down(clusters, n int, since time.Duration) Seen {
	s := Seen{At: time.Now(), Clusters: map[identity.ClusterID]probe.Standing{}}
	for c := range clusters {
		for i := range n {
			s.Observations = append(s.Observations, probe.Observation{State: probe.Down, Since: s.At.Add(-since),
				Target: probe.Target{Cluster: fmt.Sprint("c", c), Node: fmt.Sprint("n", i)}})
		}
	}
	for name, standing := range probe.Clusters(s.Observations, s.At) {
		var c int
		_, _ = fmt.Sscanf(name, "c%d", &c)
		s.Clusters[identity.ClusterID(c+2)] = standing
	}
	return s
}

func TestDeathsAreOneWrite(t *testing.T) {
	for _, n := range []int{1, 2, 200} {
		m := bpftest.New()
		r, writes := meet(t, m, 4, n)
		if err := r.See(down(4, n, time.Second)); err != nil {
			t.Fatal(err)
		}
		if *writes != 2 {
			t.Errorf("%d dead nodes of 4 dead clusters are %d writes, want one per map", 4*n, *writes)
		}
		rows, _ := m.Nodes.All()
		for i, row := range rows {
			if row.Path != bpf.PathDead || row.Keyed != 1 {
				t.Errorf("node %d is %+v", i, row)
			}
		}
		if err := r.See(down(4, n, 2*time.Second)); err != nil || *writes != 2 {
			t.Errorf("the same again: %d writes, %v", *writes-2, err)
		}
	}
}

// What the kernel does not take is told and tried again, and keeps nothing else out.
func TestRowsThatFailAreTriedAgain(t *testing.T) {
	m := bpftest.New()
	nodes := m.Nodes.(*bpftest.Table[uint32, bpf.Node])
	r, _ := meet(t, m, 2, 3)
	bad := uint32(r.Index("c1/n1"))
	full := errors.New("no memory")
	nodes.Fail(func(_ string, i uint32) error {
		if i == bad {
			return full
		}
		return nil
	})
	if err := r.See(down(2, 3, time.Second)); !errors.Is(err, full) {
		t.Fatalf("error %v", err)
	}
	if f := r.Flush(); len(f.Nodes) != 0 {
		t.Errorf("whoever asked for the index is told of a path: %+v", f)
	}
	dead := func() (n int) {
		rows, _ := m.Nodes.All()
		for _, row := range rows {
			if row.Path == bpf.PathDead {
				n++
			}
		}
		return n
	}
	if n := dead(); n != 5 {
		t.Errorf("%d nodes are dead, want the 5 that the kernel takes", n)
	}
	nodes.Fail(nil)
	if f := r.Flush(); len(f.Nodes) != 0 || dead() != 6 {
		t.Errorf("failed again: %+v", f)
	}
	nodes.Fail(func(string, uint32) error { return full })
	r.Release("c1/n1")
	for range 2 {
		if f := r.Flush(); !errors.Is(f.Nodes["c1/n1"], full) || len(f.Nodes) != 1 {
			t.Errorf("released: %+v", f)
		}
	}
	nodes.Fail(nil)
	if f := r.Flush(); len(f.Nodes) != 0 {
		t.Errorf("released again: %+v", f)
	}
}

// An agent that starts leaves indexes and verdicts as they are, and removes what nobody
// has wanted once it is told that everything is known.
func TestRowsOfAnEarlierAgent(t *testing.T) {
	m := bpftest.New()
	r, _ := meet(t, m, 1, 3)
	if err := r.See(down(1, 2, time.Second)); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		cidr := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), 0}), 24)
		if err := m.Prefixes.Update(bpf.PrefixOf(cidr), bpf.IPInfo{Node: r.Index(fmt.Sprint("c0/n", i))}); err != nil {
			t.Fatal(err)
		}
	}
	again, err := NewRows(tables.New(), m)
	if err != nil {
		t.Fatal(err)
	}
	again.Admit(2)
	for _, i := range []int{2, 0} {
		key, cidr := fmt.Sprint("c0/n", i), netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), 0}), 24)
		if _, err := again.Assign(Member{key, 2, []netip.Prefix{cidr}}); err != nil || again.Index(key) != r.Index(key) {
			t.Errorf("%s has index %d, want %d (%v)", key, again.Index(key), r.Index(key), err)
		}
	}
	again.Flush()
	if _, path, _ := again.Lane("c0/n0"); path != bpf.PathDead {
		t.Error("a path that was dead is not")
	}
	if n, _ := m.Nodes.Len(); n != 3 {
		t.Errorf("%d rows before anything is known to be complete, want 3", n)
	}
	again.Prune()
	again.Flush()
	if n, _ := m.Nodes.Len(); n != 2 {
		t.Errorf("%d rows, want 2", n)
	}
	again.Release("c0/n0")
	again.Flush()
	if _, ok, _ := m.Nodes.Lookup(uint32(r.Index("c0/n0"))); ok || again.Index("c0/n0") != 0 {
		t.Error("a released node has a row")
	}
}
