package mirror

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/wire"
)

// Reason says in a word why a claim was refused.
type Reason string

// The reasons. They are label values of a metric and must not change.
const (
	Malformed       Reason = "malformed"        // cannot be parsed, or contradicts its own key
	ForeignAddress  Reason = "foreign-address"  // outside the peer's CIDRs
	ForeignIdentity Reason = "foreign-identity" // outside the peer's range
	ForeignName     Reason = "foreign-name"     // labels of another cluster, or reserved ones
	TooLarge        Reason = "too-large"        // more than our store accepts
	OverLimit       Reason = "over-limit"       // more than we copy from one peer
)

// claims checks a peer's values. A peer can lie only about itself: whatever is outside
// the CIDRs and the ID agreed on is refused.
type claims struct {
	peer  wire.Peer
	own   wire.Cluster
	split identity.Split
	taken func(netip.Addr) string
}

func newClaims(own wire.Cluster, peer wire.Peer, taken func(netip.Addr) string) claims {
	split, err := identity.SplitFor(int(own.MaxConnectedClusters))
	if err != nil {
		split = identity.Split255
	}
	if taken == nil {
		taken = func(netip.Addr) string { return "" }
	}
	return claims{peer: peer, own: own, split: split, taken: taken}
}

// folder is a prefix in the peer's store.
type folder struct {
	name     string // in status and metrics
	prefix   string
	resource wire.Resource // "" for weft/export/
	// cached: the entries have the keys of a copy, which here are the same.
	cached bool
}

// read returns what is read of the peer: of the two forms that services have, only one.
func (c claims) read(has wire.Capabilities) []folder {
	return slices.DeleteFunc(c.folders(has.Cached), func(f folder) bool {
		return f.resource != "" && !expected(f.resource, has)
	})
}

// folders returns what may have been read of the peer, in any version. cached says
// whether its store has a copy, as a KVStoreMesh makes it. A Cilium cluster has nothing
// below weft/.
func (c claims) folders(cached bool) []folder {
	var out []folder
	for _, r := range wire.Resources {
		f := folder{string(r), r.StatePrefix(c.peer.Name), r, cached}
		if cached {
			f.prefix = r.CachePrefix(c.peer.Name)
		}
		out = append(out, f)
	}
	if c.peer.Cilium {
		return out
	}
	return append(out, folder{name: "weft", prefix: wire.ExportPrefix})
}

// ours returns the key under which an entry of the peer is kept in our store, and what
// it says; false if the key is not one of the folder.
func (f folder) ours(peer, key string) (ours string, ref wire.CacheRef, ok bool) {
	if f.cached {
		ref, ok = wire.ParseCiliumCacheKey(key)
		return key, ref, ok && ref.Resource == f.resource && ref.Cluster == peer
	}
	ours, ok = f.resource.StateToCache(key, peer)
	if !ok {
		return "", ref, false
	}
	ref, ok = f.resource.ParseStateKey(key, peer)
	return ours, ref, ok
}

// canary is the key that exists while the peer's store vouches for all of the folder.
func (f folder) canary(peer string) string {
	if f.cached {
		return f.resource.CacheSyncedKey(peer)
	}
	return f.resource.StateSyncedKey(peer)
}

// judge returns the key under which a peer's value is kept in our store, and what of
// it is kept; nil means nothing. If any of it is refused, reason and err say why.
func (c claims) judge(f folder, key string, value []byte) (ours string, kept []byte, reason Reason, err error) {
	if key == wire.ExportLineageKey {
		return "", nil, "", nil // about the peer's store, not for our agents
	}
	ours, kept, reason, err = c.rest(f, key, value)
	if err == nil {
		kept = value
	}
	return ours, kept, reason, err
}

