package policy

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/identity"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// selector selects identities by label; all requirements must hold. The empty
// selector matches everyone who has labels.
type selector []requirement

// requirement is one condition on the label with this source and key. Its fields are
// as in metav1.LabelSelectorRequirement, values sorted.
type requirement struct {
	source, key string
	op          metav1.LabelSelectorOperator
	values      []string
	// cluster: values is the local cluster's name, to be filled in by local.
	cluster bool
}

// newRequirement returns a requirement. A reserved label is present or not; it has no value to compare.
func newRequirement(source, key string, op metav1.LabelSelectorOperator, values []string) requirement {
	if source != identity.SourceReserved {
		return requirement{source: source, key: key, op: op, values: values}
	}
	switch op {
	case metav1.LabelSelectorOpIn:
		op = metav1.LabelSelectorOpExists
	case metav1.LabelSelectorOpNotIn:
		op = metav1.LabelSelectorOpDoesNotExist
	}
	return requirement{source: source, key: key, op: op, cluster: key == wordCluster}
}

// nobody reports whether no identity at all can satisfy the selector.
func (s selector) nobody() bool {
	return slices.ContainsFunc(s, func(r requirement) bool {
		return r.source == identity.SourceReserved && r.key == wordNone && r.op == metav1.LabelSelectorOpExists
	})
}

// contradiction says why no identity can satisfy the selector; "" if one can. pods
// means that it is asked about pods only, which all have certain labels. It does not
// mind reserved:none, which asks for nobody in so many words.
func (s selector) contradiction(pods bool) string {
	type conditions struct {
		needed, absent bool
		in, notIn      []string // in is nil: any value
	}
	by := map[string]*conditions{}
	pods = pods || s.wantsLabel()
	for _, r := range s {
		label := r.label()
		c := by[label]
		if c == nil {
			c = &conditions{}
			by[label] = c
		}
		switch r.op {
		case metav1.LabelSelectorOpIn:
			values := r.values
			if c.in != nil {
				values = slices.DeleteFunc(slices.Clone(c.in), func(v string) bool { return !slices.Contains(r.values, v) })
			}
			c.needed = true
			if !r.cluster { // else it has no values yet
				c.in = append([]string{}, values...)
			}
		case metav1.LabelSelectorOpNotIn:
			c.notIn = append(c.notIn, r.values...)
		case metav1.LabelSelectorOpExists:
			c.needed = true
		case metav1.LabelSelectorOpDoesNotExist:
			c.absent = true
		}
		switch {
		case c.absent && c.needed:
			return fmt.Sprintf("%q cannot be there and be missing", r.key)
		case c.absent && pods && ofEveryPod[label]:
			return fmt.Sprintf("every pod has the label %q", r.key)
		case c.in != nil && !slices.ContainsFunc(c.in, func(v string) bool { return !slices.Contains(c.notIn, v) }):
			return fmt.Sprintf("no value of %q meets all conditions on it", r.key)
		}
	}
	return ""
}

// label names the label that a requirement is about; equal names mean that an identity
// has both labels or neither, with equal values. Workloads have labels of source k8s
// only, but any: also finds reserved labels.
func (r requirement) label() string {
	source, key := r.source, r.key
	if source == identity.SourceAny && !reservedKeys[key] {
		source = identity.SourceK8s
	}
	if source == identity.SourceK8s && key == identity.KeyNamespaceLabels+"."+identity.NamespaceName {
		key = identity.KeyNamespace
	}
	return source + ":" + key
}

// ofEveryPod has the labels, as label names them, that no pod is without.
var ofEveryPod = map[string]bool{
	identity.SourceK8s + ":" + identity.KeyNamespace: true,
	identity.SourceK8s + ":" + identity.KeyCluster:   true,
}

// refuseContradiction refuses a selector that nothing can satisfy. whom says what it
// would select none of.
func (s selector) refuseContradiction(at path, whom string, pods bool, errs *problems) {
	if why := s.contradiction(pods); why != "" {
		errs.addNew(at, "selects %s: %s; correct or remove one of the conditions", whom, why)
	}
}

