package wire

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Weft's own keys. What ends in "/" is a prefix.
const (
	// ClusterKey holds our own Cluster.
	ClusterKey = "weft/state/cluster"
	// LineageKey holds the store's Lineage, if it is an embedded etcd.
	LineageKey = "weft/state/lineage"
	// StatePrefix covers everything about this cluster that its agents may read.
	StatePrefix = "weft/state/"
	// ObjectsPrefix holds manifests as they were applied, in Kubernetes JSON.
	ObjectsPrefix = "weft/state/objects/"
	// NodesPrefix holds what agents write about themselves.
	NodesPrefix = "weft/state/nodes/"
	// EndpointsPrefix holds a checked Endpoint per pod, with its identity.
	EndpointsPrefix = "weft/state/endpoints/"
	// IdentitiesPrefix holds the allocation of identities; see identities.go.
	IdentitiesPrefix     = "weft/state/identities/"
	IdentityIDPrefix     = IdentitiesPrefix + "id/"
	IdentityTextPrefix   = IdentitiesPrefix + "value/"
	IdentityUnusedPrefix = IdentitiesPrefix + "unused/"
	// RegistrationsPrefix holds a Registration per node. Agents read it to check each
	// other's claims.
	RegistrationsPrefix = "weft/state/registrations/"
	// PeersPrefix holds a Peer per peer cluster.
	PeersPrefix = "weft/state/peers/"
	// FormerPrefix holds a Former per removed peer.
	FormerPrefix = "weft/state/former/"
	// RotationKey holds a Rotation: the key epoch the operator wants.
	RotationKey = "weft/state/rotation"
	// OwnLivenessKey holds a PeerLiveness about our own nodes.
	OwnLivenessKey = "weft/state/liveness"
	// AgentsPrefix covers what agents may read but peers may not.
	AgentsPrefix = "weft/agents/"
	// GossipKey holds GossipKeys.
	GossipKey = "weft/agents/gossip"
	// ServiceIPsPrefix holds, for each service address in use, the service that has it.
	ServiceIPsPrefix = "weft/state/serviceips/"
	// NodePortsPrefix holds, for each node port in use, the service that has it.
	NodePortsPrefix = "weft/state/nodeports/"
	// SecretPrefix is for the API server only.
	SecretPrefix = "weft/secret/"
	// AddedServersPrefix has a record for each API server that an operator has added.
	AddedServersPrefix = SecretPrefix + "members/"
	// AuthorityKey holds the authority that the API servers of a cluster share.
	AuthorityKey = SecretPrefix + "authority"
	// WANGossipKey holds the key of the gossip between clusters.
	WANGossipKey = SecretPrefix + "gossip"
	// RemovalsKey counts the invited peers that were removed. The authority's
	// folder holds the same count.
	RemovalsKey = SecretPrefix + "removals"
	// RegistrationsTurnKey is written by every change of a Registration, so that whoever
	// has read some finds out whether they changed since.
	RegistrationsTurnKey = SecretPrefix + "nodes"
	PeerSecretsPrefix    = "weft/secret/peers/"
	// ExportPrefix covers what peers read beyond Cilium's format.
	ExportPrefix      = "weft/export/"
	ExportClusterKey  = "weft/export/cluster"
	ExportNodesPrefix = "weft/export/nodes/"
	// ExportLineageKey is LineageKey for peers.
	ExportLineageKey = "weft/export/lineage"
	// JoinedClustersPrefix has a folder per peer; see JoinedPrefix.
	JoinedClustersPrefix = "weft/joined/"
	// WithdrawnPrefix holds a key per node whose registration is gone, and whose rights are
	// about to go.
	WithdrawnPrefix = "weft/withdrawn/nodes/"
	// RebuildingKey exists while a store that was lost is filled again.
	RebuildingKey = SecretPrefix + "rebuilding"
	// KubernetesKey holds the UID of the namespace kube-system in the Kubernetes cluster that
	// objects come from.
	KubernetesKey = "weft/kubernetes"
	// HeardKey holds a Heard.
	HeardKey = "weft/heard"
	// CachePrefix covers our copies of peers' ExportPrefix, a folder per peer.
	CachePrefix = "weft/cache/"
)

// Cilium's keys. What ends in "/" is a prefix.
const (
	CiliumStatePrefix   = "cilium/state/"
	CiliumCachePrefix   = "cilium/cache/"
	CiliumSyncedPrefix  = "cilium/synced/"
	ClusterConfigPrefix = "cilium/cluster-config/"
	// HeartbeatKey holds the time of the last heartbeat, at most two minutes old.
	HeartbeatKey = "cilium/.heartbeat"
)

