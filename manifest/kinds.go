package manifest

import (
	"slices"
	"strings"
)

// Kind is a kind of object that can be applied. A kind is described here alone: the API
// server, the agents and the commands each add what they do with it, in a table by plural of
// which a test says that no kind is missing.
type Kind struct {
	Name       string // as in manifests: "Pod"
	APIVersion string // "v1"
	// Also is an older version, whose objects have the same fields; "" if there is none.
	Also       string
	Plural     string // as in keys and paths: "pods"
	Short      []string
	Namespaced bool
	// Policy kinds say which traffic is allowed.
	Policy bool
}

// The plurals, for what treats one kind differently from the others.
const (
	Namespaces          = "namespaces"
	Pods                = "pods"
	Services            = "services"
	EndpointSlices      = "endpointslices"
	Policies            = "ciliumnetworkpolicies"
	ClusterwidePolicies = "ciliumclusterwidenetworkpolicies"
	NetworkPolicies     = "networkpolicies"
	CIDRGroups          = "ciliumcidrgroups"
	ServiceExports      = "serviceexports"
	ServiceImports      = "serviceimports"
)

// kinds are in the order in which operators see them.
var kinds = []Kind{
	{Name: "Namespace", APIVersion: "v1", Plural: Namespaces, Short: []string{"ns"}},
	{Name: "Pod", APIVersion: "v1", Plural: Pods, Short: []string{"po"}, Namespaced: true},
	{Name: "Service", APIVersion: "v1", Plural: Services, Short: []string{"svc"}, Namespaced: true},
	{Name: "EndpointSlice", APIVersion: "discovery.k8s.io/v1", Plural: EndpointSlices, Short: []string{"eps"}, Namespaced: true},
	{Name: "CiliumNetworkPolicy", APIVersion: "cilium.io/v2", Plural: Policies, Short: []string{"cnp", "policy", "policies"}, Namespaced: true, Policy: true},
	{Name: "CiliumClusterwideNetworkPolicy", APIVersion: "cilium.io/v2", Plural: ClusterwidePolicies, Short: []string{"ccnp"}, Policy: true},
	{Name: "NetworkPolicy", APIVersion: "networking.k8s.io/v1", Plural: NetworkPolicies, Short: []string{"netpol", "np"}, Namespaced: true, Policy: true},
	{Name: "CiliumCIDRGroup", APIVersion: "cilium.io/v2", Plural: CIDRGroups, Short: []string{"ccg"}},
	{Name: "ServiceExport", APIVersion: "multicluster.x-k8s.io/v1beta1", Also: "multicluster.x-k8s.io/v1alpha1", Plural: ServiceExports, Short: []string{"svcex", "svcexport"}, Namespaced: true},
	{Name: "ServiceImport", APIVersion: "multicluster.x-k8s.io/v1beta1", Also: "multicluster.x-k8s.io/v1alpha1", Plural: ServiceImports, Short: []string{"svcim", "svcimport"}, Namespaced: true},
}

// Kinds returns all kinds in a fixed order. The caller owns the slice.
func Kinds() []Kind { return slices.Clone(kinds) }

// Called says whether a word means this kind: its plural, its name or a short name, in any
// case.
func (k Kind) Called(word string) bool {
	word = strings.ToLower(word)
	return word == k.Plural || word == strings.ToLower(k.Name) || slices.Contains(k.Short, word)
}

// IsPolicy says whether objects of this plural say which traffic is allowed.
func IsPolicy(plural string) bool {
	return slices.ContainsFunc(kinds, func(k Kind) bool { return k.Plural == plural && k.Policy })
}
