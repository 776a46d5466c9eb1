package peering

import (
	"encoding/base64"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/wire"
)

// check reports every reason not to add the cluster of an invite, or nil. nodes are
// the addresses of our own nodes. A cluster
// that is already a peer may be added again under the same name and ID, with a new
// certificate or other CIDRs.
func check(own wire.Cluster, nodes map[string][]netip.Addr, peers []wire.Peer, in *api.Invite) error {
	if in.Kind != api.InviteKind {
		return api.Invalid("create one with `weft peer invite` in the other cluster", "this is not an invite: kind is %q, want %q", in.Kind, api.InviteKind)
	}
	var c checker
	c.whose(own, in)
	c.number(own, in)
	c.addresses(own, in)
	c.services(own, in)
	c.families(own, in)
	c.besides(nodes, in)
	for _, p := range peers {
		c.against(p, in)
	}
	c.access(own, in)
	return c.result(in.Cluster)
}

// checker collects all problems, so that the operator sees them at once.
type checker struct {
	taken    bool // the invite conflicts with what is here, not just with itself
	problems []api.Problem
}

func (c *checker) invalid(format string, args ...any) {
	c.problems = append(c.problems, api.Problem{Message: fmt.Sprintf(format, args...)})
}

func (c *checker) conflict(format string, args ...any) {
	c.taken = true
	c.invalid(format, args...)
}

func (c *checker) result(cluster string) error {
	if len(c.problems) == 0 {
		return nil
	}
	refuse := api.Invalid
	if c.taken {
		refuse = api.Conflict
	}
	if len(c.problems) == 1 {
		return refuse("", "cluster %q cannot be added: %s", cluster, c.problems[0].Message)
	}
	err := refuse("", "cluster %q cannot be added:", cluster)
	err.Problems = c.problems
	return err
}

func (c *checker) whose(own wire.Cluster, in *api.Invite) {
	if in.For != own.Name {
		c.invalid("the invite is for cluster %q, but this is %q; ask its operator for one with `weft peer invite %s`", in.For, own.Name, own.Name)
	}
	c.named(own, in)
}

func (c *checker) named(own wire.Cluster, in *api.Invite) {
	if err := wire.CheckClusterName(in.Cluster); err != nil {
		c.invalid("%v", err)
	}
	if in.Cluster == own.Name {
		c.conflict("it has our own name; rebuild one of the two under another name")
	}
}

func (c *checker) number(own wire.Cluster, in *api.Invite) {
	split, err := identity.SplitFor(int(own.MaxConnectedClusters))
	if err != nil {
		c.invalid("this cluster's %v", err)
		return
	}
	if in.MaxConnectedClusters != own.MaxConnectedClusters {
		c.conflict("its maxConnectedClusters is %d, but ours is %d; all clusters of a mesh need the same one", in.MaxConnectedClusters, own.MaxConnectedClusters)
	}
	if in.ID == 0 || in.ID > uint32(split.MaxCluster()) {
		c.invalid("cluster ID %d is out of range; rebuild it with an id from 1 to %d", in.ID, split.MaxCluster())
	} else if in.ID == uint32(own.ID) {
		c.conflict("cluster ID %d is our own; rebuild one of the two with another id", in.ID)
	}
}

func (c *checker) addresses(own wire.Cluster, in *api.Invite) {
	if len(in.PodCIDRs) == 0 {
		c.invalid("it names no pod CIDR, so it could not announce anything")
	}
	for i, p := range in.PodCIDRs {
		if err := service.CheckCIDR(p); err != nil {
			c.invalid("pod CIDR %v", err)
			continue
		}
		for _, q := range in.PodCIDRs[:i] {
			if p.Overlaps(q) {
				c.invalid("its pod CIDRs %v and %v overlap", q, p)
			}
		}
		for _, q := range own.PodCIDRs {
			if p.Overlaps(q) {
				c.conflict("its pod CIDR %v overlaps our own %v; rebuild one of the two with other podCIDRs", p, q)
			}
		}
		for _, q := range own.ServiceCIDRs() {
			if p.Overlaps(q) {
				c.conflict("its pod CIDR %v overlaps our service CIDR %v; rebuild one of the two with other CIDRs", p, q)
			}
		}
	}
}

// services refuses service CIDRs that overlap our pods: nodes do not send packets to a
// peer's service addresses. Those that are not known are left alone.
func (c *checker) services(own wire.Cluster, in *api.Invite) {
	for _, s := range in.ServiceCIDRs() {
		if err := service.CheckCIDR(s); err != nil {
			c.invalid("service CIDR %v", err)
			continue
		}
		for _, q := range own.PodCIDRs {
			if s.Overlaps(q) {
				c.conflict("its service CIDR %v overlaps our pod CIDR %v; rebuild one of the two with other CIDRs", s, q)
			}
		}
	}
	if s := in.IPv6ServiceCIDR; s.IsValid() && s.Addr().Is4() {
		c.invalid("its IPv6 service CIDR is %v; correct ipv6ServiceCIDR there and invite again", s)
	}
}

