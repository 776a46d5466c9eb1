package paths

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/internal/pace"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/tunnel"
	"github.com/weft-mesh/weft/wire"
)

// Tunnels keeps both WireGuard devices configured for every node, chooses the one that
// leads to each, and rotates this node's keys.
//
// A change of single nodes configures these, by what we know to be configured. Reading
// the devices costs time for every node of the mesh, so everything is compared with them
// only now and then: sooner while a handshake or a rotation is awaited.
type Tunnels struct {
	cfg    Config
	follow Follower

	// up is closed once devices, address and routes are in place for the first time.
	up   chan struct{}
	once sync.Once

	// mu guards own and changed, which are read by others.
	mu      sync.Mutex
	own     tunnel.Own
	changed chan struct{}

	// Of the loop alone.
	mesh     *Mesh
	network  tunnel.Network
	attached [tunnel.LaneCount]int
	peers    map[string]*peer
	complete bool
	refused  map[string]string // by node, why
	awaited  map[string]bool   // nodes without the wanted handshake
	// awaitUntil is when the last of them stops being worth a frequent look.
	awaitUntil time.Time
	rotating   bool   // a rotation is awaited
	waiting    string // why it has to wait; logged once
	checked    look
	said       string // the last error that was logged
	reported   [2]string
}

// peer is a node as the devices had it, and of what we want, which the mesh has, what is asked
// for often.
type peer struct {
	epoch uint64
	seen  [tunnel.LaneCount]seen
	apart bool // there can be no tunnel to it
}

// seen is a key on a device, whether a handshake was completed with it, and whether that has
// settled.
type seen struct {
	key             tunnel.Key
	shaken, settled bool
}

// settled says on which devices a handshake has settled.
func (p *peer) settled() (done [tunnel.LaneCount]bool) {
	for i, s := range p.seen {
		done[i] = s.settled
	}
	return done
}

// look is a comparison of everything with the devices.
type look struct {
	end  time.Time
	cost pace.Pace
	err  error // why it has to be repeated
}

// next is when to look again, if something is awaited or if not.
func (l look) next(awaited bool) time.Time {
	if awaited {
		return l.end.Add(l.cost.Rest(laneTurn, urgentRest))
	}
	return l.end.Add(l.cost.Rest(laneCheck, quietRest))
}

const (
	// laneTurn is how often the devices are read while something is awaited of them. It
	// bounds how long traffic stays on the old key after a handshake with a new one.
	laneTurn = 500 * time.Millisecond
	// laneCheck is how often they are read otherwise, to restore what somebody else
	// took away.
	laneCheck = 2 * time.Second
	// awaitFor is how long a handshake is worth reading the devices often. A node that
	// has not answered by then may never.
	awaitFor = 30 * time.Second
	// urgentRest and quietRest are how much time passes, in multiples of what reading
	// takes, before the devices are read again: in a large mesh it takes long.
	urgentRest = 20
	quietRest  = 100
)

// NewTunnels returns the tunnels of a node. Run them once.
func NewTunnels(cfg Config, follow Follower) *Tunnels {
	return &Tunnels{
		cfg: cfg, follow: follow, up: make(chan struct{}), changed: make(chan struct{}),
		peers: map[string]*peer{}, refused: map[string]string{}, awaited: map[string]bool{},
	}
}

// Own is what this node publishes about its tunnels; ok is false before they exist.
// The channel is closed when it changes.
func (t *Tunnels) Own() (own tunnel.Own, ok bool, changed <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.own, t.own.Lanes[0].Device != "", t.changed
}

func (t *Tunnels) setOwn(own tunnel.Own) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if own == t.own {
		return
	}
	t.own = own
	close(t.changed)
	t.changed = make(chan struct{})
}

// Run works until ctx ends; tunnels, peers and routes stay.
func (t *Tunnels) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		started := closed(t.cfg.Start) // before the snapshot, so that it speaks of it
		txn := t.cfg.Tables.DB.ReadTxn()
		_, nodes := t.cfg.Tables.Nodes.AllWatch(txn)
		_, clusters := t.cfg.Tables.Clusters.AllWatch(txn)
		_, former := t.cfg.Tables.Former.AllWatch(txn)
		gate := t.cfg.Open
		if closed(gate) {
			gate = nil
		}
		start := t.cfg.Start
		var change Changes
		if started {
			start = nil
			var mesh *Mesh
			mesh, change = t.follow.Follow(txn)
			change.All = change.All || t.mesh == nil || mesh == nil
			t.mesh = mesh
		}
		err := t.turn(ctx, change, t.cfg.Rows.take(&t.cfg.Rows.forTunnels))
		if ctx.Err() != nil {
			return nil
		}
		t.report(err)
		select {
		case <-ctx.Done():
		case <-nodes:
		case <-clusters:
		case <-former:
		case <-t.cfg.Rows.forTunnels.news:
		case <-start:
		case <-gate:
		case <-time.After(time.Until(t.due())):
		}
	}
	return nil
}