// noNamespace takes the place of the namespace for objects that have none.
const noNamespace = "_"

// ObjectKindPrefix covers the manifests of one kind.
func ObjectKindPrefix(plural string) string { return ObjectsPrefix + plural + "/" }

// ServiceIPKey holds the "namespace/name" of the service that has an address. It is
// written together with the service, unless it exists, so that no two have the same one.
func ServiceIPKey(ip string) string { return ServiceIPsPrefix + ip }

// NodePortKey holds the "namespace/name" of the service that has a node port, as
// ServiceIPKey does.
func NodePortKey(port int32) string { return NodePortsPrefix + strconv.Itoa(int(port)) }

// ObjectKey holds a manifest; ns is "" for cluster-wide objects.
func ObjectKey(plural, ns, name string) string {
	if ns == "" {
		ns = noNamespace
	}
	return ObjectKindPrefix(plural) + ns + "/" + name
}

// ParseObjectKey is the inverse of ObjectKey.
func ParseObjectKey(key string) (plural, ns, name string, ok bool) {
	p, ok := parts(key, ObjectsPrefix, 3)
	if !ok {
		return "", "", "", false
	}
	if p[1] == noNamespace {
		p[1] = ""
	}
	return p[0], p[1], p[2], true
}

// NodePrefix covers everything that a node's agent may write.
func NodePrefix(node string) string { return NodesPrefix + node + "/" }

// NodeKey holds the node's NodeState.
func NodeKey(node string) string { return NodePrefix(node) + "node" }

// NodeSyncedKey holds the agent's start ID once its list of endpoints is
// complete.
func NodeSyncedKey(node string) string { return NodePrefix(node) + "synced" }

// NodeProblemsKey holds the node's NodeProblems; it is absent if there are none.
func NodeProblemsKey(node string) string { return NodePrefix(node) + "problems" }

// NodePathsKey holds the node's NodePaths; it is absent if there are none.
func NodePathsKey(node string) string { return NodePrefix(node) + "paths" }

// NodeEndpointsPrefix covers the node's EndpointStates.
func NodeEndpointsPrefix(node string) string { return NodePrefix(node) + "endpoints/" }

// NodeEndpointKey holds an EndpointState.
func NodeEndpointKey(node, ns, pod string) string {
	return NodeEndpointsPrefix(node) + ns + "/" + pod
}

// NodeEntry is the kind of a key below NodesPrefix.
type NodeEntry int

const (
	NodeEntryNode NodeEntry = iota + 1
	NodeEntryEndpoint
	NodeEntrySynced
	NodeEntryProblems
	NodeEntryPaths
)

// ParseNodesKey parses any key below NodesPrefix. ns and pod are set for endpoints
// only.
func ParseNodesKey(key string) (node string, entry NodeEntry, ns, pod string, ok bool) {
	rest, ok := strings.CutPrefix(key, NodesPrefix)
	if !ok {
		return "", 0, "", "", false
	}
	p := strings.Split(rest, "/")
	for _, s := range p {
		if s == "" {
			return "", 0, "", "", false
		}
	}
	switch {
	case len(p) == 2 && p[1] == "node":
		return p[0], NodeEntryNode, "", "", true
	case len(p) == 2 && p[1] == "synced":
		return p[0], NodeEntrySynced, "", "", true
	case len(p) == 2 && p[1] == "problems":
		return p[0], NodeEntryProblems, "", "", true
	case len(p) == 2 && p[1] == "paths":
		return p[0], NodeEntryPaths, "", "", true
	case len(p) == 4 && p[1] == "endpoints":
		return p[0], NodeEntryEndpoint, p[2], p[3], true
	}
	return "", 0, "", "", false
}

// EndpointKey holds an Endpoint.
func EndpointKey(ns, pod string) string { return EndpointsPrefix + ns + "/" + pod }

// ParseEndpointKey is the inverse of EndpointKey.
func ParseEndpointKey(key string) (ns, pod string, ok bool) {
	p, ok := parts(key, EndpointsPrefix, 2)
	if !ok {
		return "", "", false
	}
	return p[0], p[1], true
}

// RegistrationKey holds a node's Registration.
func RegistrationKey(node string) string { return RegistrationsPrefix + node }

// WithdrawnKey marks a node that a source has withdrawn.
func WithdrawnKey(node string) string { return WithdrawnPrefix + node }

// ParseWithdrawnKey is the inverse of WithdrawnKey.
func ParseWithdrawnKey(key string) (node string, ok bool) { return one(key, WithdrawnPrefix) }

