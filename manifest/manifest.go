// Package manifest knows the kinds of objects, takes the lists in a manifest apart into their
// objects, and finds what a misspelt word was meant to be.
//
// What is in an object, and whether it is a good one, is left to those who read it.
package manifest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	kjson "sigs.k8s.io/json"
)

// Items returns the objects of a list in JSON: an array, kind List as kubectl
// prints it or another kind that ends so, or a cluster's objects as `weft get
// -o json` prints them. A list in a list stands for its items, as deep as such
// lists go: several clusters, several kinds, kind List. What is deeper is left
// as it is, because every level costs a copy of all below. It returns false for
// what is no list: kind List without items is none, nor with more than a list has,
// such as Items.
func Items(text []byte) (items []json.RawMessage, list bool) {
	return appendItems(nil, text, deepest)
}

// deepest is how many lists may be in each other.
const deepest = 4

// Misshapen says what is wrong with an object of a list's kind that Items took
// for no list; nil for other kinds.
func Misshapen(kind string) error {
	if !isList(kind) {
		return nil
	}
	return fmt.Errorf("kind %q is not a list: write its objects as a sequence under items, which may stand only beside apiVersion, kind and metadata, in at most %d other lists", kind, deepest-1)
}

func isList(kind string) bool { return strings.HasSuffix(kind, "List") }

func appendItems(items []json.RawMessage, text []byte, depth int) ([]json.RawMessage, bool) {
	var direct []json.RawMessage
	if bytes.HasPrefix(bytes.TrimSpace(text), []byte("[")) {
		if json.Unmarshal(text, &direct) != nil {
			return items, false
		}
	} else {
		var l struct {
			APIVersion string          `json:"apiVersion"`
			Kind       string          `json:"kind"`
			Metadata   json.RawMessage `json:"metadata"`
			Cluster    string          `json:"cluster"`
			Revision   json.RawMessage `json:"revision"`
			Items      json.RawMessage `json:"items"` // null where there are none
		}
		unknown, err := kjson.UnmarshalStrict(text, &l)
		if err != nil || len(unknown) > 0 || json.Unmarshal(l.Items, &direct) != nil {
			return items, false
		}
		ours := l.Cluster != "" && l.APIVersion == "" && direct != nil
		if !ours && !isList(l.Kind) {
			return items, false
		}
	}
	for _, one := range direct {
		list := false
		if depth > 1 {
			items, list = appendItems(items, one, depth-1)
		}
		if !list {
			items = append(items, one)
		}
	}
	return items, true
}
