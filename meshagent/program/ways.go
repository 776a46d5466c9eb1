package program

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
)

// Ways owns the maps nodes and clusters: which index a node has, whether it is alive
// and which tunnel leads to it. It is safe for concurrent use: liveness must not wait
// for whoever is writing a large policy.
type Ways struct {
	nodes    bpf.Table[uint32, bpf.Node]
	clusters bpf.Table[uint32, bpf.Cluster]

	// mu guards what follows.
	mu sync.Mutex
	// byKey maps "cluster/node" to its index.
	byKey map[string]uint16
	// want is what the kernel should hold, have is what it holds.
	want, have map[uint16]bpf.Node
	members    map[identity.ClusterID]bpf.Cluster
	wrote      map[identity.ClusterID]bpf.Cluster
	// answered are the clusters of which some node has answered through the tunnel, to
	// this agent or an earlier one.
	answered map[identity.ClusterID]bool
	answers  map[identity.ClusterID]bool // of which answered has changed
	news     chan struct{}
	// found maps a pod CIDR to the index that an earlier agent gave its node.
	found map[netip.Prefix]uint16
	// left are the rows of an earlier agent that no node has taken over yet.
	left map[uint16]bool
	last uint16
}

// NewWays reads what is in the kernel. The prefixes show which index belonged to the
// node with which pod CIDR; flows keep referring to it.
func NewWays(m *bpf.Maps) (*Ways, error) {
	w := &Ways{
		nodes: m.Nodes, clusters: m.Clusters,
		byKey: map[string]uint16{}, want: map[uint16]bpf.Node{}, have: map[uint16]bpf.Node{},
		members: map[identity.ClusterID]bpf.Cluster{}, wrote: map[identity.ClusterID]bpf.Cluster{},
		found: map[netip.Prefix]uint16{}, left: map[uint16]bool{}, answered: map[identity.ClusterID]bool{}, answers: map[identity.ClusterID]bool{}, news: make(chan struct{}, 1),
	}
	nodes, failed := m.Nodes.All()
	for i, n := range nodes {
		w.have[uint16(i)], w.left[uint16(i)] = n, true
		w.last = max(w.last, uint16(i))
	}
	if err := failed(); err != nil {
		return nil, fmt.Errorf("read map nodes: %w", err)
	}
	clusters, failed := m.Clusters.All()
	for i, c := range clusters {
		w.wrote[identity.ClusterID(i)] = c
		w.answered[identity.ClusterID(i)] = true
	}
	if err := failed(); err != nil {
		return nil, fmt.Errorf("read map clusters: %w", err)
	}
	prefixes, failed := m.Prefixes.All()
	for k, info := range prefixes {
		if info.Node != 0 {
			w.found[k.Netip()] = info.Node
		}
	}
	if err := failed(); err != nil {
		return nil, fmt.Errorf("read map prefixes: %w", err)
	}
	return w, nil
}

// Member is a node that has, or needs, an index.
type Member struct {
	Key     string // cluster/node
	Cluster identity.ClusterID
	CIDRs   []netip.Prefix
}

// Index returns a node's index, or 0 if it has none.
func (w *Ways) Index(key string) uint16 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.byKey[key]
}

// Keys lists the nodes that have an index.
func (w *Ways) Keys() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Collect(maps.Keys(w.byKey))
}

// Members lists the clusters that were admitted.
func (w *Ways) Members() []identity.ClusterID {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Collect(maps.Keys(w.members))
}

// Assign gives a node an index, or keeps the one it has. A new node is alive but not
// keyed: nothing is sent until its key is set.
func (w *Ways) Assign(n Member) (changed bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	i, known := w.byKey[n.Key]
	if known && w.want[i].Cluster == uint16(n.Cluster) {
		return false, w.flushLocked(i)
	}
	if !known {
		var ok bool
		if i, ok = w.indexLocked(n); !ok {
			return false, &bpf.FullError{Table: "nodes", Limit: w.nodes.MaxEntries()}
		}
	}
	w.byKey[n.Key] = i
	delete(w.left, i)
	row, found := w.have[i]
	if !found || row.Cluster != uint16(n.Cluster) {
		row = bpf.Node{Path: bpf.PathAlive, Cluster: uint16(n.Cluster)}
	}
	w.want[i] = row
	return !known, w.flushLocked(i)
}

func (w *Ways) indexLocked(n Member) (uint16, bool) {
	for _, cidr := range n.CIDRs {
		i, ok := w.found[cidr]
		if !ok || w.have[i].Cluster != uint16(n.Cluster) {
			continue
		}
		if _, taken := w.want[i]; !taken {
			return i, true
		}
	}
	// Continue after the last one, so that an index rests before it is reused.
	limit := min(w.nodes.MaxEntries()-1, 1<<16-1)
	for range limit {
		if w.last++; int(w.last) > limit || w.last == 0 {
			w.last = 1
		}
		_, used := w.have[w.last]
		if _, taken := w.want[w.last]; !used && !taken {
			return w.last, true
		}
	}
	return 0, false
}

// Release frees the index of a removed node. Call it once nothing refers to it any
// longer.
func (w *Ways) Release(key string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	i, ok := w.byKey[key]
	if !ok {
		return nil
	}
	if err := w.nodes.Delete(uint32(i)); err != nil {
		return err
	}
	delete(w.have, i)
	delete(w.want, i)
	delete(w.byKey, key)
	return nil
}

