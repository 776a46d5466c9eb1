package endpoints

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/wire"
)

// sliceSize bounds the endpoints of one slice, so that a change of one endpoint does not
// rewrite many.
const sliceSize = 100

// todo is what has to be decided again about a service.
type todo struct {
	whole bool            // everything
	pods  map[name]bool   // whether and how they are endpoints
	parts map[string]bool // whether these slices are as they should be
}

// touch marks what has to be decided again about a service.
func (m *model) touch(svc name) *todo {
	t := m.todo[svc]
	if t == nil {
		t = &todo{pods: map[name]bool{}, parts: map[string]bool{}}
		m.todo[svc] = t
	}
	return t
}

// spread is how the pods that a service selects are spread over its slices, of at most
// sliceSize endpoints each. An endpoint stays in its slice, so that a change of one pod
// concerns no other slice. Slices that end up empty are dropped.
type spread struct {
	seats map[name]seat
	parts map[string]*part
	// full counts the slices of each kind, from the first on, that have no room.
	full map[string]int
}

// seat is a pod's place.
type seat struct {
	part     string
	endpoint service.Endpoint
}

// part is a slice. Slices of a kind have the same ports, and names that begin alike.
type part struct {
	kind service.Slice // without endpoints
	pods map[name]bool
}

func newSpread() *spread {
	return &spread{map[name]seat{}, map[string]*part{}, map[string]int{}}
}

// put gives a pod a seat in a slice of this kind: the one that it has, or in the slice it
// prefers if that has room, or in the first that has. It returns the slices that this
// changes.
func (s *spread) put(who name, kind service.Slice, e service.Endpoint, prefers string) (changed []string) {
	if old, seated := s.seats[who]; seated {
		if s.parts[old.part].kind.Name == kind.Name {
			if reflect.DeepEqual(old.endpoint, e) {
				return nil
			}
			s.seats[who] = seat{old.part, e}
			return []string{old.part}
		}
		changed = s.remove(who)
	}
	in := prefers
	if in == "" || !s.room(in) {
		for in = partName(kind.Name, s.full[kind.Name]); !s.room(in); in = partName(kind.Name, s.full[kind.Name]) {
			s.full[kind.Name]++
		}
	}
	p := s.parts[in]
	if p == nil {
		p = &part{kind, map[name]bool{}}
		s.parts[in] = p
	}
	p.pods[who], s.seats[who] = true, seat{in, e}
	return append(changed, in)
}

func (s *spread) room(part string) bool {
	p := s.parts[part]
	return p == nil || len(p.pods) < sliceSize
}

// remove takes a pod's seat away and returns the slice that this changes, if it had one.
func (s *spread) remove(who name) (changed []string) {
	old, seated := s.seats[who]
	if !seated {
		return nil
	}
	delete(s.seats, who)
	p := s.parts[old.part]
	if delete(p.pods, who); len(p.pods) == 0 {
		delete(s.parts, old.part)
	}
	if i, ok := partNumber(p.kind.Name, old.part); ok && i < s.full[p.kind.Name] {
		s.full[p.kind.Name] = i
	}
	return []string{old.part}
}

// slice returns a slice as it should be; nil if there should be none.
func (s *spread) slice(sliceName string) *discoveryv1.EndpointSlice {
	if s == nil || s.parts[sliceName] == nil {
		return nil
	}
	p := s.parts[sliceName]
	endpoints := make([]service.Endpoint, 0, len(p.pods))
	for who := range p.pods {
		endpoints = append(endpoints, s.seats[who].endpoint)
	}
	slices.SortFunc(endpoints, func(a, b service.Endpoint) int { return a.Addr.Compare(b.Addr) })
	return kubernetesSlice(sliceName, p.kind, endpoints)
}

// place gives the pods of a service their seats, as far as something about them has
// changed, and returns the slices to look at.
func (m *model) place(svcName name) map[string]bool {
	t := m.touch(svcName)
	delete(m.todo, svcName)
	svc, s := m.services[svcName], m.spreads[svcName]
	if svc == nil || len(svc.Selector) == 0 {
		m.unseat(svcName, t.parts)
		return t.parts
	}
	pods := t.pods
	prefers := func(name) string { return "" }
	if s == nil || t.whole {
		had := m.seatsOf(svcName)
		m.unseat(svcName, t.parts)
		s = newSpread()
		m.spreads[svcName] = s
		pods = m.inNamespace[svcName.namespace]
		prefers = func(who name) string { return had[m.endpoints[who].value.IP] }
	}
	// Who has a slice already comes first.
	var seatless []name
	for _, who := range sorted(pods) {
		kind, e, ok := m.seat(svc, who)
		switch in := prefers(who); {
		case !ok:
			add(t.parts, s.remove(who))
			unset(m.members, who, svcName)
		case in == "" || !partOf(kind.Name, in):
			seatless = append(seatless, who)
		default:
			add(t.parts, s.put(who, kind, e, in))
			set(m.members, who, svcName)
		}
	}
	for _, who := range seatless {
		kind, e, _ := m.seat(svc, who)
		add(t.parts, s.put(who, kind, e, ""))
		set(m.members, who, svcName)
	}
	if len(s.seats) == 0 {
		delete(m.spreads, svcName)
	}
	return t.parts
}

func add(to map[string]bool, all []string) {
	for _, one := range all {
		to[one] = true
	}
}

// seat returns the endpoint that a pod is of a service, and the kind of slice it is in.
func (m *model) seat(svc *service.Service, who name) (service.Slice, service.Endpoint, bool) {
	p := m.pods[who]
	have, there := m.endpoints[who]
	if p == nil || !there {
		return service.Slice{}, service.Endpoint{}, false
	}
	e := have.value
	candidate := service.Pod{
		Namespace: who.namespace, Name: who.name, Node: e.Node, Addr: e.IP,
		Labels: p.Labels, Ready: e.Ready, Terminating: e.State == wire.EndpointTerminating,
		Hostname: p.Hostname, Subdomain: p.Subdomain,
	}
	if n := m.nodes[e.Node]; n != nil {
		candidate.Zone = n.registration.Zone()
	}
	for _, np := range p.NamedPorts {
		candidate.NamedPorts = append(candidate.NamedPorts, service.NamedPort{Name: np.Name, Protocol: service.Protocol(np.Protocol), Port: np.Port})
	}
	return svc.Seat(&candidate)
}

// seatsOf returns the slices that a service's addresses are in: those in the store, or,
// later than that, those decided on.
func (m *model) seatsOf(svcName name) map[netip.Addr]string {
	had := map[netip.Addr]string{}
	for sliceName, s := range m.slices[svcName] {
		for _, a := range addresses(s.value) {
			had[a] = sliceName
		}
	}
	if s := m.spreads[svcName]; s != nil {
		for _, at := range s.seats {
			had[at.endpoint.Addr] = at.part
		}
	}
	return had
}

// unseat takes all seats of a service away, and adds its slices to those to look at.
func (m *model) unseat(svcName name, parts map[string]bool) {
	if s := m.spreads[svcName]; s != nil {
		for who := range s.seats {
			unset(m.members, who, svcName)
		}
		add(parts, slices.Collect(maps.Keys(s.parts)))
		delete(m.spreads, svcName)
	}
	add(parts, slices.Collect(maps.Keys(m.slices[svcName])))
}
