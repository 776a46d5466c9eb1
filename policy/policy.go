package policy

import (
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/weft-mesh/weft/identity"
)

// Policy is one accepted manifest. It does not change once parsed, and any
// number of goroutines may use it.
type Policy struct {
	Kind      string // KindNamespaced, KindClusterwide or KindNetwork
	Namespace string // "" for a cluster-wide policy
	Name      string

	manifest manifest         // of Cilium's kinds
	network  *networkManifest // of Kubernetes'
	rules    []rule           // spec, then specs, in the order written
	warnings []string
}

// Warnings say what is accepted and may still not do what its author expects.
func (p *Policy) Warnings() []string { return slices.Clone(p.warnings) }

func (p *Policy) warn(at path, format string, args ...any) {
	p.warnings = append(p.warnings, fmt.Sprintf("%s: "+format, append([]any{at}, args...)...))
}

// String is kind and name as an operator writes them.
func (p *Policy) String() string {
	if p.Namespace == "" {
		return p.Kind + " " + p.Name
	}
	return p.Kind + " " + p.Namespace + "/" + p.Name
}

// MarshalJSON is the manifest again, without its status.
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

// Direction is a side of the subject.
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

// rule is one spec, ready to be compiled; it selects its subjects and holds
// the terms of both directions.
type rule struct {
	subject  selector
	enforced [2]bool // by Direction: what no term allows is denied
	terms    [2][]term
	log      string
}

// term is one entry of ingress, egress or a deny list.
type term struct {
	list  string // as written: ingress, ingressDeny, egress, egressDeny; or node
	index int    // in that list
	deny  bool
	any   bool       // whoever the peer is; peers is nil
	peers []peer     // any one of them; none and not any: no one
	ports []portSpec // any one of them; nil: whatever port and protocol
}

// portSpec is a range of ports of one protocol, or of ICMP types. First 0 and
// last 65535 is any port. With a name it is whichever port the endpoint that is
// spoken to calls by it.
type portSpec struct {
	proto       uint8
	first, last uint16
	name        string
}

func (s portSpec) anyPort() bool { return s.first == 0 && s.last == 65535 }

func (s portSpec) covers(proto uint8, port uint16) bool {
	return s.name == "" && s.proto == proto && s.first <= port && port <= s.last
}

// peers are all peers that the policy's rules name.
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

// prefixes adds what the policy's peers name, exceptions included.
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

// CIDRIdentities are the prefixes that need a node-local identity of their
// own, and the labels of each. Written into a longest-prefix map, every
// address finds the most specific prefix any policy names, and that is all
// the policies need to tell addresses apart. A whole address family is not
// among them: it is world. The cluster's API servers are among them if a policy
// tells them from the rest of the world.
func CIDRIdentities(policies []*Policy, groups []*CIDRGroup, apiServers []netip.Addr) map[netip.Prefix]identity.Labels {
	named := map[netip.Prefix]bool{}
	for _, p := range policies {
		p.prefixes(groups, func(peer) bool { return true }, named)
	}
	out := map[netip.Prefix]identity.Labels{}
	for prefix := range named {
		if prefix.Bits() > 0 {
			out[prefix] = CIDRLabels(prefix)
		}
	}
	if !slices.ContainsFunc(policies, (*Policy).namesAPIServers) {
		return out
	}
	for _, addr := range apiServers {
		prefix := netip.PrefixFrom(addr, addr.BitLen())
		out[prefix] = WithAPIServer(CIDRLabels(prefix))
	}
	return out
}

// Blocks are the prefixes by which policies tell apart addresses inside the mesh
// as well: ipBlocks and their exceptions. An address needs the label of the
// narrowest that holds it, see BlockLabel. A whole address family is not among
// them: it holds whoever has no such label.
func Blocks(policies []*Policy) map[netip.Prefix]bool {
	named := map[netip.Prefix]bool{}
	for _, p := range policies {
		p.prefixes(nil, func(q peer) bool { return q.mesh }, named)
	}
	maps.DeleteFunc(named, func(p netip.Prefix, _ bool) bool { return p.Bits() == 0 })
	return named
}

// BlockLabel is the label of addresses inside the mesh that lie in prefix.
func BlockLabel(prefix netip.Prefix) identity.Label {
	return identity.Label{Source: identity.SourceCIDR, Key: cidrKey(prefix)}
}

// WithAPIServer are the labels of somebody who is one of the cluster's API servers
// as well.
func WithAPIServer(labels identity.Labels) identity.Labels {
	return identity.NewLabels(append(slices.Clone(labels), identity.Label{Source: identity.SourceReserved, Key: identity.KubeAPIServer.String()})...)
}

// namesAPIServers reports whether a peer of the policy is told by being an API
// server.
func (p *Policy) namesAPIServers() bool {
	for named := range p.peers() {
		for _, q := range named.selector {
			if q.source == identity.SourceReserved && (q.key == identity.KubeAPIServer.String() || q.key == wordCluster) {
				return true
			}
		}
	}
	return false
}

// CIDRLabels are the labels of an identity that stands for prefix.
func CIDRLabels(prefix netip.Prefix) identity.Labels {
	return identity.NewLabels(
		BlockLabel(prefix),
		identity.Label{Source: identity.SourceReserved, Key: identity.World.String()},
	)
}

// RuleInfo says where a cookie comes from.
type RuleInfo struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	Spec      int    `json:"spec"`  // 0 is spec, or the first of specs
	List      string `json:"list"`  // ingress, ingressDeny, egress or egressDeny; node: the own node, which a NetworkPolicy cannot keep out
	Index     int    `json:"index"` // in that list
	Deny      bool   `json:"deny"`
	Log       string `json:"log,omitempty"` // spec.log.value
}

// Policy is namespace/name, or the name of a cluster-wide policy.
func (r RuleInfo) Policy() string {
	if r.Namespace == "" {
		return r.Name
	}
	return r.Namespace + "/" + r.Name
}

func (r RuleInfo) String() string {
	return fmt.Sprintf("%s %s %s[%d]", r.Kind, r.Policy(), r.List, r.Index)
}
