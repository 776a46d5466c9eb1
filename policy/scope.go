package policy

import (
	"slices"

	"github.com/weft-mesh/weft/identity"
)

// ScopeHint says what to change where OwnClusterOnly holds.
const ScopeHint = "selectors mean the own cluster; add io.cilium.k8s.policy.cluster"

// OwnClusterOnly reports whether a policy that selects the flow's subject would have
// allowed the flow if its selectors, which name no cluster, were not limited to the
// own one. It is meant for flows that default deny has dropped.
func OwnClusterOnly(w World, f Flow) bool {
	labels := w.Identities[f.Peer]
	if cluster := labels.Cluster(); cluster == "" || cluster == w.Cluster {
		return false
	}
	for _, p := range w.Policies {
		for _, r := range p.rules {
			if !r.subject.local(w.Cluster).matches(f.Subject) {
				continue
			}
			for _, t := range r.terms[f.Direction] {
				if !t.deny && t.meansPort(f, labels, true) && slices.ContainsFunc(t.peers, func(p peer) bool {
					return p.kind == peerLabels && p.selector.scoped() && p.selector.anywhere().matches(labels)
				}) {
					return true
				}
			}
		}
	}
	return false
}

// scoped reports whether the selector names no cluster and therefore means the own
// one. An entity consists of the cluster requirement alone and means what it says.
func (s selector) scoped() bool { return len(s) > 1 && slices.ContainsFunc(s, requirement.scopes) }

// anywhere returns the selector without the restriction to the own cluster.
func (s selector) anywhere() selector {
	return slices.DeleteFunc(slices.Clone(s), requirement.scopes)
}

// scopes reports whether scopePeer added the requirement because no cluster was named.
func (r requirement) scopes() bool { return r.cluster && r.key == identity.KeyCluster }
