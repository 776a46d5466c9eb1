package meshagent

import (
	"net/netip"
	"testing"

	"github.com/weft-mesh/weft/flow"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/policy"
)

// What default deny drops for want of a cluster in a selector says so, in both
// directions; what is dropped for another reason does not.
func TestHintAtClusterScope(t *testing.T) {
	const own = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: own, namespace: shop}\nspec:\n" +
		"  endpointSelector: {matchLabels: {app: web}}\n  ingress: [{fromEndpoints: [{matchLabels: {app: front}}]}]\n" +
		"  egress: [{toEndpoints: [{matchLabels: {app: front}}], icmps: [{fields: [{type: 8}]}]}]\n"
	policies, _, err := policy.ParseManifest([]byte(own))
	if err != nil {
		t.Fatal(err)
	}
	tab := tables.New()
	txn := tab.DB.WriteTxn(tab.Policies, tab.Identities)
	tables.Put(txn, tab.Policies, &tables.Policy{Kind: "ciliumnetworkpolicies", Namespace: "shop", Name: "own", Policies: policies})
	pod := func(cluster, app string, n identity.Number) flow.Endpoint {
		tables.Put(txn, tab.Identities, &tables.Identity{Cluster: cluster, Number: n,
			Labels: identity.PodLabels("shop", nil, map[string]string{"app": app}, "default", cluster)})
		return flow.Endpoint{Cluster: cluster, Namespace: "shop", Pod: app, Identity: n, Address: netip.MustParseAddr("10.1.1.1"), Port: 80}
	}
	web, front := pod("west", "web", 0x020001), pod("east", "front", 0x010001)
	near, intruder := pod("west", "front", 0x020002), pod("east", "intruder", 0x010002)
	txn.Commit()
	o := &observer{node: node{cluster: "west"}, tables: tab}
	named := []flow.Policy{{Kind: "CiliumNetworkPolicy", Namespace: "shop", Name: "own"}}

	for _, tt := range []struct {
		name  string
		f     flow.Flow
		proto uint8
		want  string
	}{
		{"from another cluster", flow.Flow{Direction: flow.Ingress, Source: front, Destination: web, Policies: named, DefaultDeny: true}, 6, policy.ScopeHint},
		{"to another cluster, by ICMP type", flow.Flow{Direction: flow.Egress, Source: web, Destination: front, ICMP: &flow.ICMP{Type: 8}, Policies: named, DefaultDeny: true}, 1, policy.ScopeHint},
		{"another ICMP type", flow.Flow{Direction: flow.Egress, Source: web, Destination: front, ICMP: &flow.ICMP{Type: 13}, Policies: named, DefaultDeny: true}, 1, ""},
		{"of the own cluster", flow.Flow{Direction: flow.Egress, Source: web, Destination: near, Policies: named, DefaultDeny: true}, 6, ""},
		{"whom no selector means", flow.Flow{Direction: flow.Ingress, Source: intruder, Destination: web, Policies: named, DefaultDeny: true}, 6, ""},
		{"a rule has denied it", flow.Flow{Direction: flow.Ingress, Source: front, Destination: web, Policies: named}, 6, ""},
		{"the policy is gone since", flow.Flow{Direction: flow.Ingress, Source: front, Destination: web, DefaultDeny: true,
			Policies: []flow.Policy{{Kind: "CiliumNetworkPolicy", Namespace: "shop", Name: "gone"}}}, 6, ""},
		{"from nobody who is known", flow.Flow{Direction: flow.Ingress, Source: flow.Endpoint{Identity: identity.UnknownMember}, Destination: web, Policies: named, DefaultDeny: true}, 6, ""},
	} {
		if got := o.hint(&tt.f, tt.proto); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestPlural(t *testing.T) {
	for kind, want := range map[string]string{
		policy.KindNamespaced: "ciliumnetworkpolicies", policy.KindClusterwide: "ciliumclusterwidenetworkpolicies", policy.KindNetwork: "networkpolicies",
	} {
		if got := plural(kind); got != want {
			t.Errorf("%s: got %s, want %s", kind, got, want)
		}
	}
}
