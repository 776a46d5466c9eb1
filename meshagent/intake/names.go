package intake

import "strings"

// names keeps one copy of each name that many rows have: of clusters, namespaces,
// services, nodes and zones, and of labels with their values. A name that was cut out of a key would otherwise keep the
// whole key in memory, once for each row.
type names map[string]string

// mostNames bounds what names that are no longer in use can take.
const mostNames = 1 << 16

// one returns the copy of a name.
func (n names) one(name string) string {
	if have, ok := n[name]; ok {
		return have
	}
	if len(n) >= mostNames {
		clear(n)
	}
	name = strings.Clone(name)
	n[name] = name
	return name
}
