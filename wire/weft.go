package wire

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-mesh/weft/identity"
)

// Cluster describes a cluster. It is written once; later Released changes, and pod CIDRs and
// IPv6ServiceCIDR may be added.
type Cluster struct {
	Name                 string             `json:"name"`
	ID                   identity.ClusterID `json:"id"`
	PodCIDRs             []netip.Prefix     `json:"podCIDRs"`
	ServiceCIDR          netip.Prefix       `json:"serviceCIDR"`
	IPv6ServiceCIDR      netip.Prefix       `json:"ipv6ServiceCIDR,omitzero"` // beside one of IPv4; invalid: services have addresses of one family
	MaxConnectedClusters uint32             `json:"maxConnectedClusters"`     // 255 or 511
	// Generation names this etcd store. A new generation means that the store was
	// lost and rebuilt, so a missing entry does not mean that it was removed.
	Generation string `json:"generation"`
	// Released is set when the operator confirms that a rebuilt store is complete.
	// Until then nodes keep what they have from the previous generation.
	Released bool `json:"released,omitempty"`
}

// ServiceCIDRs are the prefixes of the cluster's service addresses: one, or one of each
// family.
func (c Cluster) ServiceCIDRs() []netip.Prefix { return valid(c.ServiceCIDR, c.IPv6ServiceCIDR) }

// NodeState is what an agent reports about its node.
type NodeState struct {
	Name      string         `json:"name"`
	Addresses []netip.Addr   `json:"addresses"` // the node's own; the one for tunnels first
	Internal  netip.Addr     `json:"internal"`  // first address of PodCIDRs[0]: source of the node's own mesh traffic, target of probes
	PodCIDRs  []netip.Prefix `json:"podCIDRs"`  // those that it uses: one, or one of each family
	// Epoch counts key rotations, from 1. Lane Epoch%2 holds the newest key.
	Epoch uint64  `json:"epoch"`
	Lanes [2]Lane `json:"lanes"`
	// BootID is the kernel's boot ID, which changes with every reboot.
	BootID string `json:"bootID,omitempty"`
	// Holding is the previous generation of the store, while the node keeps what
	// it has from there.
	Holding string `json:"holding,omitempty"`
	// Silent is set by readers, never by the agent: the agent's lease has expired.
	Silent bool `json:"silent,omitempty"`
}

// Lane is one of a node's two WireGuard devices.
type Lane struct {
	PublicKey string `json:"publicKey"` // base64; "" means that nothing may be sent to this lane
	Port      uint16 `json:"port"`      // UDP
}

// NodeProblems lists what an agent wants but does not have in its kernel. It is shown
// to operators; no decision depends on it.
type NodeProblems struct {
	Problems []NodeProblem `json:"problems"`
}

// Values of NodeProblem.Table that are not kernel maps.
const (
	ProblemTunnels      = "devices"      // tunnels are missing
	ProblemPeers        = "peers"        // tunnels exist but cannot be updated
	ProblemProbes       = "probes"       // without a row: paths are not probed
	ProblemPaths        = "paths"        // without a row: probe results do not reach the kernel
	ProblemCertificates = "certificates" // without a row
	ProblemFiles        = "files"        // rows are paths of files that cannot be written
	ProblemDamages      = "damages"      // rows are where damaged files were put aside
	ProblemPods         = "pods"         // rows are namespace/name
	ProblemParts        = "agent"        // rows are parts of the agent that do not work
	ProblemValues       = "values"       // rows are keys of the store whose values cannot be read
	ProblemPrograms     = "programs"     // rows are devices and maps whose programs or pins cannot be restored
	ProblemMasquerades  = "masquerades"  // without a row: pods' connections to the world find no port of the node
	ProblemShares       = "shares"       // share of a map used up by a pod; row "" is the node itself, NodePortShare its node ports
)

// NodePortShare is the row of ProblemShares about what clients open through node ports.
const NodePortShare = "node-ports"

// NotRegistered is the error of a node that was removed while its agent still runs.
const NotRegistered = "it is not registered"

// NodeProblem is one cause and the number of rows of a table it affects.
type NodeProblem struct {
	Table string `json:"table"`
	Row   string `json:"row,omitempty"` // one of them; "" means the table as a whole
	Rows  int    `json:"rows"`
	Error string `json:"error"`
	// Since is when the first of them failed.
	Since time.Time `json:"since,omitzero"`
}

