package registry

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
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
			if p.HostPort != 0 {
				r.refuse("%s.ports[%d].hostPort is not supported; remove it and use a service", at, j)
			}
			checkProtocol(r, p.Protocol, "%s.ports[%d].protocol", at, j)
			if p.Protocol == "" {
				c.Ports[j].Protocol = corev1.ProtocolTCP
			}
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