// rest is judge, except that it returns what is kept only if something is refused.
func (c claims) rest(f folder, key string, value []byte) (ours string, rest []byte, reason Reason, err error) {
	if f.resource == "" {
		reason, err = c.export(key, value)
		ours, _ = wire.ExportToCache(key, c.peer.Name)
		return ours, nil, reason, err
	}
	ours, ref, ok := f.ours(c.peer.Name, key)
	if !ok {
		return ours, nil, Malformed, fmt.Errorf("the key is not one of %s", f.resource)
	}
	switch f.resource {
	case wire.Nodes:
		reason, err = c.node(ref, value)
	case wire.IPs:
		reason, err = c.ip(ref, value)
	case wire.Identities:
		reason, err = c.identity(ref, value)
	case wire.Services:
		rest, reason, err = c.service(ref, value)
	case wire.EndpointSlices:
		rest, reason, err = c.slice(ref, value)
	case wire.ServiceExports:
		if _, err = wire.ParseServiceExport(ref, value); err != nil {
			reason = Malformed
		}
	}
	return ours, rest, reason, err
}

func (c claims) node(ref wire.CacheRef, value []byte) (Reason, error) {
	n, err := wire.ParseNode(ref, c.peer.ID, value)
	if err != nil {
		return Malformed, err
	}
	cidrs := n.PodCIDRs()
	for _, p := range cidrs {
		if !inside(c.peer.PodCIDRs, p) {
			return ForeignAddress, fmt.Errorf("pod CIDR %v is outside %v", p, c.peer.PodCIDRs)
		}
	}
	for _, a := range n.IPAddresses {
		if a.Type == wire.NodeCiliumInternalIP {
			if !contains(cidrs, a.IP) {
				return ForeignAddress, fmt.Errorf("internal address %v is outside the node's own CIDRs", a.IP)
			}
			continue
		}
		if err := c.underlay(a.IP); err != nil {
			return ForeignAddress, err
		}
	}
	for _, a := range []netip.Addr{n.IPv4HealthIP, n.IPv6HealthIP, n.IPv4IngressIP, n.IPv6IngressIP} {
		if a.IsValid() && !contains(cidrs, a) {
			return ForeignAddress, fmt.Errorf("address %v is outside the node's own CIDRs", a)
		}
	}
	if n.WireguardPubKey != "" && !publicKey(n.WireguardPubKey) {
		return Malformed, fmt.Errorf("WireguardPubKey is not a key")
	}
	return "", nil
}

// underlay checks the address of a node, where tunnels end. It is outside every
// announced CIDR, but it must not belong to someone else here.
func (c claims) underlay(a netip.Addr) error {
	if err := service.CheckAddress(a); err != nil {
		return fmt.Errorf("a node cannot have that address: %w", err)
	}
	switch {
	case contains(c.own.PodCIDRs, a), contains(c.own.ServiceCIDRs(), a):
		return fmt.Errorf("node address %v is in this cluster's own CIDRs", a)
	}
	if whose := c.taken(a); whose != "" {
		return fmt.Errorf("node address %v belongs to %s", a, whose)
	}
	return nil
}

func (c claims) ip(ref wire.CacheRef, value []byte) (Reason, error) {
	p, err := wire.ParseIPIdentityPair(ref, value)
	if err != nil {
		return Malformed, err
	}
	if !inside(c.peer.PodCIDRs, ref.IP) {
		return ForeignAddress, fmt.Errorf("%v is outside %v", ref.IP, c.peer.PodCIDRs)
	}
	if p.HostIP.IsValid() {
		if err := c.underlay(p.HostIP); err != nil {
			return ForeignAddress, err
		}
	}
	return c.number(p.ID)
}

// number also refuses reserved identities: a pod claiming to be host or health would
// pass policies that allow those.
func (c claims) number(n identity.Number) (Reason, error) {
	if c.split.Cluster(n) != c.peer.ID {
		first, last := c.split.Range(c.peer.ID)
		return ForeignIdentity, fmt.Errorf("identity %d is outside %d to %d", uint32(n), uint32(first), uint32(last))
	}
	return "", nil
}

func (c claims) identity(ref wire.CacheRef, value []byte) (Reason, error) {
	labels, err := wire.ParseIdentity(value)
	if err != nil {
		return Malformed, err
	}
	if reason, err := c.number(ref.Identity); err != nil {
		return reason, err
	}
	if err := labels.Foreign(c.peer.Name); err != nil {
		return ForeignName, err
	}
	return "", nil
}

