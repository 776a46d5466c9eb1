package paths

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/reconcile"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/tunnel/probe"
)

// batchFrom: two paths that die at once are one system call per map already.
const batchFrom = 2

// Rows owns the maps nodes and clusters and the table of paths: which index a node has,
// whether it is alive and which tunnel leads to it. It is safe for concurrent use:
// liveness must not wait for whoever is writing a large policy.
type Rows struct {
	tables *tables.Tables
	limit  int // of nodes

	// mu guards what follows. It is held from the moment that a change is known until
	// it is written, so that an older one never overwrites a newer one.
	mu       sync.Mutex
	nodes    *reconcile.Wanted[uint32, bpf.Node]
	clusters *reconcile.Wanted[uint32, bpf.Cluster]
	// ways are the nodes that have an index, by "cluster/node"; names has their keys, by
	// index, and those of nodes that had one.
	ways  map[string]*way
	names []string
	// answered are the clusters of which some node has answered through the tunnel, to
	// this agent or an earlier one; answers those of which that has changed.
	answered, answers map[identity.ClusterID]bool
	news              chan struct{}
	// found maps a pod CIDR to the index that an earlier agent gave its node.
	found map[netip.Prefix]uint16
	last  uint16
	// owed are the rows, by map, that Assign and Release, Admit and Expel, or Prune asked
	// for and that are not written yet.
	owed [2]map[uint32]bool
	// stale are the rows of the table of paths that may differ from ways.
	stale map[string]bool
	// The nodes that got, or gave back, an index or have another tunnel since the
	// tunnels and liveness last asked.
	forTunnels, forLiveness moves
}

// moves are the nodes about which one reader has to know.
type moves struct {
	keys map[string]bool
	news chan struct{} // one element when there are some
}

func newMoves() moves { return moves{map[string]bool{}, make(chan struct{}, 1)} }

func (m moves) add(key string) {
	m.keys[key] = true
	select {
	case m.news <- struct{}{}:
	default:
	}
}

// way is what is known of the path to one node. Its row is the table's as well, and is
// replaced, never changed.
type way struct {
	row  *tables.Path
	path bpf.Path
}

func (w *way) edit(f func(row *tables.Path)) {
	next := *w.row
	f(&next)
	w.row = &next
}

// NewRows reads what is in the kernel. The prefixes show which index belonged to the
// node with which pod CIDR; flows keep referring to it.
func NewRows(t *tables.Tables, m *bpf.Maps) (*Rows, error) {
	r := &Rows{
		tables: t, limit: m.Nodes.MaxEntries(), ways: map[string]*way{}, found: map[netip.Prefix]uint16{}, stale: map[string]bool{},
		answered: map[identity.ClusterID]bool{}, answers: map[identity.ClusterID]bool{}, news: make(chan struct{}, 1),
		owed: [2]map[uint32]bool{{}, {}}, forTunnels: newMoves(), forLiveness: newMoves(),
	}
	var err error
	if r.nodes, err = reconcile.NewWanted(m.Nodes, batchFrom); err != nil {
		return nil, err
	}
	for i := range r.nodes.Map().Rows() {
		r.last = max(r.last, uint16(i))
	}
	if r.clusters, err = reconcile.NewWanted(m.Clusters, batchFrom); err != nil {
		return nil, err
	}
	for id := range r.clusters.Map().Rows() {
		r.answered[identity.ClusterID(id)] = true
	}
	prefixes, failed := m.Prefixes.All()
	for k, info := range prefixes {
		if info.Node != 0 {
			r.found[k.Netip()] = info.Node
		}
	}
	if err := failed(); err != nil {
		return nil, fmt.Errorf("read map prefixes: %w", err)
	}
	return r, nil
}

// Member is a node that has, or needs, an index.
type Member struct {
	Key     string // cluster/node
	Cluster identity.ClusterID
	CIDRs   []netip.Prefix
}

// Index returns a node's index, or 0 if it has none.
func (r *Rows) Index(key string) uint16 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.indexLocked(key)
}

func (r *Rows) indexLocked(key string) uint16 {
	if w := r.ways[key]; w != nil {
		return w.row.Index
	}
	return 0
}

