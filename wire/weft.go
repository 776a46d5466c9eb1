package wire

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"github.com/weft-mesh/weft/identity"
)

// Cluster says who a cluster is. It is written once and then only read.
type Cluster struct {
	Name                 string             `json:"name"`
	ID                   identity.ClusterID `json:"id"`
	PodCIDRs             []netip.Prefix     `json:"podCIDRs"`
	ServiceCIDR          netip.Prefix       `json:"serviceCIDR"`
	MaxConnectedClusters uint32             `json:"maxConnectedClusters"` // 255 or 511
	// Generation names this etcd store: a new one means that everything was
	// lost and written anew, and that what is missing was not taken back.
	Generation string `json:"generation"`
	// Released is the operator's word that a store that was rebuilt holds what
	// belongs there: until then nodes keep what they have from the one before.
	Released bool `json:"released,omitempty"`
}

// NodeState is what an agent says of its node.
type NodeState struct {
	Name      string         `json:"name"`
	Addresses []netip.Addr   `json:"addresses"` // of the node itself, the one for tunnels first
	Internal  netip.Addr     `json:"internal"`  // first address of PodCIDRs[0]: source of the node's own mesh traffic, target of probes
	PodCIDRs  []netip.Prefix `json:"podCIDRs"`
	// Epoch counts key rotations, from 1. Lane Epoch%2 holds the newest key.
	Epoch uint64  `json:"epoch"`
	Lanes [2]Lane `json:"lanes"`
	// BootID is the kernel's: it changes when the node was rebooted.
	BootID string `json:"bootID,omitempty"`
	// Holding is the generation of the store before this one, as long as the node
	// keeps what it has from there.
	Holding string `json:"holding,omitempty"`
	// Silent is set by readers, never by the agent: its lease has run out.
	Silent bool `json:"silent,omitempty"`
}

// Lane is one of a node's two WireGuard devices.
type Lane struct {
	PublicKey string `json:"publicKey"` // base64; "" means that nothing may be sent to it
	Port      uint16 `json:"port"`      // UDP
}

// NodeProblems is what an agent says of rows that are not in its kernel. They
// are for people; nothing follows from them.
type NodeProblems struct {
	Problems []NodeProblem `json:"problems"`
}

// Tables of NodeProblem that are no maps of the kernel.
const (
	ProblemTunnels      = "devices"      // the tunnels are not there
	ProblemPeers        = "peers"        // the tunnels are there, and are not brought up to date
	ProblemProbes       = "probes"       // without a row: paths are not probed
	ProblemPaths        = "paths"        // without a row: what probes found out does not reach the kernel
	ProblemCertificates = "certificates" // without a row
	ProblemFiles        = "files"        // rows are paths of files
	ProblemPods         = "pods"         // rows are namespace/name
	ProblemShares       = "shares"       // of a map, used up by a pod; "" is the node itself
)

// NotRegistered is the problem of a node whose agent runs after its removal.
const NotRegistered = "it is not registered"

// NodeProblem is one cause and how many rows of a table it keeps out.
type NodeProblem struct {
	Table string `json:"table"`
	Row   string `json:"row,omitempty"` // one of them; "" means the table as such
	Rows  int    `json:"rows"`
	Error string `json:"error"`
	// Since is when the first of them failed.
	Since time.Time `json:"since,omitzero"`
}

// NodePaths is what an agent says of paths that do not carry what they should.
// They are for people, like problems; nothing follows from them.
type NodePaths struct {
	Paths []NodePath `json:"paths"`
}

// NodePath is a path that is down or limited, or all the paths to a cluster that
// are down.
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

// EndpointState is what an agent says of a pod on its node.
type EndpointState struct {
	Namespace string     `json:"namespace"`
	Pod       string     `json:"pod"`
	UID       string     `json:"uid,omitempty"`
	IP        netip.Addr `json:"ip"`
	Ready     bool       `json:"ready"`
	// State is creating, ready or not-ready; terminating once the pod is asked
	// to stop.
	State      string      `json:"state,omitempty"`
	NamedPorts []NamedPort `json:"namedPorts,omitempty"`
}

// Values of EndpointState.State.
const (
	EndpointCreating    = "creating"
	EndpointReady       = "ready"
	EndpointNotReady    = "not-ready"
	EndpointTerminating = "terminating"
)

// NamedPort is a container port that policies may call by name. Its field
// names are Cilium's.
type NamedPort struct {
	Name     string `json:"Name"`
	Port     uint16 `json:"Port"`
	Protocol string `json:"Protocol"`
}

// Endpoint is a pod as the API server vouches for it.
type Endpoint struct {
	Namespace      string          `json:"namespace"`
	Pod            string          `json:"pod"`
	UID            string          `json:"uid,omitempty"`
	Node           string          `json:"node"`
	NodeIP         netip.Addr      `json:"nodeIP"`
	IP             netip.Addr      `json:"ip"`
	Identity       identity.Number `json:"identity"`
	Labels         identity.Labels `json:"labels"`
	ServiceAccount string          `json:"serviceAccount,omitempty"`
	Ready          bool            `json:"ready"`
	State          string          `json:"state,omitempty"`
	NamedPorts     []NamedPort     `json:"namedPorts,omitempty"`
}

