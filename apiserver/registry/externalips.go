package registry

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/wire"
)

// A service's addresses outside of the mesh are those of its manifest:
//
//   - spec.externalIPs, whatever its type.
//   - Those of its load balancer, if its type is LoadBalancer: in status.loadBalancer, as the
//     load balancer's own controller would write them, or in spec.loadBalancerIP, unless
//     spec.loadBalancerClass leaves the choice to another controller. Nobody else assigns them.
//
// What another cluster printed in status is that cluster's.

// checkExternal checks what can be said about them without the store, and writes the addresses
// of the load balancer into the status. Nothing else is kept of that.
func checkExternal(r *reading, svc *corev1.Service) {
	spec := &svc.Spec
	for i, text := range spec.ExternalIPs {
		if ip, ok := externalIP(r, text, "spec.externalIPs[%d]", i); ok {
			spec.ExternalIPs[i] = ip.String()
			if slices.Contains(spec.ExternalIPs[:i], ip.String()) {
				r.refuse("spec.externalIPs names %s twice; name it once", ip)
			}
		}
	}
	if len(spec.ExternalIPs) > 0 && spec.ClusterIP == corev1.ClusterIPNone {
		r.refuse("spec.clusterIP is None, and external IPs need the service to have an address; remove spec.externalIPs, or spec.clusterIP")
	}
	checkSourceRanges(r, spec)
	balancer := spec.Type == corev1.ServiceTypeLoadBalancer
	if spec.LoadBalancerClass != nil && !balancer {
		r.refuse("spec.loadBalancerClass is only for services of type LoadBalancer; remove it")
	}
	if spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal && !service.HasNodePorts(spec) && len(spec.ExternalIPs) == 0 {
		r.warn("spec.externalTrafficPolicy has no effect: clients outside of the mesh do not reach a service of type %s without external IPs", spec.Type)
	}
	ingress := checkIngress(r, svc)
	svc.Status = corev1.ServiceStatus{}
	switch {
	case balancer:
		svc.Status.LoadBalancer.Ingress = asked(r, spec, ingress)
	case spec.LoadBalancerIP != "":
		r.warn("spec.loadBalancerIP has no effect: the service's type is %s; write spec.externalIPs", spec.Type)
	}
	if balancer && len(ingress)+len(spec.ExternalIPs) == 0 && spec.LoadBalancerIP == "" {
		r.warn("spec.type is LoadBalancer and nobody assigns addresses; write the service's into spec.loadBalancerIP or status.loadBalancer.ingress. Clients outside of the mesh reach it at its node ports, if it has some")
	}
	for i, p := range spec.Ports {
		if p.Protocol == corev1.ProtocolSCTP && len(svc.Status.LoadBalancer.Ingress)+len(spec.ExternalIPs) > 0 {
			r.warn("spec.ports[%d].protocol is SCTP, which external addresses do not carry; clients outside of the mesh do not reach it", i)
		}
	}
}

// externalIP reads an address outside of the mesh, and refuses what is none.
func externalIP(r *reading, text, field string, args ...any) (ip netip.Addr, ok bool) {
	field = fmt.Sprintf(field, args...)
	ip, err := netip.ParseAddr(text)
	if err != nil {
		r.refuse("%s %q is not an IP address", field, text)
		return ip, false
	}
	if err := service.CheckAddress(ip); err != nil {
		r.refuse("%s: %v, which no service can have", field, err)
		return ip, false
	}
	return ip, true
}

func checkSourceRanges(r *reading, spec *corev1.ServiceSpec) {
	if len(spec.LoadBalancerSourceRanges) > 0 && spec.Type != corev1.ServiceTypeLoadBalancer {
		r.refuse("spec.loadBalancerSourceRanges is only for services of type LoadBalancer; restrict clients of this one with a policy")
	}
	for i, text := range spec.LoadBalancerSourceRanges {
		if p, err := netip.ParsePrefix(strings.TrimSpace(text)); err != nil || p.Addr().Is4In6() {
			r.refuse("spec.loadBalancerSourceRanges[%d] %q is not a prefix; write it as 198.51.100.0/24", i, text)
		}
	}
}

// checkIngress reads the addresses in a service's status.
func checkIngress(r *reading, svc *corev1.Service) (out []corev1.LoadBalancerIngress) {
	for i, in := range svc.Status.LoadBalancer.Ingress {
		at := fmt.Sprintf("status.loadBalancer.ingress[%d]", i)
		switch mode := in.IPMode; {
		case in.IP == "" && in.Hostname == "":
			r.refuse("%s has no ip; write one", at)
		case mode == nil:
		case in.IP == "":
			r.refuse("%s.ipMode is only for an ip; remove it", at)
		case *mode != corev1.LoadBalancerIPModeVIP && *mode != corev1.LoadBalancerIPModeProxy:
			r.refuse("%s.ipMode %s does not exist; write VIP or Proxy", at, *mode)
		}
		next := corev1.LoadBalancerIngress{Hostname: in.Hostname}
		if in.IP != "" {
			ip, ok := externalIP(r, in.IP, "%s.ip", at)
			if !ok {
				continue
			}
			next.IP, next.IPMode = ip.String(), new(corev1.LoadBalancerIPModeVIP)
			if in.IPMode != nil {
				next.IPMode = in.IPMode
			}
		}
		if slices.ContainsFunc(out, func(other corev1.LoadBalancerIngress) bool { return next.IP != "" && other.IP == next.IP }) {
			r.refuse("%s: %s is there twice; keep one", at, next.IP)
		}
		out = append(out, next)
	}
	if len(out) > 0 && svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		r.refuse("status.loadBalancer.ingress names addresses, and the service's type is %s; write spec.type LoadBalancer, or spec.externalIPs", cmp.Or(svc.Spec.Type, corev1.ServiceTypeClusterIP))
	}
	return out
}

