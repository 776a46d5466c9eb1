package tables

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/weft-mesh/weft/identity"
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
	// Access is how the API servers are reached now; own cluster only.
	Access *wire.Access
}

// Key is the cluster's name.
func (c *Cluster) Key() string { return c.Name }

// Empty says whether no part is left.
func (c *Cluster) Empty() bool {
	return c.Own == nil && c.Peer == nil && c.Config == nil && c.Export == nil && len(c.Synced) == 0 && c.Liveness == nil && c.Rotation == nil && c.Access == nil
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

// ServiceCIDRs are the prefixes from which the cluster assigns service addresses, as far as
// they are known: one of each family at most.
func (c *Cluster) ServiceCIDRs() []netip.Prefix {
	switch {
	case c.Own != nil:
		return c.Own.ServiceCIDRs()
	case c.Peer != nil:
		return c.Peer.ServiceCIDRs()
	}
	return nil
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

var clusters = table[*Cluster]{
	name: "clusters", imported: true, written: true,
	columns: []string{"Cluster", "ID", "Own", "Member", "PodCIDRs", "Synced", "Dead"},
	cells: func(c *Cluster) []string {
		dead := 0
		if c.Liveness != nil {
			dead = len(c.Liveness.Dead)
		}
		return []string{c.Name, fmt.Sprint(c.ID()), yes(c.Own != nil), yes(c.Member()), prefixes(c.PodCIDRs()), yes(c.Complete()), strconv.Itoa(dead)}
	},
}
