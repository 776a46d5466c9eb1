package scenario

import (
	"maps"
	"slices"
)

// Verb is an entry of the scenario language's manual.
type Verb struct {
	Name    string `json:"name"`
	Usage   string `json:"usage"` // its arguments
	Summary string `json:"summary"`
}

// Manual lists all verbs by name, and each of the load verbs.
func Manual() (verbs []Verb) {
	all := Verbs()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if name == "load" {
			verbs = append(verbs, loadManual...)
			continue
		}
		verbs = append(verbs, Verb{name, all[name].Usage, all[name].Summary})
	}
	return verbs
}
