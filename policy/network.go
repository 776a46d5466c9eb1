package policy

import (
	"encoding/json"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/weft-mesh/weft/identity"
)

// networkManifest is Kubernetes' NetworkPolicy as it is written. It adds to Cilium's
// policies; it cannot deny.
type networkManifest struct {
	APIVersion string                          `json:"apiVersion"`
	Kind       string                          `json:"kind"`
	Metadata   metav1.ObjectMeta               `json:"metadata"`
	Spec       *networkingv1.NetworkPolicySpec `json:"spec,omitempty"`
	Status     json.RawMessage                 `json:"status,omitempty"` // printed by older API servers; ignored
}

// listNode is the list of the term that no manifest writes: a pod's own node always
// gets through.
const listNode = "node"

// policy checks a decoded manifest and converts it. The result is valid only if ps is
// still empty.
func (m networkManifest) policy(ps *problems) *Policy {
	checkMeta(&m.Metadata, m.Kind, ps)
	p := &Policy{Kind: m.Kind, Namespace: m.Metadata.Namespace, Name: m.Metadata.Name, network: &m}
	if m.Spec == nil {
		ps.add("spec", "is missing; write at least podSelector")
		return p
	}
	at := path("spec")
	var r rule
	r.subject = append(parseSelector(at.field("podSelector"), &m.Spec.PodSelector, podKey, ps), inNamespaces(p.Namespace))
	r.subject.refuseContradiction(at.field("podSelector"), "no workload", true, ps)
	r.enforced = m.directions(at.field("policyTypes"), ps)
	for i, in := range m.Spec.Ingress {
		r.addNetwork(at, Ingress, i, in.From, in.Ports, p, ps)
	}
	for i, out := range m.Spec.Egress {
		r.addNetwork(at, Egress, i, out.To, out.Ports, p, ps)
	}
	for _, dir := range directions {
		if len(r.terms[dir]) > 0 && !r.enforced[dir] {
			p.warn(at.field(dir.String()), "has no effect: policyTypes does not list %s", policyTypes[dir])
			r.terms[dir] = nil
		}
	}
	if r.enforced[Egress] {
		// In the other direction the datapath does not consult policies.
		r.terms[Egress] = append(r.terms[Egress], term{list: listNode, peers: []peer{reservedPeer(identity.Host)}})
	}
	p.rules = []rule{r}
	return p
}

var policyTypes = [2]networkingv1.PolicyType{Egress: networkingv1.PolicyTypeEgress, Ingress: networkingv1.PolicyTypeIngress}

// directions are those that the policy isolates: ingress, and egress if it has egress
// rules, unless policyTypes says otherwise.
func (m networkManifest) directions(at path, ps *problems) (enforced [2]bool) {
	types := m.Spec.PolicyTypes
	if len(types) == 0 {
		return [2]bool{Ingress: true, Egress: len(m.Spec.Egress) > 0}
	}
	for i, t := range types {
		dir := slices.Index(policyTypes[:], t)
		if dir < 0 {
			ps.add(at.index(i), "%q is not a policy type; write Ingress or Egress", t)
			continue
		}
		enforced[dir] = true
	}
	return enforced
}

// inNamespaces requires one of these namespaces.
func inNamespaces(names ...string) requirement {
	return requirement{source: identity.SourceK8s, key: identity.KeyNamespace, op: metav1.LabelSelectorOpIn, values: names}
}

// addNetwork checks one rule of a NetworkPolicy and appends it as a term. In
// Kubernetes, empty and missing lists mean the same: every peer, every port.
func (r *rule) addNetwork(at path, dir Direction, i int, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort, p *Policy, ps *problems) {
	at = at.field(dir.String()).index(i)
	t := term{list: dir.String(), index: i, any: len(peers) == 0}
	side := at.field(map[Direction]string{Ingress: "from", Egress: "to"}[dir])
	for j, q := range peers {
		if one, ok := networkPeer(side.index(j), q, p.Namespace, ps); ok {
			t.peers = append(t.peers, one)
		}
	}
	for j, q := range ports {
		if one, ok := networkPort(at.field("ports").index(j), q, ps); ok {
			t.ports = append(t.ports, one)
		}
	}
	r.terms[dir] = append(r.terms[dir], t)
}

