package peers

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/wire"
)

// World is all generated clusters. Several goroutines may use it.
type World struct {
	Shape    Shape
	Clusters []*Cluster
}

// New makes all clusters of a shape and what they export.
func New(ctx context.Context, s Shape) (*World, error) {
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("generate clusters: %w", err)
	}
	w := &World{Shape: s, Clusters: make([]*Cluster, s.Clusters)}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for i := range w.Clusters {
		g.Go(func() error {
			if ctx.Err() == nil {
				w.Clusters[i] = newCluster(s, i)
			}
			return ctx.Err()
		})
	}
	return w, g.Wait()
}

// First is the first n clusters as a world of their own.
func (w *World) First(n int) *World {
	s := w.Shape
	s.Clusters = n
	return &World{Shape: s, Clusters: w.Clusters[:n]}
}

// Kind is a kind of change.
type Kind int

// The kinds.
const (
	Address  Kind = iota // a pod appears, disappears or gets another identity
	Identity             // an identity appears or disappears
	Backend              // an endpoint slice of LargeService has another backend
	Node                 // a node appears or has a new key
	kinds
)

func (k Kind) String() string { return [...]string{"address", "identity", "backend", "node"}[k] }

// Change is what was written: the row that the kernel of a reader is to have for it.
type Change struct {
	Kind    Kind
	Cluster *Cluster
	// Addr is the pod's, the backend's or the node's among its pods; unset for identities.
	Addr netip.Addr
	// Identity is that of the pod, or the one that appeared or disappeared.
	Identity identity.Number
	// Gone is set if the row is to disappear.
	Gone bool
	At   time.Time // when it was readable in the cluster's store
}

// Add makes something new in cluster i: a pod, an identity of group g0, a backend of
// LargeService in place of another, or a node.
func (w *World) Add(i int, kind Kind) (Change, error) {
	c := w.Clusters[i]
	out := Change{Kind: kind, Cluster: c}
	var failed error
	c.change(func(t *writer) {
		switch kind {
		case Address:
			out.Addr, failed = c.takeFree()
			out.Identity = c.first
			if failed == nil {
				c.addPod(t, out.Addr, out.Identity)
			}
		case Identity:
			out.Identity, failed = c.unusedIdentity()
			if failed == nil {
				c.putIdentity(t, out.Identity)
			}
		case Backend:
			out.Addr, failed = c.swapBackend(t)
		case Node:
			if c.nodes >= c.shape.nodeRoom() {
				failed = fmt.Errorf("cluster %s has no room for another node", c.Name())
				return
			}
			out.Addr = c.shape.internal(c.index, c.nodes)
			c.addNode(t)
		}
	})
	out.At = time.Now()
	return out, failed
}

func (c *Cluster) takeFree() (netip.Addr, error) {
	if len(c.free) == 0 {
		return netip.Addr{}, fmt.Errorf("cluster %s has no room for another pod", c.Name())
	}
	a := c.free[0]
	c.free = c.free[1:]
	return a, nil
}

// unusedIdentity returns an unused number of group g0.
func (c *Cluster) unusedIdentity() (identity.Number, error) {
	for k := 0; k < c.shape.Identities*spareShare*groups; k += groups {
		if n := c.first + identity.Number(k); !c.idents[n] {
			return n, nil
		}
	}
	return 0, fmt.Errorf("cluster %s has no room for another identity", c.Name())
}

// swapBackend replaces one backend of LargeService by an address that is not one.
func (c *Cluster) swapBackend(t *writer) (netip.Addr, error) {
	at := sliceAt{LargeService, 0}
	backends := slices.Clone(c.slices[at])
	if len(backends) == 0 {
		return netip.Addr{}, fmt.Errorf("cluster %s offers no backends of %s", c.Name(), LargeService)
	}
	a, err := c.takeFree()
	if err != nil {
		return a, err
	}
	old := backends[0]
	copy(backends, backends[1:])
	backends[len(backends)-1] = a
	if _, pod := c.pods[old]; !pod {
		c.free = append(c.free, old)
	}
	c.setSlice(t, at, backends)
	return a, nil
}

// Random makes a change of a kind somewhere: what is made and what is removed balance.
func (w *World) Random(r *rand.Rand, kind Kind) Change {
	c := w.Clusters[r.IntN(len(w.Clusters))]
	out := Change{Kind: kind, Cluster: c}
	c.change(func(t *writer) {
		switch kind {
		case Address:
			out.Addr, out.Identity, out.Gone = c.churnPod(t, r)
		case Identity:
			out.Identity, out.Gone = c.churnIdentity(t, r)
		case Node:
			j := r.IntN(c.nodes)
			out.Addr = c.shape.internal(c.index, j)
			c.putNode(t, j, firstEpoch) // as kubelets do every few minutes: the same but for its revision
		}
	})
	out.At = time.Now()
	return out
}

// churnPod removes a pod, makes one, or gives one another identity, at random, but so that
// their number stays near what it was at the start.
func (c *Cluster) churnPod(t *writer, r *rand.Rand) (a netip.Addr, n identity.Number, gone bool) {
	spread := c.shape.Endpoints / 20
	n = c.first + identity.Number(r.IntN(c.shape.Identities))
	switch excess := len(c.order) - c.shape.Endpoints + r.IntN(2*spread+3) - spread - 1; {
	case excess > 0 && len(c.order) > 1:
		a = c.order[r.IntN(len(c.order))]
		c.dropPod(t, a)
		return a, 0, true
	case excess < 0 && len(c.free) > 0:
		a, _ = c.takeFree()
	default:
		a = c.order[r.IntN(len(c.order))]
	}
	c.addPod(t, a, n)
	return a, n, false
}

// churnIdentity makes or removes an identity beyond those that pods have.
func (c *Cluster) churnIdentity(t *writer, r *rand.Rand) (n identity.Number, gone bool) {
	n = c.first + identity.Number(c.shape.Identities+r.IntN(c.shape.Identities*(spareShare-1)))
	if c.idents[n] {
		delete(c.idents, n)
		t.delete(wire.IdentityStateKey(n))
		return n, true
	}
	c.putIdentity(t, n)
	return n, false
}

// Holds reports whether an address is in the range of a cluster's pods.
func (w *World) Holds(a netip.Addr) bool {
	return a.Is4() && a.Compare(podBase) >= 0 && a.Compare(w.Shape.PodCIDR(w.Shape.Clusters).Addr()) < 0
}

// LargeBackends is how many backends LargeService has in all clusters together.
func (w *World) LargeBackends() (n int) {
	for _, c := range w.Clusters {
		n += c.backends(LargeService)
	}
	return n
}

// Pods returns the identity of every pod.
func (w *World) Pods() map[netip.Addr]identity.Number {
	all := make(map[netip.Addr]identity.Number, w.Shape.Known())
	for _, c := range w.Clusters {
		maps.Copy(all, c.Pods())
	}
	return all
}
