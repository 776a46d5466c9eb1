package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/weft-mesh/weft/identity"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// naively judges a flow from the manifests as they were written, with Kubernetes' own
// selectors. It shares nothing with Parse, so that it can check the oracle. It handles
// only identities that have labels, and only what randomPolicy writes.
func naively(w World, f Flow) bool {
	peer := w.Identities[f.Peer]
	if peer == nil {
		peer = identity.ReservedLabels(f.Peer)
	}
	n := naive{cluster: w.Cluster, peer: peer, number: f.Peer}
	n.groups = w.Groups
	subject := naive{cluster: w.Cluster, peer: f.Subject, number: 0x010000}
	allowed, denied, enforced := false, false, false
	for _, p := range w.Policies {
		if p.network != nil {
			applies, passes := n.network(p, f)
			enforced, allowed = enforced || applies, allowed || passes
			continue
		}
		for _, s := range append([]*spec{p.manifest.Spec}, p.manifest.Specs...) {
			if s == nil || p.Namespace != "" && f.Subject.Namespace() != p.Namespace || !subject.selectedBy(s.EndpointSelector) {
				continue
			}
			n.namespace = p.Namespace
			deny, allow := s.items(f.Direction)
			on := len(deny)+len(allow) > 0
			if d := s.EnableDefaultDeny; d != nil {
				if flag := map[Direction]*bool{Ingress: d.Ingress, Egress: d.Egress}[f.Direction]; flag != nil {
					on = *flag
				}
			}
			enforced = enforced || on
			means := func(it item) bool { return n.means(it) && n.meansPort(it, f) }
			denied = denied || slices.ContainsFunc(deny, means)
			allowed = allowed || slices.ContainsFunc(allow, means)
		}
	}
	return !denied && (allowed || !enforced)
}

func (s *spec) items(d Direction) (deny, allow []item) {
	if d == Ingress {
		for _, i := range s.IngressDeny {
			deny = append(deny, i.item())
		}
		for _, i := range s.Ingress {
			allow = append(allow, i.item())
		}
		return deny, allow
	}
	for _, e := range s.EgressDeny {
		deny = append(deny, e.item())
	}
	for _, e := range s.Egress {
		allow = append(allow, e.item())
	}
	return deny, allow
}

// selects applies Kubernetes' own selector, with prefixes stripped from the keys.
func selects(s metav1.LabelSelector, of identity.Labels) bool {
	bare := func(key string) string { return strings.TrimPrefix(strings.TrimPrefix(key, "k8s:"), "any:") }
	plain := metav1.LabelSelector{MatchLabels: map[string]string{}}
	for key, value := range s.MatchLabels {
		plain.MatchLabels[bare(key)] = value
	}
	for _, e := range s.MatchExpressions {
		e.Key = bare(e.Key)
		plain.MatchExpressions = append(plain.MatchExpressions, e)
	}
	selector, err := metav1.LabelSelectorAsSelector(&plain)
	if err != nil {
		panic(err)
	}
	set := labels.Set{}
	for _, l := range of {
		set[l.Key] = l.Value
	}
	return selector.Matches(set)
}

type naive struct {
	cluster, namespace string
	number             identity.Number
	peer               identity.Labels
	groups             []*CIDRGroup
}

