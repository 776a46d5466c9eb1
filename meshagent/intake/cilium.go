package intake

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

func whole(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

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
		place := tables.PlaceOf(v)
		tables.Change(w.txn, w.t.Nodes, &tables.Node{Cluster: ref.Cluster, Name: ref.Node}, func(n *tables.Node) bool {
			n.Place = place
			return !n.Empty()
		})
	case wire.IPs:
		if e.Deleted {
			w.ips.Drop(ref.Cluster, ref.IP)
			return nil
		}
		v, err := wire.Unmarshal[wire.IPIdentityPair](e.Value)
		if err != nil {
			return err
		}
		prefix, err := v.Prefix()
		if err != nil {
			return err
		}
		if prefix != ref.IP {
			return fmt.Errorf("address speaks of %v", prefix)
		}
		w.ips.Put(&tables.IP{Cluster: ref.Cluster, Prefix: prefix, Identity: v.ID, Host: v.HostIP, Namespace: one(v.K8sNamespace), Pod: v.K8sPodName, NamedPorts: v.NamedPorts})
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
			row.Service = v.Service()
			row.Namespace, row.Name = ref.Namespace, one(ref.Name)
			carried := v.Slices()
			for i := range carried {
				w.intern(&carried[i])
			}
			row.Carried = tables.CarriedOf(carried)
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
		w.intern(&row.Slice)
		row.Name = ref.Name
		return write(w, w.t.Slices, row, true)
	}
	return nil
}

// intern keeps one copy of the names that slices have in common.
func (w *writer) intern(s *service.Slice) {
	one := w.in.names.one
	s.Namespace, s.Service = one(s.Namespace), one(s.Service)
	for i := range s.Ports {
		s.Ports[i].Name = one(s.Ports[i].Name)
	}
	for i := range s.Endpoints {
		end := &s.Endpoints[i]
		end.Node, end.Zone = one(end.Node), one(end.Zone)
		if h := end.Hints; h != nil {
			for j := range h.Zones {
				h.Zones[j] = one(h.Zones[j])
			}
			if i > 0 && s.Endpoints[i-1].Hints != nil && slices.Equal(s.Endpoints[i-1].Hints.Zones, h.Zones) {
				end.Hints = s.Endpoints[i-1].Hints
			}
		}
	}
}
