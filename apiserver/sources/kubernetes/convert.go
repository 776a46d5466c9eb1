package kubernetes

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weft-mesh/weft/service"
)

// made is what becomes of an object of Kubernetes.
type made struct {
	// text is the object in JSON, with what Weft uses of it; nil if it needs nothing of it.
	text []byte
	// node is that of a pod.
	node string
	// partly says what of the object has no effect here; "" if all has.
	partly string
}

// strip drops what Weft does not use of an object, in place: most of its bytes. It never
// fails, so that an object of another shape is left for convert to refuse.
func strip(in any) (any, error) {
	switch v := in.(type) {
	case *corev1.Pod:
		stripMeta(v, mirrorOf)
		v.Spec = podSpec(&v.Spec)
		v.Status = corev1.PodStatus{Phase: v.Status.Phase}
	case *corev1.Service:
		stripMeta(v)
		v.Status.Conditions = nil
	case *corev1.Node:
		stripMeta(v)
		v.Spec = corev1.NodeSpec{PodCIDR: v.Spec.PodCIDR, PodCIDRs: v.Spec.PodCIDRs, Taints: ownTaints(v.Spec.Taints)}
		v.Status = corev1.NodeStatus{Addresses: v.Status.Addresses, Conditions: ownConditions(v.Status.Conditions)}
	case *corev1.Namespace:
		stripMeta(v)
		v.Spec, v.Status = corev1.NamespaceSpec{}, corev1.NamespaceStatus{}
	case *discoveryv1.EndpointSlice:
		stripMeta(v)
		for i := range v.Endpoints {
			v.Endpoints[i].TargetRef, v.Endpoints[i].DeprecatedTopology = nil, nil
		}
	case *networkingv1.NetworkPolicy:
		stripMeta(v)
	case *unstructured.Unstructured:
		stripMeta(v)
		delete(v.Object, "status")
	case *metav1.PartialObjectMetadata:
		stripMeta(v)
		v.Labels, v.Annotations = nil, nil
	}
	return in, nil
}

// mirrorOf is the annotation of a pod that stands for a static one, which a kubelet has from a
// file: the UID that the static pod has on its node.
const mirrorOf = corev1.MirrorPodAnnotationKey

// ownAnnotations are the domains of the annotations that have an effect here.
var ownAnnotations = []string{"service.cilium.io", "clustermesh.cilium.io", "io.cilium", "weft.io"}

// stripMeta keeps what names an object, its labels and the annotations that count, and those
// that are named.
func stripMeta(m metav1.Object, annotations ...string) {
	m.SetManagedFields(nil)
	m.SetOwnerReferences(nil)
	m.SetFinalizers(nil)
	m.SetGenerateName("")
	m.SetSelfLink("")
	m.SetGeneration(0)
	m.SetDeletionTimestamp(nil)
	m.SetDeletionGracePeriodSeconds(nil)
	kept := map[string]string{}
	for name, value := range m.GetAnnotations() {
		if domain, _, _ := strings.Cut(name, "/"); slices.Contains(ownAnnotations, domain) || slices.Contains(annotations, name) {
			kept[name] = value
		}
	}
	if len(kept) == 0 {
		kept = nil
	}
	m.SetAnnotations(kept)
}

// podSpec keeps where a pod runs, under which account and name, and its ports.
func podSpec(in *corev1.PodSpec) corev1.PodSpec {
	out := corev1.PodSpec{
		NodeName: in.NodeName, HostNetwork: in.HostNetwork, ServiceAccountName: in.ServiceAccountName,
		Hostname: in.Hostname, Subdomain: in.Subdomain, RestartPolicy: in.RestartPolicy,
	}
	for _, c := range in.Containers {
		out.Containers = append(out.Containers, corev1.Container{Name: c.Name, Ports: c.Ports})
	}
	for _, c := range in.InitContainers {
		// Those that end before the pod begins have no ports that anybody could use.
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			out.InitContainers = append(out.InitContainers, corev1.Container{Name: c.Name, Ports: c.Ports, RestartPolicy: c.RestartPolicy})
		}
	}
	return out
}

