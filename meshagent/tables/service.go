package tables

import (
	"fmt"
	"net/netip"

	"github.com/cilium/statedb"
	"github.com/cilium/statedb/index"

	"github.com/weft-mesh/weft/service"
)

// Service is a service as one cluster declares it. For a peer's, only names, addresses,
// Global and Shared are set.
type Service struct {
	Cluster string
	service.Service
	// Carried are backends that a peer's service names itself, instead of in slices:
	// the export's older format.
	Carried []service.Slice
}

// Key is "cluster/namespace/name".
func (s *Service) Key() string { return s.Cluster + "/" + s.ID() }

// ID is the service's name in every cluster, "namespace/name".
func (s *Service) ID() string { return s.Namespace + "/" + s.Name }

var services = table[*Service]{
	name: "services", imported: true, written: true,
	indexes: []statedb.Indexer[*Service]{servicesByID, servicesByFrontend},
	columns: []string{"Cluster", "Namespace", "Name", "Addresses", "Ports"},
	cells: func(s *Service) []string {
		var ips, ports []string
		for _, ip := range s.Addresses {
			ips = append(ips, ip.String())
		}
		for _, p := range s.Ports {
			ports = append(ports, fmt.Sprintf("%d/%s", p.Port, p.Protocol))
		}
		return []string{s.Cluster, s.Namespace, s.Name, list(ips), list(ports)}
	},
}

// servicesByID finds one service's rows, one per cluster.
var servicesByID = secondary("id", (*Service).ID)

// servicesByFrontend finds services by one of their addresses and ports.
var servicesByFrontend = statedb.Index[*Service, netip.AddrPort]{
	Name: "frontend",
	FromObject: func(s *Service) index.KeySet {
		var keys []string
		for _, a := range s.Addresses {
			for _, p := range s.Ports {
				keys = append(keys, netip.AddrPortFrom(a, p.Port).String())
			}
		}
		return index.StringSlice(keys)
	},
	FromKey: index.Stringer[netip.AddrPort],
}

// ServicesOf lists a service's rows, in order of cluster.
func (t *Tables) ServicesOf(txn statedb.ReadTxn, id string) []*Service {
	return statedb.Collect(t.Services.List(txn, servicesByID.Query(id)))
}

// ServiceAt returns the cluster's service that has an address and port, the first by
// name if several do; nil if none does.
func (t *Tables) ServiceAt(txn statedb.ReadTxn, cluster string, at netip.AddrPort) *Service {
	for s := range t.Services.List(txn, servicesByFrontend.Query(at)) {
		if s.Cluster == cluster {
			return s
		}
	}
	return nil
}
