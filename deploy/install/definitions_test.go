package install

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/fake"
)

// Uninstalling leaves definitions of which there are objects, and those of others.
func TestDefinitionsAreRemoved(t *testing.T) {
	all, err := Definitions()
	if err != nil {
		t.Fatal(err)
	}
	definition := schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"}
	definitions := definition.GroupVersion().WithResource("customresourcedefinitions")
	lists, objects := map[schema.GroupVersionResource]string{definitions: "CustomResourceDefinitionList"}, []runtime.Object{}
	for _, o := range all {
		group, _, _ := unstructured.NestedString(o.Object, "spec", "group")
		plural, _, _ := unstructured.NestedString(o.Object, "spec", "names", "plural")
		kind, _, _ := unstructured.NestedString(o.Object, "spec", "names", "kind")
		lists[schema.GroupVersionResource{Group: group, Version: stored(o), Resource: plural}] = kind + "List"
		if o.GetName() == "ciliumcidrgroups.cilium.io" { // as Cilium's operator leaves it
			o.SetLabels(map[string]string{partOf: Release, cilium: "1.33.0"})
		}
		objects = append(objects, o)
	}
	policy := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": map[string]any{"name": "x", "namespace": "shop"}}}
	client := fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists, append(objects, policy)...)
	mapper := meta.NewDefaultRESTMapper(nil)
	mapper.Add(definition, meta.RESTScopeRoot)
	var said []string
	i := &Installer{client: client, mapper: mapper, Say: func(text string) { said = append(said, text) }}
	for range 2 { // again changes nothing
		if err := i.RemoveDefinitions(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	left, err := client.Resource(definitions).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, o := range left.Items {
		names = append(names, o.GetName())
	}
	if got := strings.Join(names, " "); got != "ciliumcidrgroups.cilium.io ciliumnetworkpolicies.cilium.io" {
		t.Errorf("left are %s", got)
	}
	if text := strings.Join(said, "\n"); !strings.Contains(text, "ciliumnetworkpolicies.cilium.io stays, because there are objects of it") || !strings.Contains(text, "ciliumcidrgroups.cilium.io is not Weft's, and stays") {
		t.Errorf("it says\n%s", text)
	}
}
