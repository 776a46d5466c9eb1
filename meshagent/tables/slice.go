package tables

import (
	"strconv"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/service"
)

// Slice holds some of a service's backends.
type Slice struct {
	Cluster string
	service.Slice
	// Derived is set if the API server made the slice from the service's pods.
	Derived bool
}

// Key is "cluster/namespace/name".
func (s *Slice) Key() string { return s.Cluster + "/" + s.Namespace + "/" + s.Name }

// ServiceID is the service that the slice belongs to, "namespace/name".
func (s *Slice) ServiceID() string { return s.Namespace + "/" + s.Service }

var sliceTable = table[*Slice]{
	name: "slices", imported: true, written: true,
	indexes: []statedb.Indexer[*Slice]{slicesByService},
	columns: []string{"Cluster", "Namespace", "Name", "Service", "Endpoints"},
	cells: func(s *Slice) []string {
		return []string{s.Cluster, s.Namespace, s.Name, s.Service, strconv.Itoa(len(s.Endpoints))}
	},
}

// slicesByService finds a service's slices in all clusters.
var slicesByService = secondary("service", (*Slice).ServiceID)

// SlicesOf lists a service's slices, in order of cluster and name.
func (t *Tables) SlicesOf(txn statedb.ReadTxn, id string) []*Slice {
	return statedb.Collect(t.Slices.List(txn, slicesByService.Query(id)))
}
