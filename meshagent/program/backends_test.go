package program

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/wire"
)

// Whoever may write slices in one namespace, and any peer, could point a service's
// clients anywhere: only backends that are theirs to offer are used.
func TestBackendsAreTheirOwnersOnly(t *testing.T) {
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	all := tables.New()
	own := &tables.Cluster{Name: "east", Own: &wire.Cluster{Name: "east", ID: 1, PodCIDRs: []netip.Prefix{prefix("10.1.0.0/16")}, ServiceCIDR: prefix("10.101.0.0/16")}}
	peer := &tables.Cluster{Name: "west", Peer: &wire.Peer{Name: "west", ID: 2, PodCIDRs: []netip.Prefix{prefix("10.2.0.0/16")}}}
	node := func(cluster, underlay, internal string, more ...netip.Addr) *tables.Node {
		addrs := append([]netip.Addr{addr(underlay)}, more...)
		cidrs := []netip.Prefix{netip.PrefixFrom(addr(internal), 24).Masked()}
		return &tables.Node{Cluster: cluster, Name: "n1", Registration: &wire.Registration{Addresses: addrs, PodCIDRs: cidrs}, State: &wire.NodeState{Name: "n1", Addresses: addrs, Internal: addr(internal), PodCIDRs: cidrs}}
	}
	slice := func(cluster, namespace string, derived bool, a string) *tables.Slice {
		return &tables.Slice{Cluster: cluster, Derived: derived, Slice: service.Slice{Namespace: namespace, Name: "web", Service: "web", Endpoints: []service.Endpoint{{Addr: addr(a), Ready: true}}}}
	}
	for name, c := range map[string]struct {
		slice *tables.Slice
		why   string // "" if the backend is used
	}{
		"own pod":                 {slice("east", "shop", false, "10.1.1.2"), ""},
		"own pod, derived":        {slice("east", "shop", true, "10.1.1.2"), ""},
		"pod not there yet":       {slice("east", "shop", false, "10.1.1.9"), ""},
		"outside of the mesh":     {slice("east", "shop", false, "192.0.2.77"), ""},
		"a peer's node":           {slice("east", "shop", false, "192.0.2.99"), "is the address of node west/n1"},
		"another namespace's pod": {slice("east", "dev", false, "10.1.1.2"), "pod shop/web-0, which is in another namespace"},
		"loopback":                {slice("east", "shop", false, "127.0.0.1"), "loopback"},
		"cloud metadata":          {slice("east", "shop", false, "169.254.169.254"), "link-local"},
		"a service":               {slice("east", "shop", false, "10.101.0.1"), "is a service's address"},
		"own node's process":      {slice("east", "shop", false, "192.0.2.1"), ""},
		"the same, derived":       {slice("east", "shop", true, "192.0.2.1"), ""},
		"a node's second address": {slice("east", "shop", false, "192.0.2.2"), ""},
		"a node not started":      {slice("east", "shop", false, "192.0.2.3"), "is the address of node east/n3, which has not joined yet"},
		"own, offered by a peer":  {slice("west", "shop", false, "192.0.2.1"), "is the address of node east/n1"},
		"a node, from inside":     {slice("east", "shop", false, "10.1.1.1"), "is the address of node east/n1"},
		"a node, derived":         {slice("east", "shop", true, "10.1.1.1"), "is the address of node east/n1"},
		"a peer's pod":            {slice("east", "shop", false, "10.2.1.2"), "belongs to cluster west"},
		"peer's own":              {slice("west", "shop", false, "10.2.1.2"), ""},
		"peer's node":             {slice("west", "shop", false, "10.2.1.1"), "is the address of node west/n1"},
		"peer names ours":         {slice("west", "shop", false, "10.1.1.2"), "is outside the pod CIDRs of cluster west"},
		"peer names our service":  {slice("west", "shop", false, "10.101.0.1"), "is a service's address"},
		"peer names loopback":     {slice("west", "shop", false, "127.0.0.1"), "loopback"},
	} {
		txn := all.DB.WriteTxn(all.Clusters, all.IPs, all.Nodes)
		tables.Put(txn, all.Clusters, own)
		tables.Put(txn, all.Clusters, peer)
		tables.Put(txn, all.Nodes, node("east", "192.0.2.1", "10.1.1.1", addr("192.0.2.2")))
		tables.Put(txn, all.Nodes, &tables.Node{Cluster: "east", Name: "n3", Registration: &wire.Registration{Addresses: []netip.Addr{addr("192.0.2.3")}}})
		tables.Put(txn, all.Nodes, node("west", "192.0.2.99", "10.2.1.1"))
		tables.PutIP(txn, all, &tables.IP{Cluster: "east", Prefix: prefix("10.1.1.2/32"), Namespace: "shop", Pod: "web-0"})
		v := newView(all, "n1")
		v.load(txn)
		var d derived
		kept := 0
		for _, slices := range d.slices(v, []*tables.Slice{c.slice}, nil) {
			for _, s := range slices {
				kept += len(s.Endpoints)
			}
		}
		problems := d.doubts
		txn.Abort()
		switch {
		case c.why == "" && (kept != 1 || len(problems) != 0):
			t.Errorf("%s: %d kept, %v", name, kept, problems)
		case c.why != "" && (kept != 0 || len(problems) != 1 || !strings.Contains(problems[0].why, c.why)):
			t.Errorf("%s: %d kept, %v, want %q", name, kept, problems, c.why)
		}
	}
}
