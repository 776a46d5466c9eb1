package program

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/service"
)

// misplaced says why an endpoint that cluster c offers for a service is not accepted,
// or "" if it is. A cluster may offer only what is its own. Nobody may offer an address that
// means something different on every node, or a node's: clients reach a backend
// under policies that know nothing of the slice naming it. Processes of our own nodes
// are backends at the addresses at which they listen, outside of the mesh.
func (v *view) misplaced(c *tables.Cluster, a netip.Addr) string {
	if err := service.CheckAddress(a); err != nil {
		return "backend " + err.Error()
	}
	if own := v.own.Own; own.ServiceCIDR.Contains(a) || own.IPv6ServiceCIDR.Contains(a) {
		return fmt.Sprintf("backend %v is a service's address", a)
	}
	if node := v.nodeAt(a); node != "" && (c != v.own || !v.process(a)) {
		if clusterOf(node) == v.own.Name && c == v.own && v.nodes.inside.first(a) == "" {
			return fmt.Sprintf("backend %v is the address of node %s, which has not joined yet: start its agent", a, node)
		}
		return fmt.Sprintf("backend %v is the address of node %s", a, node)
	}
	if c != v.own {
		if !c.Owns(whole(a)) {
			return fmt.Sprintf("backend %v is outside the pod CIDRs of cluster %s", a, c.Name)
		}
		return ""
	}
	if other := v.ownerOf(whole(a)); other != nil && other != v.own {
		return fmt.Sprintf("backend %v belongs to cluster %s", a, other.Name)
	}
	return ""
}

// processes adds the rows that open the ports at which processes of our own nodes are behind the
// service. Its frontends come after them.
func (d *derived) processes(v *view) {
	for _, s := range d.from[service.ClusterID(v.own.ID())] {
		for _, e := range s.Endpoints {
			if !v.process(e.Addr) {
				continue
			}
			d.partial = true
			for _, port := range s.Ports {
				key := keyOf(e.Addr, port.Port, port.Protocol)
				key.Scope = bpf.ScopeNode
				if !slices.ContainsFunc(d.frontends, func(f frontend) bool { return f.key == key }) {
					d.frontends = append(d.frontends, frontend{key: key})
				}
			}
		}
	}
}

// pods are slices without the processes of our own nodes, and the first of those.
func (v *view) pods(from map[service.ClusterID][]service.Slice) (pods map[service.ClusterID][]service.Slice, process netip.Addr) {
	own := service.ClusterID(v.own.ID())
	if !slices.ContainsFunc(from[own], func(s service.Slice) bool {
		return slices.ContainsFunc(s.Endpoints, func(e service.Endpoint) bool { return v.process(e.Addr) })
	}) {
		return from, process
	}
	pods = maps.Clone(from)
	pods[own] = slices.Clone(from[own])
	for i := range pods[own] {
		s := &pods[own][i]
		s.Endpoints = slices.DeleteFunc(slices.Clone(s.Endpoints), func(e service.Endpoint) bool {
			if !v.process(e.Addr) {
				return false
			}
			if !process.IsValid() {
				process = e.Addr
			}
			return true
		})
	}
	return pods, process
}

// trespasses says whose pod a hand-written slice names if that pod is in another
// namespace, or "". Derived slices name only pods that the service selects.
func (v *view) trespasses(namespace string, a netip.Addr) string {
	ip := v.tables.IPAt(v.txn, v.own.Name, whole(a))
	if ip == nil || ip.Namespace == namespace {
		return ""
	}
	return fmt.Sprintf("backend %v is pod %s/%s, which is in another namespace", a, ip.Namespace, ip.Pod)
}
