package wire

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Registration is what an operator, or Kubernetes, has declared about a node.
type Registration struct {
	Name string `json:"name"`
	// UID is that of the Kubernetes object that stands for the node; empty if an operator
	// added it.
	UID       string         `json:"uid,omitempty"`
	Addresses []netip.Addr   `json:"addresses"` // the first one is for tunnels
	PodCIDRs  []netip.Prefix `json:"podCIDRs"`
	Added     time.Time      `json:"added"`
	// Labels are Kubernetes node labels. Peers see them.
	Labels map[string]string `json:"labels,omitempty"`
	// Source is who declared the node: "" is an operator, by `weft node add`.
	Source string `json:"source,omitempty"`
}

// Zone returns the failure domain of the node; "" if it has none or r is nil.
func (r *Registration) Zone() string {
	if r == nil {
		return ""
	}
	return r.Labels[corev1.LabelTopologyZone]
}

// Internals returns the node's own addresses in the mesh: the first of its first pod CIDR
// of each family, in the order of its pod CIDRs.
func (r Registration) Internals() []netip.Addr { return Internals(r.PodCIDRs) }

// Internals returns the addresses in the mesh of a node that has these pod CIDRs.
func Internals(cidrs []netip.Prefix) (out []netip.Addr) {
	for _, p := range OfEachFamily(cidrs) {
		out = append(out, p.Masked().Addr().Next())
	}
	return out
}

// OfEachFamily returns the first of each family, in the order given.
func OfEachFamily(cidrs []netip.Prefix) (out []netip.Prefix) {
	for _, p := range cidrs {
		if len(out) == 0 || len(out) == 1 && out[0].Addr().BitLen() != p.Addr().BitLen() {
			out = append(out, p)
		}
	}
	return out
}

// Internals returns the node's own addresses in the mesh: Internal, and that of the other
// family if it has pod CIDRs of both.
func (s *NodeState) Internals() []netip.Addr {
	if !s.Internal.IsValid() {
		return nil
	}
	out := []netip.Addr{s.Internal}
	for _, a := range Internals(s.PodCIDRs) {
		if a.BitLen() != s.Internal.BitLen() {
			out = append(out, a)
		}
	}
	return out
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
	if own := r.Internals(); claim.Internal.IsValid() && (len(own) == 0 || claim.Internal != own[0]) {
		return fmt.Errorf("claims internal address %s, but its own are %v", claim.Internal, own)
	}
	return nil
}
