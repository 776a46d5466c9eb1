package policy

import (
	"math/rand/v2"
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/identity"
)

// A selector contradicts itself exactly if no combination of labels satisfies it.
func TestContradictionsAreWhatNothingSatisfies(t *testing.T) {
	const none = "-"
	values := []string{none, "a", "b", "c", "d"} // nothing names d
	var everyone []identity.Labels
	for _, app := range values {
		for _, tier := range values {
			labels := []identity.Label{{Source: identity.SourceK8s, Key: identity.KeyNamespace, Value: "shop"}, {Source: identity.SourceK8s, Key: identity.KeyCluster, Value: "east"}}
			if app != none {
				labels = append(labels, identity.Label{Source: identity.SourceK8s, Key: "app", Value: app})
			}
			if tier != none {
				labels = append(labels, identity.Label{Source: identity.SourceK8s, Key: "tier", Value: tier})
			}
			everyone = append(everyone, identity.NewLabels(labels...))
		}
	}
	found := map[bool]int{}
	r := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		var s selector
		for range 1 + r.IntN(4) {
			op := pick(r, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)
			var of []string
			if op == metav1.LabelSelectorOpIn || op == metav1.LabelSelectorOpNotIn {
				of = slices.Compact(slices.Sorted(slices.Values([]string{pick(r, "a", "b", "c"), pick(r, "a", "b", "c")})))
			}
			s = append(s, newRequirement(pick(r, identity.SourceK8s, identity.SourceAny), pick(r, "app", "app", "tier"), op, of))
		}
		why := s.contradiction(false)
		if satisfied := slices.ContainsFunc(everyone, s.matches); satisfied != (why == "") {
			t.Fatalf("%v: satisfied %v, but the contradiction is %q", s, satisfied, why)
		}
		found[why == ""]++
	}
	if found[true] < 1000 || found[false] < 1000 {
		t.Errorf("one-sided: %v", found)
	}
}

// What asks for nobody in so many words is no contradiction, nor is a label that a
// reserved one may stand for.
func TestNoContradictions(t *testing.T) {
	need := func(source, key string, op metav1.LabelSelectorOperator, values ...string) requirement {
		return newRequirement(source, key, op, values)
	}
	for _, s := range []selector{
		{},
		{need(identity.SourceReserved, wordNone, metav1.LabelSelectorOpExists)},
		{need(identity.SourceReserved, wordAll, metav1.LabelSelectorOpDoesNotExist)},
		{need(identity.SourceAny, "host", metav1.LabelSelectorOpExists), need(identity.SourceK8s, "host", metav1.LabelSelectorOpDoesNotExist)},
		{need(identity.SourceK8s, identity.KeyNamespace, metav1.LabelSelectorOpDoesNotExist)}, // the world has none
		scopePeer(selector{need(identity.SourceAny, "app", metav1.LabelSelectorOpNotIn, "a")}, "shop"),
		scopePeer(selector{need(identity.SourceK8s, identity.KeyCluster, metav1.LabelSelectorOpNotIn, "east")}, "shop"),
	} {
		if why := s.contradiction(false); why != "" {
			t.Errorf("%v: %s", s, why)
		}
	}
}