// due is when everything has to be compared with the devices.
func (t *Tunnels) due() time.Time {
	c := t.checked
	return c.next(c.err != nil || t.rotating || len(t.awaited) > 0 && time.Now().Before(t.awaitUntil))
}

// turn brings up to date the nodes that have changed or moved in the kernel, and
// everything if that is due.
func (t *Tunnels) turn(ctx context.Context, change Changes, moved map[string]bool) error {
	network, complete := t.wanted()
	all := change.All || complete != t.complete || !sameNetwork(network, t.network) || !time.Now().Before(t.due())
	if t.mesh != nil {
		all = t.learn(change) || all
	}
	switch {
	case all:
		begun := time.Now()
		err := t.everything(ctx, network, complete)
		t.checked.end, t.checked.err = time.Now(), err
		t.checked.cost.Ran(t.checked.end.Sub(begun))
		if err == nil {
			t.network, t.complete = network, complete
		}
	case t.checked.err == nil:
		t.checked.err = t.some(ctx, change.Nodes, moved)
	}
	return t.checked.err
}

// wanted is the network to set now. Without a mesh it is not complete: a partial view
// would remove what has not been read yet.
func (t *Tunnels) wanted() (network tunnel.Network, complete bool) {
	network = tunnel.Network{MTU: t.cfg.MTU, Members: t.cfg.Members, Local: t.cfg.CIDRs}
	if t.mesh != nil {
		network.Members, network.Former, complete = t.mesh.CIDRs, t.mesh.Former, t.mesh.Complete
	}
	if closed(t.cfg.Open) {
		network.Internal, network.Second = t.cfg.Internal, t.cfg.Second
	}
	return network, complete
}

// sameNetwork compares lists by their place in memory: they are replaced when they
// change.
func sameNetwork(a, b tunnel.Network) bool {
	list := func(a, b []netip.Prefix) bool {
		return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
	}
	return a.Internal == b.Internal && a.Second == b.Second && list(a.Members, b.Members) && list(a.Former, b.Former)
}

// learn takes up changed nodes. It says whether they ask for a look at everything.
func (t *Tunnels) learn(change Changes) (all bool) {
	if change.All {
		t.peers, t.awaited = map[string]*peer{}, map[string]bool{}
		for key, n := range t.mesh.Remote.All() {
			t.learnNode(key, n)
		}
		return true
	}
	for key := range change.Nodes {
		if n := t.mesh.Node(key); n == nil {
			delete(t.peers, key)
			delete(t.awaited, key)
		} else {
			t.learnNode(key, n)
			all = all || t.peers[key].epoch > t.own.Epoch && !t.rotating
		}
	}
	asked := t.mesh.Own.Rotation
	return all || asked != nil && asked.Epoch > t.own.Epoch && !t.rotating
}

func (t *Tunnels) learnNode(key string, n *tables.Node) {
	p := t.peers[key]
	if p == nil {
		p = &peer{}
		t.peers[key] = p
	}
	_, p.epoch = n.Lanes()
	p.apart = apart(t.cfg.Addresses, n.Addresses())
}

// everything brings devices, routes, peers and the choice of tunnels up to date. Without
// a mesh it leaves peers alone.
func (t *Tunnels) everything(ctx context.Context, network tunnel.Network, complete bool) error {
	own, err := t.cfg.Lanes.Ensure(ctx)
	if err != nil {
		return err
	}
	for i, lane := range own.Lanes {
		if t.attached[i] == lane.Ifindex {
			continue
		}
		if err := t.cfg.Attach(lane.Ifindex, i); err != nil {
			return fmt.Errorf("attach programs to %s: %w", lane.Device, err)
		}
		t.attached[i] = lane.Ifindex
	}
	t.setOwn(own)
	if err := t.cfg.Host.Set(ctx, network, complete); err != nil {
		return err
	}
	t.cfg.Devices([tunnel.LaneCount]uint32{uint32(own.Lanes[0].Ifindex), uint32(own.Lanes[1].Ifindex)})
	if network.Internal.IsValid() {
		t.once.Do(func() { close(t.up) })
	}
	if t.mesh == nil {
		return nil
	}
	if err := t.allPeers(ctx, complete); err != nil {
		return notUpdated{err}
	}
	return nil
}

