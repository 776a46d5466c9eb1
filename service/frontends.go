package service

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// ClusterID numbers a cluster; 0 is none.
type ClusterID uint16

// MaxGroups bounds the groups behind one frontend: a row of the kernel's service map has
// room for this many.
const MaxGroups = 32

// Frontend is one address and port that a service is reached at.
//
//	Frontend ── Groups, by cluster and nearness ── Backends: may get new connections
//	                                            └─ Draining: about to go or in maintenance, keep all they have
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
	// Split says that clients outside of the mesh have a frontend of their own here, Outside.
	Split, Outside bool
	// Here says that its backends are on the client's node, whatever their addresses say.
	Here bool
	// Ranged says that the frontend is only for clients in Ranges.
	Ranged bool
	Ranges []netip.Prefix
	// Groups may be empty: the service is known and has no backend. They are sorted
	// by tier, then by cluster; groups that take no new connections come last.
	Groups []Group
	// Merged is set if there are more groups than MaxGroups unless all backends of a cluster
	// are in one. Flat as well if some are nearer, which does not count then.
	Merged, Flat bool
	// Algorithm and TableSize are the service's.
	Algorithm Algorithm
	TableSize uint32
	// Omitted are the least preferred clusters, those beyond MaxGroups. Connections that
	// were draining there are cut: their backends no longer belong to the service.
	Omitted []ClusterID
}

// Group holds the backends of one cluster that are as near and whose weights are of one
// class. What drains is in the first group of its cluster.
type Group struct {
	Cluster ClusterID
	Near    Near
	Class   Class
	// Tier orders groups: a group is used only while every group of a lower tier is
	// dead or empty.
	Tier     uint8
	Backends []Backend
	Draining []Backend
}

// Backend is an address and port that answers for a service. Node is "" if
// the source does not say. Weight is 0 if it takes no new connections.
type Backend struct {
	Addr   netip.Addr
	Port   uint16
	Node   string
	Weight uint16
}

func (b Backend) compare(other Backend) int {
	return cmp.Or(b.Addr.Compare(other.Addr), cmp.Compare(b.Port, other.Port))
}

// Tiers, of several steps each. Groups whose only backends are terminating come after all
// others, because they are used only where nothing is ready.
const (
	tierPreferred   = 0
	tierOther       = steps
	tierTerminating = 2 * steps // added to the above
)

// Frontends returns what is behind every address and port of svc, as seen by a client.
// slices holds each cluster's slices of the service; those of other clusters count
// only if svc is global. The result depends only on the arguments, not on their order.
func Frontends(client Client, svc *Service, slices map[ClusterID][]Slice) []Frontend {
	return frontends(client, svc, svc.Fronts(), slices)
}

// Outer is Frontends for the addresses outside of the mesh: those of a node, with node ports,
// and those that the service has there itself. Of here, its slices with only this node's
// endpoints, are what clients outside get if svc says ExternalLocal; all others get all, as in
// kube-proxy, near ones first: NodeLocal does not concern these addresses.
func Outer(client Client, svc *Service, node []netip.Addr, all, here map[ClusterID][]Slice) (out []Frontend) {
	everywhere, local := *svc, *svc
	everywhere.NodeLocal, local.NodeLocal = false, true
	for _, at := range svc.Outer(node) {
		as, from := &everywhere, all
		if at.Outside {
			as, from = &local, here
		}
		out = append(out, frontends(client, as, []Front{at}, from)...)
	}
	return out
}

func frontends(client Client, svc *Service, fronts []Front, from map[ClusterID][]Slice) (out []Frontend) {
	for _, at := range fronts {
		f := Frontend{
			Namespace: svc.Namespace, Name: svc.Name,
			PortName: at.Of.Name, Addr: at.Addr, Port: at.Port, Protocol: at.Of.Protocol, Session: svc.Session,
			Split: at.Split, Outside: at.Outside, Algorithm: svc.Algorithm, TableSize: svc.TableSize,
		}
		if at.Balanced && svc.Ranged {
			f.Ranged = true
			f.Ranges = slices.DeleteFunc(slices.Clone(svc.Ranges), func(p netip.Prefix) bool { return p.Addr().Is4() != at.Addr.Is4() })
		}
		f.groups(client, svc, at.Of, from)
		out = append(out, f)
	}
	return out
}

// Front is an address and port at which a port of a service is reached.
type Front struct {
	Addr netip.Addr
	Port uint16
	Of   Port
	// Split and Outside are as in Frontend. Balanced is at a load balancer's address.
	Split, Outside, Balanced bool
}

// Fronts are a service's own, in the order of Frontends.
func (s *Service) Fronts() (out []Front) {
	if s.LeftAlone {
		return nil
	}
	for _, a := range s.Addresses {
		for _, p := range s.Ports {
			out = append(out, Front{Addr: a, Port: p.Port, Of: p})
		}
	}
	return out
}

// Outer are those at addresses outside of the mesh, as far as they are of its IP families: its
// node ports at these addresses of a node, and its own ports at its external ones. One for
// clients outside comes before the one that it is split from. Nodes carry TCP and UDP there.
func (s *Service) Outer(node []netip.Addr) (out []Front) {
	if s.LeftAlone {
		return nil
	}
	add := func(addrs []netip.Addr, balanced bool, number func(Port) uint16) {
		for _, a := range addrs {
			for _, p := range s.Ports {
				if number(p) == 0 || p.Protocol == SCTP || !s.has(a) {
					continue
				}
				f := Front{Addr: a, Port: number(p), Of: p, Balanced: balanced}
				if s.ExternalLocal {
					f.Outside = true
					out = append(out, f)
					f.Outside, f.Split = false, true
				}
				out = append(out, f)
			}
		}
	}
	own := func(p Port) uint16 { return p.Port }
	add(node, false, func(p Port) uint16 { return p.NodePort })
	add(s.Balanced, true, own)
	// Its source ranges hold for an address that is an external one as well.
	add(slices.DeleteFunc(slices.Clone(s.External), func(a netip.Addr) bool { return slices.Contains(s.Balanced, a) }), false, own)
	return out
}

