package paths

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/tunnel"
	"github.com/weft-mesh/weft/tunnel/probe"
	"github.com/weft-mesh/weft/wire"
)

// mute are devices that take everything, and count how often they are read.
type mute struct {
	tunnel.Lanes
	own   tunnel.Own
	peers []tunnel.PeerStatus
	reads int
}

func (m *mute) Ensure(context.Context) (tunnel.Own, error) { m.reads++; return m.own, nil }
func (m *mute) Set(ctx context.Context, _ []tunnel.Peer, _ bool) (tunnel.Status, error) {
	return m.Status(ctx)
}
func (m *mute) Status(context.Context) (tunnel.Status, error) {
	m.reads++
	quiet := [tunnel.LaneCount]time.Duration{time.Hour, time.Hour}
	return tunnel.Status{Own: m.own, Quiet: quiet, Peers: m.peers}, nil
}
func (m *mute) Rotate(_ context.Context, to uint64) (tunnel.Own, error) {
	m.own.Epoch = to
	return m.own, nil
}
func (m *mute) Change(_ context.Context, changed []tunnel.Peer, _ []string, _ bool) (tunnel.Verdicts, error) {
	v := tunnel.Verdicts{}
	for _, p := range changed {
		v[p.Name()] = ""
	}
	return v, nil
}

type still struct{}

func (still) Set(context.Context, tunnel.Network, bool) error { return nil }

// told is a follower that says what it was given.
type told struct {
	mesh   *Mesh
	change Changes
}

func (t *told) Follow(statedb.ReadTxn) (*Mesh, Changes) {
	c := t.change
	t.change = Changes{Nodes: map[string]bool{}, Clusters: map[string]bool{}}
	return t.mesh, c
}

func (t *told) put(n *tables.Node, there bool) {
	next := *t.mesh
	if next.Remote = next.Remote.Delete(n.Key()); there {
		next.Remote = next.Remote.Set(n.Key(), n)
	}
	t.mesh = &next
	t.change.Nodes[n.Key()] = true
}

// nodeOf is node i of the mesh, in one of 100 clusters.
func nodeOf(i int, epoch uint64) *tables.Node {
	cidr := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
	alloc := wire.CIDR(cidr)
	n := &tables.Node{Cluster: fmt.Sprint("c", i%100), Name: fmt.Sprint("n", i), Export: &wire.ExportNode{Epoch: epoch}, Place: tables.PlaceOf(&wire.Node{
		IPv4AllocCIDR: &alloc, IPAddresses: []wire.NodeAddress{
			{Type: wire.NodeInternalIP, IP: netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)})},
			{Type: wire.NodeCiliumInternalIP, IP: cidr.Addr().Next()},
		}})}
	for lane := range n.Export.Lanes {
		n.Export.Lanes[lane] = wire.Lane{PublicKey: tunnel.Key{byte(lane + 1), byte(i >> 8), byte(i), byte(epoch)}.String(), Port: 51871}
	}
	return n
}

type world struct {
	lanes    *mute
	follower [2]*told
	tunnels  *Tunnels
	liveness *Liveness
	prober   *probe.Prober
	rows     *Rows
}

func (w *world) put(n *tables.Node, there bool) {
	for _, f := range w.follower {
		f.put(n, there)
	}
	if there {
		_, _ = w.rows.Assign(Member{Key: n.Key(), Cluster: 2, CIDRs: n.PodCIDRs()})
	} else {
		w.rows.Release(n.Key())
	}
}

// turn is one turn of both loops.
func (w *world) turn(t testing.TB) {
	w.rows.Flush()
	mesh, change := w.follower[0].Follow(nil)
	change.All = change.All || w.tunnels.mesh == nil
	w.tunnels.mesh = mesh
	if err := w.tunnels.turn(t.Context(), change, w.rows.take(&w.rows.forTunnels)); err != nil {
		t.Fatal(err)
	}
	mesh, change = w.follower[1].Follow(nil)
	w.liveness.take(mesh, change, w.tunnels.own, w.prober)
}

