package probe

import (
	"cmp"
	"hash/fnv"
	"slices"
)

const (
	// MaxWitnesses is how many nodes of each cluster a node probes besides those that it
	// has flows with. A node sends c × MaxWitnesses / Interval such probes a second in a mesh
	// of c clusters, or Budget if that is less.
	MaxWitnesses = 3
	// SmallCluster is the size up to which every node of a cluster is probed.
	SmallCluster = 8
)

// Witnesses chooses the nodes that one node probes: those that it must, all nodes of a
// small cluster, and up to MaxWitnesses of every other, the same ones for as long as they
// exist but others for every prober. A node that comes or goes changes one witness, and
// costs nothing for the others. It is not safe for concurrent use.
type Witnesses struct {
	self     string
	clusters map[string]*candidates
	must     map[string]bool
	changed  map[string]bool
}

// candidates are the nodes of one cluster, by "cluster/node": true if it can be probed.
type candidates struct {
	nodes map[string]bool
	best  []string // best first
}

// NewWitnesses begins without nodes, for a node "cluster/node".
func NewWitnesses(self string) *Witnesses {
	return &Witnesses{self: self, clusters: map[string]*candidates{}, must: map[string]bool{}, changed: map[string]bool{}}
}

// Put takes up a node "cluster/node", or whether it can be probed now.
func (w *Witnesses) Put(cluster, name string, can bool) {
	if name == w.self {
		return
	}
	c := w.clusters[cluster]
	if c == nil {
		c = &candidates{nodes: map[string]bool{}}
		w.clusters[cluster] = c
	}
	could, known := c.nodes[name]
	if known && could == can {
		return
	}
	c.nodes[name] = can
	w.changed[name] = true
	if !known && len(c.nodes) == SmallCluster+1 {
		w.all(c)
	}
	w.rank(c, name)
}

// Drop removes a node.
func (w *Witnesses) Drop(cluster, name string) {
	c := w.clusters[cluster]
	if c == nil {
		return
	}
	if _, known := c.nodes[name]; !known {
		return
	}
	delete(c.nodes, name)
	w.changed[name] = true
	if len(c.nodes) == SmallCluster {
		w.all(c)
	}
	w.rank(c, name)
	if len(c.nodes) == 0 {
		delete(w.clusters, cluster)
	}
}

// Must says whether a node has to be probed, whoever else is.
func (w *Witnesses) Must(name string, must bool) {
	if w.must[name] == must {
		return
	}
	w.changed[name] = true
	if must {
		w.must[name] = true
	} else {
		delete(w.must, name)
	}
}

// Chosen says whether a node is to be probed.
func (w *Witnesses) Chosen(cluster, name string) bool {
	c := w.clusters[cluster]
	return c != nil && c.nodes[name] && (w.must[name] || len(c.nodes) <= SmallCluster || slices.Contains(c.best, name))
}

// Needed says whether a node has to be probed, whoever else is.
func (w *Witnesses) Needed(name string) bool { return w.must[name] }

// Changed returns the nodes about which Chosen or Needed may say something else than before
// the last call.
func (w *Witnesses) Changed() map[string]bool {
	changed := w.changed
	w.changed = map[string]bool{}
	return changed
}

func (w *Witnesses) all(c *candidates) {
	for name := range c.nodes {
		w.changed[name] = true
	}
}

// rank settles who is best after a node has come or gone. Only when one of the best goes
// are the others looked at.
func (w *Witnesses) rank(c *candidates, name string) {
	if i := slices.Index(c.best, name); i >= 0 && !c.nodes[name] {
		c.best = slices.Delete(c.best, i, i+1)
		for other, can := range c.nodes {
			if can {
				w.offer(c, other)
			}
		}
	} else if c.nodes[name] {
		w.offer(c, name)
	}
}

// offer makes a node one of the best if it is, by rendezvous hashing.
func (w *Witnesses) offer(c *candidates, name string) {
	i, there := slices.BinarySearchFunc(c.best, name, func(a, b string) int {
		return cmp.Or(cmp.Compare(weight(w.self, b), weight(w.self, a)), cmp.Compare(a, b))
	})
	if there || i == MaxWitnesses {
		return
	}
	c.best = slices.Insert(c.best, i, name)
	w.changed[name] = true
	if len(c.best) > MaxWitnesses {
		w.changed[c.best[MaxWitnesses]] = true
		c.best = c.best[:MaxWitnesses]
	}
}

func weight(self, name string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(self))
	h.Write([]byte{0})
	h.Write([]byte(name))
	// FNV's last bytes hardly reach the high bits, which decide the order: mix them.
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return x
}