func networkPeer(at path, q networkingv1.NetworkPolicyPeer, namespace string, ps *problems) (peer, bool) {
	switch {
	case q.IPBlock != nil && (q.PodSelector != nil || q.NamespaceSelector != nil):
		ps.add(at, "combines ipBlock with a selector; write one list item for each")
		return peer{}, false
	case q.IPBlock != nil:
		return networkBlock(at.field("ipBlock"), q.IPBlock, ps)
	case q.PodSelector == nil && q.NamespaceSelector == nil:
		ps.add(at, "names no peer; write podSelector, namespaceSelector or ipBlock")
		return peer{}, false
	}
	var s selector
	if q.PodSelector != nil {
		s = parseSelector(at.field("podSelector"), q.PodSelector, podKey, ps)
	}
	if q.NamespaceSelector != nil {
		s = append(s, parseSelector(at.field("namespaceSelector"), q.NamespaceSelector, namespaceKey, ps)...)
		s = append(s, requirement{source: identity.SourceK8s, key: identity.KeyNamespace, op: metav1.LabelSelectorOpExists})
	} else {
		s = append(s, inNamespaces(namespace))
	}
	if !s.namesKey(identity.KeyCluster) {
		s = append(s, requirement{source: identity.SourceK8s, key: identity.KeyCluster, op: metav1.LabelSelectorOpIn, cluster: true})
	}
	s.refuseContradiction(at, "nobody", true, ps)
	return peer{selector: s}, true
}

func networkBlock(at path, b *networkingv1.IPBlock, ps *problems) (peer, bool) {
	out, ok := parseCIDRRule(at, &cidrRule{CIDR: b.CIDR, Except: b.Except}, ps)
	for i, e := range out.except {
		if e == out.cidr {
			ps.add(at.field("except").index(i), "%s is all of cidr %s; an exception must be smaller than the block", e, out.cidr)
		}
	}
	out.mesh = true
	return out, ok
}

func networkPort(at path, q networkingv1.NetworkPolicyPort, ps *problems) (portSpec, bool) {
	protocol := corev1.ProtocolTCP
	if q.Protocol != nil {
		protocol = *q.Protocol
	}
	protos := protocols[string(protocol)]
	if len(protos) != 1 {
		ps.add(at.field("protocol"), "%q is not a protocol; write TCP, UDP or SCTP", protocol)
		return portSpec{}, false
	}
	out := portSpec{proto: protos[0], last: maxPort}
	switch {
	case q.Port == nil && q.EndPort != nil:
		ps.add(at.field("endPort"), "needs a port to start from")
		return out, false
	case q.Port == nil:
		return out, true
	case q.Port.Type == intstr.String:
		if why := validation.IsValidPortName(q.Port.StrVal); len(why) != 0 {
			ps.add(at.field("port"), "%q is not the name of a port: %s", q.Port.StrVal, why[0])
			return out, false
		}
		if q.EndPort != nil {
			ps.add(at.field("endPort"), "needs a port number, not a name")
			return out, false
		}
		return portSpec{proto: out.proto, name: q.Port.StrVal}, true
	case q.Port.IntVal < 1 || q.Port.IntVal > maxPort:
		ps.add(at.field("port"), "%d is out of range; write a number from 1 to %d", q.Port.IntVal, maxPort)
		return out, false
	}
	out.first, out.last = uint16(q.Port.IntVal), uint16(q.Port.IntVal)
	if q.EndPort != nil {
		switch end := *q.EndPort; {
		case end < q.Port.IntVal:
			ps.add(at.field("endPort"), "%d is below port %d; swap them", end, q.Port.IntVal)
			return out, false
		case end > maxPort:
			ps.add(at.field("endPort"), "%d is out of range; write a number from 1 to %d", end, maxPort)
			return out, false
		default:
			out.last = uint16(end)
		}
	}
	return out, true
}
