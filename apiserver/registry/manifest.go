package registry

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"strings"

	goyaml "go.yaml.in/yaml/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	kjson "sigs.k8s.io/json"
	mcs "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/wire"
)

// decoder reads Kubernetes' types and refuses unknown fields.
var decoder = serializer.NewCodecFactory(objectTypes, serializer.EnableStrict).UniversalDeserializer()

// objectTypes are Kubernetes' own and those of the Multi-Cluster Services API.
var objectTypes = func() *runtime.Scheme {
	s := runtime.NewScheme()
	utilruntime.Must(scheme.AddToScheme(s))
	utilruntime.Must(mcs.Install(s))
	return s
}()

// object is one document of a manifest, or an item of one, with what can be said about it
// without the store.
type object struct {
	unit      string // of a source; "" if an operator applies it
	document  int
	item      int // 0 if the document is the object
	kind      Kind
	namespace string
	name      string
	// value is a Kubernetes object or a *policy.Policy; encode is its JSON.
	value    any
	warnings []api.Problem
	// printed is set if a cluster printed the object: nobody asked here for what that
	// cluster chose, such as an address. uid is what it called the object.
	printed bool
	uid     string
	// native is set if Kubernetes has the object: it keeps uid and created.
	native  bool
	created metav1.Time
	// skipped is set for an object of an unknown kind.
	skipped bool
}

func (o *object) key() string { return wire.ObjectKey(o.kind.Plural, o.namespace, o.name) }

func (o *object) problem(format string, args ...any) api.Problem {
	return api.Problem{File: o.unit, Document: o.document, Item: o.item, Kind: o.kind.Name, Namespace: o.namespace, Name: o.name, Message: fmt.Sprintf(format, args...)}
}

// warn adds a warning for whoever applies the object. It is accepted all the same.
func (o *object) warn(format string, args ...any) {
	o.warnings = append(o.warnings, o.problem(format, args...))
}

func (o *object) encode() ([]byte, error) { return json.Marshal(o.value) }

// reading is an object that its kind's reader is reading.
type reading struct {
	object
	text     []byte // JSON
	problems []api.Problem
}

func (r *reading) refuse(format string, args ...any) {
	r.problems = append(r.problems, r.problem(format, args...))
}

// header is the part that every document has.
type header struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name         string `json:"name"`
		GenerateName string `json:"generateName"`
		Namespace    string `json:"namespace"`
		// Kubernetes' own objects keep these.
		UID     string      `json:"uid"`
		Created metav1.Time `json:"creationTimestamp"`
	} `json:"metadata"`
}

// readManifest is readDocuments for a manifest that is about some object.
func readManifest(text []byte, opts api.ManifestOptions, headOnly bool) ([]object, []api.Problem) {
	objects, problems := readDocuments(text, opts, headOnly)
	if len(objects) == 0 && len(problems) == 0 {
		problems = append(problems, api.Problem{Message: "the manifest holds no object; write at least one document with apiVersion, kind and metadata.name"})
	}
	return objects, problems
}

// readDocuments reads every document, and every item of a list, and reports every mistake. In a
// namespace that is asked for belong the objects that name none, and others are
// a mistake; empty, it is DefaultNamespace and no mistake. Objects of kinds that
// are not known are a mistake, or skipped where that is asked for. With headOnly,
// for deletions, documents are not read beyond kind and name. Of two documents
// about one object the later counts, as if they were applied one by one.
func readDocuments(text []byte, opts api.ManifestOptions, headOnly bool) ([]object, []api.Problem) {
	var objects []object
	var problems []api.Problem
	seen := map[string]int{}
	docs := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for n := 1; ; n++ {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			problems = append(problems, api.Problem{Document: n, Message: "not readable: " + err.Error()})
			break
		}
		read, found := readDocument(n, doc, opts, headOnly)
		if problems = append(problems, found...); len(problems) > maxProblems {
			break // more than will be told
		}
		for _, o := range read {
			if at, twice := seen[o.key()]; twice {
				objects[at] = o
				continue
			}
			seen[o.key()] = len(objects)
			objects = append(objects, o)
		}
	}
	return objects, problems
}

