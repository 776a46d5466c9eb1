package intake

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// desk feeds an intake of cluster east.
type desk struct {
	t    *testing.T
	in   *Intake
	rows *tables.Tables
}

func newDesk(t *testing.T) *desk {
	tab := tables.New()
	return &desk{t: t, in: New("east", tab), rows: tab}
}

func (d *desk) put(key, value string) {
	d.in.Apply([]store.Event{{KV: store.KV{Key: key, Value: []byte(value)}}})
}

func (d *desk) putJSON(key string, v any) { d.put(key, string(wire.Marshal(v))) }

func (d *desk) drop(key string) {
	d.in.Apply([]store.Event{{KV: store.KV{Key: key}, Deleted: true}})
}

// shown is a table as lines.
func (d *desk) shown(name string) string {
	d.t.Helper()
	s, ok := d.rows.Show(name)
	if !ok {
		d.t.Fatalf("no table %q", name)
	}
	var lines []string
	for _, row := range s.Rows {
		lines = append(lines, strings.Join(row, " "))
	}
	return strings.Join(lines, "\n")
}

func (d *desk) want(table, has string, there bool) {
	d.t.Helper()
	if got := d.shown(table); strings.Contains(got, has) != there {
		d.t.Errorf("table %s: %q there is %v, want %v:\n%s", table, has, !there, there, got)
	}
}

// A value that cannot be read is a problem of the node since it was first seen,
// however often it is written again, until it can be read or is gone.
func TestAValueThatCannotBeReadIsAProblemSinceItWasFirstSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		problems := func() []*tables.Problem { return tables.All(d.rows.DB.ReadTxn(), d.rows.Problems) }
		key, began := wire.ObjectKey("ciliumnetworkpolicies", "shop", "deny"), time.Now()
		for range 3 {
			d.put(key, "{")
			time.Sleep(time.Minute)
		}
		p := problems()
		if len(p) != 1 || p[0].Table != wire.ProblemValues || p[0].Row != key || p[0].Error == "" || !p[0].Since.Equal(began) {
			t.Fatalf("problems %+v", p)
		}
		if r := tables.All(d.rows.DB.ReadTxn(), d.rows.Rejected); len(r) != 1 || !r[0].Since.Equal(began) {
			t.Errorf("rejected %+v", r)
		}
		d.drop(key)
		if p := problems(); len(p) != 0 {
			t.Errorf("gone, and still %+v", p[0])
		}
		d.put(wire.RotationKey, "{")
		d.putJSON(wire.RotationKey, wire.Rotation{Epoch: 2})
		if p := problems(); len(p) != 0 {
			t.Errorf("mended, and still %+v", p[0])
		}
	})
}

func TestAValueThatCannotBeReadTakesNothingAway(t *testing.T) {
	d := newDesk(t)
	key := wire.Nodes.CachePrefix("west") + "n1"
	n := wire.Node{Name: "n1", Cluster: "west", IPAddresses: []wire.NodeAddress{{Type: wire.NodeInternalIP, IP: netip.MustParseAddr("172.16.2.1")}}}
	d.putJSON(key, n)
	d.want("nodes", "west n1", true)
	d.put(key, "{")
	d.want("nodes", "172.16.2.1", true)
	d.want("rejected", key, true)

	// A node cannot speak for another cluster's either.
	n.Cluster = "north"
	d.putJSON(key, n)
	d.want("nodes", "north", false)
	d.want("rejected", "north/n1", true)

	n.Cluster = "west"
	d.putJSON(key, n)
	d.want("rejected", key, false)
	d.drop(key)
	d.want("nodes", "west n1", false)
}

// A policy that was accepted once is in force, whatever is refused by now.
func TestAStoredPolicyIsTaken(t *testing.T) {
	d := newDesk(t)
	d.put(wire.ObjectKey("ciliumnetworkpolicies", "shop", "ping"), `{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy",
		"metadata":{"name":"ping","namespace":"shop"},
		"spec":{"endpointSelector":{},"ingress":[{"icmps":[{"fields":[{"type":8},{"type":128,"family":"IPv6"}]}]}]}}`)
	d.want("policies", "ping", true)
}