// nameLocked is the key of the node that has an index, or had it last.
func (r *Rows) nameLocked(i uint32) string {
	if int(i) < len(r.names) {
		return r.names[i]
	}
	return ""
}

// Keys lists the nodes that have an index.
func (r *Rows) Keys() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Keys(r.ways))
}

// Members lists the clusters that were admitted.
func (r *Rows) Members() (all []identity.ClusterID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range r.clusters.Rows() {
		all = append(all, identity.ClusterID(id))
	}
	return all
}

// Assign gives a node an index, or keeps the one it has. A new node is alive but not
// keyed: nothing is sent until its key is set. Flush writes the row.
func (r *Rows) Assign(n Member) (changed bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.ways[n.Key]
	i := r.indexLocked(n.Key)
	if row, _ := r.nodes.Row(uint32(i)); w != nil && row.Cluster == uint16(n.Cluster) {
		return false, nil
	}
	if w == nil {
		var ok bool
		if i, ok = r.freeLocked(n); !ok {
			return false, &bpf.FullError{Table: "nodes", Limit: r.limit}
		}
	}
	row, found := r.nodes.Map().Row(uint32(i))
	if !found || row.Cluster != uint16(n.Cluster) {
		row = bpf.Node{Path: bpf.PathAlive, Cluster: uint16(n.Cluster)}
	}
	cluster, node := split(n.Key)
	r.ways[n.Key] = &way{path: row.Path, row: &tables.Path{Cluster: cluster, Node: node, Index: i, Lane: row.Lane, Keyed: row.Keyed == 1, Alive: row.Path == bpf.PathAlive}}
	if more := int(i) + 1 - len(r.names); more > 0 {
		r.names = append(r.names, make([]string, more)...)
	}
	r.names[i] = n.Key
	r.nodes.Update(uint32(i), row)
	r.owed[ofNodes][uint32(i)] = true
	r.stale[n.Key] = true
	r.forTunnels.add(n.Key)
	r.forLiveness.add(n.Key)
	return w == nil, nil
}

func (r *Rows) freeLocked(n Member) (uint16, bool) {
	for _, cidr := range n.CIDRs {
		i, ok := r.found[cidr]
		row, _ := r.nodes.Map().Row(uint32(i))
		if _, wanted := r.nodes.Row(uint32(i)); ok && row.Cluster == uint16(n.Cluster) && !wanted {
			return i, true
		}
	}
	// Continue after the last one, so that an index rests before it is reused.
	limit := min(r.limit-1, 1<<16-1)
	for range limit {
		if r.last++; int(r.last) > limit || r.last == 0 {
			r.last = 1
		}
		_, used := r.nodes.Map().Row(uint32(r.last))
		if _, wanted := r.nodes.Row(uint32(r.last)); !used && !wanted {
			return r.last, true
		}
	}
	return 0, false
}

// Release frees the index of a removed node. Call it once nothing refers to it any
// longer; Flush deletes the row.
func (r *Rows) Release(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := r.indexLocked(key); i != 0 {
		r.nodes.Delete(uint32(i))
		r.owed[ofNodes][uint32(i)] = true
		delete(r.ways, key)
		r.stale[key] = true
		r.forTunnels.add(key)
		r.forLiveness.add(key)
	}
}

// Prune removes what an earlier agent left of nodes and clusters that nobody knows.
// Flush deletes the rows.
func (r *Rows) Prune() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, i := range r.nodes.Prune() {
		r.owed[ofNodes][i] = true
	}
	for _, id := range r.clusters.Prune() {
		r.owed[ofClusters][id] = true
		r.forgetLocked(identity.ClusterID(id))
	}
}

// Admit creates a member's row, alive unless known otherwise. Flush writes it.
func (r *Rows) Admit(id identity.ClusterID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, wanted := r.clusters.Row(uint32(id)); wanted {
		return
	}
	path := bpf.PathAlive
	if found, ok := r.clusters.Map().Row(uint32(id)); ok {
		path = found.Path
	}
	r.clusters.Update(uint32(id), clusterRow(path))
	r.owed[ofClusters][uint32(id)] = true
}

