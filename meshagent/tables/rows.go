package tables

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/policy"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/tunnel/probe"
	"github.com/weft-mesh/weft/wire"
)

// Cluster is one member of the mesh. It is assembled from several keys; a part that
// has not been read yet is nil.
type Cluster struct {
	Name string
	// Own is set only for the agent's own cluster.
	Own *wire.Cluster
	// Peer is set for every other cluster: what was agreed when it was added.
	Peer   *wire.Peer
	Config *wire.ClusterConfig
	Export *wire.ExportCluster
	// Synced lists the resources that our store has copied in full.
	Synced map[wire.Resource]time.Time
	// Liveness is what the cluster's own gossip reports about its nodes.
	Liveness *wire.PeerLiveness
	// Rotation is the key rotation an operator asked for; own cluster only.
	Rotation *wire.Rotation
}

// Key is the cluster's name.
func (c *Cluster) Key() string { return c.Name }

// Empty says whether no part is left.
func (c *Cluster) Empty() bool {
	return c.Own == nil && c.Peer == nil && c.Config == nil && c.Export == nil && len(c.Synced) == 0 && c.Liveness == nil && c.Rotation == nil
}

// Member says whether the cluster belongs to the mesh now: it is ours or an operator
// has added it. What is left of other clusters is not used.
func (c *Cluster) Member() bool { return c.Own != nil || c.Peer != nil }

// ID is the cluster's ID, or 0 if not known.
func (c *Cluster) ID() identity.ClusterID {
	switch {
	case c.Own != nil:
		return c.Own.ID
	case c.Peer != nil:
		return c.Peer.ID
	}
	return 0
}

// PodCIDRs are the prefixes from which the cluster may assign pod addresses.
func (c *Cluster) PodCIDRs() []netip.Prefix {
	switch {
	case c.Own != nil:
		return c.Own.PodCIDRs
	case c.Peer != nil:
		return c.Peer.PodCIDRs
	}
	return nil
}

// ServiceCIDR is the prefix from which the cluster assigns service addresses; invalid
// if not known.
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

// Complete says whether everything the cluster exports has been read in full. Our own
// cluster's state is complete once listed.
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

// Former is a removed peer: its CIDRs stay blocked until an operator forgets it.
type Former struct{ wire.Former }

// Key is the former peer's name.
func (f *Former) Key() string { return f.Name }

// Node is a node of any cluster. A node of ours has what the operator registered and
// what its agent reports; a peer's has Cilium and Export.
type Node struct {
	Cluster, Name string
	Registration  *wire.Registration
	State         *wire.NodeState
	// Withdrawn says that State is gone from the store; it keeps the node's last
	// report for as long as the node is registered.
	Withdrawn bool
	Cilium    *wire.Node
	Export    *wire.ExportNode
}

// Doubt says what is wrong with the node's own report, or "" if nothing is.
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

// Key is "cluster/name".
func (n *Node) Key() string { return n.Cluster + "/" + n.Name }

// Empty says whether no part is left.
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

// Addresses are the node's own addresses, its tunnel endpoint first.
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

// PodCIDRs are the prefixes from which the node assigns pod addresses.
func (n *Node) PodCIDRs() []netip.Prefix {
	switch {
	case n.State != nil:
		return n.State.PodCIDRs
	case n.Cilium != nil:
		return n.Cilium.PodCIDRs()
	}
	return nil
}

// Lanes are the keys and ports that the node has published for its two tunnels.
func (n *Node) Lanes() (lanes [2]wire.Lane, epoch uint64) {
	switch {
	case n.State != nil:
		return n.State.Lanes, n.State.Epoch
	case n.Export != nil:
		return n.Export.Lanes, n.Export.Epoch
	}
	return lanes, 0
}

// IP says who has an address or prefix of a cluster.
type IP struct {
	Cluster  string
	Prefix   netip.Prefix // a single address has all bits
	Identity identity.Number
	// Host is the node behind which it lies, by its tunnel endpoint.
	Host           netip.Addr
	Namespace, Pod string
	NamedPorts     []wire.NamedPort
}

// Key is "cluster/prefix".
func (i *IP) Key() string { return i.Cluster + "/" + i.Prefix.String() }

// Identity is a number and the labels it stands for.
type Identity struct {
	Cluster string
	Number  identity.Number
	Labels  identity.Labels
}

// Key is "cluster/number". Numbers are unique in the mesh, but a peer may claim
// another cluster's: such a row must stay apart until it is judged.
func (i *Identity) Key() string { return i.Cluster + "/" + strconv.FormatUint(uint64(i.Number), 10) }

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

// Slice holds some of a service's backends.
type Slice struct {
	Cluster string
	service.Slice
	// Derived is set if the API server made the slice from the service's pods.
	Derived bool
}

// Key is "cluster/namespace/name".
func (s *Slice) Key() string { return s.Cluster + "/" + s.Namespace + "/" + s.Name }

// ServiceID is the service that the slice belongs to, "namespace/name".
func (s *Slice) ServiceID() string { return s.Namespace + "/" + s.Service }

// Namespace is a namespace of our own cluster.
type Namespace struct {
	Name   string
	Object *corev1.Namespace
}

// Key is the namespace's name.
func (n *Namespace) Key() string { return n.Name }

// Pod is a pod of our own cluster, on any node: what is wanted, and what the API
// server vouches for.
type Pod struct {
	Namespace, Name string
	Object          *corev1.Pod
	Endpoint        *wire.Endpoint
}

// Key is "namespace/name".
func (p *Pod) Key() string { return p.Namespace + "/" + p.Name }

// Policy is one manifest: a policy, or a group of prefixes for policies to use.
type Policy struct {
	Kind, Namespace, Name string
	Policies              []*policy.Policy
	Group                 *policy.CIDRGroup
}

// Key is "kind/namespace/name".
func (p *Policy) Key() string { return p.Kind + "/" + p.Namespace + "/" + p.Name }

// Phase is how far an endpoint's setup or removal has come.
//
//	creating ──network, programs──► held ──identity, policy──► live
//	    └──────────────── pod deleted ──► removing ◄────────────┘
type Phase string

const (
	Creating Phase = "creating"
	Held     Phase = "held" // sends and receives nothing
	Live     Phase = "live"
	Removing Phase = "removing"
)

// Endpoint is a pod on this node.
type Endpoint struct {
	Namespace, Pod string
	UID            string
	ID             uint16
	IP             netip.Addr
	Device         string // host side of the veth pair
	Ifindex        int
	MAC, HostMAC   [6]byte
	Phase          Phase
	Identity       identity.Number
	Labels         identity.Labels
	Set            uint32
	Ready          bool
	// Why is the last readiness failure, or what the pod is waiting for.
	Why string
}

// Key is "namespace/pod".
func (e *Endpoint) Key() string { return e.Namespace + "/" + e.Pod }

// Path is what is known about the path to a node.
type Path struct {
	Cluster, Node string
	// Index is the node's row in the kernel.
	Index uint16
	Alive bool
	Lane  int
	// Keyed is set once packets may be sent to the node.
	Keyed       bool
	Observation probe.Observation
	// GossipDead is set while members of the node's cluster consider it dead.
	GossipDead bool
}

// Key is "cluster/node".
func (p *Path) Key() string { return p.Cluster + "/" + p.Node }