// NodePaths lists the paths that an agent finds down or limited. Like problems it is
// shown to operators; no decision depends on it.
type NodePaths struct {
	Paths []NodePath `json:"paths"`
}

// NodePath is a path that is down or limited, or stands for all paths to a cluster if
// they are all down.
type NodePath struct {
	Cluster string `json:"cluster"`
	// Node is the other end; "" means all probed nodes of the cluster. Probed is
	// how many those are.
	Node   string `json:"node,omitempty"`
	Probed int    `json:"probed,omitempty"`
	// Limit is the size of the largest packet that gets through, Sends that of the
	// largest that the tunnel sends, in bytes including the tunnel's headers. A
	// Limit of 0 means that the path is down.
	Limit int       `json:"limit,omitempty"`
	Sends int       `json:"sends,omitempty"`
	Since time.Time `json:"since"`
}

// EndpointState is what an agent reports about a pod on its node.
type EndpointState struct {
	Namespace string     `json:"namespace"`
	Pod       string     `json:"pod"`
	UID       string     `json:"uid,omitempty"`
	IP        netip.Addr `json:"ip"`
	// Second is the pod's address of the other family, if it has one.
	Second netip.Addr `json:"secondIP,omitzero"`
	Ready  bool       `json:"ready"`
	// State is creating, ready or not-ready; terminating once the pod has been
	// asked to stop.
	State string `json:"state,omitempty"`
	// Why is the cause of a pod's not being ready, if the agent knows one. It is
	// for people; nothing follows from it.
	Why        string      `json:"why,omitempty"`
	NamedPorts []NamedPort `json:"namedPorts,omitempty"`
}

// Values of EndpointState.State.
const (
	EndpointCreating    = "creating"
	EndpointReady       = "ready"
	EndpointNotReady    = "not-ready"
	EndpointTerminating = "terminating"
)

// NamedPort is a container port that policies may refer to by name. Its field names
// are Cilium's.
type NamedPort struct {
	Name     string `json:"Name"`
	Port     uint16 `json:"Port"`
	Protocol string `json:"Protocol"`
}

// Endpoint is a pod as checked by the API server.
type Endpoint struct {
	Namespace      string          `json:"namespace"`
	Pod            string          `json:"pod"`
	UID            string          `json:"uid,omitempty"`
	Node           string          `json:"node"`
	NodeIP         netip.Addr      `json:"nodeIP"`
	IP             netip.Addr      `json:"ip"`
	Second         netip.Addr      `json:"secondIP,omitzero"` // of the other family, if it has one
	Identity       identity.Number `json:"identity"`
	Labels         identity.Labels `json:"labels"`
	ServiceAccount string          `json:"serviceAccount,omitempty"`
	Ready          bool            `json:"ready"`
	State          string          `json:"state,omitempty"`
	NamedPorts     []NamedPort     `json:"namedPorts,omitempty"`
}

// IPs are the addresses of the pod: one, or one of each family.
func (e *EndpointState) IPs() []netip.Addr { return valid(e.IP, e.Second) }

// IPs are the addresses of the pod: one, or one of each family.
func (e *Endpoint) IPs() []netip.Addr { return valid(e.IP, e.Second) }

// valid returns the addresses or prefixes that are.
func valid[A interface{ IsValid() bool }](all ...A) []A {
	return slices.DeleteFunc(all, func(a A) bool { return !a.IsValid() })
}