// Expel removes the row of a cluster that left, if this agent knew it as a member. Flush
// deletes it.
func (r *Rows) Expel(id identity.ClusterID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, wanted := r.clusters.Row(uint32(id)); wanted {
		r.clusters.Delete(uint32(id))
		r.owed[ofClusters][uint32(id)] = true
		r.forgetLocked(id)
	}
}

func (r *Rows) forgetLocked(id identity.ClusterID) {
	if r.answered[id] {
		delete(r.answered, id)
		r.answers[id] = true
	}
}

// The maps, as owed is indexed.
const (
	ofNodes = iota
	ofClusters
)

// Failed are the rows that were asked for here and that the kernel did not take. The next
// Flush tries them again. What liveness or tunnels wrote is theirs to tell.
type Failed struct {
	Nodes    map[string]error // by key
	Clusters map[identity.ClusterID]error
	Pruned   error // of rows that belong to nobody
}

// Flush writes the rows that differ from the kernel's.
func (r *Rows) Flush() (failed Failed) {
	r.mu.Lock()
	defer r.mu.Unlock()
	failed = Failed{map[string]error{}, map[identity.ClusterID]error{}, nil}
	nodes, clusters := r.flushLocked()
	for i, err := range nodes {
		if !r.owed[ofNodes][i] {
			continue
		}
		if key := r.nameLocked(i); key != "" {
			failed.Nodes[key] = err
		} else {
			failed.Pruned = err
		}
	}
	for id, err := range clusters {
		if r.owed[ofClusters][id] {
			failed.Clusters[identity.ClusterID(id)] = err
		}
	}
	return failed
}

// flushLocked writes what is due to the kernel, then to the table of paths.
func (r *Rows) flushLocked() (nodes, clusters map[uint32]error) {
	// Clusters first: one row helps every service at once.
	clusters, nodes = r.clusters.Flush(), r.nodes.Flush()
	for i, failed := range []map[uint32]error{nodes, clusters} {
		r.owed[i] = reconcile.Left(r.owed[i], failed)
	}
	if len(r.stale) == 0 {
		return nodes, clusters
	}
	txn := r.tables.DB.WriteTxn(r.tables.Paths)
	for key := range r.stale {
		w := r.ways[key]
		if w == nil {
			cluster, node := split(key)
			tables.Drop(txn, r.tables.Paths, &tables.Path{Cluster: cluster, Node: node})
			continue
		}
		if tables.Get(txn, r.tables.Paths, key) != w.row {
			tables.Put(txn, r.tables.Paths, w.row)
		}
	}
	txn.Commit()
	r.stale = map[string]bool{} // a map that has been large stays so
	return nodes, clusters
}

// Lane is a choice of tunnel, and whether anything may be sent.
type Lane struct {
	Lane  int
	Keyed bool
}

// Lane returns the choice for a node; ok is false if it has no index.
func (r *Rows) Lane(key string) (lane Lane, path bpf.Path, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.ways[key]
	if w == nil {
		return Lane{}, bpf.PathAlive, false
	}
	return Lane{int(w.row.Lane), w.row.Keyed}, w.path, true
}

// SetLanes sets the tunnels that lead to nodes. Nodes without an index are ignored.
func (r *Rows) SetLanes(lanes map[string]Lane) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, lane := range lanes {
		if w := r.ways[key]; w != nil && (int(w.row.Lane) != lane.Lane || w.row.Keyed != lane.Keyed) {
			w.edit(func(row *tables.Path) { row.Lane, row.Keyed = uint8(lane.Lane), lane.Keyed })
			r.changedLocked(key, w)
			r.forLiveness.add(key)
		}
	}
	return r.writtenLocked()
}

// changedLocked notes that what is known of a path may ask for another row.
func (r *Rows) changedLocked(key string, w *way) {
	row, _ := r.nodes.Row(uint32(w.row.Index))
	row.Path, row.Lane, row.Keyed = w.path, w.row.Lane, bit(w.row.Keyed)
	r.nodes.Update(uint32(w.row.Index), row)
	r.stale[key] = true
}

