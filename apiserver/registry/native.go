package registry

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/service"
)

// What comes from Kubernetes has been completed and checked there: addresses and node ports
// are allocated, what may not change has not changed, and an object of the same name and
// another UID is another one. Here it is only checked that the cluster can serve it.

// kubernetesAlone are the kinds that nobody but Kubernetes may write in a cluster of its:
// it allocates their addresses and ports, or creates them itself.
var kubernetesAlone = map[string]bool{manifest.Namespaces: true, manifest.Pods: true, manifest.Services: true, manifest.EndpointSlices: true, manifest.ServiceExports: true}

// fitNative checks a service of Kubernetes' against the cluster.
func (p *planner) fitNative(ctx context.Context, c *change, svc *corev1.Service) (problem string, err error) {
	for i, text := range allocated(svc) {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return fmt.Sprintf("spec.clusterIPs[%d] %q is not an IP address", i, text), nil
		}
		if p.conf.cidrOf(ip).IsValid() {
			continue
		}
		if i > 0 && !p.conf.cidrFor(service.FamilyOf(ip)).IsValid() {
			// The main address works: better one family than none.
			c.warn("spec.clusterIPs[%d] %s is left out: %s", i, ip, p.conf.lack(service.FamilyOf(ip)))
			svc.Spec.ClusterIPs, svc.Spec.IPFamilies = svc.Spec.ClusterIPs[:i], svc.Spec.IPFamilies[:min(i, len(svc.Spec.IPFamilies))]
			break
		}
		return fmt.Sprintf("spec.clusterIPs[%d] %s is outside of the service CIDR %s: start weft's API servers with the one of kube-apiserver's --service-cluster-ip-range", i, ip, p.conf.ServiceCIDR), nil
	}
	if len(svc.Spec.ExternalIPs) == 0 && len(svc.Status.LoadBalancer.Ingress) == 0 {
		return "", nil // nothing else is about the cluster
	}
	if !slices.Contains(svc.Spec.IPFamilies, corev1.IPv4Protocol) && !slices.Contains(svc.Spec.IPFamilies, corev1.IPv6Protocol) {
		svc.Spec.IPFamilies = service.Families(svc)
	}
	return p.fitExternal(ctx, c, svc)
}
