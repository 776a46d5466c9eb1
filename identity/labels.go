package identity

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Label sources. A source says who vouches for the label; SourceAny is only used in
// selectors, where it matches every source.
const (
	SourceK8s      = "k8s"
	SourceReserved = "reserved"
	SourceCIDR     = "cidr"
	SourceFQDN     = "fqdn"
	SourcePort     = "port" // the number of a named port; made by a node for itself
	SourceAny      = "any"
)

// Keys of labels that Kubernetes and Cilium give a workload.
const (
	KeyNamespace       = "io.kubernetes.pod.namespace"
	KeyCluster         = "io.cilium.k8s.policy.cluster"
	KeyServiceAccount  = "io.cilium.k8s.policy.serviceaccount"
	KeyNamespaceLabels = "io.cilium.k8s.namespace.labels" // prefix of the namespace's own labels

	// NamespaceName is the label that every namespace has: its own name.
	NamespaceName = "kubernetes.io/metadata.name"
)

// Given reports whether only the cluster may set labels with this key: its name, and
// a workload's namespace and service account. No workload can claim one.
func Given(key string) bool {
	return key == KeyNamespace || strings.HasPrefix(key, "io.cilium.k8s.")
}

// Label is one fact about a workload. Keys hold no "=", and none of the three
// a ";".
type Label struct {
	Source, Key, Value string
}

// String is source:key=value, without the "=" when there is no value.
func (l Label) String() string {
	if l.Value == "" {
		return l.Source + ":" + l.Key
	}
	return l.Source + ":" + l.Key + "=" + l.Value
}

func (l Label) compare(other Label) int {
	return cmp.Or(cmp.Compare(l.Source, other.Source), cmp.Compare(l.Key, other.Key))
}

// Labels is a set of labels sorted by source and key, with one value each. The
// functions of this package return it sorted; nil is the empty set. Do not change it
// once made.
type Labels []Label

// NewLabels makes a set. Of two labels with the same source and key the later wins.
func NewLabels(labels ...Label) Labels {
	if len(labels) == 0 {
		return nil
	}
	set := Labels(slices.Clone(labels))
	slices.SortStableFunc(set, Label.compare)
	out := set[:0]
	for _, l := range set {
		if n := len(out); n > 0 && out[n-1].compare(l) == 0 {
			out[n-1] = l
			continue
		}
		out = append(out, l)
	}
	return out
}

// ParseLabels reads Cilium's text form, `k8s:app=web;k8s:tier=;reserved:x=;`.
// Order does not matter and the last ";" may be missing. A label without a source
// and a label given twice are errors.
func ParseLabels(text string) (Labels, error) {
	labels := make([]Label, 0, strings.Count(text, ";")+1)
	for part := range strings.SplitSeq(text, ";") {
		if part == "" {
			continue
		}
		source, rest, ok := strings.Cut(part, ":")
		if !ok || source == "" {
			return nil, fmt.Errorf("label %q has no source; write it as source:key=value, for example k8s:%s", part, part)
		}
		key, value, _ := strings.Cut(rest, "=")
		if key == "" {
			return nil, fmt.Errorf("label %q has no key; write it as source:key=value", part)
		}
		labels = append(labels, Label{source, key, value})
	}
	set := NewLabels(labels...)
	if len(set) != len(labels) {
		return nil, fmt.Errorf("labels %q contain a key twice; keep one of them", text)
	}
	return set, nil
}

// String is Cilium's text form: sorted, every label as source:key=value followed by
// ";". Equal sets have equal strings, so it serves as a key.
func (ls Labels) String() string {
	var b strings.Builder
	for _, l := range ls {
		b.WriteString(l.Source)
		b.WriteByte(':')
		b.WriteString(l.Key)
		b.WriteByte('=')
		b.WriteString(l.Value)
		b.WriteByte(';')
	}
	return b.String()
}

// Get returns the value of a label; with SourceAny, that of the first source that has
// the key.
func (ls Labels) Get(source, key string) (value string, ok bool) {
	if source == SourceAny {
		for _, l := range ls {
			if l.Key == key {
				return l.Value, true
			}
		}
		return "", false
	}
	i, ok := slices.BinarySearchFunc(ls, Label{Source: source, Key: key}, Label.compare)
	if !ok {
		return "", false
	}
	return ls[i].Value, true
}

// Has reports whether the label is there, whatever its value.
func (ls Labels) Has(source, key string) bool {
	_, ok := ls.Get(source, key)
	return ok
}

// Equal reports whether both sets hold the same labels.
func (ls Labels) Equal(other Labels) bool { return slices.Equal(ls, other) }

// Namespace is the workload's namespace, "" if it has none.
func (ls Labels) Namespace() string {
	ns, _ := ls.Get(SourceK8s, KeyNamespace)
	return ns
}

// Cluster is the name of the workload's cluster, "" if it has none.
func (ls Labels) Cluster() string {
	name, _ := ls.Get(SourceK8s, KeyCluster)
	return name
}

// Foreign says why these labels, received from a peer, cannot belong to a workload of
// that cluster; nil if they can. A key that only the cluster may set is refused under
// any other source too, because selectors may name the key alone.
func (ls Labels) Foreign(cluster string) error {
	for _, l := range ls {
		switch l.Source {
		case SourceReserved, SourceCIDR, SourceFQDN, SourcePort, SourceAny:
			return fmt.Errorf("label %v cannot belong to a workload", l)
		}
		if Given(l.Key) && l.Source != SourceK8s {
			return fmt.Errorf("label %v may only come from source %s", l, SourceK8s)
		}
	}
	if got := ls.Cluster(); got != cluster {
		return fmt.Errorf("labels name cluster %q", got)
	}
	return nil
}

// MarshalText is String, so that JSON holds Cilium's text form.
func (ls Labels) MarshalText() ([]byte, error) { return []byte(ls.String()), nil }

// UnmarshalText is ParseLabels.
func (ls *Labels) UnmarshalText(text []byte) error {
	parsed, err := ParseLabels(string(text))
	if err != nil {
		return err
	}
	*ls = parsed
	return nil
}
