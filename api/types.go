package api

import (
	"encoding/json"
	"net/netip"
	"slices"
	"time"
)

// Added is the path value in which a handler puts the name of what a request adds, if the
// name is in the body and not in the path: the audit trail shows it.
const Added = "added"

// Ports the processes listen on unless told otherwise.
const (
	ServerPort    = 7443
	AgentPort     = 7444
	LANGossipPort = 7946
	WANGossipPort = 7947
)

// ObjectList answers GET /v1/objects/…: objects as Kubernetes JSON.
type ObjectList struct {
	Cluster string `json:"cluster"`
	// Kind is the kind of every item, such as "Pod".
	Kind string `json:"kind"`
	// Revision is the store's revision of the listing.
	Revision int64             `json:"revision"`
	Items    []json.RawMessage `json:"items"`
}

// WatchEvent is one line of GET /v1/watch/{plural}: first the existing objects ("put"), then
// "synced", then changes. An object may be put again although it has not changed.
type WatchEvent struct {
	Cluster   string          `json:"cluster"`
	Type      string          `json:"type"` // put, delete, synced
	Kind      string          `json:"kind,omitempty"`
	Namespace string          `json:"namespace,omitempty"`
	Name      string          `json:"name,omitempty"`
	Revision  int64           `json:"revision"`
	Object    json.RawMessage `json:"object,omitempty"`
}

// Status answers GET /v1/status.
type Status struct {
	Cluster ClusterStatus `json:"cluster"`
	Nodes   []NodeStatus  `json:"nodes"`
	Peers   []PeerStatus  `json:"peers"`
	// Former lists the removed peers whose CIDRs are blocked.
	Former []FormerPeer `json:"former,omitempty"`
	// Servers are the cluster's API servers; Quorum is nil if they use an existing etcd.
	Servers []ServerStatus `json:"servers"`
	Quorum  *Quorum        `json:"quorum,omitempty"`
	// Refused lists claims of the cluster's own nodes that are not believed.
	Refused []Refusal `json:"refused,omitempty"`
	// Concerns need an operator; Settling lists what is not as wanted for a short time only.
	Concerns []Concern `json:"concerns,omitempty"`
	Settling []Concern `json:"settling,omitempty"`
}

// ClusterStatus is the cluster that answers.
type ClusterStatus struct {
	Name                 string         `json:"name"`
	ID                   uint32         `json:"id"`
	PodCIDRs             []netip.Prefix `json:"podCIDRs"`
	ServiceCIDR          netip.Prefix   `json:"serviceCIDR"`
	IPv6ServiceCIDR      netip.Prefix   `json:"ipv6ServiceCIDR,omitzero"`
	MaxConnectedClusters uint32         `json:"maxConnectedClusters"`
	// Generation identifies the store: a rebuilt store has another one.
	Generation string `json:"generation"`
	Version    string `json:"version"`
	// UptimeSeconds counts from the start of the API server that answers.
	UptimeSeconds float64 `json:"uptimeSeconds"`
	Store         string  `json:"store"` // embedded, external
	StoreVersion  string  `json:"storeVersion,omitempty"`
	StoreBytes    int64   `json:"storeBytes"`
	Revision      int64   `json:"revision"`
	Endpoints     int     `json:"endpoints"`
	Identities    int     `json:"identities"`
	Services      int     `json:"services"`
	Policies      int     `json:"policies"`
}

// States of a node's agent. Packets flow without it.
const (
	NodeReady          = "ready"
	NodeStarting       = "starting"  // it answers, but has not reported in full yet
	NodeNotReady       = "not-ready" // it answers, but its node is not as it should be
	NodeSilent         = "silent"
	NodeNeverConnected = "never-connected"
)

