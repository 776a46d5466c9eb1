package policy

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	lists "github.com/weft-mesh/weft/manifest"
)

// Parse reads one or more policies in YAML or JSON, as they are written for Cilium
// and Kubernetes. It is strict: an unknown, misplaced, empty or unsupported field is
// an error that says where it is and what to change. All mistakes in all documents
// are reported together, and then no policy is returned. Empty documents are
// skipped; a list stands for its items.
func Parse(data []byte) ([]*Policy, error) {
	policies, groups, err := parseAll(data, false)
	if err == nil && len(groups) > 0 {
		return nil, fmt.Errorf("%s is not a policy", groups[0])
	}
	return policies, err
}

// ParseManifest is Parse for a manifest that may also contain groups of prefixes.
func ParseManifest(data []byte) ([]*Policy, []*CIDRGroup, error) { return parseAll(data, false) }

// ParseStored reads what Parse accepts and what earlier versions accepted: a policy
// that is in force must not stop being enforced because it can no longer be read.
func ParseStored(data []byte) ([]*Policy, error) {
	policies, _, err := parseAll(data, true)
	return policies, err
}

func parseAll(data []byte, stored bool) (out []*Policy, groups []*CIDRGroup, _ error) {
	var (
		errs []error
		seen = map[string]bool{}
	)
	add := func(at string, text []byte) {
		p, g, why := parseOne(text, stored)
		if len(why) == 0 && (p != nil || g != nil) {
			name := fmt.Stringer(g)
			if p != nil {
				name = p
				out = append(out, p)
			} else {
				groups = append(groups, g)
			}
			if seen[name.String()] {
				why = append(why, fmt.Errorf("%s is defined twice; keep one of them, or rename one", name))
			}
			seen[name.String()] = true
		}
		for _, err := range why {
			errs = append(errs, fmt.Errorf("%s: %w", at, err))
		}
	}
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for n := 1; ; n++ {
		doc, err := reader.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		at := fmt.Sprintf("document %d", n)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", at, err)
		}
		text, err := yaml.YAMLToJSONStrict(doc)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: not valid YAML: %w", at, err))
			continue
		}
		items, list := lists.Items(text)
		if !list {
			add(at, text)
		}
		for i, item := range items {
			add(fmt.Sprintf("%s, item %d", at, i+1), item)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, nil, err
	}
	return out, groups, nil
}

// parseOne reads one policy or group from JSON; it returns neither for null.
func parseOne(text []byte, stored bool) (*Policy, *CIDRGroup, []error) {
	if string(bytes.TrimSpace(text)) == "null" {
		return nil, nil, nil
	}
	kind, err := checkKind(text)
	if err != nil {
		return nil, nil, []error{err}
	}
	ps := problems{stored: stored}
	var (
		p    *Policy
		g    *CIDRGroup
		meta *metav1.ObjectMeta
	)
	switch kind {
	case KindNetwork:
		var m networkManifest
		if read(text, &m, &ps) {
			p = m.policy(&ps)
		}
		meta = &m.Metadata
	case KindCIDRGroup:
		var m groupManifest
		if read(text, &m, &ps) {
			g = m.group(&ps)
		}
		meta = &m.Metadata
	default:
		var m manifest
		if read(text, &m, &ps) {
			p = m.policy(&ps)
		}
		meta = &m.Metadata
	}
	ps.leaveOutEchoes()
	for i, err := range ps.list {
		ps.list[i] = fmt.Errorf("%s %q: %w", kind, meta.Name, err)
	}
	return p, g, ps.list
}

// read decodes a manifest and reports whether its values can be checked: fields that do not
// exist are reported and left out.
func read(text []byte, into any, ps *problems) bool {
	strict, err := kjson.UnmarshalStrict(text, into)
	for _, err := range strict {
		if field, ok := strings.CutPrefix(err.Error(), "unknown field "); ok {
			ps.unknown = append(ps.unknown, strings.Trim(field, `"`))
		}
	}
	if len(ps.unknown) < len(strict) { // a field that appears twice
		ps.unknown = nil
	}
	if err != nil {
		strict = append(strict, explainType(err))
	}
	for _, err := range strict {
		ps.list = append(ps.list, explainStrict(err, into))
	}
	refuseNulls(text, ps)
	return err == nil && len(ps.list) == len(ps.unknown)
}

// apiVersions maps the kinds that this package reads to their versions. Of the
// groups, v2alpha1 is an older name of v2.
var apiVersions = map[string][]string{
	KindNamespaced:  {APIVersion},
	KindClusterwide: {APIVersion},
	KindNetwork:     {NetworkAPIVersion},
	KindCIDRGroup:   {APIVersion, "cilium.io/v2alpha1"},
}