// Peer is a cluster we are joined with, as agreed when it was added. What it
// may announce follows from it.
type Peer struct {
	Name                 string             `json:"name"`
	ID                   identity.ClusterID `json:"id"`
	PodCIDRs             []netip.Prefix     `json:"podCIDRs"`
	ServiceCIDR          netip.Prefix       `json:"serviceCIDR,omitzero"`
	MaxConnectedClusters uint32             `json:"maxConnectedClusters"`
	Endpoints            []string           `json:"endpoints"` // of its etcd, https://host:port
	// CA is the peer's bundle in PEM: what its servers are checked against.
	CA string `json:"ca"`
	// Gossip is where its API servers listen for WAN gossip, host:port.
	Gossip []string `json:"gossip,omitempty"`
	// Added is when the operator added it here.
	Added time.Time `json:"added,omitzero"`
	// Invited is set while the peer holds a certificate of ours, and so a user
	// in our etcd.
	Invited   bool      `json:"invited,omitempty"`
	InvitedAt time.Time `json:"invitedAt,omitzero"`
	// Generation is the user's; see authority.RemoteUser.
	Generation uint64 `json:"generation,omitempty"`
	// Connected is set once we hold a certificate of the peer's: only then
	// there is something to mirror. A peer may be invited and not yet added.
	Connected bool `json:"connected,omitempty"`
	// Removing is set from the operator's word until the last of its keys is
	// gone, and the Peer with them. Neither of the above is set then.
	Removing bool `json:"removing,omitempty"`
}

// Heard is when each peer last proved that our copy of it was current, to the
// minute: an API server that starts while a peer is away shows the right age.
type Heard struct {
	Peers map[string]time.Time `json:"peers"`
}

// Former is what a peer that was removed, or that gave up part of its CIDRs,
// leaves behind. Connections to it were inside tunnels; so that nothing of them
// ever goes on outside, nodes let nothing through from or to these CIDRs until an
// operator forgets the peer.
type Former struct {
	Name     string         `json:"name"`
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
	Removed  time.Time      `json:"removed"`
	// Forgotten is when an operator gave the CIDRs back to the network. The record
	// stays: a node that was away learns it later.
	Forgotten time.Time `json:"forgotten,omitzero"`
}

// PeerSecret proves us to a peer and is kept below weft/secret/.
type PeerSecret struct {
	Cert      string `json:"cert"`                // PEM
	Key       string `json:"key"`                 // PEM
	GossipKey []byte `json:"gossipKey,omitempty"` // the peer's key for WAN gossip
}

// String hides what is secret.
func (PeerSecret) String() string { return "[secret]" }

// GoString hides what is secret.
func (PeerSecret) GoString() string { return "[secret]" }

// Rotation is the operator's wish: every node goes on to this key epoch.
type Rotation struct {
	Epoch uint64 `json:"epoch"`
}

// GossipKeys are the keys of memberlist inside a cluster, the first one for
// sending, all for receiving; 16, 24 or 32 bytes each.
type GossipKeys struct {
	LAN [][]byte `json:"lan"`
}

// String hides what is secret.
func (GossipKeys) String() string { return "[secret]" }

// GoString hides what is secret.
func (GossipKeys) GoString() string { return "[secret]" }

// ExportCluster is what peers learn of us beyond Cilium's format.
type ExportCluster struct {
	PodCIDRs   []netip.Prefix `json:"podCIDRs"`
	Generation string         `json:"generation"` // as in Cluster
}

// ExportNode is what peers learn of a node beyond Cilium's format.
type ExportNode struct {
	Name  string  `json:"name"`
	Epoch uint64  `json:"epoch"`
	Lanes [2]Lane `json:"lanes"`
}

// PeerLiveness is what a cluster's own gossip says of its nodes.
type PeerLiveness struct {
	// Dead maps a node to the moment its cluster gave it up. Nodes that are
	// not here are alive or unknown.
	Dead map[string]time.Time `json:"dead,omitempty"`
	// Seen is when this was last heard.
	Seen time.Time `json:"seen"`
}

// Marshal is the JSON of any of this package's JSON values. It cannot fail for
// them.
func Marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("wire: %T does not encode: %v", v, err))
	}
	return b
}

// Unmarshal reads one JSON value of this package.
func Unmarshal[T any](b []byte) (T, error) {
	var v T
	if err := json.Unmarshal(b, &v); err != nil {
		return v, fmt.Errorf("read %T: %w", v, err)
	}
	return v, nil
}

// CheckClusterName says what is wrong with a cluster's name; nil if nothing.
func CheckClusterName(name string) error {
	bad := name == "" || len(name) > 32
	for i := 0; !bad && i < len(name); i++ {
		c := name[i]
		alnum := 'a' <= c && c <= 'z' || '0' <= c && c <= '9'
		bad = !alnum && (c != '-' || i == 0 || i == len(name)-1)
	}
	if bad {
		return fmt.Errorf("cluster name %q: use 1 to 32 of a-z, 0-9 and \"-\", with a letter or digit at both ends", name)
	}
	return nil
}
