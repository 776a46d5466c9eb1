package endpoints

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
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
	seats map[guest]seat
	parts map[string]*part
	// full counts the slices of each kind, from the first on, that have no room.
	full map[string]int
}

// guest is a pod by its address of one IP family: of a service of both it is an endpoint
// twice, in slices of their own.
type guest struct {
	name
	family corev1.IPFamily
}

// bothFamilies are those that a pod may have addresses of.
var bothFamilies = [...]corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}

// seat is a guest's place.
type seat struct {
	part     string
	endpoint service.Endpoint
}

// part is a slice. Slices of a kind have the same ports, and names that begin alike.
type part struct {
	kind   service.Slice // without endpoints
	guests map[guest]bool
}

func newSpread() *spread {
	return &spread{map[guest]seat{}, map[string]*part{}, map[string]int{}}
}

// put gives a guest a seat in a slice of this kind: the one that it has, or in the slice it
// prefers if that has room, or in the first that has. It returns the slices that this
// changes.
func (s *spread) put(who guest, kind service.Slice, e service.Endpoint, prefers string) (changed []string) {
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
		p = &part{kind, map[guest]bool{}}
		s.parts[in] = p
	}
	p.guests[who], s.seats[who] = true, seat{in, e}
	return append(changed, in)
}

func (s *spread) room(part string) bool {
	p := s.parts[part]
	return p == nil || len(p.guests) < sliceSize
}

// remove takes a guest's seat away and returns the slice that this changes, if it had one.
func (s *spread) remove(who guest) (changed []string) {
	old, seated := s.seats[who]
	if !seated {
		return nil
	}
	delete(s.seats, who)
	p := s.parts[old.part]
	if delete(p.guests, who); len(p.guests) == 0 {
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
	endpoints := make([]service.Endpoint, 0, len(p.guests))
	for who := range p.guests {
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
	prefers := func(guest) string { return "" }
	if s == nil || t.whole {
		had := m.seatsOf(svcName)
		m.unseat(svcName, t.parts)
		s = newSpread()
		m.spreads[svcName] = s
		pods = m.inNamespace[svcName.namespace]
		prefers = func(who guest) string { return had[m.addressOf(who)] }
	}
	// Who has a slice already comes first.
	var seatless []guest
	for _, pod := range sorted(pods) {
		member := false
		for _, family := range bothFamilies {
			who := guest{pod, family}
			kind, e, ok := m.seat(svc, who)
			member = member || ok
			switch in := prefers(who); {
			case !ok:
				add(t.parts, s.remove(who))
			case in == "" || !partOf(kind.Name, in):
				seatless = append(seatless, who)
			default:
				add(t.parts, s.put(who, kind, e, in))
			}
		}
		if member {
			set(m.members, pod, svcName)
		} else {
			unset(m.members, pod, svcName)
		}
	}
	for _, who := range seatless {
		kind, e, _ := m.seat(svc, who)
		add(t.parts, s.put(who, kind, e, ""))
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

// addressOf returns a guest's address; invalid if its pod has none of that family.
func (m *model) addressOf(who guest) netip.Addr {
	e := m.endpoints[who.name].value
	for _, ip := range [...]netip.Addr{e.IP, e.Second} {
		if ip.IsValid() && service.FamilyOf(ip) == who.family {
			return ip
		}
	}
	return netip.Addr{}
}

// seat returns the endpoint that a guest is of a service, and the kind of slice it is in.
func (m *model) seat(svc *service.Service, who guest) (service.Slice, service.Endpoint, bool) {
	p, addr := m.pods[who.name], m.addressOf(who)
	if p == nil || !addr.IsValid() {
		return service.Slice{}, service.Endpoint{}, false
	}
	e := m.endpoints[who.name].value
	candidate := service.Pod{
		Namespace: who.namespace, Name: who.name.name, Node: e.Node, Addr: addr,
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
			unset(m.members, who.name, svcName)
		}
		add(parts, slices.Collect(maps.Keys(s.parts)))
		delete(m.spreads, svcName)
	}
	add(parts, slices.Collect(maps.Keys(m.slices[svcName])))
}
