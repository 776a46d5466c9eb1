package service

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Pod is a workload that services may select.
type Pod struct {
	Namespace, Name string
	Node            string
	Addr            netip.Addr
	Labels          map[string]string
	Ready           bool
	Terminating     bool
	NamedPorts      []NamedPort
	// Zone is the zone of its node. Hostname counts for services whose name is
	// Subdomain, as in Kubernetes.
	Zone                string
	Hostname, Subdomain string
}

// NamedPort is a container port that services can refer to by name.
type NamedPort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// Selects reports whether the service's selector selects the pod. An empty selector
// selects none: the slices of such a service are written by hand.
func (s *Service) Selects(p *Pod) bool {
	if len(s.Selector) == 0 || s.Namespace != p.Namespace {
		return false
	}
	for k, v := range s.Selector {
		if got, ok := p.Labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// Seat returns the endpoint that a pod is of the service, and the slice that it belongs
// in, without endpoints, as Kubernetes' own controller would, for clusters without one;
// false if it is none. Pods that have different numbers for the same port name are in
// different slices. The name of a slice depends on the service, the family and the ports
// alone. Pods without an address, or with one of a family that the service does not have,
// are none.
func (s *Service) Seat(p *Pod) (in Slice, e Endpoint, ok bool) {
	if !p.Addr.IsValid() || !s.has(p.Addr) || !s.Selects(p) {
		return Slice{}, Endpoint{}, false
	}
	hostname := ""
	if p.Subdomain == s.Name {
		hostname = p.Hostname
	}
	ports := s.resolve(p)
	return Slice{Namespace: s.Namespace, Name: s.sliceName(p.Addr, ports), Service: s.Name, Ports: ports}, Endpoint{
		Addr: p.Addr, Node: p.Node, Zone: p.Zone, Hostname: hostname,
		Ready:       (p.Ready && !p.Terminating) || s.PublishNotReady,
		Serving:     p.Ready || s.PublishNotReady,
		Terminating: p.Terminating,
	}, true
}

// has says whether endpoints with such an address belong to the service.
func (s *Service) has(a netip.Addr) bool {
	return len(s.Families) == 0 || slices.Contains(s.Families, FamilyOf(a))
}

// resolve turns the service's ports into the pod's port numbers, leaving out ports that
// the pod does not have.
func (s *Service) resolve(p *Pod) []SlicePort {
	var out []SlicePort
	for _, port := range s.Ports {
		number := port.Target
		if port.TargetName != "" {
			i := slices.IndexFunc(p.NamedPorts, func(n NamedPort) bool {
				return n.Name == port.TargetName && n.Protocol == port.Protocol
			})
			if i < 0 {
				continue
			}
			number = p.NamedPorts[i].Port
		}
		out = append(out, SlicePort{Name: port.Name, Protocol: port.Protocol, Port: number})
	}
	return out
}

// sliceName distinguishes the slices of a service by address family, and by those ports
// whose number depends on the pod.
func (s *Service) sliceName(a netip.Addr, ports []SlicePort) string {
	name := s.Name + "-v4"
	if a.Is6() {
		name = s.Name + "-v6"
	}
	var parts []string
	for _, port := range s.Ports {
		if port.TargetName == "" {
			continue
		}
		number := uint16(0)
		for _, p := range ports {
			if p.Name == port.Name && p.Protocol == port.Protocol {
				number = p.Port
			}
		}
		parts = append(parts, fmt.Sprintf("-%d", number))
	}
	return name + strings.Join(parts, "")
}
