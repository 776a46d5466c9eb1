// Package install puts Weft onto a Kubernetes cluster without Helm: it renders the same
// chart, and has the API server apply what comes of it.
//
// What Weft consists of there is up to the chart.
package install

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/strvals"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/deploy"
)

// Release is the name of the release, which labels have.
const Release = "weft"

// Values reads values as `helm install` does: from files, of which a later one wins, and then
// from assignments such as cluster.name=east.
func Values(files, assignments []string, stdin io.Reader) (map[string]any, error) {
	values := map[string]any{}
	for _, file := range files {
		var text []byte
		var err error
		if file == "-" {
			text, err = io.ReadAll(stdin)
		} else {
			text, err = os.ReadFile(file)
		}
		if err != nil {
			return nil, fmt.Errorf("read values: %w", err)
		}
		more := map[string]any{}
		if err := yaml.Unmarshal(text, &more); err != nil {
			return nil, fmt.Errorf("values %s: %w", file, err)
		}
		values = chartutil.CoalesceTables(more, values)
	}
	for _, a := range assignments {
		if err := strvals.ParseInto(a, values); err != nil {
			return nil, fmt.Errorf("--set %s: %w", a, err)
		}
	}
	return values, nil
}

// Render returns the objects that the chart makes of values, in the order in which they are
// to be applied. version is the program's; kubernetes the cluster's, such as v1.36.3, or empty.
func Render(namespace, version, kubernetes string, values map[string]any) ([]*unstructured.Unstructured, error) {
	c, err := load(deploy.Chart)
	if err != nil {
		return nil, err
	}
	c.Metadata.AppVersion = Tag(version)
	able := chartutil.DefaultCapabilities.Copy()
	if kubernetes != "" {
		v, err := chartutil.ParseKubeVersion(kubernetes)
		if err != nil {
			return nil, err
		}
		able.KubeVersion = *v
		if !chartutil.IsCompatibleRange(c.Metadata.KubeVersion, v.Version) {
			return nil, fmt.Errorf("kubernetes is %s, and Weft needs %s", kubernetes, strings.TrimSuffix(c.Metadata.KubeVersion, "-0"))
		}
	}
	given, err := chartutil.ToRenderValues(c, values, chartutil.ReleaseOptions{Name: Release, Namespace: namespace, Revision: 1, IsInstall: true}, able)
	if err != nil {
		return nil, wrongValues(err)
	}
	files, err := engine.Render(c, given)
	if err != nil {
		return nil, wrongValues(err)
	}
	var objects []*unstructured.Unstructured
	for name, text := range files {
		if path.Ext(name) != ".yaml" {
			continue
		}
		more, err := decode(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		objects = append(objects, more...)
	}
	slices.SortFunc(objects, inOrder)
	return objects, nil
}

// Tag is a version as an image's tag, and as a label's value, which may hold letters, digits
// and _ . - alone.
func Tag(version string) string {
	out := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', strings.ContainsRune("_.-", r):
			return r
		}
		return '-'
	}, version)
	return strings.Trim(out[:min(len(out), 63)], ".-_")
}

// load reads the chart that is in the program.
func load(files fs.FS) (*chart.Chart, error) {
	var buffered []*loader.BufferedFile
	err := fs.WalkDir(files, "chart", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return err
		}
		buffered = append(buffered, &loader.BufferedFile{Name: strings.TrimPrefix(name, "chart/"), Data: text})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return loader.LoadFiles(buffered)
}

// decode reads the documents of a rendered file.
func decode(text string) (out []*unstructured.Unstructured, err error) {
	dec := utilyaml.NewYAMLOrJSONDecoder(bytes.NewBufferString(text), 4096)
	for {
		o := &unstructured.Unstructured{}
		err := dec.Decode(&o.Object)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		if len(o.Object) > 0 {
			out = append(out, o)
		}
	}
}

// order is that of the kinds: what others refer to comes first.
var order = []string{"Namespace", "CustomResourceDefinition", "ServiceAccount", "ConfigMap", "Secret", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ValidatingWebhookConfiguration", "Service", "PodDisruptionBudget", "Deployment", "DaemonSet"}

func inOrder(a, b *unstructured.Unstructured) int {
	place := func(o *unstructured.Unstructured) string {
		i := slices.Index(order, o.GetKind())
		if i < 0 {
			i = len(order)
		}
		return fmt.Sprintf("%02d %s/%s", i, o.GetNamespace(), o.GetName())
	}
	return strings.Compare(place(a), place(b))
}

// wrongValues is an error about values in words that name the value.
func wrongValues(err error) error {
	text := err.Error()
	if _, why, ok := strings.Cut(text, "error calling fail: "); ok {
		return errors.New(why)
	}
	return fmt.Errorf("values: %w", err)
}