// network judges by one NetworkPolicy: does it isolate the subject, and does it let the
// flow pass?
func (n naive) network(p *Policy, f Flow) (applies, passes bool) {
	spec := p.network.Spec
	if f.Subject.Namespace() != p.Namespace || !selects(spec.PodSelector, f.Subject) {
		return false, false
	}
	if len(spec.PolicyTypes) == 0 {
		applies = f.Direction == Ingress || len(spec.Egress) > 0
	}
	for _, typ := range spec.PolicyTypes {
		applies = applies || string(typ) == map[Direction]string{Ingress: "Ingress", Egress: "Egress"}[f.Direction]
	}
	if !applies {
		return false, false
	}
	var rules []networkingv1.NetworkPolicyEgressRule
	if rules = spec.Egress; f.Direction == Ingress {
		rules = nil
		for _, r := range spec.Ingress {
			rules = append(rules, networkingv1.NetworkPolicyEgressRule{To: r.From, Ports: r.Ports})
		}
	}
	if f.Direction == Egress && n.number == identity.Host {
		return true, true
	}
	for _, r := range rules {
		peer := len(r.To) == 0
		for _, q := range r.To {
			switch {
			case q.IPBlock != nil:
				peer = peer || n.inBlock(q.IPBlock.CIDR, q.IPBlock.Except)
			case n.peer.Namespace() == "" || n.peer.Cluster() != n.cluster:
			case q.NamespaceSelector == nil:
				peer = peer || n.peer.Namespace() == p.Namespace && selects(*q.PodSelector, n.peer)
			default:
				own := labels.Set{}
				for _, l := range n.peer {
					if key, ok := strings.CutPrefix(l.Key, identity.KeyNamespaceLabels+"."); ok {
						own[key] = l.Value
					}
				}
				s, err := metav1.LabelSelectorAsSelector(q.NamespaceSelector)
				if err != nil {
					panic(err)
				}
				peer = peer || s.Matches(own) && (q.PodSelector == nil || selects(*q.PodSelector, n.peer))
			}
		}
		port := len(r.Ports) == 0
		for _, q := range r.Ports {
			proto := "TCP"
			if q.Protocol != nil {
				proto = string(*q.Protocol)
			}
			last := f.Port
			if q.EndPort != nil {
				last = uint16(*q.EndPort)
			}
			switch {
			case protocolNames[f.Proto] != proto:
			case q.Port == nil:
				port = true
			case q.Port.StrVal != "":
				port = port || n.calls(f, proto, q.Port.StrVal)
			case q.EndPort == nil:
				port = port || f.Port == uint16(q.Port.IntVal)
			default:
				port = port || uint16(q.Port.IntVal) <= f.Port && f.Port <= last
			}
		}
		passes = passes || peer && port
	}
	return true, passes
}

// calls reports whether the destination has given the port this name.
func (n naive) calls(f Flow, proto, name string) bool {
	end := f.Subject
	if f.Direction == Egress {
		end = n.peer
	}
	return strings.Contains(end.String(), fmt.Sprintf("port:%s/%s=%d;", proto, strings.ToLower(name), f.Port))
}

var protocolNames = map[uint8]string{6: "TCP", 17: "UDP", 132: "SCTP"}

// inMesh reports whether the peer is a pod or node of the mesh.
func (n naive) inMesh() bool {
	return n.peer.Cluster() != "" || n.number < 9 && n.number != identity.World && n.number != identity.Unknown
}

// inBlock is inside for pods and nodes as well.
func (n naive) inBlock(cidr string, except []string) bool {
	if !n.inMesh() {
		return n.inside(cidr, except)
	}
	for _, e := range except {
		if n.inBlock(e, nil) {
			return false
		}
	}
	for _, l := range n.peer {
		if l.Source == "cidr" {
			return netip.MustParsePrefix(cidr).Contains(netip.MustParsePrefix(l.Key).Addr()) && netip.MustParsePrefix(cidr).Bits() <= netip.MustParsePrefix(l.Key).Bits()
		}
	}
	return cidr == "0.0.0.0/0"
}

func (n naive) means(it item) bool {
	if it.endpoints == nil && it.cidr == nil && it.cidrSet == nil && it.entities == nil {
		return len(it.ports)+len(it.icmps) > 0
	}
	if it.cidr != nil && len(it.cidr) == 0 { // the only empty list that randomItem writes beside others
		return false
	}
	for _, c := range it.cidr {
		if n.inside(c, nil) {
			return true
		}
	}
	for _, c := range it.cidrSet {
		if c.CIDR != "" && n.inside(c.CIDR, c.Except) {
			return true
		}
		for _, g := range n.groups {
			s := c.CIDRGroupSelector
			if g.Name != c.CIDRGroupRef && (s == nil || g.manifest.Metadata.Labels["of"] != s.MatchLabels["of"]) {
				continue
			}
			for _, cidr := range g.manifest.Spec.ExternalCIDRs {
				if n.inside(cidr, nil) {
					return true
				}
			}
		}
	}
	return slices.ContainsFunc(it.entities, n.isEntity) || slices.ContainsFunc(it.endpoints, n.isEndpoint)
}

