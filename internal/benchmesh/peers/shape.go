package peers

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"

	"github.com/weft-mesh/weft/identity"
)

// Shape says how many clusters there are and what each holds.
type Shape struct {
	Clusters int
	// FirstID is the ID of the first of them; the IDs below are real clusters'.
	FirstID identity.ClusterID
	// Split is how identities are divided; it bounds the IDs.
	Split identity.Split
	// Nodes, Endpoints and Identities are what each cluster has.
	Nodes, Endpoints, Identities int
	// Services is how many global services each cluster declares. The next cluster
	// has backends of them too.
	Services int
	// Backends is how many endpoints a cluster offers for one of its services.
	Backends int
	// Large is how many backends service LargeService has in all; the first clusters
	// offer all their endpoints for it until there are enough.
	Large int
}

// PerCluster is what each cluster of Cilium's own scale test has (250 clusters, 25,000
// nodes, 250,000 endpoints, 25,000 identities), and services, which that test does
// without: 20 in each make 5,000 of 250.
func PerCluster() Shape {
	return Shape{
		FirstID: 2, Split: identity.Split255, Nodes: 100, Endpoints: 1000, Identities: 100,
		Services: 20, Backends: 5, Large: 10_000,
	}
}

// Addresses of the generated clusters: pods from podBase, nodes from nodeBase. Labs use
// neither. Each cluster has one block of each.
var (
	podBase  = netip.MustParseAddr("20.0.0.0")
	nodeBase = netip.MustParseAddr("100.64.0.0")
)

// spareShare is the share of addresses and nodes that a cluster keeps for what is
// created while it changes.
const spareShare = 2

// mostNodes is the room for nodes that a cluster has among nodeBase's addresses.
const mostNodes = 1 << 10

// Validate reports every mistake at once.
func (s Shape) Validate() error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if s.Clusters < 1 || s.Nodes < 1 || s.Endpoints < 1 || s.Identities < 1 {
		add("there must be at least one cluster, and one node, endpoint and identity in each")
		return errors.Join(errs...)
	}
	if last := int(s.FirstID) + s.Clusters - 1; last > int(s.Split.MaxCluster()) {
		add("%d clusters from ID %d exceed the %d that the split allows", s.Clusters, s.FirstID, s.Split.MaxCluster())
	}
	if first, last := s.Split.Range(s.FirstID); s.Identities*spareShare > int(last-first) {
		add("%d identities in a cluster leave no room for more", s.Identities)
	}
	if s.nodeRoom() > mostNodes {
		add("%d nodes in a cluster are too many: at most %d", s.Nodes, mostNodes/spareShare)
	}
	if s.podBits() > 24 || s.podBits()+bits.Len(uint(s.Clusters-1)) > 27 {
		add("%d endpoints in %d clusters are more than the generator has addresses for", s.Endpoints, s.Clusters)
	}
	if s.Backends > s.Endpoints {
		add("%d backends of a service are more than a cluster's %d endpoints", s.Backends, s.Endpoints)
	}
	return errors.Join(errs...)
}

// nodeRoom is how many nodes a cluster can have: a power of two.
func (s Shape) nodeRoom() int { return roundUp(s.Nodes * spareShare) }

// perNode is how many addresses a node has: a power of two, with room for the network's
// own and the node's.
func (s Shape) perNode() int {
	each := (s.Endpoints + s.Nodes - 1) / s.Nodes
	return roundUp(each*spareShare + 2)
}

func (s Shape) podBits() int { return bits.Len(uint(s.nodeRoom()*s.perNode() - 1)) }

func roundUp(n int) int { return 1 << bits.Len(uint(max(n, 1)-1)) }

// ID returns the ID of cluster i, from 0.
func (s Shape) ID(i int) identity.ClusterID { return s.FirstID + identity.ClusterID(i) }

// Name returns the name of cluster i.
func (s Shape) Name(i int) string { return fmt.Sprintf("gen-%03d", s.ID(i)) }

// PodCIDR returns the addresses of cluster i's pods.
func (s Shape) PodCIDR(i int) netip.Prefix {
	return netip.PrefixFrom(plus(podBase, i<<s.podBits()), 32-s.podBits())
}

// nodeCIDR returns the addresses of the pods on node j of cluster i.
func (s Shape) nodeCIDR(i, j int) netip.Prefix {
	size := s.perNode()
	return netip.PrefixFrom(plus(podBase, i<<s.podBits()+j*size), 32-bits.Len(uint(size-1)))
}

// internal returns node j's own address among its pods.
func (s Shape) internal(i, j int) netip.Addr { return s.nodeCIDR(i, j).Addr().Next() }

// outside returns the address at which tunnels to node j end.
func (s Shape) outside(i, j int) netip.Addr { return plus(nodeBase, i*mostNodes+j+1) }

// slot returns the n-th address for a pod on node j.
func (s Shape) slot(i, j, n int) netip.Addr { return plus(s.nodeCIDR(i, j).Addr(), n+2) }

// slots is how many pods a node has room for.
func (s Shape) slots() int { return s.perNode() - 2 }

func plus(a netip.Addr, n int) netip.Addr {
	b := a.As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(n))
	return netip.AddrFrom4(b)
}

// large returns how many backends of LargeService cluster i offers.
func (s Shape) large(i int) int {
	return max(0, min(s.Endpoints, s.Large-i*s.Endpoints))
}

// Known is how many endpoints there are in all.
func (s Shape) Known() int { return s.Clusters * s.Endpoints }
