package manifest

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestItems(t *testing.T) {
	for name, c := range map[string]struct {
		text, want string
		list       bool
	}{
		"an object":                {`{"apiVersion":"v1","kind":"Pod"}`, `null`, false},
		"an object with items":     {`{"apiVersion":"v1","kind":"Pod","items":[1]}`, `null`, false},
		"a word":                   {`"List"`, `null`, false},
		"kubectl's list":           {`{"apiVersion":"v1","kind":"List","items":[{"a":1},{"b":2}]}`, `[{"a":1},{"b":2}]`, true},
		"a list of a kind":         {`{"apiVersion":"v1","kind":"PodList","items":[{"a":1}]}`, `[{"a":1}]`, true},
		"items that are none":      {`{"apiVersion":"v1","kind":"List","items":"a"}`, `null`, false},
		"an empty list":            {`{"apiVersion":"v1","kind":"List","items":[]}`, `null`, true},
		"no items":                 {`{"apiVersion":"v1","kind":"List","items":null}`, `null`, true},
		"a list without items":     {`{"apiVersion":"v1","kind":"List"}`, `null`, false},
		"misspelled items":         {`{"apiVersion":"v1","kind":"List","Items":[{"a":1}]}`, `null`, false},
		"misspelled items beside":  {`{"apiVersion":"v1","kind":"List","items":[{"a":1}],"Items":[{"b":2}]}`, `null`, false},
		"what a list has not":      {`{"apiVersion":"v1","kind":"List","items":[{"a":1}],"item":[{"b":2}]}`, `null`, false},
		"a list as kubectl has it": {`{"apiVersion":"v1","kind":"PodList","metadata":{"resourceVersion":"7"},"items":[{"a":1}]}`, `[{"a":1}]`, true},
		"a misspelled kind":        {`{"apiVersion":"v1","kind":"Pod","Kind":"List","items":[{"a":1}]}`, `null`, false},
		"an array":                 {` [{"a":1},"x"]`, `[{"a":1},"x"]`, true},
		"a cluster's objects":      {`{"cluster":"east","kind":"Pod","revision":7,"items":[{"a":1}]}`, `[{"a":1}]`, true},
		"several kinds' objects":   {`[{"cluster":"east","kind":"Pod","items":[{"a":1}]},{"cluster":"east","kind":"Service","items":[{"b":2}]}]`, `[{"a":1},{"b":2}]`, true},
		"a list between objects":   {`[{"a":1},[{"b":2},[]],{"c":3}]`, `[{"a":1},{"b":2},{"c":3}]`, true},
		"lists four deep":          {`[[[[{"a":1}]]]]`, `[{"a":1}]`, true},
		"lists five deep":          {`[[[[[{"a":1}]]]]]`, `[[{"a":1}]]`, true},
		"nothing that is an item":  {`[null]`, `[null]`, true},
	} {
		t.Run(name, func(t *testing.T) {
			items, list := Items([]byte(c.text))
			if got, _ := json.Marshal(items); string(got) != c.want || list != c.list {
				t.Errorf("got %s, %v; want %s, %v", got, list, c.want, c.list)
			}
		})
	}
}

// The advice names the depth to which Items takes lists apart.
func TestMisshapen(t *testing.T) {
	nested := func(others int) string {
		const open, end = `{"kind":"List","items":[`, `]}`
		return strings.Repeat(open, others+1) + `{"kind":"Pod"}` + strings.Repeat(end, others+1)
	}
	for others, want := range map[int]string{3: "Pod", 4: "List"} {
		items, list := Items([]byte(nested(others)))
		if !list || len(items) != 1 {
			t.Fatalf("a list in %d others: %s, %v", others, items, list)
		}
		var left struct{ Kind string }
		if err := json.Unmarshal(items[0], &left); err != nil || left.Kind != want {
			t.Errorf("of a list in %d others a %s is left, want a %s (%v)", others, left.Kind, want, err)
		}
	}
	if err := Misshapen("PodList"); err == nil || !strings.Contains(err.Error(), `kind "PodList"`) || !strings.Contains(err.Error(), "in at most 3 other lists") {
		t.Errorf("a list's kind: %v", err)
	}
	if err := Misshapen("Pod"); err != nil {
		t.Errorf("another kind: %v", err)
	}
}
