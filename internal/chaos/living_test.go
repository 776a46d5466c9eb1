package chaos

import (
	"strings"
	"time"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/internal/meshtest"
	"github.com/weft-mesh/weft/wire"
)

// No live entry is deleted: once a node knows the address of a pod, it knows it until the
// pod's cluster has withdrawn it, the store of either was put back to before it, the looking
// node's cluster has removed that cluster, or the pod's or the looking node's machine was
// booted.

// protection is an address that a node knows.
type protection struct {
	node string // that knows it
	addr bpf.Addr
}

// endpoints are the pods of a cluster as its store has them, by name.
func endpoints(c *meshtest.Cluster) map[string]wire.Endpoint {
	out := map[string]wire.Endpoint{}
	for _, line := range c.Store.Dump(wire.EndpointsPrefix) {
		_, value, _ := strings.Cut(line, "=")
		if e, err := wire.Unmarshal[wire.Endpoint]([]byte(value)); err == nil {
			out[e.Pod] = e
		}
	}
	return out
}

// copiedWith is what a cluster's nodes know when its store is copied.
func (r *runner) copiedWith(cluster string) map[protection]pod {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := map[protection]pod{}
	for at, p := range r.protected {
		if r.m.of(at.node).name == cluster {
			known[at] = p
		}
	}
	return known
}

// unprotect gives up what a step may rightly take away.
func (r *runner) unprotect(s Step) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unbackLocked(s)
	for at, p := range r.protected {
		if booted := s.Do == Reboot || s.Do == LoseNode; booted && at.node == s.On || !r.m.lives(p) || !r.m.knows(at.node, p.node) {
			delete(r.protected, at)
		}
		// A store that is put back underneath its API servers still claims that its copies
		// are complete. What came since is not known again before they have read their peers.
		if s.Do == PutBack && s.With == underneath && r.m.of(at.node).name == s.On && r.m.of(p.node).name != s.On && r.known[s.On][at] != p {
			delete(r.protected, at)
		}
	}
}

// knows reports whether the cluster of a node has that of another as a peer.
func (m *model) knows(node, other string) bool {
	own, theirs := m.of(node), m.of(other)
	return own == theirs || own.wants.peers[theirs.name] != 0
}

// lives reports whether a pod is still the one that it was.
func (m *model) lives(p pod) bool {
	for _, c := range m.clusters {
		for _, now := range c.wants.pods {
			if now.born == p.born {
				return true
			}
		}
	}
	return false
}

// checkLiving checks that nothing protected is gone, and protects what nodes have come to
// know.
func (r *runner) checkLiving() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for at, p := range r.protected {
		if row, ok, _ := r.node(at.node).Maps().IPs.Lookup(at.addr); !ok || row.Identity == 0 {
			r.failLocked("%s no longer knows %v, the address of a pod of %s that lives", at.node, at.addr, p.node)
		}
	}
	for _, c := range r.m.clusters {
		rows := endpoints(r.clusters[c.name])
		for name, p := range c.wants.pods {
			e, ok := rows[name]
			if !ok || !r.stands(c, p, e) {
				continue
			}
			for _, other := range r.m.clusters {
				for _, n := range other.nodes {
					addr := bpf.AddrOf(e.IP)
					row, ok, _ := r.node(n.name).Maps().IPs.Lookup(addr)
					if ok && row.Identity == uint32(e.Identity) && r.m.knows(n.name, p.node) {
						r.protected[protection{n.name, addr}] = p
					}
				}
			}
		}
	}
}

// stands reports whether what a store says about a pod is known to be current: its node and
// its cluster have worked for a while.
func (r *runner) stands(c *cluster, p pod, e wire.Endpoint) bool {
	n := r.m.node(p.node)
	row, ok, _ := r.node(p.node).Maps().Endpoints.Lookup(bpf.AddrOf(e.IP))
	return n.up && n.fault == "" && !n.failing && ok && row.Held == 0 && row.Identity == uint32(e.Identity) &&
		c.answers() != nil && r.calm(p.node, lag) && r.calm(c.name, lag) && r.calm(objectsOf(c.name), lag)
}

// calm reports whether nothing has happened to a node or cluster for a while.
func (r *runner) calm(what string, d time.Duration) bool { return time.Since(r.since[what]) >= d }

// checkParted checks that nothing is left on a cluster's nodes of another that it has removed,
// or does not know yet.
func (r *runner) checkParted() {
	for _, c := range r.m.clusters {
		if c.answers() == nil || !r.calm(c.name, telling) {
			continue
		}
		for i, other := range r.m.clusters {
			if other == c || c.wants.peers[other.name] != 0 {
				continue
			}
			for _, n := range c.nodes {
				if !n.up || n.fault != "" || n.failing || !r.calm(n.name, telling) {
					continue
				}
				for a, row := range meshtest.Rows(r.node(n.name), r.node(n.name).Maps().IPs) {
					if int(row.Cluster) == i+1 {
						r.fail("%s knows %v of %s, which is not a peer", n.name, a, other.name)
					}
				}
			}
		}
	}
}
