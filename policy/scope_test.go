package policy

import (
	"testing"

	"github.com/weft-mesh/weft/identity"
)

func TestOwnClusterOnly(t *testing.T) {
	const tcp80 = ", toPorts: [{ports: [{port: '80', protocol: TCP}]}]"
	from := func(selector string) string {
		return cnp("ingress: [{fromEndpoints: [" + selector + "]" + tcp80 + "}]")
	}
	for _, tt := range []struct {
		name, manifests, peer string
		want                  bool
	}{
		{"a selector without a cluster", from("{matchLabels: {app: frontend}}"), "east/frontend", true},
		{"everybody of the namespace", from("{}"), "east/intruder", true},
		{"of the own cluster, the labels do not match", from("{matchLabels: {app: other}}"), "east/frontend", false},
		{"the namespace does not match", from("{matchLabels: {app: frontend}}"), "east/other/frontend", false},
		{"a namespace that is named", from("{matchLabels: {app: frontend, io.kubernetes.pod.namespace: other}}"), "east/other/frontend", true},
		{"one selector of two", from("{matchLabels: {app: other}}, {matchLabels: {app: frontend}}"), "east/frontend", true},
		{"the own cluster by name is meant so", from("{matchLabels: {app: frontend, io.cilium.k8s.policy.cluster: west}}"), "east/frontend", false},
		{"a third cluster by name", from("{matchLabels: {app: frontend, io.cilium.k8s.policy.cluster: north}}"), "east/frontend", false},
		{"a peer of the own cluster", from("{matchLabels: {app: other}}"), "frontend", false},
		{"nobody of a cluster", from("{}"), "world", false},
		{"nobody who is known", from("{}"), "unknown-member", false},
		{"another port", cnp("ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: '81', protocol: TCP}]}]}]"), "east/frontend", false},
		{"all ports", cnp("ingress: [{fromEndpoints: [{}]}]"), "east/frontend", true},
		{"the other direction", cnp("ingress: [{}]\negress: [{toEndpoints: [{}]}]"), "east/frontend", false},
		{"a denial", cnp("ingressDeny: [{fromEndpoints: [{matchLabels: {app: frontend}}]}]"), "east/frontend", false},
		{"an entity means what it says", cnp("ingress: [{fromEntities: [cluster]}]"), "east/frontend", false},
		{"Kubernetes' policies mean the own cluster too", netpol("ingress: [{from: [{podSelector: {matchLabels: {app: frontend}}}]}]"), "east/frontend", true},
		{"a policy for somebody else", "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p, namespace: default}\nspec: {endpointSelector: {matchLabels: {app: db}}, ingress: [{fromEndpoints: [{}]}]}", "east/frontend", false},
		{"clusterwide", ccnp("c", "ingress: [{fromEndpoints: [{matchLabels: {app: frontend}}]}]"), "east/other/frontend", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := testWorld(t, tt.manifests)
			f := Flow{Subject: w.Identities[people["web"]], Direction: Ingress, Peer: people[tt.peer], Proto: ProtoTCP, Port: 80}
			if tt.want && Evaluate(w, f).Allow {
				t.Fatal("the flow is allowed, there is nothing to explain")
			}
			if got := OwnClusterOnly(w, f); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestOwnClusterOnlyEgress(t *testing.T) {
	w := testWorld(t, cnp("egress: [{toEndpoints: [{matchLabels: {app: frontend}}]}]"))
	for peer, want := range map[string]bool{"east/frontend": true, "east/intruder": false, "frontend": false} {
		f := Flow{Subject: w.Identities[people["web"]], Direction: Egress, Peer: people[peer], Proto: ProtoTCP, Port: 80}
		if got := OwnClusterOnly(w, f); got != want {
			t.Errorf("to %s: got %v, want %v", peer, got, want)
		}
	}
}

func TestAPolicySelectsItsPods(t *testing.T) {
	policies, err := Parse([]byte(`{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: p, namespace: shop}, spec: {endpointSelector: {matchLabels: {app: web}}, ingress: [{}]}}`))
	if err != nil {
		t.Fatal(err)
	}
	for labels, want := range map[string]bool{
		"k8s:app=web;k8s:io.kubernetes.pod.namespace=shop;k8s:io.cilium.k8s.policy.cluster=east;":  true,
		"k8s:app=webb;k8s:io.kubernetes.pod.namespace=shop;k8s:io.cilium.k8s.policy.cluster=east;": false,
		"k8s:app=web;k8s:io.kubernetes.pod.namespace=dev;k8s:io.cilium.k8s.policy.cluster=east;":   false,
	} {
		pod, err := identity.ParseLabels(labels)
		if err != nil {
			t.Fatal(err)
		}
		if got := policies[0].Selects("east", pod); got != want {
			t.Errorf("%s: %v", labels, got)
		}
	}
}
