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
	Name       string // as in manifests: "Pod"
	APIVersion string // "v1"
	Plural     string // as in keys and paths: "pods"
	Short      []string
	Namespaced bool
	read       func(*reading)
}

// controlled has Kubernetes' kinds that stand for pods, which a controller creates.
var controlled = map[string]bool{
	"Deployment": true, "ReplicaSet": true, "ReplicationController": true, "StatefulSet": true, "DaemonSet": true,
	"Job": true, "CronJob": true,
}

// group is the API group of an apiVersion; "" for the core group.
func group(apiVersion string) string {
	if group, _, ok := strings.Cut(apiVersion, "/"); ok {
		return group
	}
	return ""
}

// DefaultNamespace is the namespace of objects that name none.
const DefaultNamespace = "default"

// kinds are in the order in which operators see them.
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

// Kinds returns all kinds in a fixed order. The caller owns the slice.
func Kinds() []Kind { return slices.Clone(kinds) }

// FindKind finds a kind by its plural, its name or a short name, in any case.
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

// knownKinds lists the kinds for a message: "Namespace (v1), Pod (v1), …".
func knownKinds() string {
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = k.Name + " (" + k.APIVersion + ")"
	}
	return strings.Join(names, ", ")
}

// knownPlurals lists the kinds for a message about a path.
func knownPlurals() string {
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = k.Plural
	}
	return strings.Join(names, ", ")
}
