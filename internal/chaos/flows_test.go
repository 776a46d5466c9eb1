package chaos

import (
	"cmp"
	"slices"
	"time"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/internal/meshtest"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// An established flow passes by the verdict that it remembers, until a revision that the
// verdict rests on is raised: then it is judged again. So no flow may keep a verdict that the
// maps no longer give, whether or not an agent runs; what the maps give, checkPolicies
// compares with the policies. And a flow through a service goes on for as long as the maps
// hold its backend, so no backend that lives may leave them.
//
// What may pass goes on passing while nothing changes that it rests on, whatever happens to the
// agent and whatever its kernel refuses it meanwhile.

// flow is one between a pod of a node and an address of the mesh, at port 80.
type flow struct {
	node        string
	pod, remote bpf.Addr
	dir         bpf.Direction
}

// memory is what the datapath keeps of a flow that it has let pass.
type memory struct {
	maps     *bpf.Maps // in which it is; a reboot ends it
	identity uint32    // that it was judged by
	sum      uint32    // of revisions, as in bpf/lib/revision.h
	// firm is when it was let pass by a node that had been told all that its cluster wants; zero:
	// never.
	firm time.Time
}

// sum is what the datapath compares for a flow that was judged by an identity.
func (f flow) sum(m *bpf.Maps, identity uint32) uint32 {
	settings, _, _ := m.Settings.Lookup(0)
	sum := settings.Revision
	for _, i := range []uint32{bpf.RevisionOf(f.pod), bpf.RevisionOf(f.remote), bpf.RevisionOfIdentity(identity)} {
		n, _, _ := m.Revisions.Lookup(i)
		sum += n
	}
	return sum
}

// checkFlows lets a packet of every flow pass.
func (r *runner) checkFlows() {
	for _, n := range r.nodes() {
		c := r.m.of(n.Name)
		is := r.m.node(n.Name)
		failing := is.failing // what has to be judged again cannot be told the kernel
		settled := is.up && is.fault == "" && !failing && c.answers() != nil && r.calm(n.Name, lag) && r.calm(c.name, lag) && r.calm(objectsOf(c.name), lag)
		m := n.Maps()
		remotes := meshtest.Rows(n, m.IPs)
		for pod, row := range meshtest.Rows(n, m.Endpoints) {
			for remote, info := range remotes {
				if row.Held != 0 || info.Identity == 0 {
					continue
				}
				for _, dir := range []bpf.Direction{bpf.Egress, bpf.Ingress} {
					f := flow{n.Name, pod, remote, dir}
					was, established := r.flows[f]
					kept := established && was.maps == m && was.sum == f.sum(m, was.identity)
					allow, _ := bpftest.Judge(m, pod, info.Identity, dir, 6, 80)
					if established && was.maps == m && was.identity == info.Identity && !allow && r.unchanged(c, was.firm) {
						r.fail("%s: %s %v, peer %v (identity %d) was let pass, nothing changed, and the maps deny it", n.Name, []string{"egress of", "ingress of"}[dir], pod, remote, info.Identity)
					}
					if failing {
						continue
					}
					if kept && !allow {
						r.fail("%s: %s %v, peer %v (identity %d, was %d): the flow is established and goes on, and the maps deny it", n.Name, []string{"egress of", "ingress of"}[dir], pod, remote, info.Identity, was.identity)
					}
					if allow {
						now := memory{m, info.Identity, f.sum(m, info.Identity), time.Time{}}
						if settled {
							now.firm = time.Now()
						} else if was.identity == info.Identity && was.maps == m {
							now.firm = was.firm
						}
						r.flows[f] = now
					} else {
						delete(r.flows, f)
					}
				}
			}
		}
	}
}

// unchanged reports whether what a cluster's operators want is what it was.
func (r *runner) unchanged(c *cluster, since time.Time) bool {
	return !since.IsZero() && r.since[objectsOf(c.name)].Before(since) && r.since[c.name].Before(since)
}

// backing is a backend in a node's maps.
type backing struct {
	node string
	key  bpf.MemberKey
}

// backed is the pod behind a backend, and the service of both clusters.
type backed struct {
	pod     pod
	service string
	// ours is when the service was made in the node's cluster, theirs in the pod's.
	ours, theirs int
}

// unbackLocked gives up the backends that a step may rightly take away, with r.mu held.
func (r *runner) unbackLocked(s Step) {
	for at, b := range r.backing {
		booted := (s.Do == Reboot || s.Do == LoseNode) && at.node == s.On
		ours, theirs := r.m.of(at.node), r.m.of(b.pod.node)
		// The copies of peers in a store that was put back may be old, and an agent that starts
		// on them knows no others: unlike addresses, members do not wait for what is read again.
		old := s.Do == PutBack && ours.name == s.On && ours != theirs
		if booted || old || !r.m.serves(b.pod, b.service) || !r.m.knows(at.node, b.pod.node) ||
			ours.wants.services[b.service].born != b.ours || theirs.wants.services[b.service].born != b.theirs {
			delete(r.backing, at)
		}
	}
}

// serves reports whether a pod is still the one that it was, and one of the service's.
func (m *model) serves(p pod, service string) bool {
	for _, now := range m.of(p.node).wants.pods {
		if now.born == p.born {
			return now.app == service
		}
	}
	return false
}

// checkBackends checks that no backend that lives is gone, and notes those that nodes have
// come to know.
func (r *runner) checkBackends() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for at, b := range r.backing {
		if row, ok, _ := r.node(at.node).Maps().Members.Lookup(at.key); !ok || row.Terminating != 0 {
			r.failLocked("%s: the backend %v of service %s, which lives, is there %v, terminating %d", at.node, at.key.Addr, b.service, ok, row.Terminating)
		}
	}
	standing := map[bpf.Addr]pod{}
	for _, c := range r.m.clusters {
		rows := endpoints(r.clusters[c.name])
		for name, p := range c.wants.pods {
			if e, ok := rows[name]; ok && e.Ready && r.stands(c, p, e) && e.Labels.String() == labelsOf(c.name, p.app).String() {
				standing[bpf.AddrOf(e.IP)] = p
			}
		}
	}
	for _, c := range r.m.clusters {
		for name, ours := range c.wants.services {
			if !r.calm(c.name, lag) || !r.calm(objectsOf(c.name), lag) {
				continue
			}
			for _, n := range c.nodes {
				for _, key := range members(r.node(n.name), c.name, name) {
					p, ok := standing[key.Addr]
					if !ok || p.app != name || !r.m.knows(n.name, p.node) {
						continue
					}
					if theirs := r.m.of(p.node).wants.services[name]; theirs.born != 0 {
						r.backing[backing{n.name, key}] = backed{p, name, ours.born, theirs.born}
					}
				}
			}
		}
	}
}

// members are the backends of a service of the node's cluster that take new connections.
func members(n *meshtest.Node, cluster, service string) (out []bpf.MemberKey) {
	svc := tables.Get(n.Agent.Tables.DB.ReadTxn(), n.Agent.Tables.Services, cluster+"/"+namespace+"/"+service)
	if svc == nil || len(svc.Addresses) == 0 {
		return nil
	}
	m := n.Maps()
	s, _, _ := m.Services.Lookup(bpf.ServiceKey{Addr: bpf.AddrOf(svc.Addresses[0]), Port: bpf.PortOf(80), Proto: 6})
	for _, g := range s.Group[:s.Groups] {
		for i := range g.Count {
			if b, ok, _ := m.Backends.Lookup(bpf.SlotKey{Service: s.ID, Slot: i, Cluster: g.Cluster}); ok {
				out = append(out, bpf.MemberKey{Addr: b.Addr, Service: s.ID, Port: b.Port})
			}
		}
	}
	slices.SortFunc(out, func(a, b bpf.MemberKey) int { return cmp.Compare(a.Addr.String(), b.Addr.String()) })
	return out
}