func checkKind(text []byte) (kind string, _ error) {
	var head struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
	}
	if len(text) == 0 || text[0] != '{' {
		return "", errors.New("not an object; write one with apiVersion, kind and metadata.name")
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(text, &head); err != nil {
		return "", explainType(err)
	}
	if head.Kind == "" {
		return "", fmt.Errorf("kind is missing; write %s, %s or %s", KindNamespaced, KindClusterwide, KindNetwork)
	}
	if err := lists.Misshapen(head.Kind); err != nil {
		return "", err
	}
	versions, ok := apiVersions[head.Kind]
	if !ok {
		if near := lists.Nearest(head.Kind, slices.Sorted(maps.Keys(apiVersions))); near != "" {
			return "", fmt.Errorf("kind %q is not a policy; did you mean %s?", head.Kind, near)
		}
		return "", fmt.Errorf("kind %q is not a policy; write %s, %s or %s", head.Kind, KindNamespaced, KindClusterwide, KindNetwork)
	}
	if !slices.Contains(versions, head.APIVersion) {
		return "", fmt.Errorf("apiVersion %q of %s is not known; write %s", head.APIVersion, head.Kind, versions[0])
	}
	return head.Kind, nil
}

// explainStrict turns the decoder's complaint into advice.
func explainStrict(err error, into any) error {
	text := err.Error()
	if at, ok := strings.CutPrefix(text, "unknown field "); ok {
		at = strings.Trim(at, `"`)
		return fmt.Errorf("%s: unknown field; %s", at, lists.UnknownField(at, reflect.TypeOf(into)))
	}
	if at, ok := strings.CutPrefix(text, "duplicate field "); ok {
		return fmt.Errorf("%s: appears twice; keep one", strings.Trim(at, `"`))
	}
	return err
}

// explainType says what type a field should have.
func explainType(err error) error {
	var mismatch *json.UnmarshalTypeError
	if errors.As(err, &mismatch) {
		return fmt.Errorf("%s: is a %s but must be a %s", mismatch.Field, mismatch.Value, jsonName(mismatch.Type.Kind().String()))
	}
	return err
}

func jsonName(kind string) string {
	switch kind {
	case "struct", "map":
		return "mapping"
	case "slice":
		return "list"
	case "int64":
		return "number"
	case "bool":
		return "true or false"
	}
	return kind
}

// refuseNulls refuses empty values under spec and specs: read as zero values, a
// forgotten one could select everyone.
func refuseNulls(text []byte, ps *problems) {
	var doc map[string]any
	if json.Unmarshal(text, &doc) != nil {
		return // the typed decoding has reported it
	}
	var walk func(at path, v any)
	walk = func(at path, v any) {
		switch v := v.(type) {
		case nil:
			ps.add(at, "has no value; give it one or remove it")
		case map[string]any:
			for _, key := range slices.Sorted(maps.Keys(v)) {
				walk(at.field(key), v[key])
			}
		case []any:
			for i, e := range v {
				walk(at.index(i), e)
			}
		}
	}
	for _, key := range []string{"spec", "specs"} {
		if v, ok := doc[key]; ok {
			walk(path(key), v)
		}
	}
}

// policy checks a decoded manifest and converts it. The result is valid only if ps is
// still empty.
func (m manifest) policy(ps *problems) *Policy {
	checkMeta(&m.Metadata, m.Kind, ps)
	if m.Spec == nil && len(m.Specs) == 0 {
		ps.add("spec", "is missing; write spec, or a list under specs")
	}
	p := &Policy{Kind: m.Kind, Namespace: m.Metadata.Namespace, Name: m.Metadata.Name, manifest: m}
	if m.Spec != nil {
		p.rules = append(p.rules, m.Spec.rule("spec", p, ps))
	}
	for i, s := range m.Specs {
		p.rules = append(p.rules, s.rule(path("specs").index(i), p, ps))
	}
	return p
}

// checkMeta checks name and namespace and fills in the default namespace.
func checkMeta(meta *metav1.ObjectMeta, kind string, ps *problems) {
	at := path("metadata")
	if why := validation.IsDNS1123Subdomain(meta.Name); len(why) != 0 {
		ps.add(at.field("name"), "%q is not a name: %s", meta.Name, why[0])
	}
	clusters := kind == KindClusterwide || kind == KindCIDRGroup
	switch {
	case clusters && meta.Namespace != "":
		hint := ""
		if kind == KindClusterwide {
			hint = ", or write a " + KindNamespaced
		}
		ps.add(at.field("namespace"), "%s has no namespace; leave it out%s", kind, hint)
	case clusters:
	case meta.Namespace == "":
		meta.Namespace = "default"
	default:
		if why := validation.IsDNS1123Label(meta.Namespace); len(why) != 0 {
			ps.add(at.field("namespace"), "%q is not a namespace: %s", meta.Namespace, why[0])
		}
	}
}
