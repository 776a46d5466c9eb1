package registry

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/service"
)

// A service's spec.clusterIPs, spec.ipFamilies and spec.ipFamilyPolicy mean what they mean in
// Kubernetes:
//
//   - The main family, with its address, stays for the service's life. The other one comes and
//     goes.
//   - Nothing but the policy adds or removes it: RequireDualStack and PreferDualStack add it,
//     SingleStack removes it. What is not said stays as it is.
//   - A service that prefers both families and says the same again is left as it is, even if the
//     cluster has come to have both.
//   - Headless services have families too: those of their endpoints. Where pods are not
//     selected, they need no addresses of the cluster's, so they may have any.

const (
	singleStack      = corev1.IPFamilyPolicySingleStack
	preferDualStack  = corev1.IPFamilyPolicyPreferDualStack
	requireDualStack = corev1.IPFamilyPolicyRequireDualStack
)

// complete returns a stored service's spec with the fields about IP families as they have come
// to be, also if it was stored before there were any.
func complete(svc *corev1.Service) *corev1.ServiceSpec {
	spec := &svc.Spec
	spec.ClusterIPs = service.ClusterIPs(svc)
	if unselected(spec) && len(spec.IPFamilies) == 0 {
		spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	}
	spec.IPFamilies = service.Families(svc)
	switch policy := spec.IPFamilyPolicy; {
	case policy == nil:
		spec.IPFamilyPolicy = new(usual(spec))
	case *policy == requireDualStack && len(spec.IPFamilies) == 1:
		spec.IPFamilyPolicy = new(singleStack)
	}
	return spec
}

// unselected says whether a service is headless and selects no pods.
func unselected(spec *corev1.ServiceSpec) bool {
	return spec.ClusterIP == corev1.ClusterIPNone && len(spec.Selector) == 0
}

// usual is the policy of services that do not say one.
func usual(spec *corev1.ServiceSpec) corev1.IPFamilyPolicy {
	if unselected(spec) {
		return requireDualStack
	}
	return singleStack
}

// dropForeign drops what another cluster chose for a service that it printed and what this
// one cannot give it.
func (r *Registry) dropForeign(c *change, spec *corev1.ServiceSpec) {
	if !c.printed {
		return
	}
	conf := &r.conf
	for i, text := range service.ClusterIPs(&corev1.Service{Spec: *spec}) {
		ip, err := netip.ParseAddr(text)
		if err != nil || conf.cidrOf(ip).IsValid() {
			continue
		}
		if spec.ClusterIPs = nil; i == 0 {
			spec.ClusterIP = ""
		}
		own := conf.cidrFor(service.FamilyOf(ip))
		if !own.IsValid() {
			own = conf.ServiceCIDR
		}
		c.warn("spec.clusterIP %s is another cluster's; the service gets its own from %s here", ip, own)
		break
	}
	if len(conf.families()) == 2 || unselected(spec) {
		return
	}
	some := slices.DeleteFunc(slices.Clone(spec.IPFamilies), func(f corev1.IPFamily) bool { return !conf.cidrFor(f).IsValid() })
	required := spec.IPFamilyPolicy != nil && *spec.IPFamilyPolicy == requireDualStack
	if len(some) == len(spec.IPFamilies) && !required || len(some) == 0 && len(spec.IPFamilies) > 0 {
		return
	}
	if spec.IPFamilies = some; required {
		spec.IPFamilyPolicy = new(preferDualStack)
	}
	c.warn("spec.ipFamilies: the service gets an address of %s only; %s", conf.families()[0], conf.lack(other(conf.families()[0])))
}

// lack says how to give the cluster service addresses of a family.
func (c *Config) lack(f corev1.IPFamily) string {
	if f == corev1.IPv4Protocol {
		return fmt.Sprintf("cluster %s has no service addresses of %s, only of %s", c.Cluster, f, other(f))
	}
	return fmt.Sprintf("cluster %s has no service addresses of %s: give its API servers an ipv6ServiceCIDR to have some", c.Cluster, f)
}

