package tables

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/wire"
)

// Pod is a pod of our own cluster, on any node: what is wanted, and what the API
// server vouches for.
type Pod struct {
	Namespace, Name string
	Object          *corev1.Pod
	Endpoint        *wire.Endpoint
}

// Key is "namespace/name".
func (p *Pod) Key() string { return p.Namespace + "/" + p.Name }

var pods = table[*Pod]{
	name: "pods", imported: true,
	columns: []string{"Namespace", "Pod", "Node", "Address", "Identity", "Ready"},
	cells: func(p *Pod) []string {
		node, ip, id, ready := "", "", "", "no"
		if p.Object != nil {
			node = p.Object.Spec.NodeName
		}
		if e := p.Endpoint; e != nil {
			node, ip, id, ready = e.Node, addr(e.IP), e.Identity.String(), yes(e.Ready)
		}
		return []string{p.Namespace, p.Name, or(node), or(ip), or(id), ready}
	},
}
