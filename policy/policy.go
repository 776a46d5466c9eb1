package policy

import (
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/identity"
)

// Policy is one accepted manifest. It is immutable once parsed and safe for
// concurrent use.
type Policy struct {
	Kind      string // KindNamespaced, KindClusterwide or KindNetwork
	Namespace string // "" for a cluster-wide policy
	Name      string

	manifest manifest         // for Cilium's kinds
	network  *networkManifest // for Kubernetes' NetworkPolicy
	rules    []rule           // spec, then specs, in the order written
	warnings []string
}

// Warnings list what was accepted but may not do what its author expects.
func (p *Policy) Warnings() []string { return slices.Clone(p.warnings) }

func (p *Policy) warn(at path, format string, args ...any) {
	p.warnings = append(p.warnings, fmt.Sprintf("%s: "+format, append([]any{at}, args...)...))
}

// String returns kind and name as an operator writes them.
func (p *Policy) String() string {
	if p.Namespace == "" {
		return p.Kind + " " + p.Name
	}
	return p.Kind + " " + p.Namespace + "/" + p.Name
}

// MarshalJSON returns the manifest without its status.
func (p *Policy) MarshalJSON() ([]byte, error) {
	if p.network != nil {
		m := *p.network
		m.Status = nil
		return json.Marshal(m)
	}
	m := p.manifest
	m.Status = nil
	return json.Marshal(m)
}

// ObjectMeta is the metadata that MarshalJSON writes. The registry, which stores the
// policy, sets UID and creation time there.
func (p *Policy) ObjectMeta() *metav1.ObjectMeta {
	if p.network != nil {
		return &p.network.Metadata
	}
	return &p.manifest.Metadata
}

// Direction is the direction of traffic as the subject sees it.
type Direction uint8

const (
	Egress  Direction = 0
	Ingress Direction = 1
)

var directions = [...]Direction{Egress, Ingress}

func (d Direction) String() string {
	if d == Egress {
		return "egress"
	}
	return "ingress"
}

// IP protocols that policies can name.
const (
	ProtoICMP   uint8 = 1
	ProtoTCP    uint8 = 6
	ProtoUDP    uint8 = 17
	ProtoICMPv6 uint8 = 58
	ProtoSCTP   uint8 = 132
)

// rule is one spec, ready to compile: the subjects it selects and its terms in
// both directions.
type rule struct {
	subject  selector
	enforced [2]bool // by Direction: traffic that no term allows is denied
	terms    [2][]term
	log      string
}

// term is one entry of ingress, egress or a deny list.
type term struct {
	list  string // name of the list: ingress, ingressDeny, egress, egressDeny; or node
	index int    // in that list
	deny  bool
	any   bool       // matches every peer; peers is nil
	peers []peer     // matches any of these; without any and peers, nobody
	ports []portSpec // matches any of these; nil: every port and protocol
}

// portSpec is a range of ports of one protocol, or of ICMP types. First 0 and last
// 65535 mean any port. If name is set, it stands for the port that the destination
// endpoint gives this name.
type portSpec struct {
	proto       uint8
	first, last uint16
	name        string
}

func (s portSpec) anyPort() bool { return s.first == 0 && s.last == 65535 }

func (s portSpec) covers(proto uint8, port uint16) bool {
	return s.name == "" && s.proto == proto && s.first <= port && port <= s.last
}

// peers iterates over all peers that the policy's rules name.
func (p *Policy) peers() iter.Seq[peer] {
	return func(yield func(peer) bool) {
		for _, r := range p.rules {
			for _, t := range slices.Concat(r.terms[:]...) {
				for _, peer := range t.peers {
					if !yield(peer) {
						return
					}
				}
			}
		}
	}
}

// prefixes adds the prefixes of the wanted peers, exceptions included.
func (p *Policy) prefixes(groups []*CIDRGroup, want func(peer) bool, into map[netip.Prefix]bool) {
	for named := range p.peers() {
		for _, peer := range named.resolved(groups) {
			if peer.kind != peerCIDR || !want(peer) {
				continue
			}
			into[peer.cidr] = true
			for _, e := range peer.except {
				into[e] = true
			}
		}
	}
}