// fitFamilies completes a service's spec, as old was, nil if it is new, and says what is wrong
// with it. Of spec.clusterIPs it leaves those that are kept or asked for.
func (c *Config) fitFamilies(old, spec *corev1.ServiceSpec) (problem string) {
	if old != nil {
		if problem := inherit(old, spec); problem != "" {
			return problem
		}
	}
	spec.ClusterIPs = service.ClusterIPs(&corev1.Service{Spec: *spec})
	if spec.IPFamilyPolicy == nil {
		spec.IPFamilyPolicy = new(usual(spec))
	}
	policy := *spec.IPFamilyPolicy
	if old != nil && policy == preferDualStack && *old.IPFamilyPolicy == policy &&
		slices.Equal(spec.ClusterIPs, old.ClusterIPs) && slices.Equal(spec.IPFamilies, old.IPFamilies) {
		return ""
	}
	if old != nil {
		if problem := reduce(old, spec); problem != "" {
			return problem
		}
	}
	switch {
	case policy == singleStack && len(spec.ClusterIPs) == 2:
		return fmt.Sprintf("spec.clusterIPs are %v, and the service has one IP family; write spec.ipFamilyPolicy PreferDualStack or RequireDualStack, or one address", spec.ClusterIPs)
	case policy == singleStack && len(spec.IPFamilies) == 2:
		return "spec.ipFamilies has two, and the service gets one; write spec.ipFamilyPolicy PreferDualStack or RequireDualStack, or one family"
	}
	for i, text := range spec.ClusterIPs {
		ip, err := netip.ParseAddr(text)
		if err != nil || i < len(spec.IPFamilies) {
			continue // headless, or the reader has compared them
		}
		f := service.FamilyOf(ip)
		if !c.cidrFor(f).IsValid() {
			return fmt.Sprintf("spec.clusterIP is %s; remove it: %s", text, c.lack(f))
		}
		spec.IPFamilies = append(spec.IPFamilies, f)
	}
	if !unselected(spec) {
		if problem := c.lacks(spec); problem != "" {
			return problem
		}
	}
	if len(spec.IPFamilies) == 0 {
		spec.IPFamilies = c.families()[:1]
	}
	if policy != singleStack && len(spec.IPFamilies) == 1 && (unselected(spec) || len(c.families()) == 2) {
		spec.IPFamilies = append(spec.IPFamilies, other(spec.IPFamilies[0]))
	}
	return ""
}

// inherit takes over from the service as it was what it does not say, and refuses changes of
// what stays.
func inherit(old, spec *corev1.ServiceSpec) (problem string) {
	if spec.ClusterIP != "" && spec.ClusterIP != old.ClusterIP {
		return fmt.Sprintf("spec.clusterIP cannot change from %s to %s; delete the service first", old.ClusterIP, spec.ClusterIP)
	}
	if len(spec.ClusterIPs) == 2 && len(old.ClusterIPs) == 2 && spec.ClusterIPs[1] != old.ClusterIPs[1] {
		return fmt.Sprintf("spec.clusterIPs[1] cannot change from %s to %s; write spec.ipFamilyPolicy SingleStack to release it first", old.ClusterIPs[1], spec.ClusterIPs[1])
	}
	if len(spec.IPFamilies) > 0 && spec.IPFamilies[0] != old.IPFamilies[0] {
		return fmt.Sprintf("spec.ipFamilies[0] cannot change from %s to %s; delete the service first", old.IPFamilies[0], spec.IPFamilies[0])
	}
	if len(spec.ClusterIPs) == 0 {
		spec.ClusterIP, spec.ClusterIPs = old.ClusterIP, slices.Clone(old.ClusterIPs)
	}
	if len(spec.IPFamilies) == 0 {
		spec.IPFamilies = slices.Clone(old.IPFamilies)
	}
	if spec.IPFamilyPolicy == nil {
		spec.IPFamilyPolicy = new(*old.IPFamilyPolicy)
	}
	return ""
}

// reduce removes the second family if the policy says so, and nothing else may.
func reduce(old, spec *corev1.ServiceSpec) (problem string) {
	if *spec.IPFamilyPolicy == singleStack {
		if slices.Equal(spec.ClusterIPs, old.ClusterIPs) {
			spec.ClusterIPs = spec.ClusterIPs[:1]
		}
		if slices.Equal(spec.IPFamilies, old.IPFamilies) {
			spec.IPFamilies = spec.IPFamilies[:1]
		}
		return ""
	}
	if len(spec.ClusterIPs) < len(old.ClusterIPs) || len(spec.IPFamilies) < len(old.IPFamilies) {
		return fmt.Sprintf("spec.ipFamilyPolicy is %s, and the service has both IP families; write SingleStack to release the second", *spec.IPFamilyPolicy)
	}
	return ""
}

// lacks says what a service wants that the cluster does not have, or nothing.
func (c *Config) lacks(spec *corev1.ServiceSpec) (problem string) {
	if *spec.IPFamilyPolicy == requireDualStack && len(c.families()) < 2 {
		return "spec.ipFamilyPolicy is RequireDualStack; write PreferDualStack for what the cluster has: " + c.lack(other(c.families()[0]))
	}
	for i, f := range spec.IPFamilies {
		if !c.cidrFor(f).IsValid() {
			return fmt.Sprintf("spec.ipFamilies[%d] is %s; remove it: %s", i, f, c.lack(f))
		}
	}
	return ""
}

func other(f corev1.IPFamily) corev1.IPFamily {
	if f == corev1.IPv4Protocol {
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}