// readDocument reads the object of a document, or the objects of a list, and returns those
// without mistakes.
func readDocument(n int, doc []byte, opts api.ManifestOptions, headOnly bool) (objects []object, problems []api.Problem) {
	refuse := func(item int, format string, args ...any) {
		problems = append(problems, api.Problem{Document: n, Item: item, Message: fmt.Sprintf(format, args...)})
	}
	add := func(item int, text []byte) {
		o, found := readObject(n, item, text, opts, headOnly, false)
		problems = append(problems, found...)
		if o != nil && len(found) == 0 {
			objects = append(objects, *o)
		}
	}
	if len(doc) > maxDocumentBytes {
		// A long list in JSON is read item by item.
		items, list := manifest.Items(doc)
		if !list {
			refuse(0, "is larger than %d MiB; separate its objects with lines of ---, or write the list in JSON", maxDocumentBytes>>20)
		}
		for i, item := range items {
			if len(problems) > maxProblems {
				break // more than will be told
			}
			if text, err := yaml.YAMLToJSONStrict(item); err != nil {
				refuse(i+1, "%s", notYAML(err))
			} else {
				add(i+1, text)
			}
		}
		return objects, problems
	}
	if inflated(doc) {
		refuse(0, "is larger than %d MiB with its aliases (*name) written out; split it", maxDocumentBytes>>20)
		return nil, problems
	}
	text, err := yaml.YAMLToJSONStrict(doc)
	if err != nil {
		refuse(0, "%s", notYAML(err))
		return nil, problems
	}
	items, list := manifest.Items(text)
	if !list {
		add(0, text)
	}
	for i, text := range items {
		if len(problems) > maxProblems {
			break // more than will be told
		}
		add(i+1, text)
	}
	return objects, problems
}

func notYAML(err error) string {
	return "not valid YAML: " + strings.TrimPrefix(err.Error(), "yaml: ")
}

// inflated reports whether a document is larger than one may be once its aliases are
// written out, as JSON does: a few lines can stand for gigabytes.
func inflated(doc []byte) bool {
	if !bytes.Contains(doc, []byte("&")) || !bytes.Contains(doc, []byte("*")) {
		return false
	}
	var value any
	if goyaml.Unmarshal(doc, &value) != nil {
		return false // its reader says why
	}
	left := maxDocumentBytes
	var measure func(any)
	measure = func(v any) {
		if left--; left < 0 {
			return
		}
		switch v := v.(type) {
		case string:
			left -= len(v)
		case []any:
			for _, item := range v {
				measure(item)
			}
		case map[any]any:
			for key, item := range v {
				measure(key)
				measure(item)
			}
		}
	}
	measure(value)
	return left < 0
}