// reservedWord returns a reserved label that the selector requires and no pod has, or
// "".
func (s selector) reservedWord() string {
	for _, r := range s {
		if r.source == identity.SourceReserved && r.op == metav1.LabelSelectorOpExists && r.key != wordAll && r.key != wordCluster {
			return r.key
		}
	}
	return ""
}

// wantsLabel reports whether the selector requires a label that only pods have.
func (s selector) wantsLabel() bool {
	return slices.ContainsFunc(s, func(r requirement) bool {
		return r.source != identity.SourceReserved && (r.op == metav1.LabelSelectorOpExists || r.op == metav1.LabelSelectorOpIn)
	})
}

// keyReader tells which label a selector's key means.
type keyReader func(at path, text string, errs *problems) (source, key string, ok bool)

// parseSelector reads a selector, and its keys with read.
func parseSelector(at path, in *metav1.LabelSelector, read keyReader, errs *problems) selector {
	var out selector
	for _, key := range slices.Sorted(maps.Keys(in.MatchLabels)) {
		value := in.MatchLabels[key]
		where := at.field("matchLabels").key(key)
		source, name, ok := read(where, key, errs)
		if !ok {
			continue
		}
		checkValue(where, source, value, errs)
		out = append(out, newRequirement(source, name, metav1.LabelSelectorOpIn, []string{value}))
	}
	for i, expr := range in.MatchExpressions {
		where := at.field("matchExpressions").index(i)
		source, name, ok := read(where.field("key"), expr.Key, errs)
		if !ok {
			continue
		}
		switch expr.Operator {
		case metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn:
			if len(expr.Values) == 0 {
				errs.add(where.field("values"), "is empty; %s needs at least one value, or use Exists or DoesNotExist", expr.Operator)
			}
		case metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist:
			if len(expr.Values) != 0 {
				errs.add(where.field("values"), "must be left out with %s; use In or NotIn to compare values", expr.Operator)
			}
		default:
			errs.add(where.field("operator"), "%q is not an operator; write In, NotIn, Exists or DoesNotExist", expr.Operator)
		}
		for j, v := range expr.Values {
			checkValue(where.field("values").index(j), source, v, errs)
		}
		values := slices.Compact(slices.Sorted(slices.Values(expr.Values)))
		out = append(out, newRequirement(source, name, expr.Operator, values))
	}
	return out
}

// parseKey reads Cilium's prefixes k8s:, any: and reserved:; a key without a prefix
// means any:. Keys that only a cluster assigns always mean k8s:, because any: would
// accept labels of that key from every other source.
func parseKey(at path, text string, errs *problems) (source, key string, ok bool) {
	source, key, found := strings.Cut(text, ":")
	if !found {
		source, key = identity.SourceAny, text
	}
	switch source {
	case identity.SourceAny, identity.SourceK8s:
		if why := validation.IsQualifiedName(key); len(why) != 0 {
			errs.add(at, "%q is not a label key: %s", key, why[0])
			return "", "", false
		}
	case identity.SourceReserved:
		if !reservedKeys[key] {
			errs.add(at, "%q is not a reserved label; write one of %s", text, present(maps.Keys(reservedKeys)))
			return "", "", false
		}
		refuseAbsent(at, key, errs)
	case identity.SourceCIDR:
		errs.add(at, "%q selects addresses; write them with fromCIDR or toCIDR", text)
		return "", "", false
	default:
		errs.add(at, "%q has a label source that no workload has; write k8s:%s or any:%s", text, key, key)
		return "", "", false
	}
	if source == identity.SourceReserved {
		return source, key, true
	}
	if why := identity.Selectable(key); why != "" {
		errs.addNew(at, "%q is in no identity: %s; select by another label", text, why)
	}
	if source == identity.SourceAny && identity.Given(key) {
		source = identity.SourceK8s
	}
	return source, key, true
}

// absent are the reserved identities of Cilium that nothing has in Weft. Ingress is not among
// them: in Cilium too, nothing has it without Cilium's own ingress controller, and policies
// name it beside others.
var absent = []identity.Number{identity.Unmanaged, identity.Health, identity.Init}

// present lists the reserved names that something can have.
func present(names iter.Seq[string]) string {
	return strings.Join(slices.DeleteFunc(slices.Sorted(names), isAbsent), ", ")
}

func isAbsent(name string) bool {
	return slices.ContainsFunc(absent, func(n identity.Number) bool { return n.String() == name })
}

