package main

import (
	"encoding/json"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	// mostServices is how many addresses serviceCIDR has room for.
	mostServices = 60_000
	// realServices is how many services, the first, lead to pods that answer; the others'
	// endpoints are addresses that nobody has.
	realServices = 64
	// perService is how many endpoints each service has.
	perService = 4
	// extra is the service whose only endpoint is changed, to see how soon it is known.
	extra = "extra"
)

var (
	podCIDR     = netip.MustParsePrefix("10.32.0.0/12")
	serviceCIDR = netip.MustParsePrefix("10.128.0.0/16")
	// absent are the endpoints of services that lead nowhere: in podCIDR, but on no node.
	absent = netip.MustParseAddr("10.33.0.0")
	// firstService is the address of the first service. Those before it are left to
	// Kubernetes, which takes some for its own.
	firstService = netip.MustParseAddr("10.128.1.0")
	extraService = netip.MustParseAddr("10.128.0.200")
)

// plus is the address n behind a.
func plus(a netip.Addr, n int) netip.Addr {
	b := a.As4()
	v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	v += uint32(n)
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

func serviceName(i int) string { return fmt.Sprintf("s%05d", i) }

func serviceAddr(i int) netip.AddrPort { return netip.AddrPortFrom(plus(firstService, i), servePort) }

// endpointsOf are the endpoints of a service, with the pods that answer.
func endpointsOf(i int, pods []netip.Addr) []netip.Addr {
	if i < realServices {
		return pods
	}
	out := make([]netip.Addr, perService)
	for k := range out {
		out[k] = plus(absent, i*perService+k)
	}
	return out
}

// service is a service without a selector, whose slice is written beside it, with all that
// an API server fills in.
func service(name string, addr netip.Addr) *corev1.Service {
	singleStack, everywhere := corev1.IPFamilyPolicySingleStack, corev1.ServiceInternalTrafficPolicyCluster
	return &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: metav1.NamespaceDefault},
		Spec: corev1.ServiceSpec{
			ClusterIP: addr.String(), ClusterIPs: []string{addr.String()}, Type: corev1.ServiceTypeClusterIP,
			SessionAffinity: corev1.ServiceAffinityNone, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, IPFamilyPolicy: &singleStack, InternalTrafficPolicy: &everywhere,
			Ports: []corev1.ServicePort{{Name: "http", Port: servePort, TargetPort: intstr.FromInt32(servePort), Protocol: corev1.ProtocolTCP}},
		},
	}
}

func endpointSlice(name string, endpoints []netip.Addr) *discoveryv1.EndpointSlice {
	port, protocol, portName, ready := int32(servePort), corev1.ProtocolTCP, "http", true
	s := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: discoveryv1.SchemeGroupVersion.String(), Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: metav1.NamespaceDefault,
			Labels: map[string]string{discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: "benchservices"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: &protocol}},
	}
	for _, a := range endpoints {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a.String()}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}})
	}
	return s
}

// pod is one of Weft's pods; a machine without Weft has namespaces like its.
func pod(name, node string) *corev1.Pod {
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: metav1.NamespaceDefault, Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "none"}}},
	}
}

// encode writes an object as JSON, which is YAML too. These always encode.
func encode(object any) []byte {
	text, err := json.Marshal(object)
	if err != nil {
		panic(fmt.Sprintf("%T does not encode: %v", object, err))
	}
	return text
}
