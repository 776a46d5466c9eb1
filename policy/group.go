package policy

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/weft-mesh/weft/identity"
)

// sourceGroup is the source of a group's labels, as in Cilium.
const sourceGroup = "cidrgroup"

// CIDRGroup is a list of prefixes that policies refer to by name or label. It is
// immutable once parsed.
type CIDRGroup struct {
	Name  string
	CIDRs []netip.Prefix

	labels   identity.Labels
	manifest groupManifest
}

type groupManifest struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   metav1.ObjectMeta `json:"metadata"`
	Spec       *groupSpec        `json:"spec,omitempty"`
	Status     json.RawMessage   `json:"status,omitempty"`
}

type groupSpec struct {
	ExternalCIDRs []string `json:"externalCIDRs"`
}

// String returns kind and name as an operator writes them.
func (g *CIDRGroup) String() string { return KindCIDRGroup + " " + g.Name }

// MarshalJSON returns the manifest without its status.
func (g *CIDRGroup) MarshalJSON() ([]byte, error) {
	m := g.manifest
	m.Status = nil
	return json.Marshal(m)
}

// ObjectMeta is the metadata that MarshalJSON writes.
func (g *CIDRGroup) ObjectMeta() *metav1.ObjectMeta { return &g.manifest.Metadata }

// group checks a decoded manifest. The result is valid only if ps is still empty.
func (m groupManifest) group(ps *problems) *CIDRGroup {
	g := &CIDRGroup{Name: m.Metadata.Name, manifest: m}
	checkMeta(&m.Metadata, m.Kind, ps)
	var labels []identity.Label
	for _, key := range slices.Sorted(maps.Keys(m.Metadata.Labels)) {
		at, value := path("metadata.labels").key(key), m.Metadata.Labels[key]
		if why := validation.IsQualifiedName(key); len(why) != 0 {
			ps.add(at, "%q is not a label key: %s", key, why[0])
		}
		if why := validation.IsValidLabelValue(value); len(why) != 0 {
			ps.add(at, "%q is not a label value: %s", value, why[0])
		}
		labels = append(labels, identity.Label{Source: sourceGroup, Key: key, Value: value})
	}
	g.labels = identity.NewLabels(labels...)
	if m.Spec == nil || m.Spec.ExternalCIDRs == nil {
		ps.add("spec.externalCIDRs", "is missing; list the prefixes, or write [] for none")
		return g
	}
	for i, text := range m.Spec.ExternalCIDRs {
		if prefix, ok := parseCIDR(path("spec.externalCIDRs").index(i), text, ps); ok {
			g.CIDRs = append(g.CIDRs, prefix)
		}
	}
	return g
}

// MissingGroups returns the groups that the policy names and that do not exist.
func (p *Policy) MissingGroups(there func(name string) bool) []string {
	var out []string
	seen := map[string]bool{}
	for q := range p.peers() {
		if q.kind == peerGroup && q.group != "" && !seen[q.group] && !there(q.group) {
			seen[q.group] = true
			out = append(out, q.group)
		}
	}
	return out
}

// ParseGroup reads one CiliumCIDRGroup, also as earlier versions accepted it.
func ParseGroup(data []byte) (*CIDRGroup, error) {
	_, groups, err := parseAll(data, true)
	if err != nil {
		return nil, err
	}
	if len(groups) != 1 {
		return nil, fmt.Errorf("contains %d groups, want exactly one", len(groups))
	}
	return groups[0], nil
}