// NodeStatus is one registered node.
type NodeStatus struct {
	Cluster string `json:"cluster"`
	Name    string `json:"name"`
	State   string `json:"state"` // one of the constants above
	// Since is when the state began, as far as this API server knows.
	Since     time.Time      `json:"since,omitzero"`
	Addresses []netip.Addr   `json:"addresses"`
	Internals []netip.Addr   `json:"internals"` // inside the mesh, one of each family it has
	PodCIDRs  []netip.Prefix `json:"podCIDRs"`
	Endpoints int            `json:"endpoints"`
	// Epoch is the node's key epoch; it grows with each rotation.
	Epoch uint64 `json:"epoch"`
	// Alive is what gossip says; nil means that gossip does not know the node.
	Alive *bool `json:"alive,omitempty"`
	// LastSeen is when the node was last known to be there; zero means never.
	LastSeen   time.Time `json:"lastSeen"`
	AgeSeconds float64   `json:"ageSeconds"`
	Refused    uint64    `json:"refused,omitempty"`
	// Store is how far the agent is with its store; nil if it has not said so. An
	// agent may live and not read it, or read it and be silent otherwise.
	Store *NodeStore `json:"store,omitempty"`
	// Problems are rows that its kernel lacks, by cause, as its agent last said.
	Problems []NodeProblem `json:"problems,omitempty"`
	// Paths are those of the node that do not carry what they should. A node whose
	// agent is silent has none: what it said last may be over.
	Paths []NodePath `json:"paths,omitempty"`
}

// NodeStore is how far an agent is with its store.
type NodeStore struct {
	// Revision is that of the store up to which the agent has read everything; 0:
	// nothing since it started.
	Revision int64 `json:"revision"`
	// LagSeconds is how long ago that was known to be current.
	LagSeconds float64 `json:"lagSeconds"`
	// Behind says that the agent does not get what is new, and Cause why. Since is
	// when that began.
	Behind bool      `json:"behind,omitempty"`
	Cause  string    `json:"cause,omitempty"`
	Since  time.Time `json:"since,omitzero"`
	// Read is when the store was last read, zero if not since the agent started.
	Read time.Time `json:"read,omitzero"`
}

// NodeProblem is one cause and how many rows of a table it keeps out of a
// node's kernel.
type NodeProblem struct {
	Table string `json:"table"`
	// Row is one of them; "" means the table as such.
	Row   string `json:"row,omitempty"`
	Rows  int    `json:"rows"`
	Error string `json:"error"`
	// Since is when the first of them failed.
	Since time.Time `json:"since,omitzero"`
}

// NodePath is a path of a node that is down or limited, or all of its paths to a
// cluster that are down.
type NodePath struct {
	Cluster string `json:"cluster"`
	// Node is the other end; "" means all nodes of the cluster that are probed, of
	// which there are Probed.
	Node   string `json:"node,omitempty"`
	Probed int    `json:"probed,omitempty"`
	// Limit is the size of the largest packet that passes, Sends that of the
	// largest that the tunnel sends, both in bytes outside of the tunnel. 0: the
	// path is down.
	Limit int       `json:"limit,omitempty"`
	Sends int       `json:"sends,omitempty"`
	Since time.Time `json:"since"`
}

// Refusal counts claims that stand and are not believed, with one example. What
// was withdrawn or corrected no longer counts.
type Refusal struct {
	Cluster string `json:"cluster"` // whose claim it was
	Node    string `json:"node,omitempty"`
	// Resource is what was claimed: node, endpoint, ip, identity, service, endpointslice.
	Resource string    `json:"resource"`
	Reason   string    `json:"reason"`
	Count    uint64    `json:"count"`
	Example  string    `json:"example"`
	Last     time.Time `json:"last"`
}

// Control link states of a peer.
const (
	LinkConnecting = "connecting"
	LinkUp         = "up"
	LinkDown       = "down"
	LinkRefused    = "refused" // it contradicts what we know; nothing is imported
	LinkInvited    = "invited" // it may read us, and was not added here: there is no link
	LinkRemoving   = "removing"
	LinkUnknown    = "unknown" // no API server that leads answers, and only that one knows
)

