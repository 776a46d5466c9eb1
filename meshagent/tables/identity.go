package tables

import (
	"strconv"

	"github.com/weft-mesh/weft/identity"
)

// Identity is a number and the labels it stands for.
type Identity struct {
	Cluster string
	Number  identity.Number
	Labels  identity.Labels
}

// Key is "cluster/number". Numbers are unique in the mesh, but a peer may claim
// another cluster's: such a row must stay apart until it is judged.
func (i *Identity) Key() string { return i.Cluster + "/" + strconv.FormatUint(uint64(i.Number), 10) }

var identities = table[*Identity]{
	name: "identities", imported: true, written: true,
	columns: []string{"Cluster", "Identity", "Labels"},
	cells: func(i *Identity) []string {
		return []string{i.Cluster, i.Number.String(), i.Labels.String()}
	},
}