// Prefixes returns the prefixes that the policy names, except whole address families.
func (p *Policy) Prefixes(groups []*CIDRGroup) map[netip.Prefix]bool {
	named := map[netip.Prefix]bool{}
	p.prefixes(groups, func(peer) bool { return true }, named)
	maps.DeleteFunc(named, func(prefix netip.Prefix, _ bool) bool { return prefix.Bits() == 0 })
	return named
}

// CIDRIdentities returns the prefixes that need a node-local identity of their own,
// with the labels of each. In a longest-prefix map, every address then finds the most
// specific prefix that any policy names, which is all that policies need to tell
// addresses apart. A whole address family is left out because it is world. The
// cluster's API servers are included if a policy distinguishes them from the rest of
// the world.
func CIDRIdentities(policies []*Policy, groups []*CIDRGroup, apiServers []netip.Addr) map[netip.Prefix]identity.Labels {
	out := map[netip.Prefix]identity.Labels{}
	for _, p := range policies {
		for prefix := range p.Prefixes(groups) {
			out[prefix] = CIDRLabels(prefix)
		}
	}
	if !slices.ContainsFunc(policies, (*Policy).NamesAPIServers) {
		return out
	}
	for _, addr := range apiServers {
		prefix := netip.PrefixFrom(addr, addr.BitLen())
		out[prefix] = WithAPIServer(CIDRLabels(prefix))
	}
	return out
}

// Blocks returns the prefixes by which policies tell apart addresses inside the mesh
// as well: ipBlocks and their exceptions. An address needs the label of the narrowest
// one that contains it, see BlockLabel. A whole address family is left out: it
// matches whoever has no such label.
func Blocks(policies []*Policy) map[netip.Prefix]bool {
	named := map[netip.Prefix]bool{}
	for _, p := range policies {
		p.prefixes(nil, func(q peer) bool { return q.mesh }, named)
	}
	maps.DeleteFunc(named, func(p netip.Prefix, _ bool) bool { return p.Bits() == 0 })
	return named
}

// BlockLabel returns the label of addresses inside the mesh that lie in prefix.
func BlockLabel(prefix netip.Prefix) identity.Label {
	return identity.Label{Source: identity.SourceCIDR, Key: cidrKey(prefix)}
}

// WithAPIServer adds the label of the cluster's API servers.
func WithAPIServer(labels identity.Labels) identity.Labels {
	return identity.NewLabels(append(slices.Clone(labels), identity.Label{Source: identity.SourceReserved, Key: identity.KubeAPIServer.String()})...)
}

// NamesAPIServers reports whether a peer of the policy is selected by being an API
// server.
func (p *Policy) NamesAPIServers() bool {
	for named := range p.peers() {
		for _, q := range named.selector {
			if q.source == identity.SourceReserved && (q.key == identity.KubeAPIServer.String() || q.key == wordCluster) {
				return true
			}
		}
	}
	return false
}

// CIDRLabels returns the labels of the identity that stands for prefix.
func CIDRLabels(prefix netip.Prefix) identity.Labels {
	return identity.NewLabels(
		BlockLabel(prefix),
		identity.Label{Source: identity.SourceReserved, Key: identity.World.String()},
	)
}

// RuleInfo says which rule a cookie stands for.
type RuleInfo struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	Spec      int    `json:"spec"`  // 0 is spec, or the first of specs
	List      string `json:"list"`  // ingress, ingressDeny, egress or egressDeny; node for the pod's own node, which a NetworkPolicy cannot keep out
	Index     int    `json:"index"` // in that list
	Deny      bool   `json:"deny"`
	Log       string `json:"log,omitempty"` // spec.log.value
}

// Policy returns namespace/name, or just the name for a cluster-wide policy.
func (r RuleInfo) Policy() string {
	if r.Namespace == "" {
		return r.Name
	}
	return r.Namespace + "/" + r.Name
}

func (r RuleInfo) String() string {
	return fmt.Sprintf("%s %s %s[%d]", r.Kind, r.Policy(), r.List, r.Index)
}

// Grouped reports whether the policy refers to groups at all.
func (p *Policy) Grouped() bool {
	for q := range p.peers() {
		if q.kind == peerGroup {
			return true
		}
	}
	return false
}

// RefersTo reports whether a peer of the policy is selected by being in a group.
func (p *Policy) RefersTo(g *CIDRGroup) bool {
	for q := range p.peers() {
		if q.kind == peerGroup && q.means(g) {
			return true
		}
	}
	return false
}
