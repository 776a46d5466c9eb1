package service

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// ClusterID numbers a cluster; 0 is none.
type ClusterID uint16

// MaxGroups bounds the clusters behind one frontend: a row of the kernel's
// service map has room for this many.
const MaxGroups = 32

// Frontend is one address and port that a service is reached at.
//
//	Frontend ── Groups, one per cluster ── Backends: may get new connections
//	                                    └─ Draining: about to go or in maintenance, keep all they have
//
// An endpoint that is merely not ready is in neither: its open TCP connections do not
// need it there, and everything else finds another.
type Frontend struct {
	Namespace, Name string // the service's
	PortName        string
	Addr            netip.Addr
	Port            uint16
	Protocol        Protocol
	Session         time.Duration // the service's
	// Groups may be empty: the service is known and has no backend. They are sorted
	// by tier, then by cluster; groups that take no new connections come last.
	Groups []Group
	// Omitted are the least preferred clusters, those beyond MaxGroups. Connections that
	// were draining there are cut: their backends no longer belong to the service.
	Omitted []ClusterID
}

// Group holds the backends of one cluster.
type Group struct {
	Cluster ClusterID
	// Tier orders groups: a group is used only while every group of a lower tier is
	// dead or empty.
	Tier uint8
	// Weight multiplies the number of backends when choosing between groups of the
	// same tier.
	Weight   uint8
	Backends []Backend
	Draining []Backend
}

// Backend is an address and port that answers for a service. Node is "" if
// the source does not say.
type Backend struct {
	Addr netip.Addr
	Port uint16
	Node string
}

func (b Backend) compare(other Backend) int {
	return cmp.Or(b.Addr.Compare(other.Addr), cmp.Compare(b.Port, other.Port))
}

// Tiers. Groups whose only backends are terminating come after all others, because they
// are used only where nothing is ready.
const (
	tierPreferred   = 0
	tierOther       = 1
	tierTerminating = 2 // added to the above
)

// Frontends returns what is behind every address and port of svc, as seen from cluster
// own. slices holds each cluster's slices of the service; those of other clusters count
// only if svc is global. The result depends only on the arguments, not on their order.
func Frontends(own ClusterID, svc *Service, slices map[ClusterID][]Slice) []Frontend {
	return frontends(own, svc, svc.Fronts(), slices)
}

// NodePorts is Frontends for the node ports of svc at these addresses of a node.
func NodePorts(own ClusterID, svc *Service, node []netip.Addr, slices map[ClusterID][]Slice) []Frontend {
	return frontends(own, svc, svc.NodeFronts(node), slices)
}

func frontends(own ClusterID, svc *Service, fronts []Front, slices map[ClusterID][]Slice) (out []Frontend) {
	for _, at := range fronts {
		f := Frontend{
			Namespace: svc.Namespace, Name: svc.Name,
			PortName: at.Of.Name, Addr: at.Addr, Port: at.Port, Protocol: at.Of.Protocol, Session: svc.Session,
		}
		f.groups(own, svc, at.Of, slices)
		out = append(out, f)
	}
	return out
}

// Front is an address and port at which a port of a service is reached.
type Front struct {
	Addr netip.Addr
	Port uint16
	Of   Port
}

// Fronts are a service's own, in the order of Frontends.
func (s *Service) Fronts() (out []Front) {
	for _, a := range s.Addresses {
		for _, p := range s.Ports {
			out = append(out, Front{a, p.Port, p})
		}
	}
	return out
}

// NodeFronts are those of its node ports at these addresses of a node, as far as they are of
// its IP families.
func (s *Service) NodeFronts(node []netip.Addr) (out []Front) {
	if !s.HasNodePorts() {
		return nil
	}
	for _, a := range node {
		if !s.has(a) {
			continue
		}
		for _, p := range s.Ports {
			if p.NodePort != 0 {
				out = append(out, Front{a, p.NodePort, p})
			}
		}
	}
	return out
}

// HasNodePorts reports whether nodes offer the service to clients outside of the mesh.
func (s *Service) HasNodePorts() bool {
	return slices.ContainsFunc(s.Ports, func(p Port) bool { return p.NodePort != 0 })
}