func TestANodeIsPutTogetherFromItsParts(t *testing.T) {
	d := newDesk(t)
	cilium, weft := wire.Nodes.CachePrefix("west")+"n1", wire.PeerNodeKey("west", "n1")
	d.putJSON(weft, wire.ExportNode{Name: "n1", Epoch: 3, Lanes: [2]wire.Lane{{PublicKey: "AAAAAAAAAAAA", Port: 51871}}})
	d.putJSON(cilium, wire.Node{Name: "n1", Cluster: "west"})
	d.want("nodes", "3 AAAAAAAA", true)
	d.drop(cilium)
	d.want("nodes", "west n1", true)
	d.drop(weft)
	d.want("nodes", "west n1", false)
}

// There is one copy of what many rows of peers have, and nothing that no agent uses.
func TestRowsOfPeersAreSmall(t *testing.T) {
	d := newDesk(t)
	for n := range 2 {
		addr := netip.AddrFrom4([4]byte{10, 2, 0, byte(n)})
		d.putJSON(wire.IPs.CachePrefix("west")+addr.String(), wire.IPIdentityPair{IP: addr, ID: 131073, K8sNamespace: "shop", K8sPodName: fmt.Sprint("web-", n)})
	}
	one, two := d.rows.IPAt(d.rows.DB.ReadTxn(), "west", netip.MustParsePrefix("10.2.0.0/32")), d.rows.IPAt(d.rows.DB.ReadTxn(), "west", netip.MustParsePrefix("10.2.0.1/32"))
	if unsafe.StringData(one.Cluster) != unsafe.StringData(two.Cluster) || unsafe.StringData(one.Namespace) != unsafe.StringData(two.Namespace) || one.Namespace != "shop" {
		t.Errorf("names are kept twice: %+v, %+v", one, two)
	}
	d.putJSON(wire.Nodes.CachePrefix("west")+"n1", wire.Node{Name: "n1", Cluster: "west", Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"a": "b"},
		IPAddresses: []wire.NodeAddress{{Type: wire.NodeInternalIP, IP: netip.MustParseAddr("192.0.2.1")}, {Type: wire.NodeCiliumInternalIP, IP: netip.MustParseAddr("10.2.1.1")}}})
	node := tables.Get(d.rows.DB.ReadTxn(), d.rows.Nodes, "west/n1")
	if node.Internal() != netip.MustParseAddr("10.2.1.1") || !slices.Equal(node.Addresses(), []netip.Addr{netip.MustParseAddr("192.0.2.1")}) {
		t.Errorf("node %+v", node.Place)
	}
	in := names{}
	for n := range 3 * mostNames {
		in.one(fmt.Sprint(n))
	}
	if len(in) > mostNames {
		t.Errorf("%d names are kept", len(in))
	}
}

func TestASilentAgentsNodeStaysAndARemovedOneGoes(t *testing.T) {
	d := newDesk(t)
	state := wire.NodeState{Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("172.16.1.1")}}
	d.put(wire.RegistrationKey("n1"), `{"name":"n1","addresses":["172.16.1.1"]}`)
	d.putJSON(wire.NodeKey("n1"), state)
	d.drop(wire.NodeKey("n1"))
	d.want("nodes", "172.16.1.1", true)
	// A removal takes both, in either order.
	for _, order := range [][]string{{wire.RegistrationKey("n1"), wire.NodeKey("n1")}, {wire.NodeKey("n1"), wire.RegistrationKey("n1")}} {
		d.put(wire.RegistrationKey("n1"), `{"name":"n1","addresses":["172.16.1.1"]}`)
		d.putJSON(wire.NodeKey("n1"), state)
		for _, key := range order {
			d.drop(key)
		}
		d.want("nodes", "n1", false)
	}
}

func TestAnAddressGoesToItsNextHolder(t *testing.T) {
	d := newDesk(t)
	ep := func(pod string, ip string) wire.Endpoint {
		return wire.Endpoint{Namespace: "shop", Pod: pod, Node: "n1", IP: netip.MustParseAddr(ip), Identity: identity.Number(65537)}
	}
	d.putJSON(wire.EndpointKey("shop", "a"), ep("a", "10.1.1.2"))
	d.putJSON(wire.EndpointKey("shop", "b"), ep("b", "10.1.1.2"))
	d.drop(wire.EndpointKey("shop", "a"))
	d.want("ips", "10.1.1.2 65537", true)
	d.want("ips", "shop/b", true)
	d.putJSON(wire.EndpointKey("shop", "b"), ep("b", "10.1.1.3"))
	d.want("ips", "10.1.1.2", false)
	d.drop(wire.EndpointKey("shop", "b"))
	d.want("ips", "shop", false)
}

