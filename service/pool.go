package service

import (
	"iter"
	"net/netip"
)

// Pool holds what one cluster has behind one port of a service, and keeps it up to date
// slice by slice: the cost of a change is the number of endpoints in the changed slice.
// It gives what Frontends gives for the same slices. Not for concurrent use.
type Pool struct {
	port Port
	v4   bool
	by   sight
	// offers count, for each address and port, the endpoints in each condition: an
	// endpoint that moves between slices is in both for a while.
	offers map[netip.AddrPort]offer
	// How many offers are ready, or else a last resort, or else draining; the ready ones
	// also by how near they are, and those that lack hints of each kind.
	ready, last, draining int
	parts                 [Nears][Classes]int
	lacking               [kinds]int
}

// offer counts endpoints. Those that are ready count again if hints name the client, and if
// they lack hints, of each kind. weight is the sum of their weights.
type offer struct {
	ready, last, draining uint16
	near, lacks           [kinds]uint16
	weight                uint32
}

// Role is what a backend may do.
type Role uint32

// The roles.
const (
	// NoRole is that of a backend that a pool does not have.
	NoRole Role = iota
	// Draining backends keep the connections that they have.
	Draining
	// Taking backends also get new ones. They have a role of their own for each Near, this
	// plus that, and for each weight, in the bits from weightBits on.
	Taking
)

const weightBits = 16

// takes is the role of backends that get new connections.
func takes(near Near, weight uint16) Role { return Taking + Role(near) | Role(weight)<<weightBits }

// Takes returns whether backends of the role get new connections, and if so how near they
// are and what they weigh.
func (r Role) Takes() (near Near, weight uint16, ok bool) {
	if r < Taking {
		return 0, 0, false
	}
	return Near(r&(1<<weightBits-1) - Taking), uint16(r >> weightBits), true
}

// NewPool returns an empty pool for what a cluster has behind a port of a service, at a
// frontend with an IPv4 or IPv6 address, as seen by a client.
func NewPool(client Client, svc *Service, cluster ClusterID, port Port, v4 bool) *Pool {
	return &Pool{port: port, v4: v4, by: client.sees(svc, cluster), offers: map[netip.AddrPort]offer{}}
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
			p.put(b, o, o.with(e, s.Weighs(), p.by, by))
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
func (o offer) with(e *Endpoint, weight uint16, seen sight, by uint16) offer {
	ready, last, draining := seen.roles(e)
	if ready {
		o.ready += by
		o.weight += uint32(weight) * uint32(int16(by))
		near, lacks := seen.of(e)
		for i := range kinds {
			o.near[i] += by * uint16(near>>i&1)
			o.lacks[i] += by * uint16(lacks>>i&1)
		}
	}
	if last {
		o.last += by
	}
	if draining {
		o.draining += by
	}
	return o
}

// weighs is the weight of a ready offer. One that is in slices of several weights, while it
// moves from one to the other, has the mean of them.
func (o offer) weighs() uint16 { return meanWeight(o.weight, o.ready) }

func (o offer) role(lastResortsTake bool) Role {
	switch {
	case o.ready > 0:
		return takes(o.nearness(), o.weighs())
	case o.last > 0 && lastResortsTake:
		return takes(0, DefaultWeight)
	case o.last > 0, o.draining > 0:
		return Draining
	}
	return NoRole
}

// nearness is how near a ready offer is.
func (o offer) nearness() (near Near) {
	for i, n := range o.near {
		if n > 0 {
			near |= 1 << i
		}
	}
	return near
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
	p.count(before, -1)
	p.count(after, 1)
	if after == (offer{}) {
		delete(p.offers, b)
	} else {
		p.offers[b] = after
	}
}

func (p *Pool) count(o offer, by int) {
	if n := p.kind(o); n != nil {
		*n += by
	}
	if o.ready == 0 {
		return
	}
	p.parts[o.nearness()][ClassOf(o.weighs())] += by
	for i, n := range o.lacks {
		if n > 0 {
			p.lacking[i] += by
		}
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

// Taking is how many backends get new connections.
func (p *Pool) Taking() int {
	if p.ready > 0 {
		return p.ready
	}
	return p.last
}

func (p *Pool) stock() stock {
	s := stock{last: p.last, draining: p.draining}
	for near := range p.parts {
		for class, n := range p.parts[near] {
			if n > 0 {
				s.ready[near] |= 1 << class
			}
		}
	}
	for i, n := range p.lacking {
		if n > 0 {
			s.lacks |= 1 << i
		}
	}
	return s
}
