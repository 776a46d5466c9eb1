package meshagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/meshagent/program"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/tunnel"

	"github.com/weft-mesh/weft/wire"
)

// lanes keeps both WireGuard devices configured for every node, chooses the lane to
// each, and rotates this node's keys.
type lanes struct {
	node   node
	edges  *Edges
	tables *tables.Tables
	ways   *program.Ways
	meshes *program.Meshes
	listed <-chan struct{}
	// open is closed once this node may answer probes: until then it has no internal
	// address.
	open     <-chan struct{}
	internal netip.Addr
	// tell is called with the devices whenever they change.
	tell func(ifindex [2]uint32)
	// moved is called when the lane to a node changed, or whether anything is sent there.
	moved func()
	log   *slog.Logger

	// up is closed once devices, address and routes are in place for the first time.
	up   chan struct{}
	once sync.Once

	// mu guards own and changed, which are read by others.
	mu      sync.Mutex
	own     tunnel.Own
	changed chan struct{}

	// Of the loop alone.
	attached [tunnel.LaneCount]int
	waiting  string // why a rotation has to wait; logged once
}

// Own is what this node publishes about its lanes; ok is false before they exist.
// The channel is closed when it changes.
func (l *lanes) Own() (own tunnel.Own, ok bool, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.own, l.own.Lanes[0].Device != "", l.changed
}

func (l *lanes) setOwn(own tunnel.Own) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if own == l.own {
		return
	}
	l.own = own
	close(l.changed)
	l.changed = make(chan struct{})
}

const (
	// laneTurn is how often the devices are read while something is awaited of them. It
	// bounds how long traffic stays on the old key after a handshake with a new one.
	laneTurn = 500 * time.Millisecond
	// laneCheck is how often they are read otherwise, to restore what somebody else
	// took away.
	laneCheck = 2 * time.Second
)

// Run works until ctx ends; lanes, peers and routes stay.
func (l *lanes) Run(ctx context.Context) error {
	var last string
	for ctx.Err() == nil {
		listed := closed(l.listed) // before the snapshot, so that it speaks of it
		txn := l.tables.DB.ReadTxn()
		_, nodes := l.tables.Nodes.AllWatch(txn)
		_, clusters := l.tables.Clusters.AllWatch(txn)
		mesh := l.meshes.Of(txn)
		gate := l.open
		if closed(gate) {
			gate = nil
		}
		opened := l.listed
		if listed {
			opened = nil
		} else {
			mesh = nil
		}
		begun := time.Now()
		settled, err := l.turn(ctx, mesh)
		wait := laneTurn
		if settled && err == nil {
			wait = laneCheck
		}
		if err != nil && ctx.Err() == nil && err.Error() != last {
			last = err.Error()
			l.log.Warn("tunnel setup failed, retrying", "in", laneTurn, "error", err)
		}
		if err == nil {
			last = ""
		}
		l.report(err)
		select {
		case <-ctx.Done():
		case <-nodes:
		case <-clusters:
		case <-opened:
		case <-gate:
		case <-time.After(rest(wait, time.Since(begun))):
		}
	}
	return nil
}

// turn brings devices, routes, peers and the choice of lanes up to date. Without a mesh
// it leaves peers alone: a partial view would remove keys that have not been read yet.
// It is settled if nothing more is awaited of the devices.
func (l *lanes) turn(ctx context.Context, mesh *program.Mesh) (settled bool, err error) {
	own, err := l.edges.Lanes.Ensure(ctx)
	if err != nil {
		return false, err
	}
	for i, lane := range own.Lanes {
		if l.attached[i] == lane.Ifindex {
			continue
		}
		if err := l.edges.Datapath.AttachTunnel(lane.Ifindex, i); err != nil {
			return false, fmt.Errorf("attach programs to %s: %w", lane.Device, err)
		}
		l.attached[i] = lane.Ifindex
	}
	l.setOwn(own)
	members := l.node.members
	var former []netip.Prefix
	complete := false
	if mesh != nil {
		members, former, complete = mesh.CIDRs, mesh.Former, mesh.Complete
	}
	network := tunnel.Network{MTU: l.edges.MTU, Members: members, Former: former, Local: []netip.Prefix{l.node.cidr}}
	open := closed(l.open)
	if open {
		network.Internal = l.internal
	}
	if err := l.edges.Host.Set(ctx, network, complete); err != nil {
		return false, err
	}
	l.tell([2]uint32{uint32(own.Lanes[0].Ifindex), uint32(own.Lanes[1].Ifindex)})
	if open {
		l.once.Do(func() { close(l.up) })
	}
	if mesh == nil {
		return true, nil
	}
	settled, err = l.peers(ctx, mesh, own)
	if err != nil {
		return false, notUpdated{err}
	}
	return settled, nil
}

