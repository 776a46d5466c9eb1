package endpoints

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/wire"
)

// verdict says what to do with one pod's endpoint.
type verdict int

const (
	keep   verdict = iota // leave it as it is, or absent
	remove                // there must be none
	write                 // write what was derived
)

// refused is a node's claim that is not believed.
type refused struct {
	node            string
	modified        int64 // the claim's
	reason, example string
	// declared says that it is about a pod that is declared, on whatever node.
	declared bool
}

// endpoint decides what the cluster says about a pod; the caller fills in the identity.
// A pod has an endpoint once it is declared on a registered node and that node's agent
// claims it. It loses the endpoint when either is withdrawn, but not because the agent
// falls silent.
func (m *model) endpoint(cluster string, who name) (want wire.Endpoint, v verdict, no []refused) {
	have, there := m.endpoints[who]
	p := m.pods[who]
	no = m.strays(who)
	if p == nil {
		return want, remove, no
	}
	n := m.nodes[p.Node]
	if n == nil || n.registration == nil {
		return want, remove, no
	}
	// An endpoint of an earlier pod with this name must not stay.
	otherwise := keep
	if there && (have.value.UID != p.UID || have.value.Node != p.Node) {
		otherwise = remove
	}
	says := n.claims[who]
	if says == nil {
		if n.synced {
			return want, remove, no
		}
		return want, otherwise, no
	}
	says.honest = true
	if says.UID != "" && says.UID != p.UID {
		if !m.gone[says.UID] { // otherwise it is late: about an earlier pod
			no = append(no, refused{p.Node, says.modified, "pod has another UID", fmt.Sprintf("%s claimed with UID %s", who, says.UID), true})
		}
		return want, otherwise, no
	}
	for _, ip := range says.IPs() {
		if other, taken := m.byIP[ip]; taken && other != who && (m.leaving(other) || m.moving(n, other, ip)) {
			// Decided again once the other has left. Its new address may be our old one, or
			// that of a third pod, which waits for ours.
			if there && !slices.Contains(have.value.IPs(), ip) {
				otherwise = remove
			}
			return want, otherwise, no
		}
	}
	if reason := m.check(n, who, says); reason != "" {
		return want, otherwise, append(no, refused{p.Node, says.modified, reason, at(who, says), true})
	}
	return wire.Endpoint{
		Namespace: who.namespace, Pod: who.name, UID: p.UID,
		Node: p.Node, NodeIP: n.registration.Addresses[0], IP: says.IP, Second: says.Second,
		// Labels and ports come from the declaration, not from the claim.
		Labels:         identity.PodLabels(who.namespace, m.namespaces[who.namespace], p.Labels, p.Account, cluster),
		ServiceAccount: p.Account,
		NamedPorts:     p.NamedPorts,
		Ready:          says.Ready,
		State:          says.State,
	}, write, no
}

// check says why a node's claim about a pod's address is not believed; "" if it is.
func (m *model) check(n *node, who name, claim *claim) string {
	switch {
	case claim.Namespace != who.namespace || claim.Pod != who.name:
		return "names a different pod than its key"
	case len(n.registration.Addresses) == 0:
		return "node is registered without an address"
	case !claim.IP.IsValid():
		return "has no address"
	case claim.Second.IsValid() && claim.Second.BitLen() == claim.IP.BitLen():
		return "has two addresses of one family"
	}
	for _, ip := range claim.IPs() {
		switch {
		case !n.registration.Owns(ip):
			return "address is outside the node's pod CIDRs"
		case slices.Contains(n.registration.Internals(), ip):
			return "address is the node's own"
		}
		if other, taken := m.byIP[ip]; taken && other != who {
			return "address belongs to another pod of the node"
		}
	}
	return ""
}

// at names a pod and the addresses that a node claims for it.
func at(who name, claim *claim) string {
	text := fmt.Sprintf("%s at %s", who, claim.IP)
	if claim.Second.IsValid() {
		text += " and " + claim.Second.String()
	}
	return text
}

// leaving reports whether a pod's endpoint is about to be removed.
func (m *model) leaving(who name) bool {
	have, p := m.endpoints[who], m.pods[who]
	return p == nil || p.UID != have.value.UID
}

// moving reports whether a node no longer claims an address that its pod's endpoint has: a
// machine that has lost its disk gives its pods addresses as if they were new.
func (m *model) moving(n *node, who name, ip netip.Addr) bool {
	says, have := n.claims[who], m.endpoints[who]
	return have.value.Node == n.registration.Name && (says != nil && !slices.Contains(says.IPs(), ip) || says == nil && n.synced)
}

// strays are claims about the pod by nodes on which it is not declared.
func (m *model) strays(who name) (no []refused) {
	p := m.pods[who]
	for nodeName := range m.claimants[who] {
		says := m.nodes[nodeName].claims[who]
		if p != nil && p.Node == nodeName || says.honest || m.gone[says.UID] {
			continue
		}
		no = append(no, refused{nodeName, says.modified, "pod is not declared on the node", at(who, says), p != nil})
	}
	return no
}