func TestAClusterIsCompleteOnceItsCopyIs(t *testing.T) {
	d := newDesk(t)
	d.putJSON(wire.PeerKey("west"), wire.Peer{Name: "west", ID: 2, Connected: true})
	complete := func() bool {
		return tables.Get(d.rows.DB.ReadTxn(), d.rows.Clusters, "west").Complete()
	}
	for _, r := range []wire.Resource{wire.Nodes, wire.Identities, wire.IPs} {
		if complete() {
			t.Fatalf("complete before %s", r)
		}
		d.put(r.CacheSyncedKey("west"), "2026-01-02T15:04:05Z")
	}
	d.put(wire.EndpointSlices.CacheSyncedKey("west"), "in some other form")
	if !complete() {
		t.Error("not complete with all canaries")
	}
	d.drop(wire.Nodes.CacheSyncedKey("west"))
	if complete() {
		t.Error("complete without one")
	}
	// Invited is not added.
	d.putJSON(wire.PeerKey("north"), wire.Peer{Name: "north", ID: 3, Invited: true})
	d.want("clusters", "north", false)
}

func TestSecretsAreInNoTable(t *testing.T) {
	d := newDesk(t)
	_, changed := d.in.GossipKeys()
	secret := []byte("0123456789abcdef")
	d.putJSON(wire.GossipKey, wire.GossipKeys{LAN: [][]byte{secret}})
	select {
	case <-changed:
	default:
		t.Error("nobody was told")
	}
	d.put(wire.GossipKey, `{"lan":["broken`)
	keys, _ := d.in.GossipKeys()
	if len(keys.LAN) != 1 || string(keys.LAN[0]) != string(secret) {
		t.Errorf("%d keys after a broken value", len(keys.LAN))
	}
	for _, name := range d.rows.Names() {
		if s := d.shown(name); strings.Contains(s, string(secret)) || strings.Contains(s, "broken") {
			t.Errorf("table %s shows the key", name)
		}
	}
}

func TestTheOwnClusterDoesNotGoWithItsKey(t *testing.T) {
	d := newDesk(t)
	d.putJSON(wire.ClusterKey, wire.Cluster{Name: "east", ID: 1})
	d.drop(wire.ClusterKey)
	d.want("clusters", "east 1 yes", true)
}

// FuzzApply feeds keys and values at random: whatever comes, nothing panics, and
// what was rejected is said.
func FuzzApply(f *testing.F) {
	for _, prefix := range Prefixes {
		f.Add(prefix+"x/y/z", "{}")
	}
	f.Add(wire.ObjectKey("pods", "shop", "a"), `{"spec":{"nodeName":"n1"}}`)
	f.Add(wire.ObjectKey("services", "shop", "a"), `{"spec":{"clusterIP":"10.101.0.1"}}`)
	f.Add(wire.ObjectKey("ciliumnetworkpolicies", "shop", "a"), `{"kind":"CiliumNetworkPolicy"}`)
	f.Add(wire.EndpointSlices.CachePrefix("west")+"a/b", "\x28\xb5\x2f\xfd")
	f.Add(wire.IPs.CachePrefix("west")+"10.2.0.1", `{"IP":"10.2.0.1","ID":131073}`)
	f.Fuzz(func(t *testing.T, key, value string) {
		d := newDesk(t)
		d.put(key, value)
		for _, name := range d.rows.Names() {
			d.shown(name)
		}
		d.drop(key)
		_ = fmt.Sprint(d.rows.Summaries())
	})
}

// A key that nobody can read is refused for as long as it is there.
func TestARefusalGoesWithItsKey(t *testing.T) {
	d := newDesk(t)
	for _, key := range []string{wire.PeersPrefix + "a/b", wire.NodesPrefix + "x", wire.FormerPrefix + "a/b", wire.EndpointsPrefix + "a", wire.CachePrefix + "west/nonsense"} {
		d.put(key, "{}")
		d.want("rejected", key, true)
		d.drop(key)
		d.want("rejected", key, false)
	}
	// That the cluster's own record is gone is worth telling.
	d.drop(wire.ClusterKey)
	d.want("rejected", wire.ClusterKey, true)
}

// What is accepted is enforced: every kind of object that can be applied is read here.
func TestEveryKindIsTakenIn(t *testing.T) {
	for _, k := range manifest.Kinds() {
		d, namespace := newDesk(t), ""
		if k.Namespaced {
			namespace = "shop"
		}
		key := wire.ObjectKey(k.Plural, namespace, "one")
		d.put(key, "not an object")
		d.want("rejected", key, true)
	}
}