// families refuses a cluster whose pods have no IP family in common with ours: none could
// reach another.
func (c *checker) families(own wire.Cluster, in *api.Invite) {
	ours, theirs := familiesOf(own.PodCIDRs), familiesOf(in.PodCIDRs)
	if len(ours) == 0 || len(theirs) == 0 || slices.ContainsFunc(theirs, func(f corev1.IPFamily) bool { return slices.Contains(ours, f) }) {
		return
	}
	four := own.Name
	if theirs[0] == corev1.IPv4Protocol {
		four = in.Cluster
	}
	c.conflict("its pods have addresses of %s alone and ours of %s alone, so none could reach another; give cluster %s an IPv6 pod CIDR too", theirs[0], ours[0], four)
}

// familiesOf are the IP families of prefixes, each once.
func familiesOf(cidrs []netip.Prefix) (out []corev1.IPFamily) {
	for _, p := range wire.OfEachFamily(cidrs) {
		out = append(out, service.FamilyOf(p.Addr()))
	}
	return out
}

// besides refuses CIDRs that hold the address of one of our nodes: pods could not
// reach it, and whoever has the address there would be taken for it.
func (c *checker) besides(nodes map[string][]netip.Addr, in *api.Invite) {
	cidrs := append(slices.Clone(in.PodCIDRs), in.ServiceCIDRs()...)
	for _, name := range slices.Sorted(maps.Keys(nodes)) {
		for _, a := range nodes[name] {
			for _, p := range cidrs {
				if service.CheckCIDR(p) == nil && p.Contains(a) {
					c.conflict("its CIDR %v contains %v, the address of our node %s; rebuild it with other CIDRs", p, a, name)
				}
			}
		}
	}
}

// against compares the invite with an existing peer.
func (c *checker) against(p wire.Peer, in *api.Invite) {
	if p.Name == in.Cluster {
		if p.Removing {
			c.conflict("it is still being removed; try again in a moment")
		}
		if p.Connected && uint32(p.ID) != in.ID {
			c.conflict("a peer of this name already exists with cluster ID %d, not %d; if it was rebuilt, remove it first with `weft peer remove %s`", p.ID, in.ID, p.Name)
		}
		return
	}
	if !p.Connected {
		return
	}
	if uint32(p.ID) == in.ID {
		c.conflict("cluster ID %d is used by peer %q; rebuild one of the two with another id", in.ID, p.Name)
	}
	for _, mine := range in.PodCIDRs {
		for _, q := range p.PodCIDRs {
			if service.CheckCIDR(mine) == nil && mine.Overlaps(q) {
				c.conflict("its pod CIDR %v overlaps %v of peer %q; rebuild one of the two with other podCIDRs", mine, q, p.Name)
			}
		}
	}
}

func (c *checker) access(own wire.Cluster, in *api.Invite) {
	if len(in.EtcdEndpoints) == 0 {
		c.invalid("it does not say how its store is reached; set advertise there and invite again")
	}
	c.endpoints(in.EtcdEndpoints)
	if !in.Expires.IsZero() && time.Now().After(in.Expires) {
		c.invalid("the invite expired on %s; ask for a new one with `weft peer invite %s`", in.Expires.Format(time.DateOnly), own.Name)
	} else if _, err := authority.ParseBundle([]byte(in.CA)); err != nil {
		c.invalid("its CA: %v", err)
	} else if err := authority.CheckPair([]byte(in.Cert), []byte(in.Key), []byte(in.CA), authority.RemoteUser(own.Name, 0)); err != nil {
		c.invalid("%v; ask for a new invite with `weft peer invite %s`", err, own.Name)
	}
	for _, a := range in.GossipAddresses {
		if _, _, err := net.SplitHostPort(a); err != nil {
			c.invalid("gossip address %q is not of the form host:port", a)
		}
	}
	if key, err := base64.StdEncoding.DecodeString(in.GossipKey); err != nil || len(key) != 0 && !slices.Contains([]int{16, 24, 32}, len(key)) {
		c.invalid("its gossip key must be 16, 24 or 32 bytes in base64")
	}
}

func (c *checker) endpoints(all []string) {
	for _, e := range all {
		if u, err := url.Parse(e); err != nil || u.Scheme != "https" || u.Port() == "" || u.Hostname() == "" {
			c.invalid("endpoint %q is not of the form https://host:port", e)
		}
	}
}

// peerOf returns what is kept of an invite except its secrets.
func peerOf(in *api.Invite) wire.Peer {
	return wire.Peer{
		Name: in.Cluster, ID: identity.ClusterID(in.ID),
		PodCIDRs: slices.Clone(in.PodCIDRs), ServiceCIDR: in.ServiceCIDR, IPv6ServiceCIDR: in.IPv6ServiceCIDR,
		MaxConnectedClusters: in.MaxConnectedClusters,
		Endpoints:            slices.Clone(in.EtcdEndpoints),
		CA:                   in.CA, Gossip: slices.Clone(in.GossipAddresses),
		Connected: true,
	}
}

func secretOf(in *api.Invite) wire.PeerSecret {
	key, _ := base64.StdEncoding.DecodeString(in.GossipKey)
	return wire.PeerSecret{Cert: in.Cert, Key: in.Key, GossipKey: key}
}
