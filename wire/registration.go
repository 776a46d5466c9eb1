package wire

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Registration is what an operator has declared about a node.
type Registration struct {
	Name      string         `json:"name"`
	Addresses []netip.Addr   `json:"addresses"` // the first one is for tunnels
	PodCIDRs  []netip.Prefix `json:"podCIDRs"`
	Added     time.Time      `json:"added"`
	// Labels are Kubernetes node labels. Peers see them.
	Labels map[string]string `json:"labels,omitempty"`
}

// Zone returns the failure domain of the node; "" if it has none or r is nil.
func (r *Registration) Zone() string {
	if r == nil {
		return ""
	}
	return r.Labels[corev1.LabelTopologyZone]
}

// Internal returns the node's own address in the mesh: the first of its first pod CIDR.
func (r Registration) Internal() netip.Addr {
	if len(r.PodCIDRs) == 0 {
		return netip.Addr{}
	}
	return r.PodCIDRs[0].Addr().Next()
}

// Owns reports whether the address may be given to a pod of the node.
func (r Registration) Owns(ip netip.Addr) bool {
	return slices.ContainsFunc(r.PodCIDRs, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// Check says what in a node's claim contradicts its registration, or returns nil.
func (r Registration) Check(claim NodeState) error {
	if claim.Name != r.Name {
		return fmt.Errorf("calls itself %q", claim.Name)
	}
	for _, ip := range claim.Addresses {
		if !slices.Contains(r.Addresses, ip) {
			return fmt.Errorf("claims address %s, which it was not registered with", ip)
		}
	}
	if len(claim.Addresses) == 0 {
		return errors.New("claims no address")
	}
	for _, p := range claim.PodCIDRs {
		if !slices.Contains(r.PodCIDRs, p) {
			return fmt.Errorf("claims pod CIDR %s, which it was not registered with", p)
		}
	}
	if claim.Internal.IsValid() && claim.Internal != r.Internal() {
		return fmt.Errorf("claims internal address %s, but its own is %s", claim.Internal, r.Internal())
	}
	return nil
}
