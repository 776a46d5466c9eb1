package registry

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/policy"
	"github.com/weft-mesh/weft/service"
)

func readNamespace(r *reading) {
	ns, ok := decode[*corev1.Namespace](r)
	if !ok {
		return
	}
	if mistakes := validation.IsDNS1123Label(r.name); len(mistakes) > 0 {
		r.refuse("metadata.name %q: %s", r.name, mistakes[0])
	}
	checkBool(r, ns.Annotations, service.AnnotationNamespaceGlobal)
	warnAnnotations(r, ns.Annotations, service.AnnotationNamespaceGlobal)
	// Kubernetes gives every namespace this label, and nobody can change it.
	if value, ok := ns.Labels[identity.NamespaceName]; ok && value != r.name {
		r.refuse("metadata.labels[%q] is %q, but this label is always the namespace's name: remove it or write %q", identity.NamespaceName, value, r.name)
	}
	metav1.SetMetaDataLabel(&ns.ObjectMeta, identity.NamespaceName, r.name)
	ns.Status = corev1.NamespaceStatus{}
}

// readPolicy lets package policy read the document.
func readPolicy(r *reading) {
	policies, _ := parsePolicies(r)
	if len(policies) == 0 {
		return
	}
	r.value = policies[0]
	for _, w := range policies[0].Warnings() {
		r.warn("%s", w)
	}
}

// readGroup does the same for a group of prefixes.
func readGroup(r *reading) {
	if _, groups := parsePolicies(r); len(groups) > 0 {
		r.value = groups[0]
	}
}

func parsePolicies(r *reading) ([]*policy.Policy, []*policy.CIDRGroup) {
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(r.text, &doc); err != nil {
		r.refuse("%s", explainType(err))
		return nil, nil
	}
	// The namespace is set before parsing, because selectors without a namespace mean
	// the policy's own.
	var meta map[string]json.RawMessage
	if err := json.Unmarshal(doc["metadata"], &meta); err != nil {
		r.refuse("metadata: %s", explainType(err))
		return nil, nil
	}
	if r.kind.Namespaced {
		meta["namespace"], _ = json.Marshal(r.namespace)
	}
	for _, field := range []string{"managedFields", "resourceVersion", "uid", "generation", "selfLink", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"} {
		delete(meta, field)
	}
	doc["metadata"], _ = json.Marshal(meta)
	text, err := json.Marshal(doc)
	if err != nil {
		r.refuse("%s", err)
		return nil, nil
	}
	policies, groups, err := policy.ParseManifest(text)
	if err != nil {
		for _, err := range leaves(err) {
			text := strings.TrimPrefix(err.Error(), "document 1: ")
			r.refuse("%s", strings.TrimPrefix(text, r.kind.Name+" \""+r.name+"\": "))
		}
		return nil, nil
	}
	if len(policies)+len(groups) != 1 {
		r.refuse("holds no %s", r.kind.Name)
	}
	return policies, groups
}

// leaves splits joined errors, so that each becomes a problem of its own.
func leaves(err error) []error {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		var out []error
		for _, err := range joined.Unwrap() {
			out = append(out, leaves(err)...)
		}
		return out
	}
	return []error{err}
}

func checkProtocol(r *reading, p corev1.Protocol, at string, args ...any) {
	switch p {
	case "", corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP:
		return
	}
	r.refuse(at+" is %q; write TCP, UDP or SCTP", append(args, p)...)
}

func checkBool(r *reading, annotations map[string]string, names ...string) {
	for _, name := range names {
		switch value, ok := annotations[name]; {
		case !ok, strings.EqualFold(value, "true"), strings.EqualFold(value, "false"):
		default:
			r.refuse("annotation %s is %q; write \"true\" or \"false\"", name, value)
		}
	}
}

// annotationDomains are Cilium's and our own: an annotation there is meant to have an effect.
var annotationDomains = []string{"service.cilium.io", "clustermesh.cilium.io", "io.cilium", "weft.io"}

// warnAnnotations names the annotations that look like Cilium's or ours and are not among those
// that have an effect on this kind. A misspelt one would keep a service to its cluster.
func warnAnnotations(r *reading, annotations map[string]string, heeded ...string) {
	for _, name := range slices.Sorted(maps.Keys(annotations)) {
		domain, word, _ := strings.Cut(name, "/")
		if !slices.Contains(annotationDomains, domain) || slices.Contains(heeded, name) {
			continue
		}
		hint := ""
		var words []string // of the same domain: its letters say nothing
		for _, h := range heeded {
			if w, ok := strings.CutPrefix(h, domain+"/"); ok {
				words = append(words, w)
			}
		}
		if near := manifest.Nearest(word, words); near != "" {
			hint = "; did you mean " + domain + "/" + near + "?"
		}
		r.warn("annotation %s has no effect%s", name, hint)
	}
}

// meta is the metadata of the object.
func (o *object) meta() metav1.Object {
	if own, ok := o.value.(interface{ ObjectMeta() *metav1.ObjectMeta }); ok { // of package policy
		return own.ObjectMeta()
	}
	return o.value.(metav1.Object)
}
