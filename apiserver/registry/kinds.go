package registry

import (
	"slices"
	"strings"

	"github.com/weft-mesh/weft/manifest"
)

// Kind is a kind of object that can be applied, and how it is read.
type Kind struct {
	manifest.Kind
	read func(*reading)
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

// readers read what is in a manifest, by plural.
var readers = map[string]func(*reading){
	manifest.Namespaces:          readNamespace,
	manifest.Pods:                readPod,
	manifest.Services:            readService,
	manifest.EndpointSlices:      readEndpointSlice,
	manifest.Policies:            readPolicy,
	manifest.ClusterwidePolicies: readPolicy,
	manifest.NetworkPolicies:     readPolicy,
	manifest.CIDRGroups:          readGroup,
	manifest.ServiceExports:      readServiceExport,
	manifest.ServiceImports:      readServiceImport,
}

var kinds = func() (all []Kind) {
	for _, k := range manifest.Kinds() {
		all = append(all, Kind{k, readers[k.Plural]})
	}
	return all
}()

// Kinds returns all kinds in a fixed order. The caller owns the slice.
func Kinds() []Kind { return slices.Clone(kinds) }

// FindKind finds a kind by its plural, its name or a short name, in any case.
func FindKind(word string) (Kind, bool) {
	i := slices.IndexFunc(kinds, func(k Kind) bool { return k.Called(word) })
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
