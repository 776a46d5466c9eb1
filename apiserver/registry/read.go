package registry

import (
	"errors"
	"net/netip"
	"slices"
	"strings"

	"encoding/json"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/policy"
	"github.com/weft-mesh/weft/service"
)

// ManagedBy is the value of an endpoint slice's managed-by label for the slices
// that are derived from services and pods.
const ManagedBy = "weft"

func readNamespace(r *reading) {
	ns, ok := decode[*corev1.Namespace](r)
	if !ok {
		return
	}
	if mistakes := validation.IsDNS1123Label(r.name); len(mistakes) > 0 {
		r.refuse("metadata.name %q: %s", r.name, mistakes[0])
	}
	checkBool(r, ns.Annotations, service.AnnotationNamespaceGlobal)
	// Kubernetes gives every namespace this label, and lets nobody change it.
	if value, ok := ns.Labels[identity.NamespaceName]; ok && value != r.name {
		r.refuse("metadata.labels[%q] is %q, but this label is always the namespace's name: remove it or write %q", identity.NamespaceName, value, r.name)
	}
	metav1.SetMetaDataLabel(&ns.ObjectMeta, identity.NamespaceName, r.name)
	ns.Status = corev1.NamespaceStatus{}
}

func readPod(r *reading) {
	pod, ok := decode[*corev1.Pod](r)
	if !ok {
		return
	}
	pod.Status = corev1.PodStatus{}
	spec := &pod.Spec
	if spec.NodeName == "" {
		r.refuse("spec.nodeName is missing; name the node that runs it (`weft node list` shows them)")
	}
	if spec.HostNetwork {
		r.refuse("spec.hostNetwork is true, but only pods with an address of their own can be part of the mesh; remove it")
	}
	if len(spec.Containers) == 0 {
		r.refuse("spec.containers is empty; declare at least one container with a name")
	}
	names := map[string]bool{}
	ports := map[string]bool{}
	for i, c := range spec.Containers {
		if mistakes := validation.IsDNS1123Label(c.Name); len(mistakes) > 0 {
			r.refuse("spec.containers[%d].name %q: %s", i, c.Name, mistakes[0])
		}
		if names[c.Name] {
			r.refuse("spec.containers[%d].name %q stands twice; give each container its own", i, c.Name)
		}
		names[c.Name] = true
		for j, p := range c.Ports {
			if p.ContainerPort < 1 || p.ContainerPort > 65535 {
				r.refuse("spec.containers[%d].ports[%d].containerPort is %d; choose one from 1 to 65535", i, j, p.ContainerPort)
			}
			if p.HostPort != 0 {
				r.refuse("spec.containers[%d].ports[%d].hostPort is not supported; remove it and use a service", i, j)
			}
			checkProtocol(r, p.Protocol, "spec.containers[%d].ports[%d].protocol", i, j)
			if p.Protocol == "" {
				spec.Containers[i].Ports[j].Protocol = corev1.ProtocolTCP
			}
			if p.Name == "" {
				continue
			}
			if mistakes := validation.IsValidPortName(p.Name); len(mistakes) > 0 {
				r.refuse("spec.containers[%d].ports[%d].name %q: %s", i, j, p.Name, mistakes[0])
			}
			if ports[p.Name] {
				r.refuse("spec.containers[%d].ports[%d].name %q stands twice; give each port its own", i, j, p.Name)
			}
			ports[p.Name] = true
		}
	}
	if spec.RestartPolicy == "" {
		spec.RestartPolicy = corev1.RestartPolicyAlways
	}
	if spec.ServiceAccountName == "" {
		spec.ServiceAccountName = "default"
	}
}

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

func readEndpointSlice(r *reading) {
	slice, ok := decode[*discoveryv1.EndpointSlice](r)
	if !ok {
		return
	}
	if slice.Labels[discoveryv1.LabelServiceName] == "" {
		r.refuse("label %s is missing; set it to the name of the slice's service", discoveryv1.LabelServiceName)
	}
	if slice.Labels[discoveryv1.LabelManagedBy] == ManagedBy {
		r.refuse("label %s is %q, which marks slices that weft derives by itself; remove it", discoveryv1.LabelManagedBy, ManagedBy)
	}
	if slice.AddressType != discoveryv1.AddressTypeIPv4 && slice.AddressType != discoveryv1.AddressTypeIPv6 {
		r.refuse("addressType is %q; write IPv4 or IPv6", slice.AddressType)
	}
	for i, e := range slice.Endpoints {
		if len(e.Addresses) == 0 {
			r.refuse("endpoints[%d].addresses is empty", i)
		}
		for _, text := range e.Addresses {
			ip, err := netip.ParseAddr(text)
			if err != nil || ip.Zone() != "" || ip.Is4() != (slice.AddressType == discoveryv1.AddressTypeIPv4) {
				r.refuse("endpoints[%d].addresses: %q is not an %s address", i, text, slice.AddressType)
			}
		}
	}
	for i, p := range slice.Ports {
		if p.Port == nil || *p.Port < 1 || *p.Port > 65535 {
			r.refuse("ports[%d].port must be from 1 to 65535", i)
		}
		if p.Protocol != nil {
			checkProtocol(r, *p.Protocol, "ports[%d].protocol", i)
		}
	}
}

// readPolicy leaves the reading to package policy and keeps its JSON.
func readPolicy(r *reading) {
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(r.text, &doc); err != nil {
		r.refuse("%s", explainType(err))
		return
	}
	// The namespace is set before parsing, because selectors without one mean
	// the policy's own.
	var meta map[string]json.RawMessage
	if err := json.Unmarshal(doc["metadata"], &meta); err != nil {
		r.refuse("metadata: %s", explainType(err))
		return
	}
	if r.kind.Namespaced {
		meta["namespace"], _ = json.Marshal(r.namespace)
	}
	for _, field := range []string{"managedFields", "resourceVersion", "uid", "generation", "selfLink", "creationTimestamp"} {
		delete(meta, field)
	}
	doc["metadata"], _ = json.Marshal(meta)
	text, err := json.Marshal(doc)
	if err != nil {
		r.refuse("%s", err)
		return
	}
	policies, err := policy.Parse(text)
	if err != nil {
		for _, err := range leaves(err) {
			text := strings.TrimPrefix(err.Error(), "document 1: ")
			r.refuse("%s", strings.TrimPrefix(text, r.kind.Name+" \""+r.name+"\": "))
		}
		return
	}
	if len(policies) != 1 {
		r.refuse("holds no policy")
		return
	}
	r.value = policies[0]
	for _, w := range policies[0].Warnings() {
		r.warn("%s", w)
	}
}

// leaves takes joined errors apart, so that each is a problem of its own.
func leaves(err error) []error {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		var out []error
		for _, err := range joined.Unwrap() {
			out = append(out, leaves(err)...)
		}
		return out
	}
	return []error{err}
}

func checkProtocol(r *reading, p corev1.Protocol, at string, args ...any) {
	switch p {
	case "", corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP:
		return
	}
	r.refuse(at+" is %q; write TCP, UDP or SCTP", append(args, p)...)
}

func checkBool(r *reading, annotations map[string]string, names ...string) {
	for _, name := range names {
		switch value, ok := annotations[name]; {
		case !ok, strings.EqualFold(value, "true"), strings.EqualFold(value, "false"):
		default:
			r.refuse("annotation %s is %q; write \"true\" or \"false\"", name, value)
		}
	}
}

// meta is the metadata of any Kubernetes object; nil for a policy.
func (o *object) meta() metav1.Object {
	m, _ := o.value.(metav1.Object)
	return m
}
