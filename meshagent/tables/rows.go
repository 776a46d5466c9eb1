package tables

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/policy"
	"github.com/weft-mesh/weft/tunnel/probe"
	"github.com/weft-mesh/weft/wire"
)

// Cluster is one member of the mesh. It is put together from several keys; a
// part that was not read yet is nil.
type Cluster struct {
	Name string
	// Own is set for the agent's own cluster and no other.
	Own *wire.Cluster
	// Peer is set for every other: what was agreed when it was added.
	Peer   *wire.Peer
	Config *wire.ClusterConfig
	Export *wire.ExportCluster
	// Synced holds the resources whose copy in our store is complete.
	Synced map[wire.Resource]time.Time
	// Liveness is what the cluster's own gossip says of its nodes.
	Liveness *wire.PeerLiveness
	// Rotation is the operator's wish, own cluster only.
	Rotation *wire.Rotation
}

// Key of a cluster.
func (c *Cluster) Key() string { return c.Name }

// Empty says that no part is left.
func (c *Cluster) Empty() bool {
	return c.Own == nil && c.Peer == nil && c.Config == nil && c.Export == nil && len(c.Synced) == 0 && c.Liveness == nil && c.Rotation == nil
}

// Member says whether the cluster belongs to the mesh now: it is ours, or an
// operator has added it. What is left of others is not used.
func (c *Cluster) Member() bool { return c.Own != nil || c.Peer != nil }

// ID of the cluster, 0 if not known.
func (c *Cluster) ID() identity.ClusterID {
	switch {
	case c.Own != nil:
		return c.Own.ID
	case c.Peer != nil:
		return c.Peer.ID
	}
	return 0
}

// PodCIDRs that the cluster may give addresses from.
func (c *Cluster) PodCIDRs() []netip.Prefix {
	switch {
	case c.Own != nil:
		return c.Own.PodCIDRs
	case c.Peer != nil:
		return c.Peer.PodCIDRs
	}
	return nil
}

// ServiceCIDR that the cluster takes services' addresses from; invalid if not known.
func (c *Cluster) ServiceCIDR() netip.Prefix {
	switch {
	case c.Own != nil:
		return c.Own.ServiceCIDR
	case c.Peer != nil:
		return c.Peer.ServiceCIDR
	}
	return netip.Prefix{}
}

// Owns says whether p lies in the cluster's pod CIDRs.
func (c *Cluster) Owns(p netip.Prefix) bool {
	for _, cidr := range c.PodCIDRs() {
		if cidr.Bits() <= p.Bits() && cidr.Contains(p.Addr()) {
			return true
		}
	}
	return false
}

// Complete says whether everything the cluster exports was read in full. Its own
// state is complete once listed.
func (c *Cluster) Complete() bool {
	if c.Own != nil {
		return true
	}
	for _, r := range []wire.Resource{wire.Nodes, wire.Identities, wire.IPs} {
		if _, ok := c.Synced[r]; !ok {
			return false
		}
	}
	_, services := c.Synced[wire.Services]
	_, slices := c.Synced[wire.EndpointSlices]
	return services || slices
}

// Former is a peer that was removed: its CIDRs are blocked until it is forgotten.
type Former struct{ wire.Former }

// Key of a former peer: its name.
func (f *Former) Key() string { return f.Name }

// Node is one node of any cluster. Of our own: what the operator registered, and
// what its agent says; of a peer's: Cilium and Export.
type Node struct {
	Cluster, Name string
	Registration  *Registration
	State         *wire.NodeState
	// Withdrawn says that the store no longer has State, which stays what the node
	// last said for as long as it is registered.
	Withdrawn bool
	Cilium    *wire.Node
	Export    *wire.ExportNode
}

// Registration is what an operator said about a node: it may claim no more.
type Registration struct {
	Name      string         `json:"name"`
	Addresses []netip.Addr   `json:"addresses"`
	PodCIDRs  []netip.Prefix `json:"podCIDRs"`
}

// Doubt says what is untrue in what the node says of itself; "" if nothing is.
func (n *Node) Doubt() string {
	if n.State == nil {
		return ""
	}
	if n.Registration == nil {
		return wire.NotRegistered
	}
	for _, a := range n.State.Addresses {
		if !slices.Contains(n.Registration.Addresses, a) {
			return fmt.Sprintf("it claims address %v, which it was not registered with", a)
		}
	}
	for _, p := range n.State.PodCIDRs {
		if !slices.Contains(n.Registration.PodCIDRs, p) {
			return fmt.Sprintf("it claims pod CIDR %v, which it was not registered with", p)
		}
	}
	return ""
}

// Key of a node: cluster/name.
func (n *Node) Key() string { return n.Cluster + "/" + n.Name }

// Empty says that no part is left.
func (n *Node) Empty() bool {
	return n.Registration == nil && n.State == nil && n.Cilium == nil && n.Export == nil
}

// Internal is the node's address inside the mesh.
func (n *Node) Internal() netip.Addr {
	switch {
	case n.State != nil:
		return n.State.Internal
	case n.Cilium != nil:
		return n.Cilium.Address(wire.NodeCiliumInternalIP)
	}
	return netip.Addr{}
}

