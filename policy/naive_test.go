package policy

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/weft-mesh/weft/identity"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// naively judges a flow from the manifests as they were written, with
// Kubernetes' own selectors. It shares nothing with what Parse makes of them,
// so that the oracle has a witness. It knows identities that have labels only,
// and what randomPolicy writes.
func naively(w World, f Flow) bool {
	peer := w.Identities[f.Peer]
	if peer == nil {
		peer = identity.ReservedLabels(f.Peer)
	}
	n := naive{cluster: w.Cluster, peer: peer, number: f.Peer}
	allowed, denied, enforced := false, false, false
	for _, p := range w.Policies {
		for _, s := range append([]*spec{p.manifest.Spec}, p.manifest.Specs...) {
			if s == nil || p.Namespace != "" && f.Subject.Namespace() != p.Namespace || !selects(*s.EndpointSelector, f.Subject) {
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
			means := func(it item) bool { return n.means(it) && meansPort(it, f.Proto, f.Port) }
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

// selects asks Kubernetes' selector, once prefixes are off the keys.
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
}

func (n naive) means(it item) bool {
	if it.endpoints == nil && it.cidr == nil && it.cidrSet == nil && it.entities == nil {
		return len(it.ports)+len(it.icmps) > 0
	}
	for _, c := range it.cidr {
		if n.inside(c, nil) {
			return true
		}
	}
	for _, c := range it.cidrSet {
		if n.inside(c.CIDR, c.Except) {
			return true
		}
	}
	return slices.ContainsFunc(it.entities, n.isEntity) || slices.ContainsFunc(it.endpoints, n.isEndpoint)
}

func (n naive) isEntity(name string) bool {
	switch inMesh := n.number < 9 && n.number != identity.World; name {
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
	}
	return false
}

func (n naive) isEndpoint(s *metav1.LabelSelector) bool {
	if n.peer.Namespace() == "" {
		return false // randomSelector writes no reserved: keys
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

func meansPort(it item, proto uint8, port uint16) bool {
	if it.ports == nil && it.icmps == nil {
		return true
	}
	for _, r := range it.ports {
		for _, p := range r.Ports {
			first, _ := strconv.Atoi(strings.Trim(string(p.Port), `"`))
			last := first
			if p.EndPort != nil {
				last = int(*p.EndPort)
			}
			name := map[uint8]string{6: "TCP", 17: "UDP", 132: "SCTP"}[proto]
			if name != "" && (p.Protocol == name || p.Protocol == "ANY") && (first == 0 || first <= int(port) && int(port) <= last) {
				return true
			}
		}
	}
	for _, r := range it.icmps {
		for _, f := range r.Fields {
			if string(f.Type) == strconv.Itoa(int(port)) && map[uint8]string{1: "IPv4", 58: "IPv6"}[proto] == f.Family {
				return true
			}
		}
	}
	return false
}
