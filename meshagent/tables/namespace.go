package tables

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Namespace is a namespace of our own cluster.
type Namespace struct {
	Name   string
	Object *corev1.Namespace
}

// Key is the namespace's name.
func (n *Namespace) Key() string { return n.Name }

var namespaces = table[*Namespace]{
	name: "namespaces", imported: true,
	columns: []string{"Namespace", "Labels"},
	cells: func(n *Namespace) []string {
		var labels []string
		for k, v := range n.Object.Labels {
			labels = append(labels, k+"="+v)
		}
		slices.Sort(labels)
		return []string{n.Name, list(labels)}
	},
}
