package api

import (
	"context"
	"net/http"
	"net/netip"
)

// NodeFactsPath is where an agent says on its socket what `weft doctor` needs to know.
const NodeFactsPath = "/v1/facts"

// NodeFacts are what an agent knows of its node and of itself.
type NodeFacts struct {
	Cluster string `json:"cluster"`
	Node    string `json:"node"`
	// Device is the interface towards the other nodes; empty: the one with the first address.
	Device     string         `json:"device,omitempty"`
	Addresses  []netip.Addr   `json:"addresses"`
	PodCIDRs   []netip.Prefix `json:"podCIDRs"`
	StateDir   string         `json:"dataDir"`
	BPFDir     string         `json:"bpfDir"`
	CNIConfDir string         `json:"cniConfDir,omitempty"`
	// Servers are the URLs of the cluster's API servers, Etcd those of their stores.
	Servers []string `json:"servers"`
	Etcd    []string `json:"etcdEndpoints"`
	// Listen is the port of its own API, GossipPort that of gossip (0: none).
	Listen     uint16 `json:"listen,omitempty"`
	GossipPort uint16 `json:"gossipPort,omitempty"`
	// TakesPods says that a container runtime starts the pods; Ready then whether it can.
	TakesPods bool              `json:"takesPods"`
	Ready     EndpointReadiness `json:"ready"`
}

// NodeFacts asks the agent of this machine.
func (c *Client) NodeFacts(ctx context.Context) (NodeFacts, error) {
	var out NodeFacts
	return out, c.call(ctx, http.MethodGet, NodeFactsPath, nil, nil, &out)
}
