package registry

import (
	"cmp"
	"encoding/json"
	"slices"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/manifest"
)

// The steps in which a change is made that one transaction does not take. Whoever reads
// between two of them must not find anything open that is closed both before and after.
// So what forbids comes before what is forbidden, and goes after it.
//
// What one step cannot split apart from another is the label of a running pod from the
// policies that select it by the old and by the new one. Both are among the first writes:
// the embedded etcd takes some 4,000 of them in one transaction.
const (
	goingPods = iota // nobody speaks for a pod that is gone

	newGroups // policies refer to them
	denials
	newPolicies // the first one that selects a pod closes it
	changedPolicies
	changedLabels // of namespaces and pods that exist
	newNamespaces

	goingServices
	goingOthers
	goingPolicies // a source may have exchanged the last one that selects a pod for a new one
	goingDenials
	goingGroups

	newServices
	newPods
)

// inOrder returns the changes in the order in which they are made.
func inOrder(changes []change) []change {
	type ranked struct {
		rank int
		*change
	}
	all := make([]ranked, len(changes))
	for i := range changes {
		all[i] = ranked{rank(&changes[i]), &changes[i]}
	}
	slices.SortStableFunc(all, func(a, b ranked) int { return cmp.Compare(a.rank, b.rank) })
	out := make([]change, len(all))
	for i, r := range all {
		out[i] = *r.change
	}
	return out
}

func rank(c *change) int {
	pick := func(deleted, created, configured int) int {
		switch c.action {
		case api.Deleted:
			return deleted
		case api.Created:
			return created
		}
		return configured
	}
	switch {
	case c.kind.Plural == manifest.Pods:
		return pick(goingPods, newPods, changedLabels)
	case c.kind.Plural == manifest.Namespaces:
		return pick(goingOthers, newNamespaces, changedLabels)
	case c.kind.Plural == manifest.CIDRGroups:
		return pick(goingGroups, newGroups, changedPolicies)
	case c.kind.Policy:
		if denies(c) {
			return pick(goingDenials, denials, denials)
		}
		return pick(goingPolicies, newPolicies, changedPolicies)
	}
	return pick(goingServices, newServices, newServices)
}

// denies reports whether a policy that is written or deleted has rules that deny.
func denies(c *change) bool {
	text := c.old.Value
	for _, w := range c.writes {
		if !w.Delete {
			text = w.Value
		}
	}
	type spec struct {
		IngressDeny []json.RawMessage `json:"ingressDeny"`
		EgressDeny  []json.RawMessage `json:"egressDeny"`
	}
	var p struct {
		Spec  spec   `json:"spec"`
		Specs []spec `json:"specs"`
	}
	// One that cannot be read forbids nothing.
	if json.Unmarshal(text, &p) != nil {
		return false
	}
	return slices.ContainsFunc(append(p.Specs, p.Spec), func(s spec) bool { return len(s.IngressDeny)+len(s.EgressDeny) > 0 })
}