// readObject reads one object from JSON; nil if there is nothing. A native one is
// Kubernetes' own.
func readObject(n, item int, text []byte, opts api.ManifestOptions, headOnly, native bool) (*object, []api.Problem) {
	namespace := opts.Namespace
	complain := func(format string, args ...any) []api.Problem {
		return []api.Problem{{Document: n, Item: item, Message: fmt.Sprintf(format, args...)}}
	}
	if string(bytes.TrimSpace(text)) == "null" {
		return nil, nil
	}
	if len(text) == 0 || text[0] != '{' {
		return nil, complain("not an object; write one with apiVersion, kind and metadata.name")
	}
	// As in the API, case matters: Metadata is not metadata.
	var head header
	if err := kjson.UnmarshalCaseSensitivePreserveInts(text, &head); err != nil {
		return nil, complain("%s", explainType(err))
	}
	if head.Kind == "" {
		return nil, complain("kind is missing; known kinds are %s", knownKinds())
	}
	if err := manifest.Misshapen(head.Kind); err != nil {
		return nil, complain("%s", err)
	}
	kind, ok := FindKind(head.Kind)
	ok = ok && kind.Name == head.Kind
	if opts.IgnoreUnknown && (!ok || group(head.APIVersion) != group(kind.APIVersion)) {
		return &object{
			document: n, item: item, kind: Kind{Kind: manifest.Kind{Name: head.Kind, Plural: head.APIVersion + " " + head.Kind}},
			namespace: head.Metadata.Namespace, name: head.Metadata.Name, skipped: true,
		}, nil
	}
	switch {
	case !ok && controlled[head.Kind]:
		return nil, complain("kind %q needs a controller, and there is none here; apply the pods themselves, or leave such objects out with --ignore-unknown", head.Kind)
	case !ok && manifest.Nearest(head.Kind, kindNames()) != "":
		return nil, complain("unknown kind %q; did you mean %s?", head.Kind, manifest.Nearest(head.Kind, kindNames()))
	case !ok:
		return nil, complain("unknown kind %q; known kinds are %s; --ignore-unknown leaves others out", head.Kind, knownKinds())
	}
	r := reading{text: text, object: object{document: n, item: item, kind: kind, namespace: head.Metadata.Namespace, name: head.Metadata.Name}}
	if native {
		r.native, r.uid, r.created = true, head.Metadata.UID, head.Metadata.Created
	}
	if kind.Also != "" && head.APIVersion == kind.Also {
		text = withField(text, "apiVersion", kind.APIVersion)
		r.text, head.APIVersion = text, kind.APIVersion
	}
	if head.APIVersion != kind.APIVersion {
		r.refuse("apiVersion is %q; write %q", head.APIVersion, kind.APIVersion)
		return nil, r.problems
	}
	if r.name == "" {
		r.refuse("metadata.name is missing")
	} else if mistakes := validation.IsDNS1123Subdomain(r.name); len(mistakes) > 0 {
		r.refuse("metadata.name %q: %s", r.name, mistakes[0])
	}
	switch {
	case !kind.Namespaced && r.namespace != "":
		r.refuse("metadata.namespace must be empty: a %s belongs to no namespace", kind.Name)
	case kind.Namespaced && r.namespace == "" && namespace == "":
		r.namespace = DefaultNamespace
	case kind.Namespaced && namespace != "" && r.namespace != "" && r.namespace != namespace:
		r.refuse("metadata.namespace is %q, but -n says %q; give -n %s or none, or correct the manifest", r.namespace, namespace, r.namespace)
	case kind.Namespaced:
		if r.namespace == "" {
			r.namespace, r.text = namespace, withNamespace(text, namespace)
		}
		if mistakes := validation.IsDNS1123Label(r.namespace); len(mistakes) > 0 {
			r.refuse("metadata.namespace %q: %s", r.namespace, mistakes[0])
		}
	}
	if len(r.problems) > 0 || headOnly {
		return &r.object, r.problems
	}
	kind.read(&r)
	return &r.object, r.problems
}

// withField writes a field of an object's JSON.
func withField(text []byte, name, value string) []byte {
	var fields map[string]json.RawMessage
	if json.Unmarshal(text, &fields) != nil {
		return text // its reader says what is wrong
	}
	fields[name] = wire.Marshal(value)
	return wire.Marshal(fields)
}

// withNamespace writes the namespace into the metadata of an object's JSON.
func withNamespace(text []byte, namespace string) []byte {
	var fields, meta map[string]json.RawMessage
	if json.Unmarshal(text, &fields) != nil || json.Unmarshal(fields["metadata"], &meta) != nil || meta == nil {
		return text // its reader says what is wrong
	}
	meta["namespace"] = wire.Marshal(namespace)
	fields["metadata"] = wire.Marshal(meta)
	return wire.Marshal(fields)
}

