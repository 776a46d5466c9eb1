package wire

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/weft-mesh/weft/identity"
)

// Resource is a kind of Cilium entry, named as in its keys.
type Resource string

const (
	Nodes          Resource = "nodes"
	IPs            Resource = "ip"
	Identities     Resource = "identities"
	Services       Resource = "services"
	EndpointSlices Resource = "endpointslices"
	// ServiceExports are those of the Multi-Cluster Services API.
	ServiceExports Resource = "serviceexports"
)

// Resources are the kinds that we export and mirror. Identities come before the
// addresses that use them, nodes before what runs on them. Once a cluster has written
// everything that it exports of one, it writes a canary.
var Resources = []Resource{Nodes, Identities, IPs, Services, EndpointSlices, ServiceExports}

// StatePrefix covers a cluster's entries in its own etcd. Keys of addresses and
// identities do not contain the cluster.
func (r Resource) StatePrefix(cluster string) string {
	switch r {
	case IPs:
		return CiliumStatePrefix + "ip/v1/default/"
	case Identities:
		return CiliumStatePrefix + "identities/v1/id/"
	}
	return CiliumStatePrefix + string(r) + "/v1/" + cluster + "/"
}

// CachePrefix covers a peer's entries in our etcd.
func (r Resource) CachePrefix(cluster string) string {
	p := CiliumCachePrefix + string(r) + "/v1/" + cluster + "/"
	if r == Identities {
		p += "id/"
	}
	return p
}

// AllCachePrefix covers the entries of all peers.
func (r Resource) AllCachePrefix() string { return CiliumCachePrefix + string(r) + "/v1/" }

// StateToCache turns a key in the peer's etcd into the key of our copy; false if the
// key does not belong to this resource and cluster.
func (r Resource) StateToCache(key, cluster string) (string, bool) {
	rest, ok := strings.CutPrefix(key, r.StatePrefix(cluster))
	if !ok || rest == "" {
		return "", false
	}
	return r.CachePrefix(cluster) + rest, true
}

// StateSyncedKey is the canary in the cluster's own etcd: r is complete there.
func (r Resource) StateSyncedKey(cluster string) string {
	return SyncedPrefix(cluster) + CiliumStatePrefix + string(r) + "/v1"
}

// CacheSyncedKey is the canary in our etcd: our copy of r is complete.
func (r Resource) CacheSyncedKey(cluster string) string {
	return SyncedPrefix(cluster) + CiliumCachePrefix + string(r) + "/v1"
}

// ParseCacheSyncedKey is the inverse of CacheSyncedKey.
func ParseCacheSyncedKey(key string) (cluster string, r Resource, ok bool) {
	p, ok := parts(key, CiliumSyncedPrefix, 5)
	if !ok || p[1]+"/"+p[2]+"/" != CiliumCachePrefix || p[4] != "v1" {
		return "", "", false
	}
	return p[0], Resource(p[3]), Resource(p[3]).known()
}

func (r Resource) known() bool {
	for _, k := range Resources {
		if k == r {
			return true
		}
	}
	return false
}

// CopiedFrom returns the peer of whose export a key, or the folder it is in, is our copy;
// "" if it is none.
func CopiedFrom(key string) (peer string) {
	rest, ok := strings.CutPrefix(key, CachePrefix)
	if !ok {
		if rest, ok = strings.CutPrefix(key, CiliumCachePrefix); !ok {
			return ""
		}
		_, rest, _ = strings.Cut(rest, "/v1/")
	}
	if peer, _, ok = strings.Cut(rest, "/"); !ok {
		return ""
	}
	return peer
}

// SyncedPrefix covers all canaries of a cluster.
func SyncedPrefix(cluster string) string { return CiliumSyncedPrefix + cluster + "/" }

// ClusterConfigKey holds a ClusterConfig.
func ClusterConfigKey(cluster string) string { return ClusterConfigPrefix + cluster }

// ParseClusterConfigKey is the inverse of ClusterConfigKey.
func ParseClusterConfigKey(key string) (cluster string, ok bool) {
	return one(key, ClusterConfigPrefix)
}

// NodeStateKey holds a Node.
func NodeStateKey(cluster, node string) string { return Nodes.StatePrefix(cluster) + node }

// IPStateKey holds an IPIdentityPair.
func IPStateKey(ip netip.Addr) string { return IPs.StatePrefix("") + ip.String() }

// IdentityStateKey holds an identity's labels in text.
func IdentityStateKey(n identity.Number) string {
	return Identities.StatePrefix("") + strconv.FormatUint(uint64(n), 10)
}

// ServiceStateKey holds a ClusterService.
func ServiceStateKey(cluster, ns, name string) string {
	return Services.StatePrefix(cluster) + ns + "/" + name
}

// SliceStateKey holds a ClusterEndpointSlice.
func SliceStateKey(cluster, ns, name string) string {
	return EndpointSlices.StatePrefix(cluster) + ns + "/" + name
}

// CacheRef is a parsed key below cilium/cache/. Resource determines which other
// fields are set.
type CacheRef struct {
	Resource Resource
	Cluster  string

	Node            string          // Nodes
	Namespace, Name string          // Services, EndpointSlices, ServiceExports
	IP              netip.Prefix    // IPs; a single address has all bits
	Identity        identity.Number // Identities
}

// ParseCiliumCacheKey parses any key below cilium/cache/; false for keys of resources
// that we do not mirror.
func ParseCiliumCacheKey(key string) (CacheRef, bool) {
	rest, ok := strings.CutPrefix(key, CiliumCachePrefix)
	if !ok {
		return CacheRef{}, false
	}
	res, rest, ok := strings.Cut(rest, "/v1/")
	if !ok || !Resource(res).known() {
		return CacheRef{}, false
	}
	cluster, rest, ok := strings.Cut(rest, "/")
	if !ok || cluster == "" {
		return CacheRef{}, false
	}
	return Resource(res).ref(cluster, rest)
}

// ParseStateKey parses a key in a peer's etcd below r.StatePrefix(cluster).
func (r Resource) ParseStateKey(key, cluster string) (CacheRef, bool) {
	rest, ok := strings.CutPrefix(key, r.StatePrefix(cluster))
	if !ok {
		return CacheRef{}, false
	}
	if r == Identities {
		rest = "id/" + rest
	}
	return r.ref(cluster, rest)
}

func (r Resource) ref(cluster, rest string) (ref CacheRef, ok bool) {
	ref = CacheRef{Resource: r, Cluster: cluster}
	switch r {
	case Nodes:
		ref.Node, ok = one(rest, "")
	case Services, EndpointSlices, ServiceExports:
		var p []string
		if p, ok = parts(rest, "", 2); ok {
			ref.Namespace, ref.Name = p[0], p[1]
		}
	case Identities:
		ref.Identity, ok = parseNumber(rest, "id/")
	case IPs:
		ref.IP, ok = parseIPKey(rest)
	}
	if !ok {
		return CacheRef{}, false
	}
	return ref, true
}

// parseIPKey reads the end of an address's key, 10.1.2.3 or 10.1.2.0/24. A single
// address is never written as a prefix, so each has exactly one key.
func parseIPKey(s string) (netip.Prefix, bool) {
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		if err != nil || p.Addr().Is4In6() || p != p.Masked() || p.String() != s || p.IsSingleIP() {
			return netip.Prefix{}, false
		}
		return p, true
	}
	a, err := ParseAddr(s)
	var written [64]byte
	if err != nil || string(a.AppendTo(written[:0])) != s {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, a.BitLen()), true
}