func (f *Frontend) groups(own ClusterID, svc *Service, port Port, from map[ClusterID][]Slice) {
	for _, cluster := range slices.Sorted(maps.Keys(from)) {
		if cluster != own && !svc.Global {
			continue
		}
		g, ok := group(port, f.Addr.Is4(), from[cluster])
		if !ok {
			continue
		}
		g.Cluster = cluster
		g.Tier += tier(svc.Affinity, cluster == own)
		f.Groups = append(f.Groups, g)
	}
	slices.SortFunc(f.Groups, func(a, b Group) int { return a.place().compare(b.place(), own) })
	if len(f.Groups) > MaxGroups {
		for _, g := range f.Groups[MaxGroups:] {
			f.Omitted = append(f.Omitted, g.Cluster)
		}
		f.Groups = f.Groups[:MaxGroups]
	}
}

func (g *Group) place() Place { return Place{g.Cluster, g.Tier, len(g.Backends) > 0} }

func tier(a Affinity, local bool) uint8 {
	if a == AffinityLocal && !local || a == AffinityRemote && local {
		return tierOther
	}
	return tierPreferred
}

// candidate is an endpoint with the port applied.
type candidate struct {
	Backend
	ready, lastResort, draining bool
}

// group sorts the endpoints of one cluster into those that take connections and those
// that only keep theirs; false if there are neither. Ready ones take connections; if
// there are none, those that are terminating but still serving do.
func group(port Port, v4 bool, from []Slice) (Group, bool) {
	g := Group{Weight: 1}
	var last []Backend
	for _, c := range candidates(port, v4, from) {
		switch {
		case c.ready:
			g.Backends = append(g.Backends, c.Backend)
		case c.lastResort:
			last = append(last, c.Backend)
		case c.draining:
			g.Draining = append(g.Draining, c.Backend)
		}
	}
	if len(g.Backends) > 0 {
		g.Draining = append(g.Draining, last...)
		slices.SortFunc(g.Draining, Backend.compare)
	} else if len(last) > 0 {
		g.Backends, g.Tier = last, tierTerminating
	}
	return g, len(g.Backends)+len(g.Draining) > 0
}

// candidates returns the endpoints sorted by address and port, each once: one that moves
// between slices is in both for a while. Slices are usually sorted already, and then this
// takes one pass.
func candidates(port Port, v4 bool, from []Slice) []candidate {
	var all []candidate
	for i := range from {
		number, ok := match(port, from[i].Ports)
		if !ok {
			continue
		}
		all = slices.Grow(all, len(from[i].Endpoints))
		for _, e := range from[i].Endpoints {
			if e.Addr.Is4() == v4 {
				all = append(all, candidate{Backend{e.Addr, number, e.Node}, e.Ready, e.Serving && e.Terminating && !e.Draining, e.Draining})
			}
		}
	}
	byAddr := func(a, b candidate) int { return a.compare(b.Backend) }
	if !slices.IsSortedFunc(all, byAddr) {
		slices.SortFunc(all, byAddr)
	}
	out := all[:0]
	for _, c := range all {
		n := len(out)
		if n == 0 || out[n-1].compare(c.Backend) != 0 {
			out = append(out, c)
			continue
		}
		have := &out[n-1]
		// The ready one knows the node.
		if c.ready && !have.ready || c.ready == have.ready && c.Node > have.Node {
			have.Node = c.Node
		}
		have.ready = have.ready || c.ready
		have.lastResort = have.lastResort || c.lastResort
		have.draining = have.draining || c.draining
	}
	return out
}

// match finds a service's port among a slice's, by name and protocol. A port without a
// name also matches the slice's only port of its protocol, because names are needed only
// where there are several.
func match(port Port, ports []SlicePort) (uint16, bool) {
	var only uint16
	candidates := 0
	for _, p := range ports {
		if p.Protocol != port.Protocol || p.Port == 0 {
			continue
		}
		if p.Name == port.Name {
			return p.Port, true
		}
		candidates++
		only = p.Port
	}
	return only, port.Name == "" && candidates == 1
}
