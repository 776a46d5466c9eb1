package tables

import (
	"time"
)

// Rejected is an imported value that cannot be read or must not be believed.
type Rejected struct {
	StoreKey string
	Cluster  string
	Error    string
	Since    time.Time
}

// Key is the value's key in the store.
func (r *Rejected) Key() string { return r.StoreKey }

var rejected = table[*Rejected]{
	name: "rejected", imported: true,
	columns: []string{"Cluster", "Key", "Since", "Error"},
	cells: func(r *Rejected) []string {
		return []string{r.Cluster, r.StoreKey, stamp(r.Since), r.Error}
	},
}
