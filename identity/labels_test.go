package identity

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPodLabels(t *testing.T) {
	for _, tt := range []struct {
		name           string
		ns             map[string]string
		pod            map[string]string
		serviceAccount string
		want           string
	}{
		{"a bare pod has a namespace and a cluster", nil, nil, "",
			"k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop;k8s:io.cilium.k8s.policy.cluster=east;k8s:io.kubernetes.pod.namespace=shop;"},
		{"its own labels and its account", nil, map[string]string{"app": "web", "tier": ""}, "runner",
			"k8s:app=web;k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop;k8s:io.cilium.k8s.policy.cluster=east;k8s:io.cilium.k8s.policy.serviceaccount=runner;k8s:io.kubernetes.pod.namespace=shop;k8s:tier=;"},
		{"its namespace's labels, but for the one that is always its name", map[string]string{"team": "a", "kubernetes.io/metadata.name": "kube-system"}, nil, "",
			"k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop;k8s:io.cilium.k8s.namespace.labels.team=a;k8s:io.cilium.k8s.policy.cluster=east;k8s:io.kubernetes.pod.namespace=shop;"},
		{"labels that differ from pod to pod do not count", nil, map[string]string{
			"pod-template-hash": "1", "controller-revision-hash": "2", "statefulset.kubernetes.io/pod-name": "web-0",
			"apps.kubernetes.io/pod-index": "0", "batch.kubernetes.io/job-completion-index": "1", "topology.kubernetes.io/zone": "a",
			"failure-domain.beta.kubernetes.io/zone": "a", "annotation.x": "1", "etcd_node": "1", "app.kubernetes.io/name": "web",
		}, "", "k8s:app.kubernetes.io/name=web;k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop;k8s:io.cilium.k8s.policy.cluster=east;k8s:io.kubernetes.pod.namespace=shop;"},
		{"a pod cannot speak for its namespace, account or cluster", nil, map[string]string{
			KeyNamespace: "kube-system", KeyCluster: "west", KeyServiceAccount: "admin", KeyNamespaceLabels + ".team": "root",
		}, "", "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop;k8s:io.cilium.k8s.policy.cluster=east;k8s:io.kubernetes.pod.namespace=shop;"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := PodLabels("shop", tt.ns, tt.pod, tt.serviceAccount, "east")
			if diff := cmp.Diff(tt.want, got.String()); diff != "" {
				t.Error(diff)
			}
			if got.Namespace() != "shop" || got.Cluster() != "east" {
				t.Errorf("namespace %q, cluster %q", got.Namespace(), got.Cluster())
			}
		})
	}
}

func TestLabelsRefused(t *testing.T) {
	for name, text := range map[string]string{
		"no source":    "app=web;",
		"empty source": ":app=web;",
		"no key":       "k8s:=web;",
		"key twice":    "k8s:a=1;k8s:a=2;",
	} {
		t.Run(name, func(t *testing.T) {
			if ls, err := ParseLabels(text); err == nil {
				t.Errorf("accepted as %v", ls)
			}
		})
	}
}

func TestLabelsLookUp(t *testing.T) {
	ls := NewLabels(Label{"k8s", "b", "2"}, Label{"reserved", "b", ""}, Label{"k8s", "a", "0"}, Label{"k8s", "a", "1"})
	if got := ls.String(); got != "k8s:a=1;k8s:b=2;reserved:b=;" {
		t.Fatalf("sorted, the later wins: got %q", got)
	}
	for _, tt := range []struct {
		source, key, want string
		there             bool
	}{
		{"k8s", "a", "1", true}, {"any", "a", "1", true}, {"reserved", "b", "", true}, {"reserved", "a", "", false}, {"any", "c", "", false},
	} {
		if got, there := ls.Get(tt.source, tt.key); got != tt.want || there != tt.there {
			t.Errorf("Get(%s, %s) = %q, %v", tt.source, tt.key, got, there)
		}
	}
	if ls[1].String() != "k8s:b=2" || ls[2].String() != "reserved:b" {
		t.Errorf("got %v and %v", ls[1], ls[2])
	}
}

func TestLabelsInJSON(t *testing.T) {
	type row struct {
		Labels Labels `json:"labels"`
	}
	in := row{NewLabels(Label{"k8s", "app", "web"})}
	text, err := json.Marshal(in)
	if err != nil || string(text) != `{"labels":"k8s:app=web;"}` {
		t.Fatalf("%s, %v", text, err)
	}
	var out row
	if err := json.Unmarshal(text, &out); err != nil || !out.Labels.Equal(in.Labels) {
		t.Errorf("%v, %v", out, err)
	}
	if err := json.Unmarshal([]byte(`{"labels":"app"}`), &out); err == nil {
		t.Error("accepted a label without source")
	}
}

func FuzzParseLabels(f *testing.F) {
	f.Add("k8s:app=web;reserved:host=;cidr:10.0.0.0/8=")
	f.Add("k8s:a=b=c;any:x")
	f.Fuzz(func(t *testing.T, text string) {
		first, err := ParseLabels(text)
		if err != nil {
			return
		}
		again, err := ParseLabels(first.String())
		if err != nil || !first.Equal(again) || first.String() != again.String() {
			t.Errorf("%q read back as %q: %v", first, again, err)
		}
	})
}
