package export

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weft-mesh/weft/apiserver/state"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/wire"
)

func (d view) compare(other view) int {
	return cmp.Or(cmp.Compare(d.kind, other.kind), cmp.Compare(d.ns, other.ns), cmp.Compare(d.name, other.name))
}

// make returns what peers may know of one view; nil means nothing.
func (v *views) make(d view) map[string][]byte {
	switch d.kind {
	case ofCluster:
		return v.ofCluster()
	case ofNode:
		return v.ofNode(d.name)
	case ofEndpoint:
		return v.ofEndpoint(d.ns, d.name)
	case ofIdentity:
		return v.ofIdentity(d.name)
	case ofService:
		return v.ofService(d.ns, d.name)
	}
	return nil
}

func (v *views) ofCluster() map[string][]byte {
	off := false
	return map[string][]byte{
		wire.ClusterConfigKey(v.cluster.Name): wire.Marshal(wire.ClusterConfig{
			ID: uint32(v.cluster.ID),
			Capabilities: wire.Capabilities{
				SyncedCanaries:           true,
				MaxConnectedClusters:     v.cluster.MaxConnectedClusters,
				ServiceExportsEnabled:    &off,
				EndpointSlicesExportMode: wire.ServicesAndEndpointSlices,
			},
		}),
		wire.ExportClusterKey: wire.Marshal(wire.ExportCluster{PodCIDRs: v.cluster.PodCIDRs, Generation: v.cluster.Generation}),
	}
}

// wgAnnotation is where some Cilium releases look for the key.
const wgAnnotation = "network.cilium.io/wg-pub-key"

// ofNode exports a node as it last claimed in agreement with its registration. A node
// without a key is exported too, because its addresses belong to the mesh regardless.
func (v *views) ofNode(name string) map[string][]byte {
	registration, registered := v.register[name]
	if !registered {
		v.note(wire.NodeKey(name), "")
		delete(v.agreed, name)
		return nil
	}
	if claim, ok := v.claimed[name]; ok {
		v.note(wire.NodeKey(name), "")
		if err := v.check(registration, claim); err != nil {
			v.note(wire.NodeKey(name), err.Error())
		} else {
			v.agreed[name] = claim
		}
	}
	n, ok := v.agreed[name]
	if !ok {
		return nil
	}
	node := wire.Node{
		Name: name, Cluster: v.cluster.Name, ClusterID: uint32(v.cluster.ID),
		Source: wire.SourceCustomResource, Labels: registration.Labels, BootID: n.BootID,
	}
	for _, a := range n.Addresses {
		node.IPAddresses = append(node.IPAddresses, wire.NodeAddress{Type: wire.NodeInternalIP, IP: a})
	}
	if n.Internal.IsValid() {
		node.IPAddresses = append(node.IPAddresses, wire.NodeAddress{Type: wire.NodeCiliumInternalIP, IP: n.Internal})
	}
	node.SetPodCIDRs(n.PodCIDRs)
	if key := n.Lanes[n.Epoch%2].PublicKey; key != "" {
		node.EncryptionKey, node.WireguardPubKey = wire.WireGuardKey, key
		node.Annotations = map[string]string{wgAnnotation: key}
	}
	return map[string][]byte{
		wire.NodeStateKey(v.cluster.Name, name): wire.Marshal(node),
		wire.ExportNodeKey(name):                wire.Marshal(wire.ExportNode{Name: name, Epoch: n.Epoch, Lanes: n.Lanes}),
	}
}

func (v *views) check(r *wire.Registration, claim wire.NodeState) error {
	for _, p := range claim.PodCIDRs {
		if !inside(v.cluster.PodCIDRs, p) {
			return fmt.Errorf("claims pod CIDR %v, which is outside the cluster's", p)
		}
	}
	return r.Check(claim)
}