type silence struct{}

func (silence) Send([]probe.Request) error       { return nil }
func (silence) Receive() ([]probe.Answer, error) { return nil, nil }
func (silence) Arrival(ctx context.Context)      { <-ctx.Done() }

func worldOf(t testing.TB, known int) *world {
	t.Helper()
	w := &world{lanes: &mute{}}
	db := tables.New()
	var err error
	if w.rows, err = NewRows(db, bpftest.New()); err != nil {
		t.Fatal(err)
	}
	for i := range w.lanes.own.Lanes {
		w.lanes.own.Lanes[i] = tunnel.OwnLane{Device: tunnel.DefaultDevices[i], Ifindex: 10 + i}
	}
	own := &tables.Cluster{Name: "own", Own: &wire.Cluster{Name: "own", ID: 1}}
	for i := range w.follower {
		w.follower[i] = &told{mesh: &Mesh{Own: own, Complete: true}, change: Changes{All: true, Nodes: map[string]bool{}, Clusters: map[string]bool{}}}
	}
	open := make(chan struct{})
	close(open)
	cfg := Config{
		Cluster: "own", Node: "me", Addresses: []netip.Addr{netip.MustParseAddr("172.16.0.1")}, Internal: netip.MustParseAddr("10.255.0.1"), MTU: 1420, Tables: db, Rows: w.rows, Lanes: w.lanes, Host: still{},
		Attach: func(int, int) error { return nil }, Devices: func([2]uint32) {}, Unwritten: func(error) {},
		Start: open, Open: open, Lasting: time.Second, Log: slog.New(slog.DiscardHandler),
	}
	w.tunnels = NewTunnels(cfg, w.follower[0])
	w.liveness = NewLiveness(cfg, w.follower[1], w.tunnels)
	if w.prober, err = probe.New(probe.Defaults(), silence{}); err != nil {
		t.Fatal(err)
	}
	for i := range known {
		w.put(nodeOf(i, 0), true)
	}
	w.turn(t)
	for range 2 {
		w.tunnels.checked.cost.Ran(time.Hour) // no other look at everything
	}
	return w
}

// One node that comes, goes or has new keys costs the same however many there are, and no
// look at the devices.
func TestOneMoreNodeDoesNotGrow(t *testing.T) {
	for _, c := range []struct {
		name string
		one  func(w *world, known, i int)
	}{
		{"comes and goes", func(w *world, known, i int) { w.put(nodeOf(known, 0), i%2 == 0) }},
		{"new keys", func(w *world, known, i int) { w.put(nodeOf(known/2, uint64(i%2)), true) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			cost := func(known int) float64 {
				w := worldOf(t, known)
				w.tunnels.own.Epoch = 1
				reads := w.lanes.reads
				i := 0
				n := testing.AllocsPerRun(20, func() {
					i++
					c.one(w, known, i)
					w.turn(t)
				})
				if w.lanes.reads != reads {
					t.Errorf("%d looks at the devices", w.lanes.reads-reads)
				}
				return n
			}
			// At both sizes every cluster is larger than those that are probed whole.
			if few, many := cost(1000), cost(10_000); many > 1.5*few+20 {
				t.Errorf("%.0f allocations with 1,000 nodes, %.0f with 10,000", few, many)
			}
		})
	}
}

// BenchmarkOneMore measures the work for one node that comes and goes against how many
// there are.
func BenchmarkOneMore(b *testing.B) {
	for _, known := range []int{100, 1000, 10_000, 25_000} {
		b.Run(fmt.Sprintf("node/known=%d", known), func(b *testing.B) {
			w := worldOf(b, known)
			i := 0
			for b.Loop() {
				i++
				w.put(nodeOf(known, 0), i%2 == 0)
				w.turn(b)
			}
		})
	}
}