// ParseRegistrationKey is the inverse of RegistrationKey.
func ParseRegistrationKey(key string) (node string, ok bool) { return one(key, RegistrationsPrefix) }

// PeerKey holds a Peer.
func PeerKey(cluster string) string { return PeersPrefix + cluster }

// ParsePeerKey is the inverse of PeerKey.
func ParsePeerKey(key string) (cluster string, ok bool) { return one(key, PeersPrefix) }

// JoinedPrefix covers what only the named peer may read, in addition to our export.
func JoinedPrefix(cluster string) string { return JoinedClustersPrefix + cluster + "/" }

// JoinedKey exists while the named cluster is added here as a peer, and tells the
// peer so. It holds the time it was added.
func JoinedKey(cluster string) string { return JoinedPrefix(cluster) + "added" }

// FormerKey holds a Former.
func FormerKey(cluster string) string { return FormerPrefix + cluster }

// ParseFormerKey is the inverse of FormerKey.
func ParseFormerKey(key string) (cluster string, ok bool) { return one(key, FormerPrefix) }

// PeerSecretKey holds the PeerSecret for a peer.
func PeerSecretKey(cluster string) string { return PeerSecretsPrefix + cluster }

// ExportNodeKey holds an ExportNode.
func ExportNodeKey(node string) string { return ExportNodesPrefix + node }

// PeerCachePrefix covers our copy of a peer's weft/export/.
func PeerCachePrefix(cluster string) string { return CachePrefix + cluster + "/" }

// PeerClusterKey holds the peer's ExportCluster.
func PeerClusterKey(cluster string) string { return PeerCachePrefix(cluster) + "cluster" }

// PeerNodesPrefix covers the peer's ExportNodes.
func PeerNodesPrefix(cluster string) string { return PeerCachePrefix(cluster) + "nodes/" }

// PeerNodeKey holds the peer's ExportNode.
func PeerNodeKey(cluster, node string) string { return PeerNodesPrefix(cluster) + node }

// PeerLivenessKey holds what the peer's gossip says about its nodes. Our own API
// server writes it; it is not copied from the peer.
func PeerLivenessKey(cluster string) string { return PeerCachePrefix(cluster) + "liveness" }

// CacheEntry is the kind of a key below weft/cache/.
type CacheEntry int

const (
	CacheEntryCluster CacheEntry = iota + 1
	CacheEntryNode
	CacheEntryLiveness
)

// ParseCacheKey parses any key below CachePrefix. node is set for nodes only.
func ParseCacheKey(key string) (cluster string, entry CacheEntry, node string, ok bool) {
	if p, ok := parts(key, CachePrefix, 2); ok {
		switch p[1] {
		case "cluster":
			return p[0], CacheEntryCluster, "", true
		case "liveness":
			return p[0], CacheEntryLiveness, "", true
		}
		return "", 0, "", false
	}
	if p, ok := parts(key, CachePrefix, 3); ok && p[1] == "nodes" {
		return p[0], CacheEntryNode, p[2], true
	}
	return "", 0, "", false
}

// ExportToCache turns a key below weft/export/ into the key of our copy.
func ExportToCache(key, cluster string) (string, bool) {
	rest, ok := strings.CutPrefix(key, ExportPrefix)
	if !ok || rest == "" {
		return "", false
	}
	return PeerCachePrefix(cluster) + rest, true
}

// parts splits what follows prefix at "/"; false unless there are exactly n parts,
// none of them empty.
func parts(key, prefix string, n int) ([]string, bool) {
	rest, ok := strings.CutPrefix(key, prefix)
	if !ok {
		return nil, false
	}
	p := strings.Split(rest, "/")
	if len(p) != n {
		return nil, false
	}
	for _, s := range p {
		if s == "" {
			return nil, false
		}
	}
	return p, true
}

func one(key, prefix string) (string, bool) {
	rest, ok := strings.CutPrefix(key, prefix)
	if !ok || rest == "" || strings.Contains(rest, "/") {
		return "", false
	}
	return rest, true
}

// ParseAddr reads an address from the wire. It refuses zones and IPv4 written as
// IPv6, but accepts every spelling of an IPv6 address.
func ParseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%q is not an IP address", s)
	}
	if a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("address %q has a zone, which means nothing outside its node", s)
	}
	if a.Is4In6() {
		return netip.Addr{}, fmt.Errorf("address %q is IPv4 written as IPv6", s)
	}
	return a, nil
}

// AddedServerKey holds the record of an API server that an operator has added.
func AddedServerKey(name string) string { return AddedServersPrefix + name }

// LastAddr is the last address of a valid prefix.
func LastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
