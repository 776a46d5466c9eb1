package wire

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestKeysReadAsTheReferenceWritesThem(t *testing.T) {
	ip := netip.MustParseAddr("10.1.2.3")
	for _, c := range []struct{ got, want string }{
		{NodeStateKey("east", "n1"), "cilium/state/nodes/v1/east/n1"},
		{IPStateKey(ip), "cilium/state/ip/v1/default/10.1.2.3"},
		{IdentityStateKey(199472), "cilium/state/identities/v1/id/199472"},
		{ServiceStateKey("east", "shop", "web"), "cilium/state/services/v1/east/shop/web"},
		{SliceStateKey("east", "shop", "web-1"), "cilium/state/endpointslices/v1/east/shop/web-1"},
		{ClusterConfigKey("east"), "cilium/cluster-config/east"},
		{Nodes.StateSyncedKey("c3"), "cilium/synced/c3/cilium/state/nodes/v1"},
		{IPs.StateSyncedKey("c3"), "cilium/synced/c3/cilium/state/ip/v1"},
		{Identities.StateSyncedKey("c3"), "cilium/synced/c3/cilium/state/identities/v1"},
		{Identities.CacheSyncedKey("c3"), "cilium/synced/c3/cilium/cache/identities/v1"},
		{IPs.CachePrefix("west"), "cilium/cache/ip/v1/west/"},
		{Identities.CachePrefix("west"), "cilium/cache/identities/v1/west/id/"},
		{HeartbeatKey, "cilium/.heartbeat"},
		{ObjectKey("services", "shop", "web"), "weft/state/objects/services/shop/web"},
		{ObjectKey("namespaces", "", "shop"), "weft/state/objects/namespaces/_/shop"},
		{NodeEndpointKey("n1", "shop", "web-0"), "weft/state/nodes/n1/endpoints/shop/web-0"},
		{PeerLivenessKey("west"), "weft/cache/west/liveness"},
		{RegistrationKey("n1"), "weft/state/registrations/n1"},
		{IdentityIDKey(65537), "weft/state/identities/id/65537"},
		{IdentityTextKey("k8s:app=web;"), "weft/state/identities/value/k8s:app=web;"},
		{IdentityOwnerKey("k8s:app=web;", "shop/web-0"), "weft/state/identities/value/k8s:app=web;/shop/web-0"},
		{IdentityUnusedKey(65537), "weft/state/identities/unused/65537"},
	} {
		if c.got != c.want {
			t.Errorf("got %s, want %s", c.got, c.want)
		}
	}
}

func TestStateToCacheIsAPrefixRewrite(t *testing.T) {
	for _, c := range []struct {
		r     Resource
		state string
		cache string
	}{
		{Nodes, "cilium/state/nodes/v1/west/n1", "cilium/cache/nodes/v1/west/n1"},
		{IPs, "cilium/state/ip/v1/default/10.2.0.1", "cilium/cache/ip/v1/west/10.2.0.1"},
		{Identities, "cilium/state/identities/v1/id/131072", "cilium/cache/identities/v1/west/id/131072"},
		{Services, "cilium/state/services/v1/west/shop/web", "cilium/cache/services/v1/west/shop/web"},
		{EndpointSlices, "cilium/state/endpointslices/v1/west/shop/web-1", "cilium/cache/endpointslices/v1/west/shop/web-1"},
	} {
		got, ok := c.r.StateToCache(c.state, "west")
		if !ok || got != c.cache {
			t.Errorf("%s: got %q, %v; want %q", c.state, got, ok, c.cache)
		}
		fromCache, ok1 := ParseCiliumCacheKey(got)
		fromState, ok2 := c.r.ParseStateKey(c.state, "west")
		if !ok1 || !ok2 || fromCache != fromState {
			t.Errorf("%s: state says %v (%v), cache says %v (%v)", c.state, fromState, ok2, fromCache, ok1)
		}
	}
	for _, key := range []string{"cilium/state/nodes/v1/east/n1", "cilium/state/nodes/v1/west/", "weft/state/cluster"} {
		if got, ok := Nodes.StateToCache(key, "west"); ok {
			t.Errorf("%s was taken as west's: %s", key, got)
		}
	}
}