// encode writes an object with its kind, which lists do not say, and without its revision,
// which changes whatever changes.
func encode(m metav1.Object, r *resource) []byte {
	version := m.GetResourceVersion()
	m.SetResourceVersion("")
	defer m.SetResourceVersion(version)
	if u, ok := m.(*unstructured.Unstructured); ok {
		u.SetAPIVersion(r.group.String())
		u.SetKind(r.kind)
		return must(json.Marshal(u.Object))
	}
	if o, ok := m.(runtime.Object); ok {
		o.GetObjectKind().SetGroupVersionKind(r.group.WithKind(r.kind))
	}
	return must(json.Marshal(m))
}

func must(text []byte, err error) []byte {
	if err != nil {
		// Only what was read from JSON or protobuf a moment ago gets here.
		panic(fmt.Sprintf("an object of Kubernetes does not encode: %v", err))
	}
	return text
}

// convert says what becomes of an object that was stripped.
func convert(in metav1.Object, r *resource) made {
	switch v := in.(type) {
	case *corev1.Pod:
		return convertPod(v, r)
	case *corev1.Service:
		return convertService(v, r)
	case *corev1.Node:
		return made{text: must(json.Marshal(v))}
	case *discoveryv1.EndpointSlice:
		return convertSlice(v, r)
	case *metav1.PartialObjectMetadata:
		return made{text: []byte(v.Name)}
	}
	return made{text: encode(in, r)}
}

// convertPod leaves out pods that have no address of their own: those that no node has yet,
// those of their node's network, and those that have come to their end.
func convertPod(pod *corev1.Pod, r *resource) made {
	ended := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	if pod.Spec.NodeName == "" || pod.Spec.HostNetwork || ended {
		return made{}
	}
	m := made{node: pod.Spec.NodeName}
	pod.Status = corev1.PodStatus{}
	for i := range pod.Spec.Containers {
		m.partly = joined(m.partly, hostPorts(&pod.Spec.Containers[i]))
	}
	for i := range pod.Spec.InitContainers {
		m.partly = joined(m.partly, hostPorts(&pod.Spec.InitContainers[i]))
	}
	m.text = encode(known(pod), r)
	return m
}

// known is the pod as a node's runtime knows it, which never hears of the UID that Kubernetes
// gives to the object of a static pod.
func known(pod *corev1.Pod) *corev1.Pod {
	static, is := pod.Annotations[mirrorOf]
	if !is {
		return pod
	}
	out := *pod
	out.Annotations = maps.Clone(pod.Annotations)
	delete(out.Annotations, mirrorOf)
	if static != "" {
		out.UID = types.UID(static)
	}
	return &out
}

// hostPorts drops the host ports that nodes cannot serve, and says which. The pod needs its
// network all the same.
func hostPorts(c *corev1.Container) (partly string) {
	for i := range c.Ports {
		p := &c.Ports[i]
		why := ""
		switch ip, err := netip.ParseAddr(p.HostIP); {
		case p.HostPort == 0:
		case p.HostPort >= service.FirstNodePort && p.HostPort <= service.LastNodePort:
			why = fmt.Sprintf("ports %d-%d are for services", service.FirstNodePort, service.LastNodePort)
		case p.Protocol == corev1.ProtocolSCTP:
			why = "host ports do not carry SCTP"
		case p.HostIP != "" && (err != nil || service.CheckHostIP(ip) != nil):
			why = fmt.Sprintf("hostIP %s is not an address at which others reach a node", p.HostIP)
		}
		if why != "" {
			partly = joined(partly, fmt.Sprintf("hostPort %d of container %s is not served: %s", p.HostPort, c.Name, why))
			p.HostPort, p.HostIP = 0, ""
		}
	}
	return partly
}

func joined(a, b string) string {
	if a != "" && b != "" {
		return a + "; " + b
	}
	return a + b
}

// convertService leaves out services that are only names. In Kubernetes, a service's addresses
// outside are those of its status, whatever the spec asks for.
func convertService(svc *corev1.Service, r *resource) made {
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return made{}
	}
	svc.Spec.LoadBalancerIP = ""
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		svc.Status = corev1.ServiceStatus{}
	}
	return made{text: encode(svc, r)}
}

// convertSlice leaves out slices of names, and of no service.
func convertSlice(slice *discoveryv1.EndpointSlice, r *resource) made {
	if slice.AddressType == discoveryv1.AddressTypeFQDN || slice.Labels[discoveryv1.LabelServiceName] == "" {
		return made{}
	}
	return made{text: encode(slice, r)}
}