// Local counts the endpoints that clients outside may be sent to, of these slices: those that are
// ready, each pod once.
func (s *Service) Local(here []Slice) int {
	seen := map[netip.Addr]bool{}
	for i := range here {
		for _, e := range here[i].Endpoints {
			if e.Ready && (len(s.Families) == 0 || FamilyOf(e.Addr) == s.Families[0]) {
				seen[e.Addr] = true
			}
		}
	}
	return len(seen)
}

// HasOuter reports whether it has addresses of its own outside of the mesh.
func (s *Service) HasOuter() bool { return len(s.External)+len(s.Balanced) > 0 }

// HasNodePorts reports whether nodes offer the service to clients outside of the mesh.
func (s *Service) HasNodePorts() bool {
	return slices.ContainsFunc(s.Ports, func(p Port) bool { return p.NodePort != 0 })
}

func (f *Frontend) groups(client Client, svc *Service, port Port, from map[ClusterID][]Slice) {
	all, stocks := map[ClusterID]*sorted{}, map[ClusterID]stock{}
	for cluster := range from {
		s := sortOut(port, f.Addr.Is4(), from[cluster], client.sees(svc, cluster))
		all[cluster], stocks[cluster] = &s, s.stock()
	}
	a := arrange(client.Cluster, svc, stocks)
	f.Omitted, f.Merged, f.Flat = a.omitted, a.merged, a.flat
	for _, p := range a.places {
		s := all[p.Cluster]
		g := Group{Cluster: p.Cluster, Near: p.Near, Class: p.Class, Tier: p.Tier, Backends: s.taking[part{p.Near, p.Class}], Draining: s.draining}
		if f.Merged {
			g.Backends = s.together()
		}
		s.draining = nil
		f.Groups = append(f.Groups, g)
	}
}

func tier(a Affinity, local bool) uint8 {
	if a == AffinityLocal && !local || a == AffinityRemote && local {
		return tierOther
	}
	return tierPreferred
}

// candidate is an endpoint with the port applied.
type candidate struct {
	Backend
	near, lacks          Near
	ready                uint16 // how many endpoints are, with the sum of their weights
	weight               uint32
	lastResort, draining bool
}

// sorted are the endpoints of one cluster: those that take connections, by part, and those
// that only keep theirs. Ready ones take connections; if there are none, those that are
// terminating but still serving do, however near, and all alike.
type sorted struct {
	taking   map[part][]Backend
	draining []Backend
	lacks    Near
	ready    bool // whether those that take connections are
}

// part are backends that are as near and whose weights are of one class.
type part struct {
	near  Near
	class Class
}

func sortOut(port Port, v4 bool, from []Slice, by sight) (s sorted) {
	s.taking = map[part][]Backend{}
	var last []Backend
	for _, c := range candidates(port, v4, from, by) {
		switch {
		case c.ready > 0:
			s.ready = true
			c.Weight = meanWeight(c.weight, c.ready)
			at := part{c.near, ClassOf(c.Weight)}
			s.taking[at] = append(s.taking[at], c.Backend)
			s.lacks |= c.lacks
		case c.lastResort:
			last = append(last, c.Backend)
		case c.draining:
			s.draining = append(s.draining, c.Backend)
		}
	}
	if !s.ready {
		for i := range last {
			last[i].Weight = DefaultWeight
		}
		s.taking[part{}] = last
	} else if len(last) > 0 {
		s.draining = append(s.draining, last...)
		slices.SortFunc(s.draining, Backend.compare)
	}
	return s
}

// meanWeight is the mean of some weights, whose sum is given.
func meanWeight(sum uint32, of uint16) uint16 { return uint16(sum / uint32(of)) }

// together are all that take connections.
func (s *sorted) together() (out []Backend) {
	for _, some := range s.taking {
		out = append(out, some...)
	}
	slices.SortFunc(out, Backend.compare)
	return out
}

// candidates returns the endpoints sorted by address and port, each once: one that moves
// between slices is in both for a while. Slices are usually sorted already, and then this
// takes one pass.
func candidates(port Port, v4 bool, from []Slice, by sight) []candidate {
	var all []candidate
	for i := range from {
		number, ok := match(port, from[i].Ports)
		if !ok {
			continue
		}
		all = slices.Grow(all, len(from[i].Endpoints))
		for j := range from[i].Endpoints {
			e := &from[i].Endpoints[j]
			if e.Addr.Is4() != v4 {
				continue
			}
			c := candidate{Backend: Backend{Addr: e.Addr, Port: number, Node: e.Node}}
			var ready bool
			if ready, c.lastResort, c.draining = by.roles(e); ready {
				c.ready, c.weight = 1, uint32(from[i].Weighs())
				c.near, c.lacks = by.of(e)
			}
			all = append(all, c)
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
		if now, was := c.ready > 0, have.ready > 0; now && !was || now == was && c.Node > have.Node {
			have.Node = c.Node
		}
		have.near |= c.near
		have.lacks |= c.lacks
		have.ready += c.ready
		have.weight += c.weight
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
