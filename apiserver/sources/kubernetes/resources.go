package kubernetes

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weft-mesh/weft/manifest"
)

// resource is a kind of object that is read from Kubernetes.
type resource struct {
	group  schema.GroupVersion
	plural string
	kind   string
	// sample is an object as the client returns it.
	sample runtime.Object
	// custom says that its definition may not be installed.
	custom bool
	// rank orders the resources: what forbids is written before what it is about.
	rank int
}

// Nodes (machines) become registrations, clusters are joined as peers say, and definitions tell
// which custom resources there are. All others are objects of the registry.
const (
	machines    = "nodes"
	peers       = "peers"
	definitions = "customresourcedefinitions"
)

// ownGroup is that of Weft's own kinds.
var ownGroup = schema.GroupVersion{Group: "weft.io", Version: "v1alpha1"}

var ciliumGroup = schema.GroupVersion{Group: "cilium.io", Version: "v2"}

var resources = []*resource{
	{group: schema.GroupVersion{Group: "apiextensions.k8s.io", Version: "v1"}, plural: definitions, kind: "CustomResourceDefinition", sample: &metav1.PartialObjectMetadata{}},
	{group: corev1.SchemeGroupVersion, plural: machines, kind: "Node", sample: &corev1.Node{}, rank: 0},
	{group: ownGroup, plural: peers, kind: "Peer", sample: customIn(ownGroup, "Peer"), custom: true, rank: 0},
	{group: ciliumGroup, plural: manifest.CIDRGroups, kind: "CiliumCIDRGroup", sample: custom("CiliumCIDRGroup"), custom: true, rank: 1},
	{group: ciliumGroup, plural: manifest.ClusterwidePolicies, kind: "CiliumClusterwideNetworkPolicy", sample: custom("CiliumClusterwideNetworkPolicy"), custom: true, rank: 2},
	{group: ciliumGroup, plural: manifest.Policies, kind: "CiliumNetworkPolicy", sample: custom("CiliumNetworkPolicy"), custom: true, rank: 3},
	{group: networkingv1.SchemeGroupVersion, plural: manifest.NetworkPolicies, kind: "NetworkPolicy", sample: &networkingv1.NetworkPolicy{}, rank: 4},
	{group: corev1.SchemeGroupVersion, plural: manifest.Namespaces, kind: "Namespace", sample: &corev1.Namespace{}, rank: 5},
	{group: corev1.SchemeGroupVersion, plural: manifest.Services, kind: "Service", sample: &corev1.Service{}, rank: 6},
	{group: mcsGroup, plural: manifest.ServiceExports, kind: "ServiceExport", sample: customIn(mcsGroup, "ServiceExport"), custom: true, rank: 6},
	{group: discoveryv1.SchemeGroupVersion, plural: manifest.EndpointSlices, kind: "EndpointSlice", sample: &discoveryv1.EndpointSlice{}, rank: 7},
	{group: corev1.SchemeGroupVersion, plural: manifest.Pods, kind: "Pod", sample: &corev1.Pod{}, rank: 8},
}

// custom is an object of a kind that has no Go type here.
func custom(kind string) *unstructured.Unstructured { return customIn(ciliumGroup, kind) }

func customIn(group schema.GroupVersion, kind string) *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(group.WithKind(kind))
	return u
}

// definition is the name of the resource's CustomResourceDefinition.
func (r *resource) definition() string { return r.plural + "." + r.group.Group }
