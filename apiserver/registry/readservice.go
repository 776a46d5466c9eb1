package registry

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/weft-mesh/weft/service"
)

func readService(r *reading) {
	svc, ok := decode[*corev1.Service](r)
	if !ok {
		return
	}
	svc.Status = corev1.ServiceStatus{}
	if mistakes := validation.IsDNS1035Label(r.name); len(mistakes) > 0 {
		r.refuse("metadata.name %q: %s", r.name, mistakes[0])
	}
	spec := &svc.Spec
	switch spec.Type {
	case "":
		spec.Type = corev1.ServiceTypeClusterIP
	case corev1.ServiceTypeClusterIP:
	default:
		r.refuse("spec.type %s is not supported; write ClusterIP", spec.Type)
	}
	if spec.SessionAffinity != "" && spec.SessionAffinity != corev1.ServiceAffinityNone {
		r.refuse("spec.sessionAffinity %s is not supported; remove it", spec.SessionAffinity)
	}
	if p := spec.InternalTrafficPolicy; p != nil && *p != corev1.ServiceInternalTrafficPolicyCluster {
		r.refuse("spec.internalTrafficPolicy %s is not supported; remove it", *p)
	}
	if len(spec.ExternalIPs) > 0 {
		r.refuse("spec.externalIPs is not supported; remove it")
	}
	checkClusterIP(r, spec)
	checkServicePorts(r, spec)
	checkBool(r, svc.Annotations, service.AnnotationGlobal, "io.cilium/global-service")
	checkBool(r, svc.Annotations, service.AnnotationShared, "io.cilium/shared-service")
	for _, name := range []string{service.AnnotationAffinity, "io.cilium/service-affinity"} {
		value, ok := svc.Annotations[name]
		if ok && !slices.Contains([]string{"local", "remote", "none"}, strings.ToLower(value)) {
			r.refuse("annotation %s is %q; write local, remote or none", name, value)
		}
	}
}

func checkClusterIP(r *reading, spec *corev1.ServiceSpec) {
	if len(spec.ClusterIPs) > 1 {
		r.refuse("spec.clusterIPs names %d addresses; keep one", len(spec.ClusterIPs))
		return
	}
	if len(spec.ClusterIPs) == 1 {
		if spec.ClusterIP != "" && spec.ClusterIP != spec.ClusterIPs[0] {
			r.refuse("spec.clusterIP is %s but spec.clusterIPs[0] is %s; keep one of them", spec.ClusterIP, spec.ClusterIPs[0])
		}
		spec.ClusterIP = spec.ClusterIPs[0]
	}
	spec.ClusterIPs = nil // set again with the final address
	if spec.ClusterIP == "" || spec.ClusterIP == corev1.ClusterIPNone {
		return
	}
	if ip, err := netip.ParseAddr(spec.ClusterIP); err != nil || ip.Zone() != "" {
		r.refuse("spec.clusterIP %q is not an IP address; remove it to have one chosen", spec.ClusterIP)
	}
}

func checkServicePorts(r *reading, spec *corev1.ServiceSpec) {
	if len(spec.Ports) == 0 && spec.ClusterIP != corev1.ClusterIPNone {
		r.refuse("spec.ports is empty; declare at least one port")
	}
	type number struct {
		port     int32
		protocol corev1.Protocol
	}
	names, numbers := map[string]bool{}, map[number]bool{}
	for i := range spec.Ports {
		p := &spec.Ports[i]
		if p.Port < 1 || p.Port > 65535 {
			r.refuse("spec.ports[%d].port is %d; choose one from 1 to 65535", i, p.Port)
		}
		checkProtocol(r, p.Protocol, "spec.ports[%d].protocol", i)
		if p.Protocol == "" {
			p.Protocol = corev1.ProtocolTCP
		}
		if p.Name == "" && len(spec.Ports) > 1 {
			r.refuse("spec.ports[%d].name is missing; a service with several ports names each", i)
		} else if p.Name != "" {
			if mistakes := validation.IsDNS1123Label(p.Name); len(mistakes) > 0 {
				r.refuse("spec.ports[%d].name %q: %s", i, p.Name, mistakes[0])
			}
		}
		if names[p.Name] && p.Name != "" {
			r.refuse("spec.ports[%d].name %q stands twice; give each port its own", i, p.Name)
		}
		names[p.Name] = true
		if n := (number{p.Port, p.Protocol}); numbers[n] {
			r.refuse("spec.ports[%d]: %d/%s stands twice; keep one", i, p.Port, p.Protocol)
		} else {
			numbers[n] = true
		}
		switch t := p.TargetPort; {
		case t.Type == intstr.String:
			if mistakes := validation.IsValidPortName(t.StrVal); len(mistakes) > 0 {
				r.refuse("spec.ports[%d].targetPort %q: %s", i, t.StrVal, mistakes[0])
			}
		case t.IntVal == 0:
			p.TargetPort = intstr.FromInt32(p.Port)
		case t.IntVal < 1 || t.IntVal > 65535:
			r.refuse("spec.ports[%d].targetPort is %d; choose one from 1 to 65535", i, t.IntVal)
		}
		if p.NodePort != 0 {
			r.refuse("spec.ports[%d].nodePort is not supported; remove it", i)
		}
	}
}
