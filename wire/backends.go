package wire

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/service"
)

// Slice returns the backends of a slice in our own form. Addresses and ports that
// cannot be read are left out.
func (s *ClusterEndpointSlice) Slice() service.Slice {
	out := service.Slice{Namespace: s.Namespace, Name: s.Name, Service: s.Service()}
	for _, p := range s.Ports {
		protocol := service.Protocol(p.Protocol)
		if protocol == "" {
			protocol = service.TCP
		}
		if p.Port > 0 && p.Port < 1<<16 {
			out.Ports = append(out.Ports, service.SlicePort{Name: p.Name, Protocol: protocol, Port: uint16(p.Port)})
		}
	}
	addresses := 0
	for i := range s.Endpoints {
		addresses += len(s.Endpoints[i].Addresses)
	}
	if addresses > 0 {
		out.Endpoints = make([]service.Endpoint, 0, addresses) // for as long as the slice is kept
	}
	for _, e := range s.Endpoints {
		hints := hinted(e.ForZones)
		for _, text := range e.Addresses {
			a, err := ParseAddr(text)
			if err != nil {
				continue
			}
			end := service.Endpoint{Addr: a, Node: e.NodeName, Hostname: e.Hostname, Zone: e.Zone, Hints: hints}
			end.Ready, end.Serving, end.Terminating = service.Conditions(e.Conditions.Ready, e.Conditions.Serving, e.Conditions.Terminating)
			out.Endpoints = append(out.Endpoints, end)
		}
	}
	out.Weigh(s.Annotations)
	return out
}

// hinted are the hints of an endpoint that is meant for clients in some zones; nil for none.
func hinted(zones []string) *service.Hints {
	if len(zones) == 0 {
		return nil
	}
	return &service.Hints{Zones: zones}
}

// Service returns a service in our own form, without its ports: they are those of the
// cluster that declares it. Its addresses are in order.
func (s *ClusterService) Service() service.Service {
	return service.Service{
		Namespace: s.Namespace, Name: s.Name, Global: true, Shared: s.Shared,
		Addresses: slices.SortedFunc(maps.Keys(s.Frontends), netip.Addr.Compare),
	}
}

// Slices returns the backends that a service offers in our own form, one slice for all that
// have the same ports; none if it is not shared. This older format has no conditions: every
// backend it lists counts as ready.
func (s *ClusterService) Slices() []service.Slice {
	if !s.Shared {
		return nil
	}
	var out []service.Slice
	var ports []service.SlicePort
	var text []byte
	with := map[string]int{} // the place in out of those with some ports
	for _, addr := range slices.SortedFunc(maps.Keys(s.Backends), netip.Addr.Compare) {
		ports, text = ports[:0], text[:0]
		for name, p := range s.Backends[addr] {
			ports = append(ports, service.SlicePort{Name: name, Protocol: service.Protocol(p.Protocol), Port: p.Port})
		}
		slices.SortFunc(ports, func(a, b service.SlicePort) int { return strings.Compare(a.Name, b.Name) })
		for _, p := range ports {
			text = fmt.Appendf(text, "%q %q %d,", p.Name, p.Protocol, p.Port)
		}
		i, known := with[string(text)]
		if !known {
			i = len(out)
			with[string(text)] = i
			out = append(out, service.Slice{Namespace: s.Namespace, Name: s.Name, Service: s.Name, Ports: slices.Clone(ports)})
		}
		end := service.Endpoint{Addr: addr, Hostname: s.Hostnames[addr], Ready: true, Serving: true}
		if z, ok := s.Zones[addr]; ok {
			var names []string
			for _, of := range z.ForZones {
				names = append(names, of.Name)
			}
			end.Zone, end.Hints = z.Zone, hinted(names)
		}
		out[i].Endpoints = append(out[i].Endpoints, end)
	}
	for i := range out {
		out[i].Endpoints = slices.Clone(out[i].Endpoints) // without room for more
	}
	return out
}

// Shrink leaves out backends, those with the highest addresses first, until the JSON of
// the service has at most most bytes. It returns how many are left.
func (s *ClusterService) Shrink(most int) int {
	// Only what grows with the backends is taken apart.
	rest := *s
	rest.Backends, rest.Hostnames, rest.Zones = nil, nil, nil
	size := len(Marshal(rest))
	entry := func(a netip.Addr, v any) int { return len(a.String()) + len(`"":,`) + len(Marshal(v)) }
	all := slices.SortedFunc(maps.Keys(s.Backends), netip.Addr.Compare)
	for i, a := range all {
		size += entry(a, s.Backends[a])
		if name, ok := s.Hostnames[a]; ok {
			size += entry(a, name)
		}
		if zone, ok := s.Zones[a]; ok {
			size += entry(a, zone)
		}
		if size <= most {
			continue
		}
		for _, a := range all[i:] {
			delete(s.Backends, a)
			delete(s.Hostnames, a)
			delete(s.Zones, a)
		}
		return i
	}
	return len(all)
}

// ServicePart is the JSON of some backends of a service, to be joined with that of others.
type ServicePart struct{ backends, hostnames, zones []byte }

// Part returns the JSON of a service's backends. Parts that are joined must not have an
// address in common.
func (s *ClusterService) Part() ServicePart {
	return ServicePart{members(s.Backends), members(s.Hostnames), members(s.Zones)}
}

// Join returns the JSON of a service whose backends are those of parts instead of its own.
func (s *ClusterService) Join(parts []ServicePart) []byte {
	before := members(struct {
		Cluster   string                           `json:"cluster"`
		Namespace string                           `json:"namespace"`
		Name      string                           `json:"name"`
		Frontends map[netip.Addr]map[string]L4Addr `json:"frontends"`
	}{s.Cluster, s.Namespace, s.Name, s.Frontends})
	after := members(struct {
		Labels          map[string]string `json:"labels"`
		Selector        map[string]string `json:"selector"`
		IncludeExternal bool              `json:"includeExternal"`
		Shared          bool              `json:"shared"`
		ClusterID       uint32            `json:"clusterID"`
	}{s.Labels, s.Selector, s.IncludeExternal, s.Shared, s.ClusterID})

	size := len(before) + len(after) + 64
	for _, p := range parts {
		size += len(p.backends) + len(p.hostnames) + len(p.zones) + 3
	}
	out := append(append(make([]byte, 0, size), '{'), before...)
	for _, m := range []struct {
		name string
		of   func(ServicePart) []byte
	}{
		{"backends", func(p ServicePart) []byte { return p.backends }},
		{"hostnames", func(p ServicePart) []byte { return p.hostnames }},
		{"zones", func(p ServicePart) []byte { return p.zones }},
	} {
		out = append(out, `,"`+m.name+`":{`...)
		first := true
		for _, p := range parts {
			text := m.of(p)
			if len(text) == 0 {
				continue
			}
			if !first {
				out = append(out, ',')
			}
			out, first = append(out, text...), false
		}
		out = append(out, '}')
	}
	return append(append(append(out, ','), after...), '}')
}

// members is the JSON of an object without its braces; nothing of a nil map.
func members(v any) []byte {
	text := Marshal(v)
	if text[0] != '{' {
		return nil
	}
	return text[1 : len(text)-1]
}
