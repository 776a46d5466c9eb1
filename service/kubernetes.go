package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Cilium's annotations of global services, each with its older name.
const (
	AnnotationGlobal   = "service.cilium.io/global"
	AnnotationShared   = "service.cilium.io/shared"
	AnnotationAffinity = "service.cilium.io/affinity"

	aliasGlobal   = "io.cilium/global-service"
	aliasShared   = "io.cilium/shared-service"
	aliasAffinity = "io.cilium/service-affinity"

	// AnnotationWeight on an endpoint slice is the weight of each of its endpoints.
	AnnotationWeight = "service.cilium.io/weight"

	// AnnotationAlgorithm on a service is its Algorithm.
	AnnotationAlgorithm = "service.cilium.io/lb-algorithm"

	// AnnotationNamespaceGlobal on a namespace, if "false" in any case, keeps everything
	// in the namespace from being exported.
	AnnotationNamespaceGlobal = "clustermesh.cilium.io/global"
)

// LabelProxyName on a service names the proxy that serves it, which is not this one. So does
// corev1.IsHeadlessService, to Kubernetes' proxy, whatever address the service has.
const LabelProxyName = "service.kubernetes.io/service-proxy-name"

func leftAlone(labels map[string]string) bool {
	_, other := labels[LabelProxyName]
	_, headless := labels[corev1.IsHeadlessService]
	return other || headless
}

// Our own annotations of services.
const (
	AnnotationClusterWeights = "weft.io/cluster-weights"
	AnnotationTableSize      = "weft.io/maglev-table-size"
)

// annotation returns the value in lower case. The newer name wins.
func annotation(a map[string]string, name, alias string) (string, bool) {
	v, ok := a[name]
	if !ok {
		v, ok = a[alias]
	}
	return strings.ToLower(v), ok
}

// sharing reads the three annotations as Cilium does: shared defaults to global, an
// unknown affinity means none, and neither has an effect on a service that is not global.
func sharing(a map[string]string) (global, shared bool, affinity Affinity) {
	affinity = AffinityNone
	if v, _ := annotation(a, AnnotationGlobal, aliasGlobal); v != "true" {
		return false, false, affinity
	}
	shared = true
	if v, ok := annotation(a, AnnotationShared, aliasShared); ok {
		shared = v == "true"
	}
	switch v, _ := annotation(a, AnnotationAffinity, aliasAffinity); Affinity(v) {
	case AffinityLocal:
		affinity = AffinityLocal
	case AffinityRemote:
		affinity = AffinityRemote
	}
	return true, shared, affinity
}

// balancing reads how a service chooses backends. What it cannot read was refused, or comes
// from an older version: it has no effect.
func balancing(a map[string]string) (Algorithm, uint32) {
	if v, _ := annotation(a, AnnotationAlgorithm, ""); Algorithm(v) != Maglev {
		return Random, 0
	}
	size, err := ParseTableSize(a[AnnotationTableSize])
	if err != nil {
		return Maglev, 0
	}
	return Maglev, size
}

