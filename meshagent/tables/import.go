package tables

import (
	"slices"

	mcs "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"
)

// Import is a service of the cluster set.
type Import struct {
	Namespace, Name string
	Object          *mcs.ServiceImport
}

// Key is "namespace/name".
func (i *Import) Key() string { return i.Namespace + "/" + i.Name }

var imports = table[*Import]{
	name: "imports", imported: true,
	columns: []string{"Namespace", "Name", "Type", "Addresses", "Clusters"},
	cells: func(i *Import) []string {
		var clusters []string
		for _, c := range i.Object.Status.Clusters {
			clusters = append(clusters, c.Cluster)
		}
		slices.Sort(clusters)
		return []string{i.Namespace, i.Name, string(i.Object.Spec.Type), list(i.Object.Spec.IPs), list(clusters)}
	},
}