// PeerStatus is one peer as the API server knows it.
type PeerStatus struct {
	Cluster         string         `json:"cluster"` // the cluster that answers
	Name            string         `json:"name"`
	ID              uint32         `json:"id"`
	PodCIDRs        []netip.Prefix `json:"podCIDRs"`
	ServiceCIDR     netip.Prefix   `json:"serviceCIDR"`
	IPv6ServiceCIDR netip.Prefix   `json:"ipv6ServiceCIDR,omitzero"`
	Endpoints       []string       `json:"endpoints"`
	Generation      string         `json:"generation,omitempty"`
	// Cilium says that the peer runs Cilium: nothing is sent to its pods.
	Cilium bool `json:"cilium,omitempty"`

	// Invited says that the peer may read us; Added is when it was added here, zero
	// if it was not.
	Invited bool      `json:"invited,omitempty"`
	Added   time.Time `json:"added,omitzero"`
	// AddedUs says whether the peer has added us, as it tells us, and AddedUsSince
	// since when that is so. nil: it does not say.
	AddedUs      *bool     `json:"addedUs,omitempty"`
	AddedUsSince time.Time `json:"addedUsSince,omitzero"`

	// Control is the state of the link between the API servers, and nothing
	// about the data path.
	Control ControlStatus `json:"control"`
	// Mirrors is how much of the peer is held here, by resource.
	Mirrors []MirrorStatus `json:"mirrors,omitempty"`
	Refused []Refusal      `json:"refused,omitempty"`
	// DeadNodes are those of the peer's nodes whose agents its own gossip has given
	// up, and DeadSince when each was.
	DeadNodes []string             `json:"deadNodes,omitempty"`
	DeadSince map[string]time.Time `json:"deadSince,omitempty"`
}

// ControlStatus is the control link to a peer.
type ControlStatus struct {
	State string    `json:"state"`
	Since time.Time `json:"since"`
	// NotUpSince is since when it is not up, in whatever state; zero while it is, or if that
	// is not known.
	NotUpSince time.Time `json:"notUpSince,omitzero"`
	Error      string    `json:"error,omitempty"`
	// LastHeard is when the peer last proved that our copy is current; zero
	// means never. AgeSeconds is its age now.
	LastHeard  time.Time `json:"lastHeard"`
	AgeSeconds float64   `json:"ageSeconds"`
}

// MirrorStatus is our copy of one resource of a peer.
type MirrorStatus struct {
	Resource string `json:"resource"` // nodes, ip, identities, services, endpointslices
	Entries  int    `json:"entries"`
	Synced   bool   `json:"synced"`
	// Held counts deletions that wait for `weft peer release`.
	Held int `json:"held,omitempty"`
}

// PeerList answers GET /v1/peers.
type PeerList struct {
	Cluster string       `json:"cluster"`
	Peers   []PeerStatus `json:"peers"`
	Former  []FormerPeer `json:"former,omitempty"`
}

// FormerPeer is a peer that was removed, or the CIDRs that one gave up. Nothing
// passes from or to them until `weft peer forget`.
type FormerPeer struct {
	Cluster  string         `json:"cluster"` // the cluster that answers
	Name     string         `json:"name"`
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
	Removed  time.Time      `json:"removed"`
	// AgeSeconds is how long ago that was.
	AgeSeconds float64 `json:"ageSeconds"`
}

// InviteRequest asks POST /v1/peers/invite for what the named cluster needs to
// join us.
type InviteRequest struct {
	// Peer is the name of the cluster that is invited.
	Peer string `json:"peer"`
	// Cilium says that it runs Cilium.
	Cilium bool `json:"cilium,omitempty"`
}

// CiliumPeer asks POST /v1/peers/cilium to add a cluster that runs Cilium: what its
// clustermesh secret says, and what Cilium does not say about a cluster.
type CiliumPeer struct {
	Cluster   string   `json:"cluster"`
	Endpoints []string `json:"endpoints"` // of its etcd, https://host:port
	// ServerName is the name in the servers' certificates, if it is not the host of
	// the endpoints.
	ServerName string `json:"serverName,omitempty"`
	CA         string `json:"ca"`   // PEM, one or more certificates
	Cert       string `json:"cert"` // PEM
	Key        string `json:"key"`  // PEM
	// PodCIDRs are the only addresses that it may announce. Service CIDRs may be unknown.
	PodCIDRs        []netip.Prefix `json:"podCIDRs"`
	ServiceCIDR     netip.Prefix   `json:"serviceCIDR,omitzero"`
	IPv6ServiceCIDR netip.Prefix   `json:"ipv6ServiceCIDR,omitzero"`
	// ID is its cluster ID; 0 means the one that it has when it answers.
	ID uint32 `json:"id,omitempty"`
}