// FromKubernetes reads a Kubernetes service. A service of type ExternalName
// has neither addresses nor ports.
func FromKubernetes(svc *corev1.Service) (Service, error) {
	s := Service{
		Namespace: svc.Namespace, Name: svc.Name,
		Selector:        svc.Spec.Selector,
		PublishNotReady: svc.Spec.PublishNotReadyAddresses,
		LeftAlone:       leftAlone(svc.Labels),
	}
	s.Global, s.Shared, s.Affinity = sharing(svc.Annotations)
	s.Algorithm, s.TableSize = balancing(svc.Annotations)
	if text, ok := svc.Annotations[AnnotationClusterWeights]; ok && s.Global {
		s.ClusterWeights, _ = ParseClusterWeights(text)
	}
	s.Session = SessionTimeout(&svc.Spec)
	if p := svc.Spec.InternalTrafficPolicy; p != nil {
		s.NodeLocal = *p == corev1.ServiceInternalTrafficPolicyLocal
	}
	if d := svc.Spec.TrafficDistribution; d != nil {
		s.Distribution, _ = DistributionOf(*d)
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return s, nil
	}
	outside := HasNodePorts(&svc.Spec)
	s.ExternalLocal = (outside || len(svc.Spec.ExternalIPs) > 0) && svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	s.External, s.Balanced = ExternalIPs(&svc.Spec), Balanced(svc)
	s.Ranges, s.Ranged = SourceRanges(&svc.Spec), len(svc.Spec.LoadBalancerSourceRanges) > 0
	if p := svc.Spec.HealthCheckNodePort; HasHealthCheck(&svc.Spec) && !s.LeftAlone && p >= FirstNodePort && p <= LastNodePort {
		s.HealthPort = uint16(p)
	}
	for _, text := range ClusterIPs(svc) {
		if text == corev1.ClusterIPNone {
			continue
		}
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			return Service{}, fmt.Errorf("service %s/%s: clusterIP %q is not an IP address", svc.Namespace, svc.Name, text)
		}
		s.Addresses = append(s.Addresses, a)
	}
	if len(s.Addresses) > 0 || len(s.Selector) > 0 {
		s.Families = Families(svc)
	}
	for _, p := range svc.Spec.Ports {
		if p.Port < 1 || p.Port > 65535 {
			return Service{}, fmt.Errorf("service %s/%s: port %d is out of range", svc.Namespace, svc.Name, p.Port)
		}
		port := Port{Name: p.Name, Protocol: protocol(p.Protocol), Port: uint16(p.Port), Target: uint16(p.Port)}
		switch t := p.TargetPort; {
		case t.Type == intstr.String:
			port.Target, port.TargetName = 0, t.StrVal
		case t.IntVal < 0 || t.IntVal > 65535:
			return Service{}, fmt.Errorf("service %s/%s: targetPort %d is out of range", svc.Namespace, svc.Name, t.IntVal)
		case t.IntVal != 0:
			port.Target = uint16(t.IntVal)
		}
		// Others may have been stored before node ports had any effect: they could be the
		// node's own.
		if outside && p.NodePort >= FirstNodePort && p.NodePort <= LastNodePort {
			port.NodePort = uint16(p.NodePort)
		}
		s.Ports = append(s.Ports, port)
	}
	return s, nil
}

// FirstNodePort and LastNodePort are the range that node ports are from, Kubernetes' default.
// The kernel gives none of it to connections by default, nor does the agent to those of pods.
const FirstNodePort, LastNodePort = 30000, 32767

// HasNodePorts reports whether nodes offer a service of this type to clients outside of the
// mesh.
func HasNodePorts(spec *corev1.ServiceSpec) bool {
	return spec.Type == corev1.ServiceTypeNodePort || spec.Type == corev1.ServiceTypeLoadBalancer
}

// HasHealthCheck reports whether nodes tell a load balancer which of them have backends of a
// service like this: it should send clients to no other.
func HasHealthCheck(spec *corev1.ServiceSpec) bool {
	return spec.Type == corev1.ServiceTypeLoadBalancer && spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

// ExternalIPs are the usable ones of spec.externalIPs, each once. A headless service has none.
func ExternalIPs(spec *corev1.ServiceSpec) (out []netip.Addr) {
	if spec.ClusterIP != corev1.ClusterIPNone {
		for _, text := range spec.ExternalIPs {
			out = usable(out, text)
		}
	}
	return out
}

// Balanced are the addresses in status.loadBalancer of a service of type LoadBalancer that
// nodes stand in for: those whose ipMode is not Proxy, each once. Packets to others go to the
// load balancer.
func Balanced(svc *corev1.Service) (out []netip.Addr) {
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return nil
	}
	for _, in := range svc.Status.LoadBalancer.Ingress {
		if in.IPMode == nil || *in.IPMode != corev1.LoadBalancerIPModeProxy {
			out = usable(out, in.IP)
		}
	}
	return out
}

// ExternalAddresses are those outside of the mesh that a service says it has, as kubectl shows
// them: those of its load balancer, also where nodes leave them to it, and its external IPs.
func ExternalAddresses(svc *corev1.Service) (out []string) {
	if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
		for _, in := range svc.Status.LoadBalancer.Ingress {
			out = append(out, cmp.Or(in.IP, in.Hostname))
		}
	}
	return append(out, svc.Spec.ExternalIPs...)
}

// usable adds an address that a service can have.
func usable(all []netip.Addr, text string) []netip.Addr {
	if a, err := netip.ParseAddr(text); err == nil && CheckAddress(a) == nil && !slices.Contains(all, a) {
		all = append(all, a)
	}
	return all
}

