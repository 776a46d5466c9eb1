package manifests

import (
	"bufio"
	"bytes"
	"strings"
	"testing"

	utilyaml "k8s.io/apimachinery/pkg/util/yaml"

	"github.com/weft-mesh/weft/api"
)

func TestMistakesHaveALine(t *testing.T) {
	const text = "# a comment\n\nkind: A\n---\n---\n# another\nkind: B\n---  # third\n\n\nkind: C\nspec: [\n"
	for _, c := range []struct {
		problem api.Problem
		want    string
	}{
		{api.Problem{Message: "m"}, "f: m"},
		{api.Problem{Document: 1, Kind: "A", Message: "m"}, "f:3: A: m"},
		{api.Problem{Document: 2, Message: "m"}, "f:7: m"},
		{api.Problem{Document: 3, Item: 4, Kind: "C", Namespace: "n", Name: "x", Message: "m"}, "f:11: item 4, C n/x: m"},
		{api.Problem{Document: 3, Message: "not valid YAML: line 4: did not find"}, "f:12: not valid YAML: did not find"},
		{api.Problem{Document: 9, Message: "m"}, "f:11: m"},
	} {
		if got := sentence("f", []byte(text), c.problem); got != c.want {
			t.Errorf("%+v: %q, want %q", c.problem, got, c.want)
		}
	}
}

// Documents begin where those who read them begin.
func FuzzDocumentStart(f *testing.F) {
	f.Add([]byte("# a\nkind: A\n---\n---\nkind: B\n--- # c\nkind: C"))
	f.Add([]byte("---\nkind: A\n---\n"))
	f.Add([]byte("\n---\n\n---\n\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if bytes.ContainsAny(text, "\r") {
			return // the reader drops them
		}
		lines := strings.Split(string(text), "\n")
		docs := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
		for n := 1; ; n++ {
			doc, err := docs.Read()
			if err != nil {
				return
			}
			start := documentStart(text, n)
			for i, want := range strings.Split(strings.TrimSuffix(string(doc), "\n"), "\n") {
				if at := start - 1 + i; at >= len(lines) || lines[at] != want {
					t.Fatalf("%q: document %d is %q, but line %d begins it", text, n, doc, start)
				}
			}
		}
	})
}