func (n naive) isEntity(name string) bool {
	switch inMesh := n.number < 9 && n.number != identity.World || n.peer.Has("reserved", "kube-apiserver"); name {
	case "all":
		return true
	case "world":
		return n.peer.Has("reserved", "world") || n.number == identity.WorldIPv6
	case "cluster":
		return inMesh || n.peer.Cluster() == n.cluster
	case "cluster-mesh":
		return inMesh || n.peer.Cluster() != ""
	case "host":
		return n.number == identity.Host
	case "remote-node":
		return n.number == identity.RemoteNode
	case "kube-apiserver":
		return n.peer.Has("reserved", "kube-apiserver")
	case "world-ipv4":
		return n.inside("0.0.0.0/0", nil)
	case "world-ipv6":
		return n.inside("::/0", nil)
	}
	return false
}

// reservedWord evaluates a selector of reserved labels; randomSelector writes one alone.
func reservedWord(s *metav1.LabelSelector) (word string, not, ok bool) {
	for key := range s.MatchLabels {
		if word, ok := strings.CutPrefix(key, "reserved:"); ok {
			return word, false, true
		}
	}
	for _, e := range s.MatchExpressions {
		if word, ok := strings.CutPrefix(e.Key, "reserved:"); ok {
			return word, e.Operator == metav1.LabelSelectorOpDoesNotExist, true
		}
	}
	return "", false, false
}

func (n naive) selectedBy(s *metav1.LabelSelector) bool {
	if word, not, ok := reservedWord(s); ok {
		return n.isEntity(word) != not
	}
	return selects(*s, n.peer)
}

func (n naive) isEndpoint(s *metav1.LabelSelector) bool {
	if _, _, ok := reservedWord(s); ok {
		return n.selectedBy(s)
	}
	if n.peer.Namespace() == "" {
		return false
	}
	text := s.String()
	if !strings.Contains(text, identity.KeyNamespace) && !strings.Contains(text, identity.KeyNamespaceLabels) &&
		n.namespace != "" && n.peer.Namespace() != n.namespace {
		return false
	}
	if !strings.Contains(text, identity.KeyCluster) && n.peer.Cluster() != n.cluster {
		return false
	}
	return selects(*s, n.peer)
}

func (n naive) inside(cidr string, except []string) bool {
	for _, e := range except {
		if n.inside(e, nil) {
			return false
		}
	}
	if n.inMesh() {
		return false
	}
	if n.number == identity.World {
		return cidr == "0.0.0.0/0"
	}
	if n.number == identity.WorldIPv6 {
		return cidr == "::/0"
	}
	for _, l := range n.peer {
		if l.Source == "cidr" {
			mine := netip.MustParsePrefix(strings.ReplaceAll(l.Key, "-", ":"))
			if !strings.Contains(cidr, "/") {
				return mine.Addr().String() == cidr && mine.IsSingleIP()
			}
			all := netip.MustParsePrefix(cidr)
			return all.Overlaps(mine) && all.Bits() <= mine.Bits()
		}
	}
	return false
}

func (n naive) meansPort(it item, f Flow) bool {
	if it.ports == nil && it.icmps == nil {
		return true
	}
	for _, r := range it.ports {
		for _, p := range r.Ports {
			name := protocolNames[f.Proto]
			if written := strings.ToUpper(p.Protocol); name == "" || written != name && written != "ANY" {
				continue
			}
			text := strings.Trim(string(p.Port), `"`)
			first, err := strconv.Atoi(text)
			last := first
			if p.EndPort != nil {
				last = int(*p.EndPort)
			}
			if err != nil && n.calls(f, name, text) || err == nil && (first == 0 || first <= int(f.Port) && int(f.Port) <= last) {
				return true
			}
		}
	}
	for _, r := range it.icmps {
		for _, field := range r.Fields {
			if string(field.Type) == strconv.Itoa(int(f.Port)) && map[uint8]string{1: "IPv4", 58: "IPv6"}[f.Proto] == field.Family {
				return true
			}
		}
	}
	return false
}
