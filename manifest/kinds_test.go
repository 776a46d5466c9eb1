package manifest

import (
	"strings"
	"testing"
)

// A word means one kind, and a kind of one name and plural in lower case can be found.
func TestAWordMeansOneKind(t *testing.T) {
	for _, k := range Kinds() {
		for _, word := range append([]string{k.Name, k.Plural, strings.ToUpper(k.Plural)}, k.Short...) {
			var means []string
			for _, other := range Kinds() {
				if other.Called(word) {
					means = append(means, other.Name)
				}
			}
			if len(means) != 1 || means[0] != k.Name {
				t.Errorf("%q means %v, want %s", word, means, k.Name)
			}
		}
		if k.APIVersion == "" || k.Plural != strings.ToLower(k.Plural) {
			t.Errorf("%+v", k)
		}
		if IsPolicy(k.Plural) != (strings.HasSuffix(k.Name, "NetworkPolicy")) {
			t.Errorf("%s is a policy: %v", k.Name, IsPolicy(k.Plural))
		}
	}
}