// service leaves out foreign backends, so that one of them does not cost the others;
// rest is nil if there are no others. slice does the same.
func (c claims) service(ref wire.CacheRef, value []byte) (rest []byte, reason Reason, err error) {
	s, err := wire.ParseClusterService(ref, c.peer.ID, value)
	if err != nil {
		return nil, Malformed, err
	}
	var foreign []netip.Addr
	for a := range s.Backends {
		if !contains(c.peer.PodCIDRs, a) {
			foreign = append(foreign, a)
		}
	}
	for _, a := range foreign {
		delete(s.Backends, a)
		delete(s.Hostnames, a)
		delete(s.Zones, a)
	}
	switch {
	case len(foreign) == 0:
		return nil, "", nil
	case len(s.Backends) > 0:
		rest = wire.Marshal(s)
	}
	return rest, ForeignAddress, c.outside("backend", foreign)
}

func (c claims) slice(ref wire.CacheRef, value []byte) (rest []byte, reason Reason, err error) {
	s, err := wire.ParseSlice(ref, c.peer.ID, value)
	if err != nil {
		return nil, Malformed, err
	}
	var foreign []netip.Addr
	var left []wire.SliceEndpoint
	for _, e := range s.Endpoints {
		var own []string
		for _, text := range e.Addresses {
			a, err := wire.ParseAddr(text)
			if err != nil {
				return nil, Malformed, err
			}
			if contains(c.peer.PodCIDRs, a) {
				own = append(own, text)
			} else {
				foreign = append(foreign, a)
			}
		}
		if e.Addresses = own; len(own) > 0 {
			left = append(left, e)
		}
	}
	switch {
	case len(foreign) == 0:
		return nil, "", nil
	case len(left) > 0:
		s.Endpoints = left
		rest = s.Marshal()
	}
	return rest, ForeignAddress, c.outside("endpoint", foreign)
}

// outside names the lowest of the foreign addresses, and how many more there are.
func (c claims) outside(what string, foreign []netip.Addr) error {
	more := ""
	if n := len(foreign) - 1; n > 0 {
		more = fmt.Sprintf(" (and %d more)", n)
	}
	return fmt.Errorf("%s %v%s is outside %v", what, slices.MinFunc(foreign, netip.Addr.Compare), more, c.peer.PodCIDRs)
}

func (c claims) export(key string, value []byte) (Reason, error) {
	if key == wire.ExportClusterKey {
		e, err := wire.Unmarshal[wire.ExportCluster](value)
		if err != nil {
			return Malformed, err
		}
		for _, p := range e.PodCIDRs {
			if !inside(c.peer.PodCIDRs, p) {
				return ForeignAddress, fmt.Errorf("pod CIDR %v is outside %v; if the peer has grown, add it again with a new invite", p, c.peer.PodCIDRs)
			}
		}
		return "", nil
	}
	cacheKey, _ := wire.ExportToCache(key, c.peer.Name)
	_, entry, node, ok := wire.ParseCacheKey(cacheKey)
	if !ok || entry != wire.CacheEntryNode {
		// This includes our own liveness key, which a peer must not write.
		return Malformed, fmt.Errorf("this key is never exported")
	}
	n, err := wire.Unmarshal[wire.ExportNode](value)
	if err != nil {
		return Malformed, err
	}
	if n.Name != node {
		return Malformed, fmt.Errorf("name is %q, but the key says %q", n.Name, node)
	}
	for i, lane := range n.Lanes {
		if lane.PublicKey != "" && (!publicKey(lane.PublicKey) || lane.Port == 0) {
			return Malformed, fmt.Errorf("tunnel %d has no usable key and port", i)
		}
	}
	return "", nil
}

func publicKey(s string) bool {
	b, err := base64.StdEncoding.DecodeString(s)
	return err == nil && len(b) == 32
}

func inside(all []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(all, func(c netip.Prefix) bool { return c.Bits() <= p.Bits() && c.Contains(p.Addr()) })
}

func contains(all []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(all, func(c netip.Prefix) bool { return c.Contains(a) })
}