func (r *Rows) writtenLocked() error {
	nodes, clusters := r.flushLocked()
	var errs []error
	for id, err := range clusters {
		errs = append(errs, fmt.Errorf("cluster %d: %w", id, err))
	}
	for i, err := range nodes {
		errs = append(errs, fmt.Errorf("node %s: %w", r.nameLocked(i), err))
	}
	return errors.Join(errs...)
}

// take returns the keys that one of the moves has, and forgets them.
func (r *Rows) take(m *moves) map[string]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	keys := m.keys
	m.keys = map[string]bool{}
	return keys
}

// named are the nodes that have these indexes.
func (r *Rows) named(indexes map[uint16]bool) map[string]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	keys := map[string]bool{}
	for i := range indexes {
		if key := r.nameLocked(uint32(i)); r.indexLocked(key) == i {
			keys[key] = true
		}
	}
	return keys
}

// Seen is what was found out about the paths to some nodes.
type Seen struct {
	At           time.Time
	Observations []probe.Observation
	// Unprobed are nodes that are no longer probed: nothing speaks against them.
	Unprobed map[string]bool
	// Gossip says of nodes whether members of their cluster consider them dead.
	Gossip map[string]bool
	// Clusters are the standings of clusters by their best path.
	Clusters map[identity.ClusterID]probe.Standing
}

// See takes up what was found out and writes what follows from it, all in one call per
// map however many paths have changed.
func (r *Rows) See(s Seen) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, standing := range s.Clusters {
		old, known := r.clusters.Row(uint32(id))
		if !known {
			// Perhaps a member that an earlier agent had admitted and this one will.
			old, known = r.clusters.Map().Row(uint32(id))
		}
		if !known {
			continue
		}
		if standing == probe.Alive {
			r.answeredLocked(id)
		}
		if path := next(old.Path, standing); path != old.Path {
			r.clusters.Update(uint32(id), clusterRow(path))
		}
	}
	for _, o := range s.Observations {
		key := o.Target.Name()
		w := r.ways[key]
		if w == nil {
			continue
		}
		path := next(w.path, o.Standing(s.At))
		if path == w.path && same(w.row.Seen(), o) {
			continue
		}
		w.path = path
		last := o // only what is kept goes to the heap
		w.edit(func(row *tables.Path) { row.Observation, row.Alive = &last, path == bpf.PathAlive })
		r.changedLocked(key, w)
	}
	for key := range s.Unprobed {
		if w := r.ways[key]; w != nil {
			w.edit(func(row *tables.Path) {
				if row.Observation = nil; row.Keyed {
					w.path, row.Alive = bpf.PathAlive, true
				}
			})
			r.changedLocked(key, w)
		}
	}
	for key, dead := range s.Gossip {
		if w := r.ways[key]; w != nil && w.row.GossipDead != dead {
			w.edit(func(row *tables.Path) { row.GossipDead = dead })
			r.stale[key] = true
		}
	}
	return r.writtenLocked()
}

// Cluster returns the path state that the kernel holds for a cluster; known is false
// if it has no row.
func (r *Rows) Cluster(id identity.ClusterID) (path bpf.Path, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	row, ok := r.clusters.Map().Row(uint32(id))
	return row.Path, ok
}

// answeredLocked notes that a node of a cluster has answered through the tunnel.
// Services use the cluster only from then on: that we know its keys does not mean that
// it knows ours.
func (r *Rows) answeredLocked(id identity.ClusterID) {
	if r.answered[id] {
		return
	}
	r.answered[id], r.answers[id] = true, true
	select {
	case r.news <- struct{}{}:
	default:
	}
}

// HasAnswered says whether a node of a cluster has answered since it joined.
func (r *Rows) HasAnswered(id identity.ClusterID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.answered[id]
}

// Answers returns the clusters for which HasAnswered has changed since the last call.
func (r *Rows) Answers() map[identity.ClusterID]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.answers
	r.answers = map[identity.ClusterID]bool{}
	return out
}

// News has an element when a cluster has answered for the first time.
func (r *Rows) News() <-chan struct{} { return r.news }
