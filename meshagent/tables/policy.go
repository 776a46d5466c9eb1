package tables

import (
	"github.com/weft-mesh/weft/policy"
)

// Policy is one manifest: a policy, or a group of prefixes for policies to use.
type Policy struct {
	Kind, Namespace, Name string
	Policies              []*policy.Policy
	Group                 *policy.CIDRGroup
}

// Key is "kind/namespace/name".
func (p *Policy) Key() string { return p.Kind + "/" + p.Namespace + "/" + p.Name }

var policies = table[*Policy]{
	name: "policies", imported: true, written: true,
	columns: []string{"Kind", "Namespace", "Name"},
	cells: func(p *Policy) []string {
		return []string{p.Kind, or(p.Namespace), p.Name}
	},
}
