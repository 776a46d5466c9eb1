package registry

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/wire"
)

func readService(r *reading) {
	svc, ok := decode[*corev1.Service](r)
	if !ok {
		return
	}
	if mistakes := validation.IsDNS1035Label(r.name); len(mistakes) > 0 {
		r.refuse("metadata.name %q: %s", r.name, mistakes[0])
	}
	spec := &svc.Spec
	switch spec.Type {
	case "":
		spec.Type = corev1.ServiceTypeClusterIP
	case corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
	case corev1.ServiceTypeExternalName:
		r.refuse("spec.type is ExternalName, which only a DNS server could answer, and there is none; give the service ports and an EndpointSlice with the addresses")
	default:
		r.refuse("spec.type %s is not a type of service; write ClusterIP", spec.Type)
	}
	checkLabels(r, "spec.selector", spec.Selector)
	checkSession(r, spec)
	if p := spec.InternalTrafficPolicy; p != nil && *p != corev1.ServiceInternalTrafficPolicyCluster && *p != corev1.ServiceInternalTrafficPolicyLocal {
		r.refuse("spec.internalTrafficPolicy %s does not exist; write Cluster or Local", *p)
	}
	checkDistribution(r, svc)
	checkFamilies(r, spec)
	checkClusterIPs(r, spec)
	checkServicePorts(r, spec)
	checkNodePorts(r, spec)
	checkExternal(r, svc)
	checkBool(r, svc.Annotations, service.AnnotationGlobal, "io.cilium/global-service")
	checkBool(r, svc.Annotations, service.AnnotationShared, "io.cilium/shared-service")
	checkBalancing(r, svc)
	warnAnnotations(r, svc.Annotations, service.AnnotationGlobal, service.AnnotationShared, service.AnnotationAffinity, service.AnnotationAlgorithm,
		service.AnnotationClusterWeights, service.AnnotationTableSize,
		"io.cilium/global-service", "io.cilium/shared-service", "io.cilium/service-affinity")
	for _, name := range []string{service.AnnotationAffinity, "io.cilium/service-affinity"} {
		value, ok := svc.Annotations[name]
		if ok && !slices.Contains([]string{"local", "remote", "none"}, strings.ToLower(value)) {
			r.refuse("annotation %s is %q; write local, remote or none", name, value)
		}
	}
}

// longestSession is Kubernetes' limit of spec.sessionAffinityConfig.clientIP.timeoutSeconds: a
// day.
const longestSession = 86400

func checkSession(r *reading, spec *corev1.ServiceSpec) {
	switch spec.SessionAffinity {
	case "", corev1.ServiceAffinityNone:
		if spec.SessionAffinityConfig != nil {
			r.refuse("spec.sessionAffinityConfig has no effect without spec.sessionAffinity ClientIP; write that, or remove it")
		}
	case corev1.ServiceAffinityClientIP:
		if c := spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
			if t := *c.ClientIP.TimeoutSeconds; t < 1 || t > longestSession {
				r.refuse("spec.sessionAffinityConfig.clientIP.timeoutSeconds is %d; choose one from 1 to %d", t, longestSession)
			}
		}
	default:
		r.refuse("spec.sessionAffinity %s does not exist; write ClientIP or None", spec.SessionAffinity)
	}
}

// checkBalancing checks how a service shares connections among its backends.
func checkBalancing(r *reading, svc *corev1.Service) {
	algorithm, chosen := svc.Annotations[service.AnnotationAlgorithm]
	maglev := service.Algorithm(strings.ToLower(algorithm)) == service.Maglev
	if chosen && !maglev && service.Algorithm(strings.ToLower(algorithm)) != service.Random {
		r.refuse("annotation %s is %q; write %s or %s", service.AnnotationAlgorithm, algorithm, service.Random, service.Maglev)
	}
	headless := svc.Spec.ClusterIP == corev1.ClusterIPNone
	if maglev && headless {
		r.warn("annotation %s has no effect on a headless service: its clients choose among the addresses that they ask for", service.AnnotationAlgorithm)
	}
	if text, ok := svc.Annotations[service.AnnotationTableSize]; ok {
		if _, err := service.ParseTableSize(text); err != nil || text == "" {
			r.refuse("annotation %s is %q; write one of %v, or remove it to have one chosen", service.AnnotationTableSize, text, service.TableSizes)
		} else if !maglev {
			r.refuse("annotation %s has no effect without %s: %s; write that, or remove it", service.AnnotationTableSize, service.AnnotationAlgorithm, service.Maglev)
		}
	}
	text, ok := svc.Annotations[service.AnnotationClusterWeights]
	if !ok {
		return
	}
	weights, err := service.ParseClusterWeights(text)
	if err != nil {
		r.refuse("annotation %s: %v", service.AnnotationClusterWeights, err)
		return
	}
	for _, name := range weights.Names() {
		if err := wire.CheckClusterName(name); err != nil {
			r.refuse("annotation %s: %v", service.AnnotationClusterWeights, err)
		}
	}
	global := svc.Annotations[service.AnnotationGlobal]
	if global == "" {
		global = svc.Annotations["io.cilium/global-service"]
	}
	switch {
	case !strings.EqualFold(global, "true"):
		r.refuse("annotation %s has no effect without %s: \"true\"; write that, or remove it", service.AnnotationClusterWeights, service.AnnotationGlobal)
	case headless:
		r.refuse("annotation %s has no effect on a headless service: its clients choose among the addresses that they ask for; remove it", service.AnnotationClusterWeights)
	}
}