// decode reads the document into one of Kubernetes' types and refuses unknown fields.
func decode[T runtime.Object](r *reading) (T, bool) {
	var none T
	value, _, err := decoder.Decode(r.text, nil, nil)
	if strict, ok := runtime.AsStrictDecodingError(err); ok {
		for _, err := range strict.Errors() {
			r.refuse("%s", explainStrict(err, reflect.TypeFor[T]()))
		}
		return none, false
	}
	if err != nil {
		r.refuse("%s", explainType(err))
		return none, false
	}
	typed, ok := value.(T)
	if !ok {
		r.refuse("was read as a %T; this is a bug in weft", value)
		return none, false
	}
	meta := any(typed).(metav1.Object)
	meta.SetNamespace(r.namespace)
	// These fields are the store's to set. They are dropped, because what `get -o yaml`
	// of another cluster prints must be a valid manifest.
	if !r.native {
		r.uid = string(meta.GetUID())
		r.printed = meta.GetUID() != "" || meta.GetResourceVersion() != ""
	}
	meta.SetManagedFields(nil)
	meta.SetResourceVersion("")
	meta.SetUID("")
	meta.SetGeneration(0)
	meta.SetSelfLink("")
	meta.SetCreationTimestamp(metav1.Time{})
	meta.SetDeletionTimestamp(nil)
	meta.SetDeletionGracePeriodSeconds(nil)
	checkMeta(r, meta)
	r.value = typed
	return typed, true
}

func checkMeta(r *reading, meta metav1.Object) {
	checkLabels(r, "metadata.labels", meta.GetLabels())
	if len(meta.GetFinalizers()) > 0 {
		r.warn("metadata.finalizers has no effect: a deletion waits for nobody")
	}
	for key := range meta.GetAnnotations() {
		if mistakes := validation.IsQualifiedName(strings.ToLower(key)); len(mistakes) > 0 {
			r.refuse("metadata.annotations: key %q: %s", key, mistakes[0])
		}
	}
}

func checkLabels(r *reading, at string, labels map[string]string) {
	for key, value := range labels {
		if mistakes := validation.IsQualifiedName(key); len(mistakes) > 0 {
			r.refuse("%s: key %q: %s", at, key, mistakes[0])
		}
		if mistakes := validation.IsValidLabelValue(value); len(mistakes) > 0 {
			r.refuse("%s[%q]: %s", at, key, mistakes[0])
		}
	}
}

func explainStrict(err error, of reflect.Type) string {
	text := err.Error()
	if at, ok := strings.CutPrefix(text, "unknown field "); ok {
		at = strings.Trim(at, `"`)
		return fmt.Sprintf("unknown field %s; %s", at, manifest.UnknownField(at, of))
	}
	if at, ok := strings.CutPrefix(text, "duplicate field "); ok {
		return fmt.Sprintf("field %s is there twice; keep one of them", strings.Trim(at, `"`))
	}
	return text
}

// wrongType matches encoding/json's message, which Kubernetes' decoder repeats.
var wrongType = regexp.MustCompile(`cannot unmarshal (\w+) into Go (?:struct field (\S+)|value) of type (\S+)`)

// explainType turns the decoder's message about a type into advice.
func explainType(err error) string {
	text := err.Error()
	m := wrongType.FindStringSubmatch(text)
	if m == nil {
		return strings.TrimPrefix(text, "json: ")
	}
	want := m[3]
	switch {
	case strings.Contains(want, "int"):
		want = "number"
	case want == "bool":
		want = "true or false"
	case strings.HasPrefix(want, "[]"):
		want = "list"
	case want != "string":
		want = "mapping"
	}
	field := m[2]
	if _, rest, ok := strings.Cut(field, "."); ok {
		field = rest // the first part is a Go type's name
	}
	if field == "" {
		field = "a value"
	}
	return fmt.Sprintf("%s is a %s, but must be a %s", field, m[1], want)
}
