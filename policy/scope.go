package policy

import (
	"slices"

	"github.com/weft-mesh/weft/identity"
)

// ScopeHint is what to change where OwnClusterOnly holds.
const ScopeHint = "selectors mean the own cluster; add io.cilium.k8s.policy.cluster"

// OwnClusterOnly reports whether a policy that selects the flow's subject would
// have allowed the flow, had its selectors not meant the own cluster for want of
// a word about clusters. It is asked about flows that default deny has dropped.
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

// scoped reports whether the selector names no cluster itself and so means the own
// one. An entity is the cluster and nothing else, and means what it says.
func (s selector) scoped() bool { return len(s) > 1 && slices.ContainsFunc(s, requirement.scopes) }

// anywhere is the selector without the own cluster.
func (s selector) anywhere() selector {
	return slices.DeleteFunc(slices.Clone(s), requirement.scopes)
}

// scopes reports whether the requirement is what scopePeer added for want of a cluster.
func (r requirement) scopes() bool { return r.cluster && r.key == identity.KeyCluster }
