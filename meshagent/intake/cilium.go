package intake

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

func whole(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// placeOf is what agents use of a peer's node: where it is and which addresses it gives
// out. The rest of its entry, labels and annotations among it, takes ten times the memory.
func placeOf(n *wire.Node) *wire.Node {
	if n == nil {
		return nil
	}
	return &wire.Node{
		Name: n.Name, Cluster: n.Cluster, IPAddresses: n.IPAddresses,
		IPv4AllocCIDR: n.IPv4AllocCIDR, IPv4SecondaryAllocCIDRs: n.IPv4SecondaryAllocCIDRs,
		IPv6AllocCIDR: n.IPv6AllocCIDR, IPv6SecondaryAllocCIDRs: n.IPv6SecondaryAllocCIDRs,
	}
}

// cilium reads our copy of what a peer exports in Cilium's form. Our API server
// has checked it against the peer's rights before copying.
func (w *writer) cilium(e store.Event) error {
	ref, ok := wire.ParseCiliumCacheKey(e.Key)
	if !ok {
		return nil // a resource that is not ours to read
	}
	one := w.in.names.one
	ref.Cluster, ref.Namespace = one(ref.Cluster), one(ref.Namespace)
	ref.Node, ref.Name = strings.Clone(ref.Node), strings.Clone(ref.Name) // without the rest of the key
	w.cluster = ref.Cluster
	switch ref.Resource {
	case wire.Nodes:
		v, err := value(e, wire.Unmarshal[wire.Node])
		if err != nil {
			return err
		}
		if v != nil && (v.Name != ref.Node || v.Cluster != ref.Cluster) {
			return fmt.Errorf("node speaks of itself as %s/%s", v.Cluster, v.Name)
		}
		v = placeOf(v)
		tables.Change(w.txn, w.t.Nodes, &tables.Node{Cluster: ref.Cluster, Name: ref.Node}, func(n *tables.Node) bool {
			n.Cilium = v
			return !n.Empty()
		})
	case wire.IPs:
		v, err := value(e, wire.Unmarshal[wire.IPIdentityPair])
		if err != nil {
			return err
		}
		row := &tables.IP{Cluster: ref.Cluster, Prefix: ref.IP}
		if v == nil {
			return write(w, w.t.IPs, row, false)
		}
		prefix, err := v.Prefix()
		if err != nil {
			return err
		}
		if prefix != ref.IP {
			return fmt.Errorf("address speaks of %v", prefix)
		}
		row.Identity, row.Host, row.Namespace, row.Pod, row.NamedPorts = v.ID, v.HostIP, one(v.K8sNamespace), v.K8sPodName, v.NamedPorts
		return write(w, w.t.IPs, row, true)
	case wire.Identities:
		return w.identity(e, ref.Identity)
	case wire.Services:
		v, err := value(e, wire.Unmarshal[wire.ClusterService])
		if err != nil {
			return err
		}
		if v != nil && (v.Cluster != ref.Cluster || v.Namespace != ref.Namespace || v.Name != ref.Name) {
			return fmt.Errorf("service speaks of %s/%s/%s", v.Cluster, v.Namespace, v.Name)
		}
		row := &tables.Service{Cluster: ref.Cluster, Service: service.Service{Namespace: ref.Namespace, Name: ref.Name}}
		if v != nil {
			row.Service, row.Carried = v.Service(), v.Slices()
		}
		return write(w, w.t.Services, row, v != nil)
	case wire.EndpointSlices:
		v, err := value(e, wire.ParseClusterEndpointSlice)
		if err != nil {
			return err
		}
		row := &tables.Slice{Cluster: ref.Cluster, Slice: service.Slice{Namespace: ref.Namespace, Name: ref.Name}}
		if v == nil {
			return write(w, w.t.Slices, row, false)
		}
		s := *v
		if s.Cluster != ref.Cluster || s.Namespace != ref.Namespace || s.Name != ref.Name {
			return fmt.Errorf("slice speaks of %s/%s/%s", s.Cluster, s.Namespace, s.Name)
		}
		row.Slice = s.Slice()
		row.Namespace, row.Name, row.Service = ref.Namespace, ref.Name, one(row.Service)
		for i := range row.Endpoints {
			end := &row.Endpoints[i]
			end.Node, end.Zone = one(end.Node), one(end.Zone)
		}
		return write(w, w.t.Slices, row, true)
	}
	return nil
}
