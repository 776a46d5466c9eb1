package endpoints

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/wire"
)

// sliceSize bounds the endpoints of one slice, so that a change of one endpoint does not
// rewrite many.
const sliceSize = 100

// serviceSlices derives a service's slices, by name. A service that is gone or has no
// selector has none.
func (m *model) serviceSlices(svcName name) map[string]*discoveryv1.EndpointSlice {
	svc := m.services[svcName]
	if svc == nil || len(svc.Selector) == 0 {
		return nil
	}
	var pods []service.Pod
	for who := range m.inNamespace[svcName.namespace] {
		p, e := m.pods[who], m.endpoints[who]
		if p == nil {
			continue
		}
		candidate := service.Pod{
			Namespace: who.namespace, Name: who.name, Node: e.value.Node, Addr: e.value.IP,
			Labels: p.Labels, Ready: e.value.Ready, Terminating: e.value.State == wire.EndpointTerminating,
			Hostname: p.Hostname, Subdomain: p.Subdomain,
		}
		if n := m.nodes[e.value.Node]; n != nil {
			candidate.Zone = n.registration.Zone()
		}
		for _, np := range p.NamedPorts {
			candidate.NamedPorts = append(candidate.NamedPorts, service.NamedPort{Name: np.Name, Protocol: service.Protocol(np.Protocol), Port: np.Port})
		}
		if svc.Selects(&candidate) {
			pods = append(pods, candidate)
		}
	}
	had := map[string][]netip.Addr{}
	for sliceName, s := range m.slices[svcName] {
		had[sliceName] = addresses(s.value)
	}
	out := map[string]*discoveryv1.EndpointSlice{}
	for _, whole := range svc.Slices(pods) {
		for part, endpoints := range divide(whole.Name, whole.Endpoints, had) {
			out[part] = kubernetesSlice(part, whole, endpoints)
		}
	}
	return out
}

// divide spreads endpoints over slices of at most sliceSize. An endpoint stays in its
// slice; slices that end up empty are dropped.
func divide(base string, endpoints []service.Endpoint, had map[string][]netip.Addr) map[string][]service.Endpoint {
	at := map[netip.Addr]string{}
	for part, addrs := range had {
		if partOf(base, part) {
			for _, a := range addrs {
				at[a] = part
			}
		}
	}
	out := map[string][]service.Endpoint{}
	var fresh []service.Endpoint
	for _, e := range endpoints {
		if part, ok := at[e.Addr]; ok && len(out[part]) < sliceSize {
			out[part] = append(out[part], e)
			continue
		}
		fresh = append(fresh, e)
	}
	for i := 0; len(fresh) > 0; i++ {
		part := partName(base, i)
		n := min(sliceSize-len(out[part]), len(fresh))
		if n > 0 {
			out[part] = append(out[part], fresh[:n]...)
			fresh = fresh[n:]
		}
	}
	for _, part := range out {
		slices.SortFunc(part, func(a, b service.Endpoint) int { return a.Addr.Compare(b.Addr) })
	}
	return out
}

func partName(base string, i int) string {
	if i == 0 {
		return base
	}
	return fmt.Sprintf("%s-part%d", base, i+1)
}

func partOf(base, part string) bool {
	if part == base {
		return true
	}
	var i int
	n, err := fmt.Sscanf(part, base+"-part%d", &i)
	return n == 1 && err == nil && partName(base, i-1) == part
}

func kubernetesSlice(sliceName string, of service.Slice, endpoints []service.Endpoint) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: discoveryv1.SchemeGroupVersion.String(), Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{Namespace: of.Namespace, Name: sliceName, Labels: map[string]string{
			discoveryv1.LabelServiceName: of.Service,
			discoveryv1.LabelManagedBy:   wire.ManagedBy,
		}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	for _, p := range of.Ports {
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &p.Name, Protocol: new(corev1.Protocol(p.Protocol)), Port: new(int32(p.Port))})
	}
	for _, e := range endpoints {
		if e.Addr.Is6() {
			s.AddressType = discoveryv1.AddressTypeIPv6
		}
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{e.Addr.String()},
			Conditions: discoveryv1.EndpointConditions{Ready: &e.Ready, Serving: &e.Serving, Terminating: &e.Terminating},
			NodeName:   &e.Node,
			Hostname:   unlessEmpty(e.Hostname),
			Zone:       unlessEmpty(e.Zone),
		})
	}
	return s
}

func unlessEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func addresses(s *discoveryv1.EndpointSlice) []netip.Addr {
	var out []netip.Addr
	for _, e := range s.Endpoints {
		for _, text := range e.Addresses {
			if a, err := netip.ParseAddr(text); err == nil {
				out = append(out, a)
			}
		}
	}
	return out
}

// remember records which pods a service's slices contain.
func (m *model) remember(svcName name, derived map[string]*discoveryv1.EndpointSlice) {
	held := map[name]bool{}
	for _, s := range derived {
		for _, a := range addresses(s) {
			if who, ok := m.byIP[a]; ok {
				held[who] = true
			}
		}
	}
	for who := range m.held[svcName] {
		if !held[who] {
			unset(m.members, who, svcName)
		}
	}
	for who := range held {
		set(m.members, who, svcName)
	}
	if m.held[svcName] = held; len(held) == 0 {
		delete(m.held, svcName)
	}
}

// encode returns a slice's JSON; encoding these cannot fail.
func encode(s *discoveryv1.EndpointSlice) []byte {
	text, err := json.Marshal(s)
	if err != nil {
		panic(fmt.Sprintf("endpoint slice does not encode: %v", err))
	}
	return text
}

// sorted returns a set's names in order, so that tests can rely on it.
func sorted(set map[name]bool) []name {
	return slices.SortedFunc(maps.Keys(set), func(a, b name) int {
		return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name))
	})
}
