package policy

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	lists "github.com/weft-mesh/weft/manifest"
)

// Parse reads one or more policies in YAML or JSON, as they are written for
// Cilium. It is strict: a field that is unknown, misplaced, empty or not
// supported is an error that says where it stands and what to change. All
// mistakes of all documents are reported together, and then no policy is
// returned. Documents without content are passed over; a list stands for its
// items.
func Parse(data []byte) ([]*Policy, error) { return parseAll(data, false) }

// ParseStored reads what Parse accepts, and what it once accepted: a policy that
// is in force and cannot be read any more would no longer hold.
func ParseStored(data []byte) ([]*Policy, error) { return parseAll(data, true) }

func parseAll(data []byte, stored bool) ([]*Policy, error) {
	var (
		out  []*Policy
		errs []error
		seen = map[string]bool{}
	)
	add := func(at string, text []byte) {
		p, why := parseOne(text, stored)
		if p != nil && len(why) == 0 {
			if seen[p.String()] {
				why = append(why, fmt.Errorf("%s stands twice; keep one of them, or give it another name", p))
			}
			seen[p.String()] = true
			out = append(out, p)
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
			return nil, fmt.Errorf("%s: %w", at, err)
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
		return nil, err
	}
	return out, nil
}

// parseOne reads one policy from JSON; nil and nil if there is nothing.
func parseOne(text []byte, stored bool) (*Policy, []error) {
	if string(bytes.TrimSpace(text)) == "null" {
		return nil, nil
	}
	if err := checkKind(text); err != nil {
		return nil, []error{err}
	}
	var (
		m  manifest
		ps = problems{stored: stored}
	)
	strict, err := kjson.UnmarshalStrict(text, &m)
	if err != nil {
		strict = append(strict, explainType(err))
	}
	for _, err := range strict {
		ps.list = append(ps.list, explainStrict(err))
	}
	refuseNulls(text, &ps)
	var p *Policy
	if len(ps.list) == 0 {
		p = m.policy(&ps)
	}
	for i, err := range ps.list {
		ps.list[i] = fmt.Errorf("%s %q: %w", m.Kind, m.Metadata.Name, err)
	}
	return p, ps.list
}

func checkKind(text []byte) error {
	var head struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(text, &head); err != nil {
		return fmt.Errorf("not an object with apiVersion and kind: %w", err)
	}
	if err := lists.Misshapen(head.Kind); err != nil {
		return err
	}
	if head.Kind != KindNamespaced && head.Kind != KindClusterwide {
		return fmt.Errorf("kind %q is not a policy; write %s or %s", head.Kind, KindNamespaced, KindClusterwide)
	}
	if head.APIVersion != APIVersion {
		return fmt.Errorf("apiVersion %q of %s is not known; write %s", head.APIVersion, head.Kind, APIVersion)
	}
	return nil
}

// explainStrict turns the decoder's complaint into advice.
func explainStrict(err error) error {
	text := err.Error()
	if at, ok := strings.CutPrefix(text, "unknown field "); ok {
		return fmt.Errorf("%s: unknown field; remove it or correct its spelling", strings.Trim(at, `"`))
	}
	if at, ok := strings.CutPrefix(text, "duplicate field "); ok {
		return fmt.Errorf("%s: stands twice; keep one of them", strings.Trim(at, `"`))
	}
	return err
}

// explainType says what a field of the wrong type should be.
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

// refuseNulls refuses values left empty under spec and specs: read as zero
// values, a forgotten one could select everyone.
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

// policy checks a decoded manifest and makes it ready to compile. The result
// counts only if ps is still empty.
func (m manifest) policy(ps *problems) *Policy {
	at := path("metadata")
	if why := validation.IsDNS1123Subdomain(m.Metadata.Name); len(why) != 0 {
		ps.add(at.field("name"), "%q is not a name: %s", m.Metadata.Name, why[0])
	}
	switch {
	case m.Kind == KindClusterwide && m.Metadata.Namespace != "":
		ps.add(at.field("namespace"), "%s has no namespace; leave it out, or write a %s", KindClusterwide, KindNamespaced)
	case m.Kind == KindNamespaced && m.Metadata.Namespace == "":
		m.Metadata.Namespace = "default"
	case m.Kind == KindNamespaced:
		if why := validation.IsDNS1123Label(m.Metadata.Namespace); len(why) != 0 {
			ps.add(at.field("namespace"), "%q is not a namespace: %s", m.Metadata.Namespace, why[0])
		}
	}
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