// Addresses are the node's own, the one tunnels end at first.
func (n *Node) Addresses() []netip.Addr {
	if n.State != nil {
		return n.State.Addresses
	}
	var out []netip.Addr
	if n.Cilium != nil {
		for _, typ := range []string{wire.NodeInternalIP, wire.NodeExternalIP} {
			for _, a := range n.Cilium.IPAddresses {
				if a.Type == typ && a.IP.IsValid() {
					out = append(out, a.IP)
				}
			}
		}
	}
	return out
}

// PodCIDRs the node gives addresses from.
func (n *Node) PodCIDRs() []netip.Prefix {
	switch {
	case n.State != nil:
		return n.State.PodCIDRs
	case n.Cilium != nil:
		return n.Cilium.PodCIDRs()
	}
	return nil
}

// Lanes are the node's published keys and ports.
func (n *Node) Lanes() (lanes [2]wire.Lane, epoch uint64) {
	switch {
	case n.State != nil:
		return n.State.Lanes, n.State.Epoch
	case n.Export != nil:
		return n.Export.Lanes, n.Export.Epoch
	}
	return lanes, 0
}

// IP says whose an address or prefix of a cluster is.
type IP struct {
	Cluster  string
	Prefix   netip.Prefix // a single address has all bits
	Identity identity.Number
	// Host is the node behind which it lies, as tunnel endpoint.
	Host           netip.Addr
	Namespace, Pod string
	NamedPorts     []wire.NamedPort
}

// Key of an address: cluster/prefix.
func (i *IP) Key() string { return i.Cluster + "/" + i.Prefix.String() }

// Identity is a number and what it stands for.
type Identity struct {
	Cluster string
	Number  identity.Number
	Labels  identity.Labels
}

// Key of an identity. Numbers are unique in the mesh, but a peer may claim
// another's: such a row stays apart until it is judged.
func (i *Identity) Key() string { return i.Cluster + "/" + strconv.FormatUint(uint64(i.Number), 10) }

// Service is what one cluster says of a service.
type Service struct {
	Cluster, Namespace, Name string
	Object                   *corev1.Service // own cluster
	Remote                   *wire.ClusterService
}

// Key of a service: cluster/namespace/name.
func (s *Service) Key() string { return s.Cluster + "/" + s.Namespace + "/" + s.Name }

// Slice is a part of a service's backends.
type Slice struct {
	Cluster, Namespace, Name string
	Object                   *discoveryv1.EndpointSlice // own cluster
	Remote                   *wire.ClusterEndpointSlice
}

// Key of a slice: cluster/namespace/name.
func (s *Slice) Key() string { return s.Cluster + "/" + s.Namespace + "/" + s.Name }

// Namespace of the own cluster.
type Namespace struct {
	Name   string
	Object *corev1.Namespace
}

// Key of a namespace.
func (n *Namespace) Key() string { return n.Name }

// Pod of the own cluster, on whichever node: what is wanted, and what the API
// server vouches for.
type Pod struct {
	Namespace, Name string
	Object          *corev1.Pod
	Endpoint        *wire.Endpoint
}

// Key of a pod: namespace/name.
func (p *Pod) Key() string { return p.Namespace + "/" + p.Name }

// Policy is one manifest: of a policy, or of a group of prefixes for policies.
type Policy struct {
	Kind, Namespace, Name string
	Policies              []*policy.Policy
	Group                 *policy.CIDRGroup
}

// Key of a policy.
func (p *Policy) Key() string { return p.Kind + "/" + p.Namespace + "/" + p.Name }

// Phase is how far an endpoint has come.
//
//	creating ──network, programs──► held ──identity, policy──► live
//	    └──────────────── pod deleted ──► removing ◄────────────┘
type Phase string

const (
	Creating Phase = "creating"
	Held     Phase = "held" // receives and sends nothing
	Live     Phase = "live"
	Removing Phase = "removing"
)

// Endpoint is a pod of this node.
type Endpoint struct {
	Namespace, Pod string
	UID            string
	ID             uint16
	IP             netip.Addr
	Device         string // host side of the pair
	Ifindex        int
	MAC, HostMAC   [6]byte
	Phase          Phase
	Identity       identity.Number
	Labels         identity.Labels
	Set            uint32
	Ready          bool
	// Why is the last readiness failure, or what it waits for.
	Why string
}

// Key of an endpoint: namespace/pod.
func (e *Endpoint) Key() string { return e.Namespace + "/" + e.Pod }

// Path is what is known of the way to a node.
type Path struct {
	Cluster, Node string
	// Index is the node's row in the kernel.
	Index uint16
	Alive bool
	Lane  int
	// Keyed is unset while nothing may be sent to the node.
	Keyed       bool
	Observation probe.Observation
	// GossipDead is set while members of the node's cluster hold it for dead.
	GossipDead bool
}

// Key of a path: cluster/node.
func (p *Path) Key() string { return p.Cluster + "/" + p.Node }
