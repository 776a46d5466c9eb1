package api

import "net/netip"

// JoinBundle is everything an agent needs to take part, kept by it as a 0600
// file because it holds private keys.
type JoinBundle struct {
	Cluster              string         `json:"cluster"`
	ClusterID            uint32         `json:"clusterID"`
	MaxConnectedClusters uint32         `json:"maxConnectedClusters"`
	ClusterPodCIDRs      []netip.Prefix `json:"clusterPodCIDRs"`
	ServiceCIDR          netip.Prefix   `json:"serviceCIDR"`
	IPv6ServiceCIDR      netip.Prefix   `json:"ipv6ServiceCIDR,omitzero"`

	Node      string         `json:"node"`
	Addresses []netip.Addr   `json:"addresses"`
	PodCIDRs  []netip.Prefix `json:"podCIDRs"`

	Server string `json:"server"` // URL of the API server that issued it
	// Servers are the URLs of the cluster's other API servers.
	Servers       []string `json:"servers,omitempty"`
	EtcdEndpoints []string `json:"etcdEndpoints"`

	CA         string `json:"ca"`         // PEM bundle of the cluster
	Cert       string `json:"cert"`       // client certificate, CN agent-<node>
	Key        string `json:"key"`        // its key
	ServerCert string `json:"serverCert"` // for the agent's own HTTPS API
	ServerKey  string `json:"serverKey"`

	// GossipKey is base64; GossipSeeds are host:port of the LAN gossip.
	GossipKey   string   `json:"gossipKey"`
	GossipSeeds []string `json:"gossipSeeds"`

	// Named are the addresses that the cluster named last. Those above that are not among
	// them were added by hand: an agent never forgets them.
	Named NamedServers `json:"named,omitzero"`
}

// String hides what is secret.
func (JoinBundle) String() string { return "[join bundle]" }

// GoString hides what is secret.
func (JoinBundle) GoString() string { return "[join bundle]" }

// NamedServers are addresses of API servers, of each kind.
type NamedServers struct {
	Servers       []string `json:"servers,omitempty"`
	EtcdEndpoints []string `json:"etcdEndpoints,omitempty"`
	GossipSeeds   []string `json:"gossipSeeds,omitempty"`
}
