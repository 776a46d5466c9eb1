package program

import (
	"fmt"
	"net/netip"

	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/service"
)

// misplaced says why an endpoint that cluster c offers for a service cannot be
// one; "" if it can. A cluster offers what is its own. Nobody offers an address
// that means something else on every node, or one of a node: a backend is
// reached by clients whose policies know nothing of the slice that names it.
func (v *view) misplaced(c *tables.Cluster, a netip.Addr) string {
	if err := service.CheckAddress(a); err != nil {
		return "backend " + err.Error()
	}
	if cidr := v.own.Own.ServiceCIDR; cidr.IsValid() && cidr.Contains(a) {
		return fmt.Sprintf("backend %v is a service's address", a)
	}
	if node, ok := v.nodeAddresses()[a]; ok {
		return fmt.Sprintf("backend %v is the address of node %s", a, node)
	}
	if c != v.own {
		if !c.Owns(whole(a)) {
			return fmt.Sprintf("backend %v is not cluster %s's", a, c.Name)
		}
		return ""
	}
	for _, other := range v.members {
		if other != v.own && other.Owns(whole(a)) {
			return fmt.Sprintf("backend %v is cluster %s's", a, other.Name)
		}
	}
	return ""
}

// trespasses says whose pod a hand-written slice of a namespace names; "" if it
// is nobody else's. Derived slices name pods that the service selects.
func (v *view) trespasses(namespace string, a netip.Addr) string {
	ip := tables.Get(v.txn, v.tables.IPs, (&tables.IP{Cluster: v.own.Name, Prefix: whole(a)}).Key())
	if ip == nil || ip.Namespace == namespace {
		return ""
	}
	return fmt.Sprintf("backend %v is pod %s/%s, which is in another namespace", a, ip.Namespace, ip.Pod)
}

// nodeAddresses are the addresses of nodes themselves, by node: the internal ones,
// and those outside of the mesh, to which no packet of a pod goes.
func (v *view) nodeAddresses() map[netip.Addr]string {
	if v.hosts == nil {
		v.hosts = map[netip.Addr]string{}
		for n := range v.tables.Nodes.All(v.txn) {
			for a := range v.outsideOf(n) {
				v.hosts[a] = n.Key()
			}
		}
		for key, n := range v.nodes {
			v.hosts[n.Internal()] = key
		}
	}
	return v.hosts
}
