package manifest

import (
	"reflect"
	"slices"
	"strings"
)

// DidYouMean ends a sentence about an unknown word: with the nearest known word, or all of
// them if none is near.
func DidYouMean(word string, known []string) string {
	if near := Nearest(word, known); near != "" {
		return "did you mean " + near + "?"
	}
	return "choose from " + strings.Join(known, ", ")
}

// Nearest returns the known word that takes the fewest letters to change, add, drop or
// swap, whatever their case, or "" if that is more than a third of the word's letters.
func Nearest(word string, known []string) (near string) {
	least := max(1, len(word)/3) + 1
	for _, k := range known {
		if d := distance(strings.ToLower(word), strings.ToLower(k)); d < least {
			near, least = k, d
		}
	}
	return near
}

// UnknownField says what to do about a field that objects of a Go type do not have. The
// place is as sigs.k8s.io/json writes it: spec.ingress[0].fromEndpoint.
func UnknownField(place string, object reflect.Type) (advice string) {
	const otherwise = "remove it or correct its spelling"
	steps := strings.Split(place, ".")
	parent := object
	for _, step := range steps[:len(steps)-1] {
		name, _, _ := strings.Cut(step, "[")
		if parent = structOf(parent); parent == nil {
			return otherwise
		}
		if parent = fieldsOf(parent)[name]; parent == nil {
			return otherwise
		}
	}
	if parent = structOf(parent); parent == nil {
		return otherwise
	}
	fields, word := fieldsOf(parent), steps[len(steps)-1]
	// The two most common slips of indentation: everything of spec beside it, and labels
	// straight under a selector.
	if fields["spec"] != nil && has(fields["spec"], word) {
		return "it belongs under spec: indent it"
	}
	if fields["matchLabels"] != nil && Nearest(word, []string{"matchLabels", "matchExpressions"}) == "" {
		return "labels belong under matchLabels"
	}
	known := make([]string, 0, len(fields))
	for name := range fields {
		known = append(known, name)
	}
	slices.Sort(known)
	if near := Nearest(word, known); near != "" {
		return "did you mean " + near + "?"
	}
	return otherwise
}

func has(t reflect.Type, field string) bool {
	s := structOf(t)
	return s != nil && fieldsOf(s)[field] != nil
}

// structOf looks through pointers and lists; nil if there is no struct behind them.
func structOf(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	return t
}

// fieldsOf returns the types of a struct's fields by their names in JSON.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name != "" && name != "-" {
			fields[name] = f.Type
		}
	}
	return fields
}

// distance is the Damerau-Levenshtein distance, with swaps of adjacent letters.
func distance(a, b string) int {
	rows := [3][]int{make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)}
	for j := range rows[1] {
		rows[1][j] = j
	}
	for i := range len(a) {
		before, last, row := rows[0], rows[1], rows[2]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(last[j+1]+1, row[j]+1, last[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		rows = [3][]int{last, row, before}
	}
	return rows[1][len(b)]
}