func (v *views) ofEndpoint(ns, pod string) map[string][]byte {
	e, ok := v.endpoints[[2]string{ns, pod}]
	if !ok || v.kept[ns] || !e.IP.IsValid() || v.split.Cluster(e.Identity) != v.cluster.ID {
		return nil
	}
	return map[string][]byte{
		wire.IPStateKey(e.IP): wire.Marshal(wire.IPIdentityPair{
			IP: e.IP, HostIP: e.NodeIP, ID: e.Identity, Key: wire.WireGuardKey,
			K8sNamespace: ns, K8sPodName: pod, K8sServiceAccount: e.ServiceAccount,
			NamedPorts: e.NamedPorts,
		}),
	}
}

func (v *views) ofIdentity(digits string) map[string][]byte {
	number, err := strconv.ParseUint(digits, 10, 32)
	if err != nil {
		return nil
	}
	n := identity.Number(number)
	labels, ok := v.identities[n]
	if !ok || v.split.Cluster(n) != v.cluster.ID || v.kept[labels.Namespace()] {
		return nil
	}
	return map[string][]byte{wire.IdentityStateKey(n): []byte(labels.String())}
}

// mostServiceBytes is the most that a service may have in the older format, in which all
// of its backends share one value: by default etcd refuses requests of more than 1.5 MiB,
// and so would that of a KVStoreMesh which copies it. 10,000 IPv4 backends with one port
// and a zone take 1 MB.
const mostServiceBytes = 1_500_000

func (v *views) ofService(ns, name string) map[string][]byte {
	obj := v.services[[2]string{ns, name}]
	if obj == nil {
		return nil // absent, or not readable, which apply has reported
	}
	problem := wire.ObjectKey("services", ns, name)
	v.note(problem, "")
	if v.kept[ns] {
		return nil
	}
	if obj.Wrong != nil {
		v.note(problem, obj.Wrong.Error())
		return nil
	}
	if !obj.Exported() {
		return nil
	}
	own, foreign := v.believable(v.slices[[2]string{ns, name}])
	if len(foreign) > 0 {
		v.note(problem, fmt.Sprintf("peers would refuse endpoints outside the cluster's pod CIDRs %v; left out: %s", v.cluster.PodCIDRs, some(foreign)))
	}
	entry := v.clusterService(obj, own)
	older := wire.Marshal(entry)
	if len(older) > mostServiceBytes {
		all := len(entry.Backends)
		v.note(problem, fmt.Sprintf("its entry in the older format has room for only %d of its %d backends: peers that do not read endpoint slices never use the others", entry.Shrink(mostServiceBytes), all))
		older = wire.Marshal(entry)
	}
	out := map[string][]byte{wire.ServiceStateKey(v.cluster.Name, ns, name): older}
	for _, slice := range own {
		if s, ok := v.clusterSlice(slice); ok {
			out[wire.SliceStateKey(v.cluster.Name, ns, slice.Name)] = s.Marshal()
		}
	}
	return out
}

// believable returns the slices without addresses outside the cluster's pod CIDRs,
// which peers would refuse, and lists those addresses.
func (v *views) believable(all map[string]*discoveryv1.EndpointSlice) (own map[string]*discoveryv1.EndpointSlice, foreign []string) {
	own = map[string]*discoveryv1.EndpointSlice{}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		slice := *all[name]
		slice.Endpoints = nil
		for _, e := range all[name].Endpoints {
			var inside []string
			for _, text := range e.Addresses {
				if a, err := wire.ParseAddr(text); err == nil && contains(v.cluster.PodCIDRs, a) {
					inside = append(inside, text)
				} else {
					foreign = append(foreign, text+" of slice "+name)
				}
			}
			if e.Addresses = inside; len(inside) > 0 {
				slice.Endpoints = append(slice.Endpoints, e)
			}
		}
		own[name] = &slice
	}
	return own, foreign
}

