package install

import (
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write what the chart renders now to testdata")

// needed are the values that have no default.
var needed = []string{"cluster.name=east,cluster.id=1,cluster.serviceCIDR=10.96.0.0/12,k8sServiceHost=192.0.2.10", "cluster.podCIDRs={10.244.0.0/16}"}

func render(t *testing.T, set ...string) []*unstructured.Unstructured {
	t.Helper()
	values, err := Values(nil, append(slices.Clone(needed), set...), nil)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := Render("weft-system", "v1.2.3", "v1.36.3", values)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

// What the chart renders is kept, so that a change shows what it changes for whoever upgrades.
func TestRendered(t *testing.T) {
	for name, set := range map[string][]string{
		"default": nil,
		"dual-stack": {"cluster.podCIDRs={10.244.0.0/16,fd00:10:244::/56}", "cluster.ipv6ServiceCIDR=fd00:10:96::/112", "ipam.mode=cluster-pool",
			"image.repository=registry.example/weft", "image.digest=sha256:" + strings.Repeat("a", 64), "imagePullSecrets[0].name=registry",
			"tunnel.userspace=never", "cni.install=false", "agent.extraArgs={--log-level=debug}", "apiServer.extraArgs={--peer-changes=500}", "apiServer.etcd.endpoints={https://192.0.2.20:2379}", "apiServer.etcd.secret=etcd"},
		"several": {"apiServer.replicas=3"},
	} {
		t.Run(name, func(t *testing.T) {
			var text strings.Builder
			for _, o := range render(t, set...) {
				one, err := yaml.Marshal(o)
				if err != nil {
					t.Fatal(err)
				}
				text.WriteString("---\n" + string(one))
			}
			file := filepath.Join("testdata", name+".yaml")
			if *update {
				if err := os.WriteFile(file, []byte(text.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil || string(want) != text.String() {
				t.Errorf("the chart renders something else than %s (%v); if that is wanted, run go test ./deploy/install -update", file, err)
			}
		})
	}
}

// Every object belongs to the release, and what refers to another one finds it.
func TestObjectsBelongTogether(t *testing.T) {
	accounts := map[string]bool{}
	var order []string
	for _, o := range render(t) {
		order = append(order, o.GetKind())
		if o.GetLabels()["app.kubernetes.io/instance"] != Release || o.GetLabels()["app.kubernetes.io/version"] != "v1.2.3" {
			t.Errorf("%s %s has the labels %v", o.GetKind(), o.GetName(), o.GetLabels())
		}
		switch o.GetKind() {
		case "ServiceAccount":
			accounts[o.GetName()] = true
		case "Deployment", "DaemonSet":
			account, _, _ := unstructured.NestedString(o.Object, "spec", "template", "spec", "serviceAccountName")
			if !accounts[account] {
				t.Errorf("%s %s runs as %q, which is not there before it", o.GetKind(), o.GetName(), account)
			}
			containers, _, _ := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "containers")
			for _, c := range containers {
				if image := c.(map[string]any)["image"]; image != "ghcr.io/weft-mesh/weft:v1.2.3" {
					t.Errorf("%s %s runs %v", o.GetKind(), o.GetName(), image)
				}
			}
		case "ClusterRoleBinding", "RoleBinding":
			subjects, _, _ := unstructured.NestedSlice(o.Object, "subjects")
			for _, s := range subjects {
				if name := s.(map[string]any)["name"]; name != "weft-apiserver" {
					t.Errorf("%s %s gives rights to %v, and only the API server needs any", o.GetKind(), o.GetName(), name)
				}
			}
		}
	}
	if last := order[len(order)-1]; last != "DaemonSet" {
		t.Errorf("the last object is a %s: pods come after what they need", last)
	}
}

// What a process has on its node is mounted where it looks for it, and nothing is mounted in
// vain.
func TestFoldersAreMounted(t *testing.T) {
	for _, o := range render(t) {
		if kind := o.GetKind(); kind != "Deployment" && kind != "DaemonSet" {
			continue
		}
		mounted, used := map[string]bool{}, map[string]bool{}
		containers, _, _ := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "containers")
		for _, c := range containers {
			mounts, _, _ := unstructured.NestedSlice(c.(map[string]any), "volumeMounts")
			for _, m := range mounts {
				m := m.(map[string]any)
				mounted[m["mountPath"].(string)], used[m["name"].(string)] = true, true
			}
		}
		volumes, _, _ := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "volumes")
		for _, v := range volumes {
			if name := v.(map[string]any)["name"].(string); !used[name] {
				t.Errorf("%s: nothing mounts volume %s", o.GetName(), name)
			}
		}
		want := map[string][]string{
			"weft-apiserver": {"/var/lib/weft/apiserver", "/tmp"},
			"weft-agent": {"/var/lib/weft/agent", "/var/lib/weft/cni", "/run/weft", "/var/run/wireguard", "/run/netns", "/var/run/netns", "/sys/fs/bpf", "/sys/fs/cgroup",
				"/etc/cni/net.d", "/opt/cni/bin", "/var/run/secrets/weft.io", "/var/run/weft.io/bootstrap"},
			"weft-tunnel": {"/var/lib/weft/tunnel", "/var/run/wireguard", "/dev/net"},
			"weft-dns":    {"/run/weft"},
		}[o.GetName()]
		if len(want) == 0 {
			t.Errorf("%s is new here", o.GetName())
		}
		for _, path := range want {
			if !mounted[path] {
				t.Errorf("%s: nothing is mounted at %s", o.GetName(), path)
			}
		}
	}
}

func TestWrongValues(t *testing.T) {
	for _, c := range []struct {
		set  []string
		want string
	}{
		{nil, "cluster/name"},
		{append(needed[:2:2], "k8sServiceHost="), "k8sServiceHost"},
		{[]string{"cluster.name=east"}, "cluster/id"},
		{append(needed[:2:2], "cluster.id=300"), "it may be 1 to 255"},
		{append(needed[:2:2], "cluster.id=0"), "cluster/id"},
		{append(needed[:2:2], "cluster.name=East"), "cluster/name"},
		{append(needed[:2:2], "cluster.podCIDRs={10.244.0.0}"), "podCIDRs/0"},
		{append(needed[:2:2], "ipam.mode=crd"), "ipam/mode"},
		{append(needed[:2:2], "agnt.dataDir=/x"), "agnt"},
		{append(needed[:2:2], "agent.dataDir=x"), "agent/dataDir"},
		{append(needed[:2:2], "image.digest=latest"), "image/digest"},
		{append(needed[:2:2], "apiServer.replicas=2"), "apiServer/replicas"},
		{append(needed[:2:2], "apiServer.etcd.endpoints={https://192.0.2.20:2379}"), "apiServer.etcd.secret"},
		{append(needed[:2:2], "apiServer.etcd.endpoints={http://192.0.2.20:2379}"), "apiServer/etcd/endpoints"},
	} {
		values, err := Values(nil, c.set, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Render("weft-system", "v1", "", values); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want it to name %s", c.set, err, c.want)
		}
	}
	if _, err := Values(nil, []string{"cluster.podCIDRs={10.0.0.0/8"}, nil); err == nil {
		t.Error("an assignment that does not end was accepted")
	}
	if _, err := Values([]string{"no-such-file.yaml"}, nil, nil); err == nil {
		t.Error("a file that is not there was read")
	}
}

func TestAnOldKubernetesIsRefused(t *testing.T) {
	values, err := Values(nil, needed, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Render("weft-system", "v1", "v1.29.4", values); err == nil || !strings.Contains(err.Error(), ">=1.30.0") {
		t.Errorf("Kubernetes 1.29: %v", err)
	}
}

// Of two files the later one wins, and assignments win over files.
func TestValuesOfFilesAndAssignments(t *testing.T) {
	first := filepath.Join(t.TempDir(), "first.yaml")
	if err := os.WriteFile(first, []byte("cluster: {name: a, id: 1}\nimage: {tag: x}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	values, err := Values([]string{first, "-"}, []string{"cluster.name=c"}, strings.NewReader("cluster: {name: b, id: 2}\n"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := yaml.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	if want := "cluster:\n  id: 2\n  name: c\nimage:\n  tag: x\n"; string(text) != want {
		t.Errorf("values are\n%s, want\n%s", text, want)
	}
}

func TestWhatIsMissing(t *testing.T) {
	for _, c := range []struct {
		seen       bool
		want, have int32
		says       string
	}{{false, 1, 1, "waiting"}, {true, 3, 2, "2 of 3"}, {true, 3, 3, ""}, {true, 0, 0, ""}} {
		if got := missingOf(c.seen, c.want, c.have); (got == "") != (c.says == "") || !strings.Contains(got, c.says) {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

// Cilium's definitions take the same rules in both kinds of policies, and no one that is
// already there is touched.
func TestDefinitions(t *testing.T) {
	all, err := Definitions()
	if err != nil {
		t.Fatal(err)
	}
	specs := map[string]any{}
	for _, o := range all {
		if !offered(o) || !ours(o) {
			t.Errorf("%s is not among those that may be there already: labels %v", o.GetName(), o.GetLabels())
		}
		versions, _, _ := unstructured.NestedSlice(o.Object, "spec", "versions")
		properties, _, err := unstructured.NestedMap(versions[0].(map[string]any), "schema", "openAPIV3Schema", "properties")
		if err != nil {
			t.Fatal(err)
		}
		delete(properties, "status")
		specs[o.GetName()] = properties
	}
	if len(specs) != 5 || !reflect.DeepEqual(specs["ciliumnetworkpolicies.cilium.io"], specs["ciliumclusterwidenetworkpolicies.cilium.io"]) {
		t.Errorf("the definitions are of %d kinds, and the two of policies differ", len(specs))
	}
	theirs := all[0].DeepCopy()
	theirs.SetLabels(map[string]string{partOf: Release, cilium: "1.33.0"})
	if ours(theirs) {
		t.Error("one that Cilium has replaced is taken for ours")
	}
	for _, o := range render(t) {
		if offered(o) {
			t.Errorf("%s is among what is applied in any case", o.GetName())
		}
	}
}

// A description in braces that is not quoted ends at its first comma: what follows would be a
// field of the schema, and silently none.
func TestSchemasHaveNoOtherFields(t *testing.T) {
	known := map[string]bool{}
	for _, field := range strings.Fields("description type format properties additionalProperties items required anyOf oneOf enum pattern minimum maximum minItems maxItems minLength maxLength") {
		known[field] = true
	}
	var walk func(at string, schema map[string]any)
	walk = func(at string, schema map[string]any) {
		for field, value := range schema {
			if !known[field] && !strings.HasPrefix(field, "x-kubernetes-") || value == nil {
				t.Errorf("%s has a field %q: %v", at, field, value)
			}
		}
		if schema["type"] == nil && schema["x-kubernetes-int-or-string"] == nil {
			t.Errorf("%s has no type", at)
		}
		properties, _ := schema["properties"].(map[string]any)
		for name, one := range properties {
			walk(at+"."+name, one.(map[string]any))
		}
		if items, ok := schema["items"].(map[string]any); ok {
			walk(at+"[]", items)
		}
	}
	all, err := Definitions()
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, o := range append(all, render(t)...) {
		if o.GetKind() != "CustomResourceDefinition" {
			continue
		}
		versions, _, _ := unstructured.NestedSlice(o.Object, "spec", "versions")
		schema, _, err := unstructured.NestedMap(versions[0].(map[string]any), "schema", "openAPIV3Schema")
		if err != nil {
			t.Fatal(err)
		}
		walk(o.GetName(), schema)
		found++
	}
	if found != 7 {
		t.Errorf("there are %d definitions", found)
	}
}