func (l *lanes) peers(ctx context.Context, mesh *program.Mesh, own tunnel.Own) (settled bool, err error) {
	var want []tunnel.Peer
	for _, n := range mesh.Remote {
		if p, ok := peerOf(n); ok {
			want = append(want, p)
		}
	}
	refused, err := l.edges.Lanes.Set(ctx, want, mesh.Complete)
	if err != nil {
		return false, err
	}
	l.problems(refused)
	status, err := l.edges.Lanes.Status(ctx)
	if err != nil {
		return false, err
	}
	l.setOwn(status.Own)
	chosen, err := l.choose(mesh, status)
	if err != nil {
		return false, err
	}
	rotated, err := l.rotate(ctx, mesh, status)
	return chosen && rotated, err
}

// peerOf is a node as a WireGuard peer; false if nothing can be sent to it yet.
func peerOf(n *tables.Node) (tunnel.Peer, bool) {
	published, _ := n.Lanes()
	p := tunnel.Peer{Cluster: n.Cluster, Node: n.Name}
	addrs := n.Addresses()
	for i, lane := range published {
		key, err := tunnel.ParseKey(lane.PublicKey)
		if err != nil {
			continue // shown in the node's row
		}
		p.Keys[i] = key
		if len(addrs) > 0 && lane.Port != 0 {
			p.Endpoint[i] = netip.AddrPortFrom(addrs[0], lane.Port)
		}
	}
	p.Allowed = append(p.Allowed, n.PodCIDRs()...)
	if in := n.Internal(); in.IsValid() && !covered(in, n.PodCIDRs()) {
		p.Allowed = append(p.Allowed, netip.PrefixFrom(in, in.BitLen()))
	}
	return p, !p.Keys[0].IsZero() || !p.Keys[1].IsZero()
}

