package install

import (
	"cmp"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/weft-mesh/weft/deploy"
)

const (
	// partOf labels definitions that were installed with Weft, and cilium those that Cilium's
	// operator has installed or replaced.
	partOf = "app.kubernetes.io/part-of"
	cilium = "io.cilium.k8s.crd.schema.version"
)

// Definitions are those of Cilium's policies and of the Multi-Cluster Services API, which Helm and
// `weft install` create where they are absent. Weft's own kinds are among what Render returns.
func Definitions() ([]*unstructured.Unstructured, error) {
	c, err := load(deploy.Chart)
	if err != nil {
		return nil, err
	}
	var out []*unstructured.Unstructured
	for _, file := range c.CRDObjects() {
		more, err := decode(string(file.File.Data))
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	slices.SortFunc(out, func(a, b *unstructured.Unstructured) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return out, nil
}

// offered says whether an object is one of Definitions.
func offered(o *unstructured.Unstructured) bool {
	return o.GetKind() == "CustomResourceDefinition" && o.GetLabels()[partOf] == Release
}

// ours says whether a definition was installed with Weft, and is still as Weft left it.
func ours(o *unstructured.Unstructured) bool {
	labels := o.GetLabels()
	return labels[partOf] == Release && labels[cilium] == ""
}
