package registry

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/api"
)

func TestApplyWarns(t *testing.T) {
	r, _ := fixture(t)
	doubtful := strings.Replace(cnp, "  ingress:", "  enableDefaultDeny: {egress: true}\n  ingress:", 1)
	for _, dryRun := range []bool{true, false} {
		result, err := r.Apply(t.Context(), []byte(pod+"---\n"+doubtful), api.ManifestOptions{DryRun: dryRun})
		if err != nil {
			t.Fatal(err)
		}
		const want = "document 2, CiliumNetworkPolicy default/only-frontend: spec.enableDefaultDeny.egress: denies all egress"
		if len(result.Warnings) != 1 || !strings.HasPrefix(result.Warnings[0].String(), want) {
			t.Errorf("dry run %v: warned %v", dryRun, result.Warnings)
		}
	}
	if result := apply(t, r, cnp); len(result.Warnings) > 0 {
		t.Errorf("warned %v without a reason", result.Warnings)
	}
}

func TestANamespaceIsLabelledWithItsName(t *testing.T) {
	r, _ := fixture(t)
	const ns = "apiVersion: v1\nkind: Namespace\nmetadata: {name: dev, labels: {%s}}\n"
	for _, labels := range []string{"team: a", "kubernetes.io/metadata.name: dev"} {
		apply(t, r, fmt.Sprintf(ns, labels))
		list, err := r.Get(t.Context(), "ns", "", "dev")
		if err != nil {
			t.Fatal(err)
		}
		var got corev1.Namespace
		if err := json.Unmarshal(list.Items[0], &got); err != nil || got.Labels["kubernetes.io/metadata.name"] != "dev" {
			t.Errorf("with %s: labels %v (%v)", labels, got.Labels, err)
		}
	}
	_, err := r.Apply(t.Context(), fmt.Appendf(nil, ns, "kubernetes.io/metadata.name: prod"), api.ManifestOptions{})
	if err == nil || !strings.Contains(err.Error(), `is "prod", but this label is always the namespace's name: remove it or write "dev"`) {
		t.Errorf("another name: %v", err)
	}
}

func TestPoliciesOfEveryKind(t *testing.T) {
	r, _ := fixture(t)
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	r.now = func() time.Time { return now }
	const netpol = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: np, namespace: shop}\nspec: {podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: http}]}]}\n"
	const group = "apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: partners}\nspec: {externalCIDRs: [203.0.113.0/24]}\n"
	const refers = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: out}\nspec: {endpointSelector: {}, egress: [{toCIDRSet: [{cidrGroupRef: partners}]}]}\n"
	if result := apply(t, r, refers); len(result.Warnings) != 1 || !strings.Contains(result.Warnings[0].Message, `there is no CiliumCIDRGroup "partners": what refers to it selects nobody`) {
		t.Errorf("without the group: warned %v", result.Warnings)
	}
	all := netpol + "---\n" + group + "---\n" + refers
	if result := apply(t, r, all); summary(result) != "shop/np created, partners created, default/out unchanged" || len(result.Warnings) > 0 {
		t.Errorf("%s, warned %v", summary(result), result.Warnings)
	}
	if result := apply(t, r, refers); len(result.Warnings) > 0 {
		t.Errorf("with the group: warned %v", result.Warnings)
	}
	for _, o := range []struct{ word, namespace, name, want string }{
		{"netpol", "shop", "np", `"port":"http"`}, {"networkpolicies", "shop", "np", `"kind":"NetworkPolicy"`},
		{"ccg", "", "partners", `"externalCIDRs":["203.0.113.0/24"]`},
	} {
		list, err := r.Get(t.Context(), o.word, o.namespace, o.name)
		if err != nil || !strings.Contains(string(list.Items[0]), o.want) {
			t.Errorf("%s: %v (%v)", o.word, list, err)
		}
		var stored metav1.PartialObjectMetadata
		if err == nil && (json.Unmarshal(list.Items[0], &stored) != nil || stored.UID == "" || !stored.CreationTimestamp.Time.Equal(now)) {
			t.Errorf("%s: has UID %q, created %v", o.word, stored.UID, stored.CreationTimestamp)
		}
		// What is shown is a manifest.
		if err == nil && summary(apply(t, r, string(list.Items[0]))) != strings.TrimPrefix(o.namespace+"/"+o.name+" unchanged", "/") {
			t.Errorf("%s: applied again it is another", o.word)
		}
	}
	if _, err := r.Apply(t.Context(), []byte(strings.Replace(netpol, "port: http", "port: 70000", 1)), api.ManifestOptions{}); err == nil ||
		!strings.Contains(err.Error(), "document 1, NetworkPolicy shop/np: spec.ingress[0].ports[0].port: 70000 is out of range") {
		t.Errorf("a bad port: %v", err)
	}
	result, err := r.DeleteManifest(t.Context(), []byte(all), api.ManifestOptions{})
	if err != nil || summary(result) != "shop/np deleted, partners deleted, default/out deleted" {
		t.Errorf("deleted: %v (%v)", result, err)
	}
}