// asked are the addresses that a service of type LoadBalancer has: the one that its spec asks
// for comes before others.
func asked(r *reading, spec *corev1.ServiceSpec, ingress []corev1.LoadBalancerIngress) []corev1.LoadBalancerIngress {
	if spec.LoadBalancerIP == "" {
		return ingress
	}
	ip, ok := externalIP(r, spec.LoadBalancerIP, "spec.loadBalancerIP")
	if !ok {
		return nil
	}
	spec.LoadBalancerIP = ip.String()
	if c := spec.LoadBalancerClass; c != nil {
		if !slices.ContainsFunc(ingress, func(in corev1.LoadBalancerIngress) bool { return in.IP == ip.String() }) {
			r.warn("spec.loadBalancerIP is for the controller of spec.loadBalancerClass %s, and has no effect here; write the address that it assigns into status.loadBalancer.ingress", *c)
		}
		return ingress
	}
	out := []corev1.LoadBalancerIngress{{IP: ip.String(), IPMode: new(corev1.LoadBalancerIPModeVIP)}}
	for _, in := range ingress {
		if in.IP == ip.String() {
			out[0] = in
		} else {
			r.warn("status.loadBalancer.ingress names %s, and spec.loadBalancerIP is %s, which counts; remove that to have the addresses in the status", cmp.Or(in.IP, in.Hostname), ip)
		}
	}
	return out
}

// fitExternal checks a service's addresses outside of the mesh against the cluster, once its IP
// families are known.
func (p *planner) fitExternal(ctx context.Context, c *change, svc *corev1.Service) (problem string, err error) {
	named := svc.Spec.LoadBalancerIP != "" && svc.Spec.LoadBalancerClass == nil
	if p.foreign(c) && len(svc.Status.LoadBalancer.Ingress) > 0 && !named {
		c.warn("status.loadBalancer is another cluster's; the service has no load balancer address here. To keep those, remove metadata.uid and metadata.resourceVersion from the manifest")
		svc.Status.LoadBalancer.Ingress = nil
	}
	type use struct{ field, ip string }
	var all []use
	for i, ip := range svc.Spec.ExternalIPs {
		all = append(all, use{fmt.Sprintf("spec.externalIPs[%d]", i), ip})
	}
	for _, in := range svc.Status.LoadBalancer.Ingress {
		if in.IP != "" {
			all = append(all, use{"load balancer address", in.IP})
		}
	}
	for _, u := range all {
		ip, err := netip.ParseAddr(u.ip)
		if err != nil {
			continue // refused
		}
		if f := service.FamilyOf(ip); !slices.Contains(svc.Spec.IPFamilies, f) {
			if !c.printed {
				return fmt.Sprintf("%s %s: the service has no %s; add it to spec.ipFamilies, or remove the address", u.field, ip, f), nil
			}
			c.warn("%s %s has no effect: the service has no %s here", u.field, ip, f)
		}
		why, err := p.inside(ctx, ip)
		if err != nil {
			return "", err
		}
		if why != "" {
			return fmt.Sprintf("%s %s %s; choose an address outside of the mesh", u.field, ip, why), nil
		}
	}
	if len(svc.Spec.LoadBalancerSourceRanges) > 0 {
		ranges := service.SourceRanges(&svc.Spec)
		for _, ip := range service.Balanced(svc) {
			if !slices.ContainsFunc(ranges, func(q netip.Prefix) bool { return q.Addr().Is4() == ip.Is4() }) {
				c.warn("spec.loadBalancerSourceRanges names no prefix of %s, so nobody reaches %s", service.FamilyOf(ip), ip)
			}
		}
	}
	return "", nil
}

// foreign says whether another cluster printed an object.
func (p *planner) foreign(c *change) bool {
	if !c.printed {
		return false
	}
	var old struct {
		Metadata struct{ UID string } `json:"metadata"`
	}
	return c.old.Modified == 0 || json.Unmarshal(c.old.Value, &old) != nil || old.Metadata.UID != c.uid
}

// inside says where in the cluster's part of the mesh an address is; "" if it is not there.
func (p *planner) inside(ctx context.Context, ip netip.Addr) (string, error) {
	if cidr := p.conf.cidrOf(ip); cidr.IsValid() {
		return fmt.Sprintf("is in the service CIDR %s", cidr), nil
	}
	kvs, err := p.registrations(ctx)
	if err != nil {
		return "", err
	}
	for _, kv := range kvs {
		reg, err := wire.Unmarshal[wire.Registration](kv.Value)
		if err != nil {
			continue
		}
		for _, cidr := range reg.PodCIDRs {
			if cidr.Contains(ip) {
				return fmt.Sprintf("is in the pod CIDR %s of node %s", cidr, reg.Name), nil
			}
		}
	}
	return "", nil
}
