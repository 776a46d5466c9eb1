package export

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weft-mesh/weft/apiserver/state"
	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/wire"
)

// mostServiceBytes is the most that a service may have in the older format, in which all
// of its backends share one value: by default etcd refuses requests of more than 1.5 MiB,
// and so would that of a KVStoreMesh which copies it. 10,000 IPv4 backends with one port
// and a zone take 1 MB.
const mostServiceBytes = 1_500_000

// backends are a service's slices. A service in the older format is put together from
// parts, one for each slice, so that a changed slice costs what it holds.
type backends struct {
	slices map[string]*discoveryv1.EndpointSlice
	parts  map[string]part // of those that were exported
	// foreign are addresses that peers would refuse, by slice; none has none.
	foreign map[string][]string
	// in counts the parts that an address is in, and shared the addresses that are in
	// several: the parts of those contradict each other.
	in     map[netip.Addr]int
	shared int
	// tooMany says why the older format lacks some; "" if it does not.
	tooMany string
}

// part is what a slice adds to its service in the older format.
type part struct {
	wire.ServicePart
	addrs []netip.Addr
}

func newBackends() *backends {
	return &backends{map[string]*discoveryv1.EndpointSlice{}, map[string]part{}, map[string][]string{}, map[netip.Addr]int{}, 0, ""}
}

// keep remembers what was made of a slice.
func (b *backends) keep(slice string, p part, foreign []string) {
	b.forget(slice)
	for _, a := range p.addrs {
		if b.in[a]++; b.in[a] == 2 {
			b.shared++
		}
	}
	if b.parts[slice] = p; len(foreign) > 0 {
		b.foreign[slice] = foreign
	}
}

// forget drops what was made of a slice.
func (b *backends) forget(slice string) {
	for _, a := range b.parts[slice].addrs {
		if b.in[a]--; b.in[a] == 1 {
			b.shared--
		} else if b.in[a] == 0 {
			delete(b.in, a)
		}
	}
	delete(b.parts, slice)
	delete(b.foreign, slice)
}

// putSlice makes a slice one of a service's.
func (v *views) putSlice(ns, owner string, slice *discoveryv1.EndpointSlice) {
	of := [2]string{ns, owner}
	if v.backends[of] == nil {
		v.backends[of] = newBackends()
	}
	v.backends[of].slices[slice.Name] = slice
	v.sliceOf[[2]string{ns, slice.Name}] = owner
}

// deleteSlice removes a slice and returns the service that it belonged to; false if it
// belonged to none.
func (v *views) deleteSlice(ns, slice string) (owner string, ok bool) {
	if owner, ok = v.sliceOf[[2]string{ns, slice}]; !ok {
		return "", false
	}
	delete(v.sliceOf, [2]string{ns, slice})
	of := [2]string{ns, owner}
	v.backends[of].forget(slice)
	if delete(v.backends[of].slices, slice); len(v.backends[of].slices) == 0 {
		delete(v.backends, of)
	}
	return owner, true
}

// exported returns a service that peers may know; nil if they may not.
func (v *views) exported(ns, name string) *state.Service {
	obj := v.services[[2]string{ns, name}]
	if obj == nil || v.kept[ns] || obj.Wrong != nil || !obj.Exported() {
		return nil
	}
	return obj
}

// noteService records what is wrong with the export of a service. One that is absent, or
// cannot be read, is left to apply.
func (v *views) noteService(ns, name string) {
	obj := v.services[[2]string{ns, name}]
	if obj == nil {
		return
	}
	problem := ""
	b := v.backends[[2]string{ns, name}]
	switch {
	case v.kept[ns]:
	case obj.Wrong != nil:
		problem = obj.Wrong.Error()
	case b == nil || !obj.Exported():
	case b.tooMany != "":
		problem = b.tooMany
	case len(b.foreign) > 0:
		var all []string
		for _, slice := range slices.Sorted(maps.Keys(b.foreign)) {
			all = append(all, b.foreign[slice]...)
		}
		problem = fmt.Sprintf("peers would refuse endpoints outside the cluster's pod CIDRs %v; left out: %s", v.cluster.PodCIDRs, some(all))
	}
	v.note(wire.ObjectKey(manifest.Services, ns, name), problem)
}