func TestParseKeys(t *testing.T) {
	if ref, ok := ParseCiliumCacheKey("cilium/cache/ip/v1/west/10.2.0.0/24"); !ok || ref.IP != netip.MustParsePrefix("10.2.0.0/24") {
		t.Errorf("a CIDR: %v, %v", ref, ok)
	}
	for _, key := range []string{
		"cilium/cache/nodes/v1/west", "cilium/cache/nodes/v1/west/", "cilium/cache/nodes/v1/west/a/b",
		"cilium/cache/nodes/v1//a", "cilium/cache/pods/v1/west/a", "cilium/cache/ip/v1/west/10.2.0.999",
		"cilium/cache/ip/v1/west/fe80::1%eth0", "cilium/cache/ip/v1/west/::ffff:10.2.0.1", "cilium/cache/ip/v1/west/FD00::1",
		"cilium/cache/ip/v1/west/10.2.0.1/24", "cilium/cache/identities/v1/west/id/0131072", "cilium/cache/identities/v1/west/131072",
		"cilium/cache/identities/v1/west/id/4294967296", "cilium/cache/services/v1/west/shop",
	} {
		if ref, ok := ParseCiliumCacheKey(key); ok {
			t.Errorf("%s was read as %+v", key, ref)
		}
	}
	if c, r, ok := ParseCacheSyncedKey(IPs.CacheSyncedKey("west")); !ok || c != "west" || r != IPs {
		t.Errorf("canary read as %q %q %v", c, r, ok)
	}
	if _, _, ok := ParseCacheSyncedKey(IPs.StateSyncedKey("west")); ok {
		t.Error("a canary of the state was taken for one of the cache")
	}
	if p, ns, name, ok := ParseObjectKey(ObjectKey("namespaces", "", "shop")); !ok || p != "namespaces" || ns != "" || name != "shop" {
		t.Errorf("object: %q %q %q %v", p, ns, name, ok)
	}
	if n, e, ns, pod, ok := ParseNodesKey(NodeEndpointKey("n1", "shop", "web")); !ok || n != "n1" || e != NodeEntryEndpoint || ns != "shop" || pod != "web" {
		t.Errorf("endpoint: %q %v %q %q %v", n, e, ns, pod, ok)
	}
	if n, e, _, _, ok := ParseNodesKey(NodeSyncedKey("n1")); !ok || n != "n1" || e != NodeEntrySynced {
		t.Errorf("synced: %q %v %v", n, e, ok)
	}
	if n, e, _, _, ok := ParseNodesKey(NodeProblemsKey("n1")); !ok || n != "n1" || e != NodeEntryProblems {
		t.Errorf("problems: %q %v %v", n, e, ok)
	}
	if n, e, _, _, ok := ParseNodesKey(NodePathsKey("n1")); !ok || n != "n1" || e != NodeEntryPaths {
		t.Errorf("paths: %q %v %v", n, e, ok)
	}
	if c, e, n, ok := ParseCacheKey(PeerNodeKey("west", "n1")); !ok || c != "west" || e != CacheEntryNode || n != "n1" {
		t.Errorf("cache: %q %v %q %v", c, e, n, ok)
	}
	if key, ok := ExportToCache(ExportNodeKey("n1"), "west"); !ok || key != PeerNodeKey("west", "n1") {
		t.Errorf("export to cache: %q %v", key, ok)
	}
}

func TestClusterNames(t *testing.T) {
	for _, good := range []string{"a", "east", "eu-1", "12345678901234567890123456789012"} {
		if err := CheckClusterName(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "-a", "a-", "East", "a_b", "a/b", "123456789012345678901234567890123", "é"} {
		if CheckClusterName(bad) == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// FuzzCacheKey: every accepted key is the only spelling of what it says.
func FuzzCacheKey(f *testing.F) {
	f.Add("cilium/cache/ip/v1/west/10.2.0.1")
	f.Add("cilium/cache/ip/v1/west/10.2.0.0/24")
	f.Add("cilium/cache/identities/v1/west/id/131072")
	f.Add("cilium/cache/nodes/v1/west/n1")
	f.Add("cilium/cache/services/v1/west/shop/web")
	f.Fuzz(func(t *testing.T, key string) {
		ref, ok := ParseCiliumCacheKey(key)
		if !ok {
			return
		}
		var state string
		switch ref.Resource {
		case Nodes:
			state = NodeStateKey(ref.Cluster, ref.Node)
		case IPs:
			if ref.IP.IsSingleIP() {
				state = IPStateKey(ref.IP.Addr())
			} else {
				state = IPs.StatePrefix("") + ref.IP.String()
			}
		case Identities:
			state = IdentityStateKey(ref.Identity)
		case Services:
			state = ServiceStateKey(ref.Cluster, ref.Namespace, ref.Name)
		case EndpointSlices:
			state = SliceStateKey(ref.Cluster, ref.Namespace, ref.Name)
		}
		if back, ok := ref.Resource.StateToCache(state, ref.Cluster); !ok || back != key {
			t.Errorf("%q reads as %+v and is written %q", key, ref, back)
		}
	})
}

var equateAddrs = cmp.Options{
	cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, CIDR{}),
}

func TestCopiedFrom(t *testing.T) {
	for key, want := range map[string]string{
		IPs.CachePrefix("west") + "10.2.0.1":               "west",
		IPs.CachePrefix("west"):                            "west",
		Identities.CachePrefix("west"):                     "west",
		Services.CachePrefix("west") + "shop/web":          "west",
		PeerCachePrefix("west"):                            "west",
		PeerNodeKey("west", "n1"):                          "west",
		PeerClusterKey("west"):                             "west",
		IPs.AllCachePrefix():                               "",
		CachePrefix:                                        "",
		CiliumCachePrefix:                                  "",
		CiliumCachePrefix + "west/":                        "",
		IPs.StatePrefix("west") + "10.2.0.1":               "",
		IPs.CacheSyncedKey("west"):                         "",
		ClusterConfigKey("west"):                           "",
		PeerKey("west"):                                    "",
		NodeEndpointKey("n1", "weft/cache/west/", "web-1"): "",
		"": "",
	} {
		if got := CopiedFrom(key); got != want {
			t.Errorf("%q is copied from %q, want %q", key, got, want)
		}
	}
}

func TestLastAddr(t *testing.T) {
	for prefix, want := range map[string]string{
		"10.1.2.3/16": "10.1.255.255", "10.1.2.0/31": "10.1.2.1", "10.1.2.3/32": "10.1.2.3", "0.0.0.0/0": "255.255.255.255",
		"fd00:1::/120": "fd00:1::ff", "fd00::7/128": "fd00::7", "fd00::/13": "fd07:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
	} {
		if got := LastAddr(netip.MustParsePrefix(prefix)); got != netip.MustParseAddr(want) {
			t.Errorf("the last of %s is %v, want %s", prefix, got, want)
		}
	}
}