func covered(a netip.Addr, by []netip.Prefix) bool {
	for _, p := range by {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// choose writes which lane to use for each node. A node whose key is not on the device
// is not keyed, and nothing is sent to it. It is settled once every live node is reached
// on the lane that both ends want.
func (l *lanes) choose(mesh *program.Mesh, status tunnel.Status) (settled bool, err error) {
	configured := map[string]tunnel.PeerStatus{}
	for _, p := range status.Peers {
		configured[p.Cluster+"/"+p.Node] = p
	}
	settled, moved := true, false
	for key, n := range mesh.Remote {
		_, epoch := n.Lanes()
		p := configured[key]
		row, index := l.ways.Row(key)
		used := -1
		if row.Keyed == 1 {
			used = int(row.Lane)
		}
		lane := tunnel.Choose(status.Own.Epoch, epoch, used, p.Handshaken())
		if p.Lanes[lane].Key.IsZero() && !p.Lanes[1-lane].Key.IsZero() {
			lane = 1 - lane
		}
		keyed := !p.Lanes[lane].Key.IsZero()
		if err := l.ways.SetLane(key, lane, keyed); err != nil {
			return false, err
		}
		moved = moved || lane != int(row.Lane) || keyed != (row.Keyed == 1)
		wanted := tunnel.Lane(status.Own.Epoch, epoch)
		awaited := !p.Lanes[wanted].Key.IsZero() && !p.Handshaken()[wanted] && row.Path != bpf.PathDead
		settled = settled && index != 0 && !awaited
	}
	if moved {
		l.moved()
	}
	return settled, nil
}

// rotate takes one step towards the highest key epoch that any node has or the operator
// asked for. It is settled if there is none to take.
func (l *lanes) rotate(ctx context.Context, mesh *program.Mesh, status tunnel.Status) (settled bool, err error) {
	own := status.Own
	wanted := own.Epoch
	if r := mesh.Own.Rotation; r != nil {
		wanted = max(wanted, r.Epoch)
	}
	epochs := map[string]uint64{}
	for key, n := range mesh.Remote {
		if _, epoch := n.Lanes(); l.alive(key, mesh, n) {
			epochs[key] = epoch
			wanted = max(wanted, epoch)
		}
	}
	to := tunnel.NextEpoch(own.Epoch, wanted)
	if to == own.Epoch {
		return true, nil
	}
	if err := tunnel.MayRotate(own.Epoch, to, epochs, time.Since(own.Since), status.Quiet[to%tunnel.LaneCount]); err != nil {
		if l.waiting == "" {
			l.log.Info("key rotation waits", "from", own.Epoch, "to", to, "why", err)
		}
		l.waiting = err.Error()
		return false, nil
	}
	l.waiting = ""
	next, err := l.edges.Lanes.Rotate(ctx, to)
	if err != nil {
		return false, err
	}
	l.log.Info("keys rotated", "epoch", next.Epoch, "tunnel", next.Epoch%tunnel.LaneCount)
	l.setOwn(next)
	return false, nil
}

// alive reports whether rotations wait for a node. A dead one catches up when it
// returns; one without Weft's lanes (plain Cilium) never takes part.
func (l *lanes) alive(key string, mesh *program.Mesh, n *tables.Node) bool {
	row, i := l.ways.Row(key)
	path, known := l.ways.Cluster(mesh.Members[n.Cluster].ID())
	return i != 0 && row.Path != bpf.PathDead && row.Keyed == 1 && (path != bpf.PathDead || !known || n.Cluster == l.node.cluster)
}

// problems makes refusals the problems of table lanes.
func (l *lanes) problems(refused []tunnel.Refusal) {
	now := map[string]string{}
	for _, r := range refused {
		now[r.Cluster+"/"+r.Node] = r.Reason
	}
	writeProblems(l.tables, "tunnels", now)
}

// report writes what went wrong in the last turn: either the tunnels are missing, or
// they exist and cannot be updated.
func (l *lanes) report(err error) {
	down, stale := map[string]string{}, map[string]string{}
	var late notUpdated
	if errors.As(err, &late) {
		stale[l.node.key()] = late.Error()
	} else if err != nil {
		down[l.node.key()] = err.Error()
	}
	writeProblems(l.tables, wire.ProblemTunnels, down)
	writeProblems(l.tables, wire.ProblemPeers, stale)
}

// notUpdated is why existing tunnels could not be updated.
type notUpdated struct{ error }

// writeProblems makes these, by row, the only problems of a table. Rows that do not
// change are left alone.
func writeProblems(t *tables.Tables, table string, now map[string]string) {
	txn := t.DB.WriteTxn(t.Problems)
	changed := false
	for p := range t.Problems.All(txn) {
		if p.Table == table && now[p.Row] == "" {
			tables.Drop(txn, t.Problems, p)
			changed = true
		}
	}
	for row, text := range now {
		blank := &tables.Problem{Table: table, Row: row, Since: time.Now()}
		if old := tables.Get(txn, t.Problems, blank.Key()); old != nil && old.Error == text {
			continue
		}
		tables.Change(txn, t.Problems, blank, func(p *tables.Problem) bool {
			p.Error = text
			p.Attempts++
			return true
		})
		changed = true
	}
	if !changed {
		txn.Abort()
		return
	}
	txn.Commit()
}
