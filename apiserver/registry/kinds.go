package registry

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weft-mesh/weft/policy"
)

// Kind is a kind of object that can be applied.
type Kind struct {
	Name       string // as in a manifest: "Pod"
	APIVersion string // "v1"
	Plural     string // as in keys and paths: "pods"
	Short      []string
	Namespaced bool
	read       func(*reading)
}

// controlled are Kubernetes' kinds that mean pods, which a controller makes.
var controlled = map[string]bool{
	"Deployment": true, "ReplicaSet": true, "ReplicationController": true, "StatefulSet": true, "DaemonSet": true,
	"Job": true, "CronJob": true,
}

// group is the API group of an apiVersion; "" for the core's.
func group(apiVersion string) string {
	if group, _, ok := strings.Cut(apiVersion, "/"); ok {
		return group
	}
	return ""
}

// DefaultNamespace is where objects without a namespace belong.
const DefaultNamespace = "default"

// kinds are in the order an operator reads them in. Namespaces come first, so
// that a listing of everything begins with them.
var kinds = []Kind{
	{"Namespace", corev1.SchemeGroupVersion.String(), "namespaces", []string{"ns"}, false, readNamespace},
	{"Pod", corev1.SchemeGroupVersion.String(), "pods", []string{"po"}, true, readPod},
	{"Service", corev1.SchemeGroupVersion.String(), "services", []string{"svc"}, true, readService},
	{"EndpointSlice", discoveryv1.SchemeGroupVersion.String(), "endpointslices", []string{"eps"}, true, readEndpointSlice},
	{policy.KindNamespaced, policy.APIVersion, "ciliumnetworkpolicies", []string{"cnp", "policy", "policies"}, true, readPolicy},
	{policy.KindClusterwide, policy.APIVersion, "ciliumclusterwidenetworkpolicies", []string{"ccnp"}, false, readPolicy},
	{policy.KindNetwork, policy.NetworkAPIVersion, "networkpolicies", []string{"netpol", "np"}, true, readPolicy},
	{policy.KindCIDRGroup, policy.APIVersion, "ciliumcidrgroups", []string{"ccg"}, false, readGroup},
}

// Kinds are all kinds, in a fixed order. The caller owns the slice.
func Kinds() []Kind { return slices.Clone(kinds) }

// FindKind finds a kind by plural, singular, kind or short name, in any case.
func FindKind(word string) (Kind, bool) {
	word = strings.ToLower(word)
	i := slices.IndexFunc(kinds, func(k Kind) bool {
		return word == k.Plural || word == strings.ToLower(k.Name) || slices.Contains(k.Short, word)
	})
	if i < 0 {
		return Kind{}, false
	}
	return kinds[i], true
}

func kindNames() []string {
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = k.Name
	}
	return names
}

// knownKinds is for sentences: "Namespace (v1), Pod (v1), …".
func knownKinds() string {
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = k.Name + " (" + k.APIVersion + ")"
	}
	return strings.Join(names, ", ")
}

// knownPlurals is for sentences about paths.
func knownPlurals() string {
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = k.Plural
	}
	return strings.Join(names, ", ")
}
