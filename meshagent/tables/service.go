package tables

import (
	"net/netip"
	"slices"

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
	// the export's older format. Most peers write both, and then the slices count.
	Carried []Carried
}

// Carried are backends with the same ports.
type Carried struct {
	Ports []service.SlicePort
	// Addrs are those of which nothing but the address is known, Others the rest.
	Addrs  []netip.Addr
	Others []service.Endpoint
}

// CarriedOf stores the slices of one service in less room: without its name, and backends that are
// ready and of which nothing else is known as their addresses alone.
func CarriedOf(all []service.Slice) (out []Carried) {
	for _, s := range all {
		c := Carried{Ports: s.Ports}
		for _, e := range s.Endpoints {
			if e == carried(e.Addr) {
				c.Addrs = append(c.Addrs, e.Addr)
			} else {
				c.Others = append(c.Others, e)
			}
		}
		c.Addrs, c.Others = slices.Clone(c.Addrs), slices.Clone(c.Others)
		out = append(out, c)
	}
	return slices.Clone(out)
}

func carried(a netip.Addr) service.Endpoint {
	return service.Endpoint{Addr: a, Ready: true, Serving: true}
}

// CarriedSlices are the backends that the service carries, as slices.
func (s *Service) CarriedSlices() (all []service.Slice) {
	for _, c := range s.Carried {
		slice := service.Slice{Namespace: s.Namespace, Name: s.Name, Service: s.Name, Ports: c.Ports, Endpoints: slices.Clone(c.Others)}
		for _, a := range c.Addrs {
			slice.Endpoints = append(slice.Endpoints, carried(a))
		}
		slices.SortFunc(slice.Endpoints, func(a, b service.Endpoint) int { return a.Addr.Compare(b.Addr) })
		all = append(all, slice)
	}
	return all
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
		for _, ip := range slices.Concat(s.Addresses, s.External, s.Balanced) {
			ips = append(ips, ip.String())
		}
		for _, p := range s.Ports {
			ports = append(ports, p.String())
		}
		return []string{s.Cluster, s.Namespace, s.Name, list(ips), list(ports)}
	},
}

// servicesByID finds one service's rows, one per cluster.
var servicesByID = secondary("id", (*Service).ID)

// anywhere are the addresses under which node ports are found.
var anywhere = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}

// servicesByFrontend finds services by one of their addresses and ports, and by node port.
var servicesByFrontend = statedb.Index[*Service, netip.AddrPort]{
	Name: "frontend",
	FromObject: func(s *Service) index.KeySet {
		var keys []string
		for _, f := range append(s.Fronts(), s.Outer(anywhere)...) {
			if !f.Outside { // the other one has the same
				keys = append(keys, netip.AddrPortFrom(f.Addr, f.Port).String())
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

// ServiceAt returns the cluster's service that has an address and port, or the port as a node
// port; the first by name if several do, nil if none does.
func (t *Tables) ServiceAt(txn statedb.ReadTxn, cluster string, at netip.AddrPort) *Service {
	if s := t.serviceAt(txn, cluster, at); s != nil {
		return s
	}
	node := anywhere[0]
	if at.Addr().Is6() {
		node = anywhere[1]
	}
	return t.serviceAt(txn, cluster, netip.AddrPortFrom(node, at.Port()))
}

func (t *Tables) serviceAt(txn statedb.ReadTxn, cluster string, at netip.AddrPort) *Service {
	for s := range t.Services.List(txn, servicesByFrontend.Query(at)) {
		if s.Cluster == cluster {
			return s
		}
	}
	return nil
}