// SourceRanges are the prefixes of clients in spec.loadBalancerSourceRanges.
func SourceRanges(spec *corev1.ServiceSpec) (out []netip.Prefix) {
	for _, text := range spec.LoadBalancerSourceRanges {
		if p, err := netip.ParsePrefix(strings.TrimSpace(text)); err == nil && !p.Addr().Is4In6() && !slices.Contains(out, p.Masked()) {
			out = append(out, p.Masked())
		}
	}
	return out
}

// SessionTimeout is for how long a client stays with its backend; 0: it does not. Kubernetes'
// default is three hours.
func SessionTimeout(spec *corev1.ServiceSpec) time.Duration {
	if spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	seconds := corev1.DefaultClientIPServiceAffinitySeconds
	if c := spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		seconds = *c.ClientIP.TimeoutSeconds
	}
	return time.Duration(seconds) * time.Second
}

// ClusterIPs are a service's addresses, the main one first, or None; nothing if it has none
// yet. Services that know only spec.clusterIP are read too.
func ClusterIPs(svc *corev1.Service) []string {
	all := svc.Spec.ClusterIPs
	if len(all) == 0 {
		all = []string{svc.Spec.ClusterIP}
	}
	return slices.DeleteFunc(slices.Clone(all), func(ip string) bool { return ip == "" })
}

// Families are the IP families of a service, the main one first: those of its addresses, or
// for a headless one those that it says. One that says nothing has IPv4.
func Families(svc *corev1.Service) (out []corev1.IPFamily) {
	for _, text := range ClusterIPs(svc) {
		if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, FamilyOf(a))
		}
	}
	if len(out) == 0 {
		out = slices.Clone(svc.Spec.IPFamilies)
	}
	if len(out) == 0 {
		out = []corev1.IPFamily{corev1.IPv4Protocol}
	}
	return out
}

// FamilyOf is the IP family of an address.
func FamilyOf(a netip.Addr) corev1.IPFamily {
	if a.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

// SliceFromKubernetes reads a Kubernetes endpoint slice. Ports without a number and
// invalid addresses are left out, because no connection could go there.
func SliceFromKubernetes(es *discoveryv1.EndpointSlice) Slice {
	s := Slice{Namespace: es.Namespace, Name: es.Name, Service: es.Labels[discoveryv1.LabelServiceName]}
	for _, p := range es.Ports {
		if p.Port == nil || *p.Port < 1 || *p.Port > 65535 {
			continue
		}
		port := SlicePort{Port: uint16(*p.Port), Protocol: TCP}
		if p.Name != nil {
			port.Name = *p.Name
		}
		if p.Protocol != nil {
			port.Protocol = protocol(*p.Protocol)
		}
		s.Ports = append(s.Ports, port)
	}
	for _, e := range es.Endpoints {
		for _, text := range e.Addresses {
			a, err := netip.ParseAddr(text)
			if err != nil {
				continue
			}
			end := Endpoint{Addr: a}
			end.Ready, end.Serving, end.Terminating = Conditions(e.Conditions.Ready, e.Conditions.Serving, e.Conditions.Terminating)
			if e.NodeName != nil {
				end.Node = *e.NodeName
			}
			if e.Hostname != nil {
				end.Hostname = *e.Hostname
			}
			if e.Zone != nil {
				end.Zone = *e.Zone
			}
			end.Hints = hintsOf(e.Hints)
			s.Endpoints = append(s.Endpoints, end)
		}
	}
	s.Weigh(es.Annotations)
	return s
}

// Weigh gives the slice's endpoints the weight that its annotations say. 0 means maintenance.
// What is not a weight has no effect.
func (s *Slice) Weigh(annotations map[string]string) {
	switch weight, err := strconv.ParseUint(annotations[AnnotationWeight], 10, 16); {
	case err != nil:
	case weight == 0:
		s.Drain()
	default:
		s.Weight = uint16(weight)
	}
}

// Conditions fills in what an endpoint slice leaves out: ready defaults to true, serving
// to ready, terminating to false.
func Conditions(ready, serving, terminating *bool) (isReady, isServing, isTerminating bool) {
	isReady = ready == nil || *ready
	isServing = isReady
	if serving != nil {
		isServing = *serving
	}
	return isReady, isServing, terminating != nil && *terminating
}

func protocol(p corev1.Protocol) Protocol {
	if p == "" {
		return TCP
	}
	return Protocol(p)
}