// String hides what is secret.
func (CiliumPeer) String() string { return "[cilium peer]" }

// GoString hides what is secret.
func (CiliumPeer) GoString() string { return "[cilium peer]" }

// Invite is what one operator hands to another: who we are, how we are
// reached, and a client certificate for the invited cluster alone. It holds a
// private key; a file with one is 0600.
type Invite struct {
	Kind    string    `json:"kind"` // InviteKind
	For     string    `json:"for"`
	Expires time.Time `json:"expires"`

	Cluster              string         `json:"cluster"`
	ID                   uint32         `json:"id"`
	PodCIDRs             []netip.Prefix `json:"podCIDRs"`
	ServiceCIDR          netip.Prefix   `json:"serviceCIDR"`
	IPv6ServiceCIDR      netip.Prefix   `json:"ipv6ServiceCIDR,omitzero"`
	MaxConnectedClusters uint32         `json:"maxConnectedClusters"`
	Generation           string         `json:"generation"`

	EtcdEndpoints []string `json:"etcdEndpoints"`
	CA            string   `json:"ca"`   // PEM, one or more certificates
	Cert          string   `json:"cert"` // PEM, CN as of authority.RemoteUser
	Key           string   `json:"key"`  // PEM
	// GossipAddresses (host:port) and GossipKey (base64) are those of the WAN
	// gossip; empty means that the cluster does not take part in it.
	GossipAddresses []string `json:"gossipAddresses,omitempty"`
	GossipKey       string   `json:"gossipKey,omitempty"`
}

// String hides what is secret.
func (Invite) String() string { return "[invite]" }

// GoString hides what is secret.
func (Invite) GoString() string { return "[invite]" }

// InviteKind is the kind of an Invite, so that another file is told apart.
const InviteKind = "WeftInvite"

// NodeRequest asks POST /v1/nodes for a join bundle. Asking again for a node
// that exists issues new certificates for it.
type NodeRequest struct {
	Name string `json:"name"`
	// UID is that of the Kubernetes object that stands for the node. A node that is registered
	// with another UID was another machine: what it had is removed, and nothing of its
	// registration counts. Empty: no object stands for it.
	UID string `json:"uid,omitempty"`
	// Addresses are the node's own; tunnels end at the first.
	Addresses []netip.Addr   `json:"addresses"`
	PodCIDRs  []netip.Prefix `json:"podCIDRs"`
	// Labels are the node's, as Kubernetes has them; nil leaves those of a
	// registered node alone.
	Labels map[string]string `json:"labels,omitempty"`
	// Replace says that a node that is registered has moved to these addresses.
	Replace bool `json:"replace,omitempty"`
}

// NodeList answers GET /v1/nodes.
type NodeList struct {
	Cluster string       `json:"cluster"`
	Nodes   []NodeStatus `json:"nodes"`
}

// RotateResult answers POST /v1/rotate: the key epoch now wanted.
type RotateResult struct {
	Cluster string `json:"cluster"`
	Epoch   uint64 `json:"epoch"`
}

// ReleaseResult answers POST /v1/release.
type ReleaseResult struct {
	Cluster string `json:"cluster"`
	// Generation is that of the store that nodes now go by.
	Generation string `json:"generation"`
	// Nodes are those that kept what they have from an earlier store.
	Nodes []string `json:"nodes"`
}

// Identity is one row of GET /v1/identities.
type Identity struct {
	Cluster string `json:"cluster"` // whose identity it is
	ID      uint32 `json:"id"`
	Labels  string `json:"labels"` // sorted "source:key=value;" pairs
	// Endpoints counts the local endpoints that have it.
	Endpoints int `json:"endpoints"`
}

// IdentityList answers GET /v1/identities.
type IdentityList struct {
	Cluster    string     `json:"cluster"`
	Identities []Identity `json:"identities"`
}

