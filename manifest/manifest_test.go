package manifest

import (
	"encoding/json"
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