// refuseAbsent refuses a reserved name that would select nobody.
func refuseAbsent(at path, name string, errs *problems) {
	if isAbsent(name) {
		errs.addNew(at, "%q selects nobody: Weft has no endpoint of this kind; remove it", name)
	}
}

// podKey reads a key of a podSelector as Kubernetes means it. As in Cilium, a pod can
// also be selected by its cluster and its service account.
func podKey(at path, text string, errs *problems) (source, key string, ok bool) {
	if why := validation.IsQualifiedName(text); len(why) != 0 {
		errs.add(at, "%q is not a label key: %s", text, why[0])
		return "", "", false
	}
	why := identity.Selectable(text)
	if identity.Given(text) && text != identity.KeyCluster && text != identity.KeyServiceAccount {
		why = "a pod cannot give itself a label of this name"
	}
	if why != "" {
		errs.addNew(at, "%q is in no identity: %s; select by another label", text, why)
	}
	return identity.SourceK8s, text, true
}

// namespaceKey reads a key of a namespaceSelector.
func namespaceKey(at path, text string, errs *problems) (source, key string, ok bool) {
	if why := validation.IsQualifiedName(text); len(why) != 0 {
		errs.add(at, "%q is not a label key: %s", text, why[0])
		return "", "", false
	}
	key = identity.KeyNamespaceLabels + "." + text
	if why := identity.Selectable(key); why != "" {
		errs.addNew(at, "%q is in no identity: %s; select by another label", text, why)
	}
	return identity.SourceK8s, key, true
}

// groupKey reads a key of a cidrGroupSelector.
func groupKey(at path, text string, errs *problems) (source, key string, ok bool) {
	key = strings.TrimPrefix(text, sourceGroup+":")
	if why := validation.IsQualifiedName(key); len(why) != 0 {
		errs.add(at, "%q is not a label key: %s", text, why[0])
		return "", "", false
	}
	return sourceGroup, key, true
}

// Reserved words that stand for many identities, or none, and label no single one.
const (
	wordAll     = "all"
	wordNone    = "none"
	wordCluster = "cluster"
)

// reservedKeys are the keys a selector may name after reserved:.
var reservedKeys = func() map[string]bool {
	keys := map[string]bool{wordAll: true, wordNone: true, wordCluster: true}
	for n := range identity.AllReserved() {
		if n != identity.UnknownMember {
			keys[n.String()] = true
		}
	}
	return keys
}()

// reserved reports whether the identity matches a reserved word. cluster is the local
// cluster's name.
func reserved(word, cluster string, labels identity.Labels) bool {
	switch word {
	case wordAll:
		return true
	case wordCluster:
		return labels.Cluster() == cluster || slices.ContainsFunc(clusterPeers, func(p peer) bool { return p.selector.matches(labels) })
	case identity.World.String():
		return slices.ContainsFunc(labels, func(l identity.Label) bool {
			return l.Source == identity.SourceReserved && strings.HasPrefix(l.Key, word)
		})
	case identity.WorldIPv4.String(), identity.WorldIPv6.String():
		if labels.Has(identity.SourceReserved, word) {
			return true
		}
		// World is IPv4 unless it has a prefix of the other family.
		prefix, ok := cidrOf(labels)
		return labels.Has(identity.SourceReserved, identity.World.String()) && (ok && !prefix.Addr().Is4()) == (word == identity.WorldIPv6.String())
	}
	return labels.Has(identity.SourceReserved, word)
}

func checkValue(at path, source, value string, errs *problems) {
	if source == identity.SourceReserved {
		if value != "" {
			errs.add(at, "%q: reserved labels have no value; write \"\"", value)
		}
		return
	}
	if why := validation.IsValidLabelValue(value); len(why) != 0 {
		errs.add(at, "%q is not a label value: %s", value, why[0])
	}
}

// names reports whether any requirement of source k8s or any is on a key that match
// accepts.
func (s selector) names(match func(key string) bool) bool {
	return slices.ContainsFunc(s, func(r requirement) bool {
		return r.source != identity.SourceReserved && match(r.key)
	})
}

func (s selector) namesKey(key string) bool {
	return s.names(func(k string) bool { return k == key })
}