// Service is one row of GET /v1/services.
type Service struct {
	Cluster   string `json:"cluster"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	ClusterIP string `json:"clusterIP,omitempty"`
	// ClusterIPs are ClusterIP and, if the service has both IP families, the other address.
	ClusterIPs []string `json:"clusterIPs,omitempty"`
	// ExternalIPs are those outside of the mesh: of its load balancer, and its external IPs.
	ExternalIPs []string `json:"externalIPs,omitempty"`
	Ports       []string `json:"ports"` // "http 80/TCP", with a node port "http 80:30080/TCP"
	PortNames   []string `json:"portNames,omitempty"`
	Global      bool     `json:"global"`
	Shared      bool     `json:"shared"`
	Affinity    string   `json:"affinity"`
	// SessionTimeoutSeconds is for how long a client stays with its backend; 0: it does not.
	SessionTimeoutSeconds int64 `json:"sessionTimeoutSeconds,omitempty"`
	// Algorithm says how a new connection's backend is chosen: random, or maglev by tables of
	// TableSize slots; if the ports have several, the largest.
	Algorithm string `json:"algorithm,omitempty"`
	TableSize uint32 `json:"tableSize,omitempty"`
	// ClusterWeights are each cluster's share of new connections; "*" is that of all others.
	ClusterWeights map[string]uint16 `json:"clusterWeights,omitempty"`
	Backends       []ServiceBackend  `json:"backends"`
}

// ServiceBackend is one backend of a service, in whichever cluster. Each address
// is there once.
type ServiceBackend struct {
	Cluster string     `json:"cluster"`
	Node    string     `json:"node,omitempty"`
	Address netip.Addr `json:"address"`
	// Ready says that new connections from this cluster reach it on every port of
	// the service; LeftOut says on which they do not, and why.
	Ready   bool      `json:"ready"`
	LeftOut []LeftOut `json:"leftOut,omitempty"`
	// Weight is its share of new connections relative to others; 0: it is in maintenance.
	Weight uint16 `json:"weight"`
}

// LeftOut is why a backend gets no new connections.
type LeftOut struct {
	Port   string `json:"port,omitempty"` // as in Service.PortNames; "" means every port
	Reason string `json:"reason"`
	// Misfit says that the backend does not have the port, however ready it is.
	Misfit bool `json:"misfit,omitempty"`
}

// ServiceList answers GET /v1/services.
type ServiceList struct {
	Cluster  string    `json:"cluster"`
	Services []Service `json:"services"`
}

// Table is one table of an agent: GET /v1/nodes/{node}/tables/{name}, and the
// agent's own GET /v1/tables/{name}.
type Table struct {
	Cluster string     `json:"cluster"`
	Node    string     `json:"node"`
	Name    string     `json:"name"`
	Columns []string   `json:"columns"`
	Rows    [][]string `json:"rows"`
}

// TableList answers GET /v1/nodes/{node}/tables.
type TableList struct {
	Cluster string         `json:"cluster"`
	Node    string         `json:"node"`
	Tables  []TableSummary `json:"tables"`
}

// TableSummary says how far a table has reached the kernel.
type TableSummary struct {
	Name    string `json:"name"`
	Rows    int    `json:"rows"`
	Pending int    `json:"pending"`
	Errors  int    `json:"errors"`
}

// ServiceCIDRs are the prefixes of the cluster's service addresses: one, or one of each IP
// family.
func (c ClusterStatus) ServiceCIDRs() []netip.Prefix { return known(c.ServiceCIDR, c.IPv6ServiceCIDR) }

// ServiceCIDRs are the prefixes of the peer's service addresses, as far as they are known.
func (p PeerStatus) ServiceCIDRs() []netip.Prefix { return known(p.ServiceCIDR, p.IPv6ServiceCIDR) }

// ServiceCIDRs are the prefixes of the cluster's service addresses, as far as they are known.
func (in Invite) ServiceCIDRs() []netip.Prefix { return known(in.ServiceCIDR, in.IPv6ServiceCIDR) }

func known(all ...netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(all, func(p netip.Prefix) bool { return !p.IsValid() })
}
