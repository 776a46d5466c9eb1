package registry

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/weft-mesh/weft/service"
)

// ownImage is the image of a lab's pods. The lab runs their commands.
const ownImage = "weft"

// maxFileName is what file systems take, in bytes.
const maxFileName = 255

func readPod(r *reading) {
	pod, ok := decode[*corev1.Pod](r)
	if !ok {
		return
	}
	pod.Status = corev1.PodStatus{}
	if n := len(r.namespace) + len("_") + len(r.name); n > maxFileName {
		r.refuse("metadata.name and namespace have %d characters together; %d is the limit, because the pod's network namespace is a file named after both", n-1, maxFileName-1)
	}
	spec := &pod.Spec
	if spec.NodeName == "" {
		r.refuse("spec.nodeName is missing; name the node that runs it (`weft node list` shows them)")
	}
	if spec.HostNetwork {
		r.refuse("spec.hostNetwork is true, but only pods with an address of their own can join the mesh; remove it")
	}
	if len(spec.Containers) == 0 {
		r.refuse("spec.containers is empty; declare at least one container with a name")
	}
	names := map[string]bool{}
	checkContainers(r, "spec.initContainers", spec.InitContainers, names)
	checkContainers(r, "spec.containers", spec.Containers, names)
	checkHostPorts(r, spec)
	for i, c := range spec.Containers {
		if c.Image != "" && c.Image != ownImage {
			r.warn("spec.containers[%d].image %q is not run: a pod is a network namespace here, /run/netns/%s_%s on its node, in which you start processes yourself", i, c.Image, r.namespace, r.name)
		}
	}
	if spec.RestartPolicy == "" {
		spec.RestartPolicy = corev1.RestartPolicyAlways
	}
	if spec.ServiceAccountName == "" {
		spec.ServiceAccountName = "default"
	}
}

// checkContainers checks containers and fills in their defaults. names collects the names
// of all containers of the pod.
func checkContainers(r *reading, field string, containers []corev1.Container, names map[string]bool) {
	for i, c := range containers {
		at := fmt.Sprintf("%s[%d]", field, i)
		if mistakes := validation.IsDNS1123Label(c.Name); len(mistakes) > 0 {
			r.refuse("%s.name %q: %s", at, c.Name, mistakes[0])
		}
		if names[c.Name] {
			r.refuse("%s.name %q is used twice; give each container its own", at, c.Name)
		}
		names[c.Name] = true
		ports := map[string]bool{}
		for j, p := range c.Ports {
			if p.ContainerPort < 1 || p.ContainerPort > 65535 {
				r.refuse("%s.ports[%d].containerPort is %d; choose one from 1 to 65535", at, j, p.ContainerPort)
			}
			checkProtocol(r, p.Protocol, "%s.ports[%d].protocol", at, j)
			if p.Protocol == "" {
				c.Ports[j].Protocol = corev1.ProtocolTCP
			}
			checkHostPort(r, fmt.Sprintf("%s.ports[%d]", at, j), &c.Ports[j])
			if p.Name == "" {
				continue
			}
			if mistakes := validation.IsValidPortName(p.Name); len(mistakes) > 0 {
				r.refuse("%s.ports[%d].name %q: %s", at, j, p.Name, mistakes[0])
			}
			if ports[p.Name] {
				r.refuse("%s.ports[%d].name %q is used twice; give each port its own", at, j, p.Name)
			}
			ports[p.Name] = true
		}
	}
}

// checkHostPort checks at which address and port of its node a pod is to be reached.
func checkHostPort(r *reading, at string, p *corev1.ContainerPort) {
	switch {
	case p.HostPort == 0:
		if p.HostIP != "" {
			r.warn("%s.hostIP has no effect without a hostPort", at)
		}
		return
	case p.HostPort < 1 || p.HostPort > 65535:
		r.refuse("%s.hostPort is %d; choose one from 1 to 65535", at, p.HostPort)
	case p.HostPort >= firstNodePort && p.HostPort <= lastNodePort:
		r.refuse("%s.hostPort is %d, and ports %d-%d are for services; choose another one", at, p.HostPort, firstNodePort, lastNodePort)
	case p.Protocol == corev1.ProtocolSCTP:
		r.refuse("%s.protocol is SCTP, which host ports do not carry; remove the hostPort and use a service", at)
	}
	if p.HostIP == "" {
		return
	}
	ip, err := netip.ParseAddr(p.HostIP)
	if err == nil && ip.IsUnspecified() {
		return
	}
	if err == nil {
		err = service.CheckHostIP(ip)
	}
	if err != nil {
		r.refuse("%s.hostIP %q is not an address at which others reach a node; write one of the node's, or none for all of them", at, p.HostIP)
		return
	}
	p.HostIP = ip.String()
}

// checkHostPorts refuses host ports that a pod has twice.
func checkHostPorts(r *reading, spec *corev1.PodSpec) {
	seen := map[string]bool{}
	for _, h := range service.HostPorts(spec) {
		at := fmt.Sprintf("%d/%s", h.Port, h.Protocol)
		if h.Addr.IsValid() {
			at = fmt.Sprintf("%s at %s", at, h.Addr)
		}
		if seen[at] {
			r.refuse("hostPort %s is there twice; keep one", at)
		}
		seen[at] = true
	}
}
