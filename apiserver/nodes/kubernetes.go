package nodes

import (
	"net/http"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/api"
)

// IPAM says who gives a node its pod CIDRs. The names are Cilium's.
type IPAM string

const (
	// ClusterPool: the mesh API server, from the cluster's pod CIDRs.
	ClusterPool IPAM = "cluster-pool"
	// Kubernetes: its controller manager, in the Node object.
	Kubernetes IPAM = "kubernetes"
)

// FromKubernetes is what a Node object asks the register for. Kubernetes knows best: a node
// that has moved has moved.
func FromKubernetes(node *corev1.Node, ipam IPAM) (api.NodeRequest, error) {
	r := api.NodeRequest{Name: node.Name, UID: string(node.UID), Addresses: addressesOf(node), Labels: labelsOf(node), Replace: true}
	if len(r.Addresses) == 0 {
		return r, api.Refuse(http.StatusServiceUnavailable, "wait until its kubelet or cloud provider has written it, or set the kubelet's --node-ip",
			"node %s has no internal address yet", node.Name)
	}
	if ipam != Kubernetes {
		return r, nil
	}
	for _, text := range cidrsOf(node) {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return r, api.Invalid("correct spec.podCIDRs of the Node", "pod CIDR %q of node %s: %v", text, node.Name, err)
		}
		r.PodCIDRs = append(r.PodCIDRs, p.Masked())
	}
	if len(r.PodCIDRs) == 0 {
		return r, api.Refuse(http.StatusServiceUnavailable,
			"run kube-controller-manager with --allocate-node-cidrs and --cluster-cidr, or set the API server's --ipam "+string(ClusterPool),
			"node %s has no pod CIDR from Kubernetes", node.Name)
	}
	return r, nil
}

// addressesOf are the node's internal addresses. External ones do not stand in for them: an
// internal one that is missing for a moment must not move the node.
func addressesOf(node *corev1.Node) (out []netip.Addr) {
	for _, a := range node.Status.Addresses {
		ip, err := netip.ParseAddr(a.Address)
		if a.Type == corev1.NodeInternalIP && err == nil && !slices.Contains(out, ip.Unmap()) {
			out = append(out, ip.Unmap())
		}
	}
	return out
}

func cidrsOf(node *corev1.Node) []string {
	if len(node.Spec.PodCIDRs) == 0 && node.Spec.PodCIDR != "" {
		return []string{node.Spec.PodCIDR}
	}
	return node.Spec.PodCIDRs
}

// labelsOf are the node's labels that count here, which peers see; not nil, which would leave
// those of before.
func labelsOf(node *corev1.Node) map[string]string {
	out := map[string]string{}
	for _, name := range []string{corev1.LabelTopologyZone, corev1.LabelTopologyRegion} {
		if value, ok := node.Labels[name]; ok {
			out[name] = value
		}
	}
	return out
}