func (t *Tunnels) allPeers(ctx context.Context, complete bool) error {
	want := make([]tunnel.Peer, 0, len(t.peers))
	for key, p := range t.peers {
		if w := t.peerOf(t.mesh.Node(key)); p.usable(w) {
			_, path, ok := t.cfg.Rows.Lane(key)
			w.Silent = ok && path != bpf.PathAlive
			want = append(want, w)
		}
	}
	status, err := t.cfg.Lanes.Set(ctx, want, complete)
	if err != nil {
		return err
	}
	clear(t.refused)
	for key, p := range t.peers {
		if p.apart {
			t.refused[key] = t.whyApart(t.mesh.Node(key))
		}
	}
	for _, r := range status.Refused {
		t.refused[r.Cluster+"/"+r.Node] = r.Reason
	}
	tables.SetProblems(t.cfg.Tables, "tunnels", t.refused)
	now := time.Now()
	t.setOwn(status.Own)
	for _, p := range t.peers {
		p.seen = [tunnel.LaneCount]seen{}
	}
	for _, s := range status.Peers {
		if p := t.peers[s.Cluster+"/"+s.Node]; p != nil {
			shaken, settled := s.Handshaken(), s.Settled(now)
			for i, lane := range s.Lanes {
				p.seen[i] = seen{lane.Key, shaken[i], settled[i]}
			}
		}
	}
	if err := t.choose(maps.Keys(t.peers)); err != nil {
		return err
	}
	return t.rotate(ctx, status)
}

// some brings the peers of single nodes up to date, and the choice of tunnels for them
// and for those that have moved in the kernel.
func (t *Tunnels) some(ctx context.Context, keys, moved map[string]bool) error {
	var changed []tunnel.Peer
	var gone []string
	for key := range keys {
		if p := t.peers[key]; p != nil {
			if w := t.peerOf(t.mesh.Node(key)); p.usable(w) {
				changed = append(changed, w)
				continue
			}
		}
		gone = append(gone, key)
	}
	var verdicts tunnel.Verdicts
	if len(keys) > 0 {
		var err error
		if verdicts, err = t.cfg.Lanes.Change(ctx, changed, gone, t.complete); err != nil {
			return notUpdated{err} // nobody knows how much was configured
		}
	}
	news := false
	tell := func(key, why string) {
		news = news || t.refused[key] != why
		if t.refused[key] = why; why == "" {
			delete(t.refused, key)
		}
	}
	for _, key := range gone {
		p := t.peers[key]
		if p != nil && t.complete {
			p.seen = [tunnel.LaneCount]seen{}
		}
		if p != nil && p.apart {
			tell(key, t.whyApart(t.mesh.Node(key)))
		} else {
			tell(key, "")
		}
		moved[key] = true
	}
	for key, why := range verdicts {
		tell(key, why)
		if p := t.peers[key]; p != nil && why == "" {
			p.configured(t.peerOf(t.mesh.Node(key)).Keys)
		}
		moved[key] = true
	}
	if news {
		tables.SetProblems(t.cfg.Tables, "tunnels", t.refused)
	}
	if err := t.choose(maps.Keys(moved)); err != nil {
		return notUpdated{err}
	}
	return nil
}

// configured notes that the devices were given what is wanted since they were read: a key
// that is new has no handshake yet.
func (p *peer) configured(keys [tunnel.LaneCount]tunnel.Key) {
	for i, key := range keys {
		if p.seen[i].key != key {
			p.seen[i] = seen{key: key}
		}
	}
}

// usable reports whether anything can be sent to a peer that is wanted like this.
func (p *peer) usable(w tunnel.Peer) bool {
	return !p.apart && (!w.Keys[0].IsZero() || !w.Keys[1].IsZero())
}