// ofSlice exports a slice of a service.
func (v *views) ofSlice(ns, name string) map[string][]byte {
	owner := v.sliceOf[[2]string{ns, name}]
	obj := v.exported(ns, owner)
	if obj == nil {
		return nil
	}
	own := v.makePart(obj, name)
	v.noteService(ns, owner)
	if s, ok := v.clusterSlice(own); ok {
		return map[string][]byte{wire.SliceStateKey(v.cluster.Name, ns, name): s.Marshal()}
	}
	return nil
}

// makePart makes a slice's part of its service, and returns what of it is exported.
func (v *views) makePart(obj *state.Service, slice string) *discoveryv1.EndpointSlice {
	b := v.backends[[2]string{obj.Namespace, obj.Name}]
	own, foreign := v.believable(b.slices[slice])
	s := wire.NewClusterService()
	addBackends(&s, own)
	b.keep(slice, part{s.Part(), slices.Collect(maps.Keys(s.Backends))}, foreign)
	return own
}

// ofService exports a service in the older format.
func (v *views) ofService(ns, name string) map[string][]byte {
	defer v.noteService(ns, name)
	b := v.backends[[2]string{ns, name}]
	obj := v.exported(ns, name)
	if obj == nil {
		if b != nil {
			all := b.slices
			*b = *newBackends()
			b.slices = all
		}
		return nil
	}
	return map[string][]byte{wire.ServiceStateKey(v.cluster.Name, ns, name): v.older(obj, b)}
}

// older returns a service in the older format, with as many of its backends as fit.
func (v *views) older(obj *state.Service, b *backends) []byte {
	s := v.clusterService(obj)
	if b == nil {
		return wire.Marshal(s)
	}
	b.tooMany = ""
	names := slices.Sorted(maps.Keys(b.slices))
	parts := make([]wire.ServicePart, 0, len(names))
	for _, slice := range names {
		if _, made := b.parts[slice]; !made {
			v.makePart(obj, slice)
		}
		parts = append(parts, b.parts[slice].ServicePart)
	}
	if b.shared == 0 {
		if text := s.Join(parts); len(text) <= mostServiceBytes {
			return text
		}
	}
	// An address of several slices has the ports of all of them.
	for _, slice := range names {
		own, _ := v.believable(b.slices[slice])
		addBackends(&s, own)
	}
	all := len(s.Backends)
	if left := s.Shrink(mostServiceBytes); left < all {
		b.tooMany = fmt.Sprintf("its entry in the older format has room for only %d of its %d backends: peers that do not read endpoint slices never use the others", left, all)
	}
	return wire.Marshal(s)
}

// believable returns a slice without addresses outside the cluster's pod CIDRs, which
// peers would refuse, and lists those addresses.
func (v *views) believable(all *discoveryv1.EndpointSlice) (own *discoveryv1.EndpointSlice, foreign []string) {
	slice := *all
	slice.Endpoints = nil
	for _, e := range all.Endpoints {
		var inside []string
		for _, text := range e.Addresses {
			if a, err := wire.ParseAddr(text); err == nil && contains(v.cluster.PodCIDRs, a) {
				inside = append(inside, text)
			} else {
				foreign = append(foreign, text+" of slice "+all.Name)
			}
		}
		if e.Addresses = inside; len(inside) > 0 {
			slice.Endpoints = append(slice.Endpoints, e)
		}
	}
	return &slice, foreign
}