// some names the first few of all, to keep the line readable.
func some(all []string) string {
	const most = 3
	if len(all) <= most {
		return strings.Join(all, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(all[:most], ", "), len(all)-most)
}

// clusterService returns a service in the older format, which has no conditions. Like
// Cilium's, it lists backends that are ready or still serving, and hints only along
// with a zone. Backends in maintenance are left out, because readers of this format
// would send them new connections.
func (v *views) clusterService(svc *state.Service, own map[string]*discoveryv1.EndpointSlice) wire.ClusterService {
	s := wire.ClusterService{
		Cluster: v.cluster.Name, Namespace: svc.Namespace, Name: svc.Name,
		Frontends: map[netip.Addr]map[string]wire.L4Addr{},
		Backends:  map[netip.Addr]map[string]wire.L4Addr{},
		Hostnames: map[netip.Addr]string{},
		Zones:     map[netip.Addr]wire.BackendZone{},
		Labels:    orEmpty(svc.Object.Labels), Selector: orEmpty(svc.Object.Spec.Selector),
		IncludeExternal: true, Shared: true, ClusterID: uint32(v.cluster.ID),
	}
	for _, a := range svc.Addresses {
		ports := map[string]wire.L4Addr{}
		for _, p := range svc.Ports {
			ports[p.Name] = wire.L4Addr{Protocol: string(p.Protocol), Port: p.Port}
		}
		s.Frontends[a] = ports
	}
	for _, name := range slices.Sorted(maps.Keys(own)) {
		slice := service.SliceFromKubernetes(own[name])
		for _, e := range slice.Endpoints {
			if e.Draining || !e.Ready && !e.Serving {
				continue
			}
			if s.Backends[e.Addr] == nil {
				s.Backends[e.Addr] = map[string]wire.L4Addr{}
			}
			for _, p := range slice.Ports {
				s.Backends[e.Addr][p.Name] = wire.L4Addr{Protocol: string(p.Protocol), Port: p.Port}
			}
			if e.Hostname != "" {
				s.Hostnames[e.Addr] = e.Hostname
			}
			if e.Zone != "" {
				zone := wire.BackendZone{Zone: e.Zone, ForZones: []wire.ForZone{}}
				for _, z := range e.ForZones {
					zone.ForZones = append(zone.ForZones, wire.ForZone{Name: z})
				}
				s.Zones[e.Addr] = zone
			}
		}
	}
	return s
}

func (v *views) clusterSlice(es *discoveryv1.EndpointSlice) (*wire.ClusterEndpointSlice, bool) {
	if es.AddressType != discoveryv1.AddressTypeIPv4 && es.AddressType != discoveryv1.AddressTypeIPv6 {
		return nil, false
	}
	s := &wire.ClusterEndpointSlice{
		Cluster: v.cluster.Name, ClusterID: uint32(v.cluster.ID),
		Namespace: es.Namespace, Name: es.Name,
		Labels: es.Labels, AddressType: string(es.AddressType),
	}
	for k, value := range es.Annotations {
		// Only annotations meant for the mesh; the rest is private.
		if strings.HasPrefix(k, "service.cilium.io/") {
			if s.Annotations == nil {
				s.Annotations = map[string]string{}
			}
			s.Annotations[k] = value
		}
	}
	for _, e := range es.Endpoints {
		end := wire.SliceEndpoint{
			Addresses:  e.Addresses,
			Conditions: wire.Conditions{Ready: e.Conditions.Ready, Serving: e.Conditions.Serving, Terminating: e.Conditions.Terminating},
			Hostname:   deref(e.Hostname), NodeName: deref(e.NodeName), Zone: deref(e.Zone),
		}
		if e.Hints != nil {
			for _, z := range e.Hints.ForZones {
				end.ForZones = append(end.ForZones, z.Name)
			}
		}
		s.Endpoints = append(s.Endpoints, end)
	}
	for _, p := range es.Ports {
		port := wire.SlicePort{Name: deref(p.Name), Port: deref(p.Port), AppProtocol: deref(p.AppProtocol), Protocol: "TCP"}
		if p.Protocol != nil {
			port.Protocol = string(*p.Protocol)
		}
		s.Ports = append(s.Ports, port)
	}
	return s, true
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func orEmpty(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}
