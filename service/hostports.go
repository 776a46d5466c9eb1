package service

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// HostPort is a port of a pod that its node offers at its own addresses.
type HostPort struct {
	// Addr is the address of the node; unspecified: all of its family; invalid: all.
	Addr     netip.Addr
	Port     uint16
	Target   uint16 // the pod's
	Protocol Protocol
}

// HostPorts are those of a pod that nodes can offer.
func HostPorts(spec *corev1.PodSpec) (out []HostPort) {
	for _, c := range ofPod(spec) {
		for _, p := range c.Ports {
			h := HostPort{Port: uint16(p.HostPort), Target: uint16(p.ContainerPort), Protocol: protocol(p.Protocol)}
			if p.HostPort < 1 || p.HostPort > 65535 || p.ContainerPort < 1 || p.ContainerPort > 65535 || h.Protocol == SCTP {
				continue
			}
			if p.HostIP != "" {
				a, err := netip.ParseAddr(p.HostIP)
				if err != nil || CheckHostIP(a) != nil {
					continue
				}
				h.Addr = a
			}
			out = append(out, h)
		}
	}
	return out
}

// CheckHostIP returns an error if no host port can be at the address. At loopback, the node's own
// processes have it alone.
func CheckHostIP(a netip.Addr) error {
	if a.IsUnspecified() || a.IsLoopback() && !a.Is4In6() {
		return nil
	}
	return CheckAddress(a)
}

// ofPod are the containers that run as long as their pod.
func ofPod(spec *corev1.PodSpec) []corev1.Container {
	all := slices.Clone(spec.Containers)
	for _, c := range spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			all = append(all, c)
		}
	}
	return all
}

// Named says whether it is only for one address.
func (h HostPort) Named() bool { return h.Addr.IsValid() && !h.Addr.IsUnspecified() }

// at are the addresses at which it is offered by a node that has these: never at one that the
// node does not have, or a pod could take any address of the world from its node.
func (h HostPort) at(node []netip.Addr) []netip.Addr {
	if h.Addr.IsLoopback() {
		return []netip.Addr{h.Addr}
	}
	return slices.DeleteFunc(slices.Clone(node), func(a netip.Addr) bool {
		return h.Named() && a != h.Addr || h.Addr.IsValid() && h.Addr.Is4() != a.Is4()
	})
}

// HostFrontends are the frontends of the host ports of a pod that has these addresses, on a node
// of a cluster that has those. The pod is behind each of its family, ready or not.
func HostFrontends(on Client, p *Pod, addrs, node []netip.Addr, ports []HostPort) (out []Frontend) {
	for _, h := range ports {
		for _, at := range h.at(node) {
			i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is4() == at.Is4() })
			if i < 0 {
				continue
			}
			out = append(out, Frontend{
				Namespace: p.Namespace, Name: p.Name, Addr: at, Port: h.Port, Protocol: h.Protocol, Here: true,
				Groups: []Group{{Cluster: on.Cluster, Backends: []Backend{{Addr: addrs[i], Port: h.Target, Node: on.Node, Weight: DefaultWeight}}}},
			})
		}
	}
	return out
}
