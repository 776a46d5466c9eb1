package chaos

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/internal/meshtest"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// mending are the steps that mend everything.
func (m *model) mending() (steps []Step) {
	add := func(do Verb, on string) { steps = append(steps, Step{Do: do, On: on}) }
	for _, c := range m.clusters {
		add(GiveStore, c.name)
		for _, s := range c.servers {
			add(HealServer, s.name)
			add(StartServer, s.name)
		}
		if c.empty {
			add(PutBack, c.name)
		}
		for _, n := range c.nodes {
			add(HealAgent, n.name)
			add(Join, n.name)
			add(MendKernel, n.name)
			add(StartAgent, n.name)
		}
	}
	for _, on := range sorted(m.control) {
		add(HealControl, on)
	}
	for _, on := range sorted(m.data) {
		add(HealData, on)
	}
	for i, c := range m.clusters {
		for _, other := range m.clusters[:i] {
			add(Meet, c.name+">"+other.name)
		}
	}
	return steps
}

// checkWanted checks that every node knows every pod that operators want, with its labels,
// and has the backends of every service.
func (r *runner) checkWanted() {
	for _, c := range r.m.clusters {
		rows := endpoints(r.clusters[c.name])
		for _, name := range sorted(c.wants.pods) {
			p, e := c.wants.pods[name], rows[name]
			if want := labelsOf(c.name, p.app).String(); e.Labels.String() != want || !e.Ready {
				r.fail("%s: pod %s is %v, ready %v, want %s", c.name, name, e.Labels, e.Ready, want)
				continue
			}
			for _, n := range r.nodes() {
				row, ok, _ := n.Maps().IPs.Lookup(bpf.AddrOf(e.IP))
				if !ok || row.Identity != uint32(e.Identity) {
					r.fail("%s knows %v, pod %s of %s, as %d (%v), not as %d", n.Name, e.IP, name, c.name, row.Identity, ok, e.Identity)
				}
			}
		}
		for name := range rows {
			if c.wants.pods[name] == (pod{}) {
				r.fail("%s: pod %s is left over", c.name, name)
			}
		}
	}
	for _, c := range r.m.clusters {
		for _, name := range sorted(c.wants.services) {
			r.checkService(c, name)
		}
	}
}

// checkService checks that the backends of a service are the pods of all clusters that have it.
func (r *runner) checkService(c *cluster, name string) {
	var want []netip.Addr
	for _, other := range r.m.clusters {
		if other.wants.services[name].born == 0 {
			continue
		}
		for pod, e := range endpoints(r.clusters[other.name]) {
			if other.wants.pods[pod].app == name {
				want = append(want, e.IP)
			}
		}
	}
	slices.SortFunc(want, netip.Addr.Compare)
	for _, n := range r.clusters[c.name].Nodes {
		svc := tables.Get(n.Agent.Tables.DB.ReadTxn(), n.Agent.Tables.Services, c.name+"/"+namespace+"/"+name)
		if svc == nil || len(svc.Addresses) == 0 {
			r.fail("%s does not know service %s", n.Name, name)
			continue
		}
		if got := backends(n, svc.Addresses[0]); !slices.Equal(got, want) {
			r.fail("%s: service %s has backends %v, want %v", n.Name, name, got, want)
		}
	}
}

// backends are the addresses behind a frontend's port 80, sorted.
func backends(n *meshtest.Node, frontend netip.Addr) (out []netip.Addr) {
	m := n.Maps()
	s, _, _ := m.Services.Lookup(bpf.ServiceKey{Addr: bpf.AddrOf(frontend), Port: bpf.PortOf(80), Proto: 6})
	for _, g := range s.Group[:s.Groups] {
		for i := range g.Count {
			if b, ok, _ := m.Backends.Lookup(bpf.SlotKey{Service: s.ID, Slot: i, Cluster: g.Cluster}); ok {
				out = append(out, b.Addr.Netip())
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// nodes are all of them, in order.
func (r *runner) nodes() (all []*meshtest.Node) {
	for _, c := range r.m.clusters {
		for _, n := range c.nodes {
			all = append(all, r.node(n.name))
		}
	}
	return all
}

// checkFresh compares every node's maps with those that an agent which finds empty ones
// makes of the same store.
func (r *runner) checkFresh() {
	before := map[string][]string{}
	for _, n := range r.nodes() {
		before[n.Name] = describe(n)
		n.Stop()
		n.EmptyMaps()
		n.Start()
	}
	r.mesh.Pass(poll)
	r.within(settle, func() {
		for _, n := range r.nodes() {
			was, fresh := before[n.Name], describe(n)
			if extra := without(was, fresh); len(extra) > 0 {
				r.fail("%s has what a fresh start does not compute: %s", n.Name, strings.Join(extra, "; "))
			}
			if missing := without(fresh, was); len(missing) > 0 {
				r.fail("%s lacks what a fresh start computes: %s", n.Name, strings.Join(missing, "; "))
			}
		}
	})
}

// without returns what is in one list and not in the other.
func without(list, other []string) []string {
	have := map[string]bool{}
	for _, line := range list {
		have[line] = true
	}
	for _, line := range other {
		delete(have, line)
	}
	return slices.Sorted(maps.Keys(have))
}