// some names the first few of all, to keep the line readable.
func some(all []string) string {
	const most = 3
	if len(all) <= most {
		return strings.Join(all, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(all[:most], ", "), len(all)-most)
}

// clusterService returns a service in the older format, without backends.
func (v *views) clusterService(svc *state.Service) wire.ClusterService {
	s := wire.NewClusterService()
	s.Cluster, s.Namespace, s.Name, s.ClusterID = v.cluster.Name, svc.Namespace, svc.Name, uint32(v.cluster.ID)
	s.Labels, s.Selector = orEmpty(svc.Object.Labels), orEmpty(svc.Object.Spec.Selector)
	s.IncludeExternal, s.Shared = true, true
	for _, a := range svc.Addresses {
		ports := map[string]wire.L4Addr{}
		for _, p := range svc.Ports {
			ports[p.Name] = wire.L4Addr{Protocol: string(p.Protocol), Port: p.Port}
		}
		s.Frontends[a] = ports
	}
	return s
}

// addBackends adds a slice's backends to a service in the older format, which has no
// conditions. As Cilium does, it adds those that are ready or still serving, and hints
// only along with a zone. Backends in maintenance are left out, because readers of this
// format would send them new connections.
func addBackends(s *wire.ClusterService, own *discoveryv1.EndpointSlice) {
	slice := service.SliceFromKubernetes(own)
	for _, e := range slice.Endpoints {
		if e.Draining || !e.Ready && !e.Serving {
			continue
		}
		if s.Backends[e.Addr] == nil {
			s.Backends[e.Addr] = map[string]wire.L4Addr{}
		}
		for _, p := range slice.Ports {
			s.Backends[e.Addr][p.Name] = wire.L4Addr{Protocol: string(p.Protocol), Port: p.Port}
		}
		if e.Hostname != "" {
			s.Hostnames[e.Addr] = e.Hostname
		}
		if e.Zone != "" {
			zone := wire.BackendZone{Zone: e.Zone, ForZones: []wire.ForZone{}}
			if e.Hints != nil {
				for _, z := range e.Hints.Zones {
					zone.ForZones = append(zone.ForZones, wire.ForZone{Name: z})
				}
			}
			s.Zones[e.Addr] = zone
		}
	}
}

func (v *views) clusterSlice(es *discoveryv1.EndpointSlice) (*wire.ClusterEndpointSlice, bool) {
	if es.AddressType != discoveryv1.AddressTypeIPv4 && es.AddressType != discoveryv1.AddressTypeIPv6 {
		return nil, false
	}
	s := &wire.ClusterEndpointSlice{
		Cluster: v.cluster.Name, ClusterID: uint32(v.cluster.ID),
		Namespace: es.Namespace, Name: es.Name,
		Labels: es.Labels, AddressType: string(es.AddressType),
	}
	for k, value := range es.Annotations {
		// Only annotations meant for the mesh; the rest is private.
		if strings.HasPrefix(k, "service.cilium.io/") {
			if s.Annotations == nil {
				s.Annotations = map[string]string{}
			}
			s.Annotations[k] = value
		}
	}
	for _, e := range es.Endpoints {
		end := wire.SliceEndpoint{
			Addresses:  e.Addresses,
			Conditions: wire.Conditions{Ready: e.Conditions.Ready, Serving: e.Conditions.Serving, Terminating: e.Conditions.Terminating},
			Hostname:   deref(e.Hostname), NodeName: deref(e.NodeName), Zone: deref(e.Zone),
		}
		if e.Hints != nil {
			for _, z := range e.Hints.ForZones {
				end.ForZones = append(end.ForZones, z.Name)
			}
		}
		s.Endpoints = append(s.Endpoints, end)
	}
	for _, p := range es.Ports {
		port := wire.SlicePort{Name: deref(p.Name), Port: deref(p.Port), AppProtocol: deref(p.AppProtocol), Protocol: "TCP"}
		if p.Protocol != nil {
			port.Protocol = string(*p.Protocol)
		}
		s.Ports = append(s.Ports, port)
	}
	return s, true
}