// topologyModes are Kubernetes' annotations for topology aware hints, the newer one first.
var topologyModes = []string{corev1.AnnotationTopologyMode, corev1.DeprecatedAnnotationTopologyAwareHints}

// checkDistribution checks which backends a service prefers. Kubernetes' controller gives
// endpoints hints for the annotations by how many CPUs each zone has, which nodes do not
// tell here.
func checkDistribution(r *reading, svc *corev1.Service) {
	if d := svc.Spec.TrafficDistribution; d != nil {
		if _, ok := service.DistributionOf(*d); !ok {
			r.refuse("spec.trafficDistribution %q does not exist; write PreferSameZone or PreferSameNode", *d)
		}
	}
	for _, name := range topologyModes {
		if strings.EqualFold(svc.Annotations[name], "auto") {
			r.warn("annotation %s has no effect: CPUs of nodes are not known; write spec.trafficDistribution: PreferSameZone", name)
		}
	}
}

// checkFamilies checks what can be said about a service's IP families without the cluster.
func checkFamilies(r *reading, spec *corev1.ServiceSpec) {
	switch p := spec.IPFamilyPolicy; {
	case p == nil, *p == singleStack, *p == preferDualStack, *p == requireDualStack:
	default:
		r.refuse("spec.ipFamilyPolicy %q: write SingleStack, PreferDualStack or RequireDualStack", *p)
	}
	for i, f := range spec.IPFamilies {
		if f != corev1.IPv4Protocol && f != corev1.IPv6Protocol {
			r.refuse("spec.ipFamilies names %q; write IPv4 or IPv6", f)
		} else if slices.Contains(spec.IPFamilies[:i], f) {
			r.refuse("spec.ipFamilies names %s twice; name it once", f)
		}
	}
}

// checkClusterIPs checks the addresses that a service asks for, and writes them in one way.
func checkClusterIPs(r *reading, spec *corev1.ServiceSpec) {
	if len(spec.ClusterIPs) > 2 {
		r.refuse("spec.clusterIPs names %d addresses; keep one of each family at most", len(spec.ClusterIPs))
		return
	}
	if len(spec.ClusterIPs) > 0 {
		if spec.ClusterIP != "" && spec.ClusterIP != spec.ClusterIPs[0] {
			r.refuse("spec.clusterIP is %s but spec.clusterIPs[0] is %s; keep one of them", spec.ClusterIP, spec.ClusterIPs[0])
		}
		spec.ClusterIP = spec.ClusterIPs[0]
	}
	all := spec.ClusterIPs
	if len(all) == 0 && spec.ClusterIP != "" {
		all = []string{spec.ClusterIP}
	}
	if len(all) == 1 && all[0] == corev1.ClusterIPNone {
		return
	}
	var ips []netip.Addr
	for _, text := range all {
		ip, err := netip.ParseAddr(text)
		if err != nil || ip.Zone() != "" || ip.Is4In6() {
			r.refuse("spec.clusterIP %q is not an IP address; remove it to have one chosen", text)
			return
		}
		ips = append(ips, ip)
	}
	if len(ips) == 2 && ips[0].Is4() == ips[1].Is4() {
		r.refuse("spec.clusterIPs %v are not an address of each family", spec.ClusterIPs)
		return
	}
	for i, ip := range ips {
		if i < len(spec.IPFamilies) && spec.IPFamilies[i] != service.FamilyOf(ip) {
			r.refuse("spec.ipFamilies[%d] is %s, and %s, the address of that place, is not; make them agree", i, spec.IPFamilies[i], ip)
		}
		if i < len(spec.ClusterIPs) {
			spec.ClusterIPs[i] = ip.String()
		}
		if i == 0 {
			spec.ClusterIP = ip.String()
		}
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
			r.refuse("spec.ports[%d].name %q is used twice; give each port its own", i, p.Name)
		}
		names[p.Name] = true
		if n := (number{p.Port, p.Protocol}); numbers[n] {
			r.refuse("spec.ports[%d]: %d/%s is there twice; keep one", i, p.Port, p.Protocol)
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
	}
}