// Prune removes what an earlier agent left of nodes and clusters that nobody knows.
func (w *Ways) Prune() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var errs []error
	for i := range w.left {
		if err := w.nodes.Delete(uint32(i)); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(w.left, i)
		delete(w.have, i)
	}
	for id := range w.wrote {
		if _, mine := w.members[id]; !mine {
			errs = append(errs, w.expelLocked(id))
		}
	}
	return errors.Join(errs...)
}

// SetPath sets the state of the path to a node; a node without an index is ignored.
func (w *Ways) SetPath(key string, path bpf.Path) error {
	return w.change(key, func(n *bpf.Node) { n.Path = turned(n.Path, path) })
}

// turned returns a path's next state. Only a path that worked can become silent: an
// agent that has just started must not soften the verdict on one that was dead all
// along.
func turned(from, to bpf.Path) bpf.Path {
	if from == bpf.PathDead && to == bpf.PathSilent {
		return from
	}
	return to
}

func clusterRow(path bpf.Path) bpf.Cluster { return bpf.Cluster{Path: path, Member: 1} }

// SetLane sets the tunnel that leads to a node, and whether anything may be sent.
func (w *Ways) SetLane(key string, lane int, keyed bool) error {
	return w.change(key, func(n *bpf.Node) { n.Lane, n.Keyed = uint8(lane), bit(keyed) })
}

func (w *Ways) change(key string, f func(*bpf.Node)) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	i, ok := w.byKey[key]
	if !ok {
		return nil
	}
	row := w.want[i]
	f(&row)
	w.want[i] = row
	if err := w.flushLocked(i); err != nil {
		return fmt.Errorf("node %s: %w", key, err)
	}
	return nil
}

// Row returns what the kernel should hold for a node, and its index.
func (w *Ways) Row(key string) (bpf.Node, uint16) {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := w.byKey[key]
	return w.want[i], i
}

// SetCluster sets the state of the best path to a cluster: one write that takes the
// cluster out of every service, or puts it back. A cluster that is not a member is
// ignored.
func (w *Ways) SetCluster(id identity.ClusterID, path bpf.Path) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.knownLocked(id) {
		return nil
	}
	if old, ok := w.wrote[id]; ok {
		path = turned(old.Path, path)
	}
	row := clusterRow(path)
	w.members[id] = row
	if w.wrote[id] == row {
		return nil
	}
	if err := w.clusters.Update(uint32(id), row); err != nil {
		return fmt.Errorf("cluster %d: %w", id, err)
	}
	w.wrote[id] = row
	return nil
}

// knownLocked says whether this agent has admitted a cluster, or an earlier one had.
func (w *Ways) knownLocked(id identity.ClusterID) bool {
	_, mine := w.members[id]
	_, found := w.wrote[id]
	return mine || found
}

// Cluster returns the path state that the kernel holds for a cluster; known is false
// if it has no row.
func (w *Ways) Cluster(id identity.ClusterID) (path bpf.Path, known bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	row, ok := w.wrote[id]
	return row.Path, ok
}

// Admit creates a member's row, alive unless known otherwise.
func (w *Ways) Admit(id identity.ClusterID) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	row, ok := w.members[id]
	if !ok {
		row = clusterRow(bpf.PathAlive)
		if old, ok := w.wrote[id]; ok {
			row = clusterRow(old.Path)
		}
		w.members[id] = row
	}
	if w.wrote[id] == row {
		return nil
	}
	if err := w.clusters.Update(uint32(id), row); err != nil {
		return err
	}
	w.wrote[id] = row
	return nil
}

// Expel removes the row of a cluster that left, if this agent knew it as a member.
func (w *Ways) Expel(id identity.ClusterID) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, mine := w.members[id]; !mine {
		return nil
	}
	return w.expelLocked(id)
}

func (w *Ways) expelLocked(id identity.ClusterID) error {
	if _, ok := w.wrote[id]; ok {
		if err := w.clusters.Delete(uint32(id)); err != nil {
			return fmt.Errorf("cluster %d: %w", id, err)
		}
	}
	delete(w.wrote, id)
	delete(w.members, id)
	if w.answered[id] {
		delete(w.answered, id)
		w.answers[id] = true
	}
	return nil
}

// Answered notes that a node of a cluster has answered through the tunnel. Services
// use the cluster only from then on: that we know its keys does not mean that it knows
// ours.
func (w *Ways) Answered(id identity.ClusterID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.answered[id] || !w.knownLocked(id) {
		return
	}
	w.answered[id] = true
	w.answers[id] = true
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// HasAnswered says whether Answered has been called for a cluster since it joined.
func (w *Ways) HasAnswered(id identity.ClusterID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.answered[id]
}

// takeAnswers returns the clusters for which HasAnswered has changed since the last call.
func (w *Ways) takeAnswers() map[identity.ClusterID]bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.answers
	w.answers = map[identity.ClusterID]bool{}
	return out
}

func (w *Ways) flushLocked(i uint16) error {
	row := w.want[i]
	if have, ok := w.have[i]; ok && have == row {
		return nil
	}
	if err := w.nodes.Update(uint32(i), row); err != nil {
		return err
	}
	w.have[i] = row
	return nil
}

func bit(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}
