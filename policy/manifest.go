package policy

import (
	"encoding/json"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The API objects this package reads.
const (
	APIVersion      = "cilium.io/v2"
	KindNamespaced  = "CiliumNetworkPolicy"
	KindClusterwide = "CiliumClusterwideNetworkPolicy"
	KindCIDRGroup   = "CiliumCIDRGroup"

	NetworkAPIVersion = "networking.k8s.io/v1"
	KindNetwork       = "NetworkPolicy"
)

// manifest is a policy as it is written for Cilium. A nil list and an empty one
// differ: the first is absent, the second selects nothing.
//
// Fields that Cilium supports and Weft does not are raw, so that they are refused by
// name, with the reason, rather than as unknown.
type manifest struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   metav1.ObjectMeta `json:"metadata"`
	Spec       *spec             `json:"spec,omitempty"`
	Specs      []*spec           `json:"specs,omitzero"`
	Status     json.RawMessage   `json:"status,omitempty"` // present in exported objects; ignored
}

type spec struct {
	EndpointSelector  *metav1.LabelSelector `json:"endpointSelector,omitempty"`
	NodeSelector      json.RawMessage       `json:"nodeSelector,omitempty"`
	Ingress           []*ingressItem        `json:"ingress,omitzero"`
	IngressDeny       []*ingressItem        `json:"ingressDeny,omitzero"`
	Egress            []*egressItem         `json:"egress,omitzero"`
	EgressDeny        []*egressItem         `json:"egressDeny,omitzero"`
	EnableDefaultDeny *defaultDeny          `json:"enableDefaultDeny,omitempty"`
	Description       string                `json:"description,omitempty"`
	Labels            []*metadataLabel      `json:"labels,omitzero"`
	Log               *logTag               `json:"log,omitempty"`
}

type defaultDeny struct {
	Ingress *bool `json:"ingress,omitempty"`
	Egress  *bool `json:"egress,omitempty"`
}

type metadataLabel struct {
	Key    string `json:"key"`
	Value  string `json:"value,omitempty"`
	Source string `json:"source,omitempty"`
}

type logTag struct {
	Value string `json:"value,omitempty"`
}

type ingressItem struct {
	FromEndpoints  []*metav1.LabelSelector `json:"fromEndpoints,omitzero"`
	FromCIDR       []string                `json:"fromCIDR,omitzero"`
	FromCIDRSet    []*cidrRule             `json:"fromCIDRSet,omitzero"`
	FromEntities   []string                `json:"fromEntities,omitzero"`
	FromNodes      json.RawMessage         `json:"fromNodes,omitempty"`
	FromGroups     json.RawMessage         `json:"fromGroups,omitempty"`
	FromRequires   json.RawMessage         `json:"fromRequires,omitempty"`
	ToPorts        []*portRule             `json:"toPorts,omitzero"`
	ICMPs          []*icmpRule             `json:"icmps,omitzero"`
	Authentication *authentication         `json:"authentication,omitempty"`
}

type egressItem struct {
	ToEndpoints    []*metav1.LabelSelector `json:"toEndpoints,omitzero"`
	ToCIDR         []string                `json:"toCIDR,omitzero"`
	ToCIDRSet      []*cidrRule             `json:"toCIDRSet,omitzero"`
	ToEntities     []string                `json:"toEntities,omitzero"`
	ToNodes        json.RawMessage         `json:"toNodes,omitempty"`
	ToGroups       json.RawMessage         `json:"toGroups,omitempty"`
	ToRequires     json.RawMessage         `json:"toRequires,omitempty"`
	ToServices     json.RawMessage         `json:"toServices,omitempty"`
	ToFQDNs        json.RawMessage         `json:"toFQDNs,omitempty"`
	ToPorts        []*portRule             `json:"toPorts,omitzero"`
	ICMPs          []*icmpRule             `json:"icmps,omitzero"`
	Authentication *authentication         `json:"authentication,omitempty"`
}

type cidrRule struct {
	CIDR              string                `json:"cidr,omitempty"`
	CIDRGroupRef      string                `json:"cidrGroupRef,omitempty"`
	CIDRGroupSelector *metav1.LabelSelector `json:"cidrGroupSelector,omitempty"`
	Except            []string              `json:"except,omitzero"`
}

type portRule struct {
	Ports          []*portProtocol `json:"ports,omitzero"`
	Rules          json.RawMessage `json:"rules,omitempty"`
	TerminatingTLS json.RawMessage `json:"terminatingTLS,omitempty"`
	OriginatingTLS json.RawMessage `json:"originatingTLS,omitempty"`
	ServerNames    json.RawMessage `json:"serverNames,omitempty"`
	Listener       json.RawMessage `json:"listener,omitempty"`
}

type portProtocol struct {
	Port     json.RawMessage `json:"port,omitempty"` // a string; raw, so that a number gets a helpful error
	EndPort  *int64          `json:"endPort,omitempty"`
	Protocol string          `json:"protocol,omitempty"`
}

type icmpRule struct {
	Fields []*icmpField `json:"fields,omitzero"`
}

type icmpField struct {
	Family string          `json:"family,omitempty"`
	Type   json.RawMessage `json:"type,omitempty"` // a number or a name
}

type authentication struct {
	Mode string `json:"mode"`
}

// item is one entry of ingress, egress or their deny lists, in either direction, with
// field names as the operator wrote them.
type item struct {
	prefix    string // "from" or "to"
	endpoints []*metav1.LabelSelector
	cidr      []string
	cidrSet   []*cidrRule
	entities  []string
	refused   []refusedPeer
	ports     []*portRule
	icmps     []*icmpRule
	authn     *authentication
}

type refusedPeer struct {
	field   string
	value   json.RawMessage
	reason  string
	selects bool // selects peers, so an empty list selects nobody
}

func (i *ingressItem) item() item {
	return item{
		prefix: "from", endpoints: i.FromEndpoints, cidr: i.FromCIDR, cidrSet: i.FromCIDRSet, entities: i.FromEntities,
		refused: []refusedPeer{
			{"fromNodes", i.FromNodes, reasonNodes, true},
			{"fromGroups", i.FromGroups, reasonGroups, true},
			{"fromRequires", i.FromRequires, reasonRequires, false},
		},
		ports: i.ToPorts, icmps: i.ICMPs, authn: i.Authentication,
	}
}

func (e *egressItem) item() item {
	return item{
		prefix: "to", endpoints: e.ToEndpoints, cidr: e.ToCIDR, cidrSet: e.ToCIDRSet, entities: e.ToEntities,
		refused: []refusedPeer{
			{"toNodes", e.ToNodes, reasonNodes, true},
			{"toGroups", e.ToGroups, reasonGroups, true},
			{"toRequires", e.ToRequires, reasonRequires, false},
			{"toServices", e.ToServices, reasonServices, true},
			{"toFQDNs", e.ToFQDNs, reasonFQDNs, true},
		},
		ports: e.ToPorts, icmps: e.ICMPs, authn: e.Authentication,
	}
}

const (
	reasonNodes    = "selecting nodes by label is not supported; use the entity remote-node, or CIDRs"
	reasonGroups   = "cloud provider groups are not supported; write their addresses as CIDRs"
	reasonRequires = "was removed from Cilium 1.19; put the requirement into the selectors of endpoints"
	reasonServices = "selecting by service is not supported; select the service's workloads with toEndpoints and their target port with toPorts"
	reasonFQDNs    = "selecting by DNS name is not supported; write the addresses with toCIDR"
)