// choose writes which tunnel to use for nodes. A node whose key is not on the device is
// not keyed, and nothing is sent to it. Handshakes that are missing are awaited.
func (t *Tunnels) choose(keys iter.Seq[string]) error {
	lanes := map[string]Lane{}
	for key := range keys {
		p := t.peers[key]
		if p == nil {
			continue
		}
		row, path, ok := t.cfg.Rows.Lane(key)
		if !ok {
			continue // until it has an index
		}
		used := -1
		if row.Keyed {
			used = row.Lane
		}
		lane := tunnel.Choose(t.own.Epoch, p.epoch, used, p.settled())
		if p.seen[lane].key.IsZero() && !p.seen[1-lane].key.IsZero() {
			lane = 1 - lane
		}
		if next := (Lane{lane, !p.seen[lane].key.IsZero()}); next != row {
			lanes[key] = next
		}
		wanted := tunnel.Lane(t.own.Epoch, p.epoch)
		switch awaited := !p.seen[wanted].key.IsZero() && (!p.seen[wanted].shaken || lane != wanted) && path != bpf.PathDead; {
		case !awaited:
			delete(t.awaited, key)
		case !t.awaited[key]:
			t.awaited[key], t.awaitUntil = true, time.Now().Add(awaitFor)
		}
	}
	if len(t.awaited) == 0 {
		t.awaited = map[string]bool{} // a map that has been large stays so
	}
	return t.cfg.Rows.SetLanes(lanes)
}

// rotate takes one step towards the highest key epoch that any node has or the operator
// asked for.
func (t *Tunnels) rotate(ctx context.Context, status tunnel.Status) error {
	own := status.Own
	wanted := own.Epoch
	if r := t.mesh.Own.Rotation; r != nil {
		wanted = max(wanted, r.Epoch)
	}
	epochs := map[string]uint64{}
	for key, p := range t.peers {
		if t.alive(key, p) {
			epochs[key] = p.epoch
			wanted = max(wanted, p.epoch)
		}
	}
	to := tunnel.NextEpoch(own.Epoch, wanted)
	if t.rotating = to != own.Epoch; !t.rotating {
		return nil
	}
	if err := tunnel.MayRotate(own.Epoch, to, epochs, time.Since(own.Since), status.Quiet[to%tunnel.LaneCount]); err != nil {
		if t.waiting == "" {
			t.cfg.Log.Info("key rotation waits", "from", own.Epoch, "to", to, "why", err)
		}
		t.waiting = err.Error()
		return nil
	}
	t.waiting = ""
	next, err := t.cfg.Lanes.Rotate(ctx, to)
	if err != nil {
		return err
	}
	t.cfg.Log.Info("keys rotated", "epoch", next.Epoch, "tunnel", next.Epoch%tunnel.LaneCount)
	t.setOwn(next)
	// Its sessions ended with the old key.
	for _, p := range t.peers {
		lane := &p.seen[next.Epoch%tunnel.LaneCount]
		lane.shaken, lane.settled = false, false
	}
	return nil
}

// alive reports whether rotations wait for a node. A dead one catches up when it
// returns; one without Weft's tunnels (plain Cilium) never takes part.
func (t *Tunnels) alive(key string, p *peer) bool {
	row, path, ok := t.cfg.Rows.Lane(key)
	if !ok || path == bpf.PathDead || !row.Keyed {
		return false
	}
	cluster, _ := split(key)
	if cluster == t.cfg.Cluster {
		return true
	}
	c := t.mesh.Member(cluster)
	if c == nil {
		return false
	}
	path, known := t.cfg.Rows.Cluster(c.ID())
	return path != bpf.PathDead || !known
}

// report tells operators what went wrong in the last turn: either the tunnels are missing,
// or they exist and cannot be updated.
func (t *Tunnels) report(err error) {
	var late notUpdated
	texts := [2]string{}
	switch {
	case errors.As(err, &late):
		texts[1] = late.Error()
	case err != nil:
		texts[0] = err.Error()
	}
	if text := cmp.Or(texts[0], texts[1]); text != t.said {
		t.said = text
		if err != nil {
			t.cfg.Log.Warn("tunnel setup failed, retrying", "in", laneTurn, "error", err)
		}
	}
	for i, table := range []string{wire.ProblemTunnels, wire.ProblemPeers} {
		if texts[i] == t.reported[i] {
			continue
		}
		t.reported[i] = texts[i]
		now := map[string]string{}
		if texts[i] != "" {
			now[t.cfg.self()] = texts[i]
		}
		tables.SetProblems(t.cfg.Tables, table, now)
	}
}

// notUpdated is why existing tunnels could not be updated.
type notUpdated struct{ error }
