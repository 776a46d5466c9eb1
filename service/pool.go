package service

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
)

// Pool holds what one cluster has behind one port of a service, and keeps it up to date
// slice by slice: the cost of a change is the number of endpoints in the changed slice.
// It gives what Frontends gives for the same slices. Not for concurrent use.
type Pool struct {
	port Port
	v4   bool
	// offers count, for each address and port, the endpoints in each condition: an
	// endpoint that moves between slices is in both for a while.
	offers map[netip.AddrPort]offer
	// How many offers are ready, or else a last resort, or else draining.
	ready, last, draining int
}

type offer struct{ ready, last, draining uint16 }

// Role is what a backend may do.
type Role uint8

// The roles.
const (
	// NoRole is that of a backend that a pool does not have.
	NoRole Role = iota
	// Draining backends keep the connections that they have.
	Draining
	// Taking backends also get new ones.
	Taking
)

// NewPool returns an empty pool for a port of a frontend with an IPv4 or IPv6 address.
func NewPool(port Port, v4 bool) *Pool {
	return &Pool{port: port, v4: v4, offers: map[netip.AddrPort]offer{}}
}

// Replace puts a slice in the place of its former self, and calls changed for each
// backend whose role that changes, in no particular order. A slice that is new has no
// former self, one that is gone no later: nil.
func (p *Pool) Replace(before, after *Slice, changed func(b netip.AddrPort, before, after Role)) {
	only := p.ready == 0 // the last resorts are taking
	touched := map[netip.AddrPort]Role{}
	count := func(s *Slice, by uint16) {
		if s == nil {
			return
		}
		number, ok := match(p.port, s.Ports)
		if !ok {
			return
		}
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			if e.Addr.Is4() != p.v4 {
				continue
			}
			b := netip.AddrPortFrom(e.Addr, number)
			o := p.offers[b]
			if _, ok := touched[b]; !ok {
				touched[b] = o.role(only)
			}
			p.put(b, o, o.with(e, by))
		}
	}
	count(after, 1)
	count(before, ^uint16(0)) // minus one
	if now := p.ready == 0; now != only {
		for b, o := range p.offers {
			if _, ok := touched[b]; !ok && o.role(only) != o.role(now) {
				changed(b, o.role(only), o.role(now))
			}
		}
	}
	for b, was := range touched {
		if now := p.offers[b].role(p.ready == 0); now != was {
			changed(b, was, now)
		}
	}
}

// with is o with an endpoint counted by times more.
func (o offer) with(e *Endpoint, by uint16) offer {
	if e.Ready {
		o.ready += by
	}
	if e.Serving && e.Terminating && !e.Draining {
		o.last += by
	}
	if e.Draining {
		o.draining += by
	}
	return o
}

func (o offer) role(lastResortsTake bool) Role {
	switch {
	case o.ready > 0, o.last > 0 && lastResortsTake:
		return Taking
	case o.last > 0, o.draining > 0:
		return Draining
	}
	return NoRole
}

// kind is the counter that an offer belongs to, nil for none.
func (p *Pool) kind(o offer) *int {
	switch {
	case o.ready > 0:
		return &p.ready
	case o.last > 0:
		return &p.last
	case o.draining > 0:
		return &p.draining
	}
	return nil
}

func (p *Pool) put(b netip.AddrPort, before, after offer) {
	if n := p.kind(before); n != nil {
		*n--
	}
	if n := p.kind(after); n != nil {
		*n++
	}
	if after == (offer{}) {
		delete(p.offers, b)
	} else {
		p.offers[b] = after
	}
}

// Of yields the backends that a slice of the pool offers, with the roles that they have.
// One that it offers more than once comes more than once.
func (p *Pool) Of(s *Slice) iter.Seq2[netip.AddrPort, Role] {
	return func(yield func(netip.AddrPort, Role) bool) {
		number, ok := match(p.port, s.Ports)
		if !ok {
			return
		}
		for i := range s.Endpoints {
			b := netip.AddrPortFrom(s.Endpoints[i].Addr, number)
			if r := p.offers[b].role(p.ready == 0); r != NoRole && !yield(b, r) {
				return
			}
		}
	}
}

// Backends yields the backends that have a role, in no particular order.
func (p *Pool) Backends() iter.Seq2[netip.AddrPort, Role] {
	return func(yield func(netip.AddrPort, Role) bool) {
		for b, o := range p.offers {
			if r := o.role(p.ready == 0); r != NoRole && !yield(b, r) {
				return
			}
		}
	}
}

// taking is the number of backends that get new connections.
func (p *Pool) taking() int {
	if p.ready > 0 {
		return p.ready
	}
	return p.last
}

func (p *Pool) empty() bool { return p.ready+p.last+p.draining == 0 }

// Place is where a cluster's group comes among those of a frontend.
type Place struct {
	Cluster ClusterID
	Tier    uint8
	// Taking is whether any of its backends gets new connections.
	Taking bool
}

// Places orders the groups of a frontend, those that are not empty, as Frontends does.
func Places(own ClusterID, svc *Service, pools map[ClusterID]*Pool) (places []Place, omitted []ClusterID) {
	for cluster, p := range pools {
		if p.empty() || cluster != own && !svc.Global {
			continue
		}
		at := Place{Cluster: cluster, Tier: tier(svc.Affinity, cluster == own), Taking: p.taking() > 0}
		if p.ready == 0 && p.last > 0 {
			at.Tier += tierTerminating
		}
		places = append(places, at)
	}
	slices.SortFunc(places, func(a, b Place) int { return a.compare(b, own) })
	for len(places) > MaxGroups {
		omitted = append(omitted, places[len(places)-1].Cluster)
		places = places[:len(places)-1]
	}
	slices.Reverse(omitted)
	return places, omitted
}

// compare orders groups as cluster own sees them. Groups that only drain come last and so
// make room for those that take connections; the own cluster comes before all others of
// its tier, so that it is omitted only while it takes none.
func (p Place) compare(other Place, own ClusterID) int {
	return cmp.Or(first(other.Taking)-first(p.Taking), cmp.Compare(p.Tier, other.Tier), first(other.Cluster == own)-first(p.Cluster == own), cmp.Compare(p.Cluster, other.Cluster))
}

func first(yes bool) int {
	if yes {
		return 1
	}
	return 0
}
