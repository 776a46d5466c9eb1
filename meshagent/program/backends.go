package program

import (
	"fmt"
	"net/netip"

	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/service"
)

// misplaced says why an endpoint that cluster c offers for a service is not accepted,
// or "" if it is. A cluster may offer only what is its own. Nobody may offer a node's
// address or one that means something different on every node: clients reach a backend
// under policies that know nothing of the slice naming it.
func (v *view) misplaced(c *tables.Cluster, a netip.Addr) string {
	if err := service.CheckAddress(a); err != nil {
		return "backend " + err.Error()
	}
	if own := v.own.Own; own.ServiceCIDR.Contains(a) || own.IPv6ServiceCIDR.Contains(a) {
		return fmt.Sprintf("backend %v is a service's address", a)
	}
	if node := v.nodeAt(a); node != "" {
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

// trespasses says whose pod a hand-written slice names if that pod is in another
// namespace, or "". Derived slices name only pods that the service selects.
func (v *view) trespasses(namespace string, a netip.Addr) string {
	ip := v.tables.IPAt(v.txn, v.own.Name, whole(a))
	if ip == nil || ip.Namespace == namespace {
		return ""
	}
	return fmt.Sprintf("backend %v is pod %s/%s, which is in another namespace", a, ip.Namespace, ip.Pod)
}
