package export

import (
	"cmp"
	"fmt"
	"strconv"

	"github.com/weft-mesh/weft/identity"
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
	case ofSlice:
		return v.ofSlice(d.ns, d.name)
	case ofService:
		return v.ofService(d.ns, d.name)
	case ofServiceExport:
		return v.ofServiceExport(d.ns, d.name)
	}
	return nil
}

func (v *views) ofCluster() map[string][]byte {
	on := true
	return map[string][]byte{
		wire.ClusterConfigKey(v.cluster.Name): wire.Marshal(wire.ClusterConfig{
			ID: uint32(v.cluster.ID),
			Capabilities: wire.Capabilities{
				SyncedCanaries:           true,
				MaxConnectedClusters:     v.cluster.MaxConnectedClusters,
				ServiceExportsEnabled:    &on,
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
	for _, a := range n.Internals() {
		node.IPAddresses = append(node.IPAddresses, wire.NodeAddress{Type: wire.NodeCiliumInternalIP, IP: a})
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
	out := map[string][]byte{}
	for _, ip := range e.IPs() {
		out[wire.IPStateKey(ip)] = wire.Marshal(wire.IPIdentityPair{
			IP: ip, HostIP: e.NodeIP, ID: e.Identity, Key: wire.WireGuardKey,
			K8sNamespace: ns, K8sPodName: pod, K8sServiceAccount: e.ServiceAccount,
			NamedPorts: e.NamedPorts,
		})
	}
	return out
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
