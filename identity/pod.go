package identity

import "strings"

// relevance is Cilium's default filter for which of a pod's labels make its
// identity. A label counts unless a left-out prefix matches its key; it still counts
// if a longer kept prefix matches too.
var relevance = struct{ kept, leftOut []string }{
	kept: []string{
		KeyNamespace,
		KeyNamespaceLabels,
		"app.kubernetes.io",
		KeyCluster,
		KeyServiceAccount,
	},
	leftOut: []string{
		"io.kubernetes",
		"kubernetes.io",
		"statefulset.kubernetes.io/pod-name",
		"apps.kubernetes.io/pod-index",
		"batch.kubernetes.io/job-completion-index",
		"batch.kubernetes.io/controller-uid",
		"k8s.io",
		"pod-template-generation",
		"pod-template-hash",
		"controller-revision-hash",
		"controller-uid",
		"annotation",
		"etcd_node",
		"topology.kubernetes.io",
	},
}

// betaSuffix leaves out every key that begins with anything.beta.kubernetes.io.
const betaSuffix = "beta.kubernetes.io"

// Relevant reports whether a label with this key is part of an identity.
func Relevant(key string) bool {
	kept, leftOut := 0, 0
	for _, p := range relevance.kept {
		if strings.HasPrefix(key, p) {
			kept = max(kept, len(p))
		}
	}
	for _, p := range relevance.leftOut {
		if strings.HasPrefix(key, p) && (leftOut == 0 || len(p) < leftOut) {
			leftOut = len(p)
		}
	}
	if i := strings.Index(key, betaSuffix); i >= 0 && leftOut == 0 {
		leftOut = i + len(betaSuffix)
	}
	return leftOut == 0 || kept > leftOut
}

// Selectable says why no workload's identity can have a label with this key, or
// returns "" if one can.
func Selectable(key string) string {
	switch {
	case key == KeyNamespace, key == KeyCluster, key == KeyServiceAccount:
		return ""
	case Given(key) && !strings.HasPrefix(key, KeyNamespaceLabels+"."):
		return "Weft gives no label of this name"
	case !Relevant(key):
		return "the label filter leaves it out, as Cilium's default filter does"
	}
	return ""
}

// PodLabels returns the identity labels of a pod. Pod labels with keys that only the
// cluster may set (see Given) are ignored: a pod cannot speak for its namespace, its
// service account or its cluster. Every namespace has the label NamespaceName,
// whether declared or not.
func PodLabels(namespace string, namespaceLabels, podLabels map[string]string, serviceAccount, cluster string) Labels {
	labels := make([]Label, 0, len(podLabels)+len(namespaceLabels)+3)
	add := func(key, value string) {
		if Relevant(key) {
			labels = append(labels, Label{SourceK8s, key, value})
		}
	}
	for key, value := range podLabels {
		if Given(key) {
			continue
		}
		add(key, value)
	}
	for key, value := range namespaceLabels {
		add(KeyNamespaceLabels+"."+key, value)
	}
	add(KeyNamespaceLabels+"."+NamespaceName, namespace)
	add(KeyNamespace, namespace)
	if serviceAccount != "" {
		add(KeyServiceAccount, serviceAccount)
	}
	add(KeyCluster, cluster)
	return NewLabels(labels...)
}