// Peer is another cluster of the mesh as it was invited or added here. It determines
// what that cluster may announce.
type Peer struct {
	Name                 string             `json:"name"`
	ID                   identity.ClusterID `json:"id"`
	PodCIDRs             []netip.Prefix     `json:"podCIDRs"`
	ServiceCIDR          netip.Prefix       `json:"serviceCIDR,omitzero"`
	IPv6ServiceCIDR      netip.Prefix       `json:"ipv6ServiceCIDR,omitzero"`
	MaxConnectedClusters uint32             `json:"maxConnectedClusters"`
	Endpoints            []string           `json:"endpoints"` // of its etcd, https://host:port
	// CA is the peer's CA bundle in PEM, to verify its servers. ServerName is the
	// name in their certificates, if it is not the one in Endpoints.
	CA         string `json:"ca"`
	ServerName string `json:"serverName,omitempty"`
	// Cilium is set if the peer runs Cilium. Its nodes have no tunnels of ours, so
	// nothing is sent to its pods.
	Cilium bool `json:"cilium,omitempty"`
	// Gossip is where its API servers listen for WAN gossip, host:port.
	Gossip []string `json:"gossip,omitempty"`
	// Named are those of Endpoints and Gossip that the peer named last; the others were in
	// its invite, or added there by hand.
	Named Access `json:"named,omitzero"`
	// Added is when the operator added it here.
	Added time.Time `json:"added,omitzero"`
	// Invited is set while the peer holds a certificate of ours and so has a user
	// in our etcd.
	Invited   bool      `json:"invited,omitempty"`
	InvitedAt time.Time `json:"invitedAt,omitzero"`
	// Generation is that of the user; see authority.RemoteUser.
	Generation uint64 `json:"generation,omitempty"`
	// Connected is set once we hold a certificate of the peer's and can mirror
	// it. A peer may be invited and not yet added.
	Connected bool `json:"connected,omitempty"`
	// Removing is set from the operator's command until the last of the peer's
	// keys is deleted, this record included. Invited and Connected are not set
	// then.
	Removing bool `json:"removing,omitempty"`
	// Declared is set if a Peer object of Kubernetes has joined it. Without the object it is
	// removed again.
	Declared bool `json:"declared,omitempty"`
}

// ServiceCIDRs are the prefixes of the peer's service addresses, as far as they are known.
func (p Peer) ServiceCIDRs() []netip.Prefix { return valid(p.ServiceCIDR, p.IPv6ServiceCIDR) }

// Heard is when each peer last proved that our copy of it was current, to the minute.
// It lets an API server that starts while a peer is away show the right age.
type Heard struct {
	Peers map[string]time.Time `json:"peers"`
}

// Former records the CIDRs of a peer that was removed or gave up part of its CIDRs.
// Connections to them used tunnels. So that none of them continues in the clear,
// nodes drop all traffic from and to these CIDRs until an operator forgets the peer.
type Former struct {
	Name     string         `json:"name"`
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
	Removed  time.Time      `json:"removed"`
	// Forgotten is when an operator released the CIDRs. The record stays, for
	// nodes that were away.
	Forgotten time.Time `json:"forgotten,omitzero"`
}

// PeerSecret holds our credentials for a peer. It is kept below weft/secret/.
type PeerSecret struct {
	Cert      string `json:"cert"`                // PEM
	Key       string `json:"key"`                 // PEM
	GossipKey []byte `json:"gossipKey,omitempty"` // the peer's key for WAN gossip
}

// String hides the secrets.
func (PeerSecret) String() string { return "[secret]" }

// GoString hides the secrets.
func (PeerSecret) GoString() string { return "[secret]" }

// Rotation is the key epoch that the operator wants every node to move to.
type Rotation struct {
	Epoch uint64 `json:"epoch"`
}

// GossipKeys are the memberlist keys inside a cluster: the first is used for sending,
// all for receiving. Each has 16, 24 or 32 bytes.
type GossipKeys struct {
	LAN [][]byte `json:"lan"`
}

// String hides the keys.
func (GossipKeys) String() string { return "[secret]" }

// GoString hides the keys.
func (GossipKeys) GoString() string { return "[secret]" }

// ExportCluster is what peers learn about us beyond Cilium's format.
type ExportCluster struct {
	PodCIDRs   []netip.Prefix `json:"podCIDRs"`
	Generation string         `json:"generation"` // as in Cluster
}

// ExportNode is what peers learn about a node beyond Cilium's format.
type ExportNode struct {
	Name  string  `json:"name"`
	Epoch uint64  `json:"epoch"`
	Lanes [2]Lane `json:"lanes"`
}

// PeerLiveness is what a cluster's own gossip says about its nodes.
type PeerLiveness struct {
	// Dead maps a node to the time its cluster declared it dead. Nodes not listed
	// are alive or unknown.
	Dead map[string]time.Time `json:"dead,omitempty"`
	// Seen is when this was last received.
	Seen time.Time `json:"seen"`
}

// Marshal returns the JSON of any of this package's JSON values. It panics on others
// that cannot be encoded.
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
	if q, ok := any(&v).(quickly); ok {
		if readQuickly(q, b) {
			return v, nil
		}
		var none T
		v = none // it may have been filled in part
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return v, fmt.Errorf("read %T: %w", v, err)
	}
	return v, nil
}

// CheckClusterName says what is wrong with a cluster's name, or returns nil.
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