func (s selector) namesReserved() bool {
	return slices.ContainsFunc(s, func(r requirement) bool { return r.source == identity.SourceReserved })
}

// scopePeer narrows a peer selector as Cilium does: to the policy's namespace (for
// namespace "" to any namespace) and to the local cluster, unless the selector itself
// says otherwise. Naming a reserved label lifts both.
func scopePeer(s selector, namespace string) selector {
	if s.namesReserved() {
		return s
	}
	out := slices.Clone(s)
	byNamespaceLabels := s.names(func(k string) bool { return strings.HasPrefix(k, identity.KeyNamespaceLabels+".") })
	switch {
	case s.namesKey(identity.KeyNamespace):
	case namespace == "":
		out = append(out, requirement{source: identity.SourceK8s, key: identity.KeyNamespace, op: metav1.LabelSelectorOpExists})
	case !byNamespaceLabels:
		out = append(out, requirement{source: identity.SourceK8s, key: identity.KeyNamespace, op: metav1.LabelSelectorOpIn, values: []string{namespace}})
	}
	if !s.namesKey(identity.KeyCluster) {
		out = append(out, requirement{source: identity.SourceK8s, key: identity.KeyCluster, op: metav1.LabelSelectorOpIn, cluster: true})
	}
	return out
}

// scopeSubject restricts a policy's subjects to its namespace. A cluster-wide policy
// has no namespace and no restriction.
func scopeSubject(at path, s selector, namespace string, errs *problems) selector {
	if namespace == "" {
		return s
	}
	own := identity.NewLabels(
		identity.Label{Source: identity.SourceK8s, Key: identity.KeyNamespace, Value: namespace},
		identity.Label{Source: identity.SourceK8s, Key: identity.KeyNamespaceLabels + "." + identity.NamespaceName, Value: namespace},
	)
	out := slices.DeleteFunc(slices.Clone(s), func(r requirement) bool {
		if _, named := own.Get(r.source, r.key); !named {
			return false
		}
		if r.holds(own) {
			return true
		}
		errs.addNew(at, "%s names another namespace, but a %s selects workloads of its own namespace %q only; leave that key out, or use a %s",
			r.key, KindNamespaced, namespace, KindClusterwide)
		return false
	})
	return append(out, requirement{source: identity.SourceK8s, key: identity.KeyNamespace, op: metav1.LabelSelectorOpIn, values: []string{namespace}})
}

// local fills in the local cluster's name and sorts, so that selectors that mean the
// same thing look the same.
func (s selector) local(cluster string) selector {
	out := slices.Clone(s)
	for i := range out {
		if out[i].cluster {
			out[i].values, out[i].cluster = []string{cluster}, false
		}
	}
	slices.SortFunc(out, func(a, b requirement) int {
		return cmp.Or(cmp.Compare(a.source, b.source), cmp.Compare(a.key, b.key), cmp.Compare(a.op, b.op), slices.Compare(a.values, b.values))
	})
	return out
}

// String identifies a selector: equal strings select the same identities.
func (s selector) String() string {
	var b strings.Builder
	for _, r := range s {
		fmt.Fprintf(&b, "%s:%s %s %q;", r.source, r.key, r.op, r.values)
	}
	return b.String()
}

// matches reports whether every requirement holds. As in Kubernetes, a missing label
// satisfies NotIn and DoesNotExist.
func (s selector) matches(labels identity.Labels) bool {
	for _, r := range s {
		if !r.holds(labels) {
			return false
		}
	}
	return true
}

func (r requirement) holds(labels identity.Labels) bool {
	var there, in bool
	if r.source == identity.SourceReserved {
		there = reserved(r.key, strings.Join(r.values, ""), labels)
	} else if r.source != identity.SourceAny {
		value, ok := labels.Get(r.source, r.key)
		there, in = ok, ok && slices.Contains(r.values, value)
	} else {
		for _, l := range labels {
			if l.Key == r.key {
				there = true
				in = in || slices.Contains(r.values, l.Value)
			}
		}
	}
	switch r.op {
	case metav1.LabelSelectorOpIn:
		return in
	case metav1.LabelSelectorOpNotIn:
		return !in
	case metav1.LabelSelectorOpExists:
		return there
	default: // DoesNotExist
		return !there
	}
}
