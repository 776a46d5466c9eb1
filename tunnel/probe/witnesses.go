package probe

import (
	"cmp"
	"hash/fnv"
	"slices"
)

// MaxWitnesses is how many nodes of each cluster a node probes besides those that it
// has flows with. A mesh of n nodes in c clusters sends n × c × MaxWitnesses / Interval
// such probes a second, never n × n.
const MaxWitnesses = 3

// Witnesses chooses the nodes that node self probes: up to most nodes of every cluster,
// the same ones for as long as they exist but others for every prober, and all nodes
// that self has flows with. self is left out. The result is in order of name, without
// duplicates.
func Witnesses(self string, nodes []Target, flows map[string]bool, most int) []Target {
	byCluster := map[string][]Target{}
	var chosen []Target
	for _, n := range nodes {
		if n.Name() == self || !n.Addr.IsValid() {
			continue
		}
		byCluster[n.Cluster] = append(byCluster[n.Cluster], n)
		if flows[n.Name()] {
			chosen = append(chosen, n)
		}
	}
	for _, members := range byCluster {
		// Rendezvous hashing: a node that comes or goes changes one witness.
		slices.SortFunc(members, func(a, b Target) int {
			return cmp.Or(cmp.Compare(weight(self, b), weight(self, a)), cmp.Compare(a.Node, b.Node))
		})
		chosen = append(chosen, members[:min(most, len(members))]...)
	}
	slices.SortFunc(chosen, func(a, b Target) int { return cmp.Compare(a.Name(), b.Name()) })
	return slices.CompactFunc(chosen, func(a, b Target) bool { return a.Name() == b.Name() })
}

func weight(self string, t Target) uint64 {
	h := fnv.New64a()
	h.Write([]byte(self))
	h.Write([]byte{0})
	h.Write([]byte(t.Name()))
	// FNV's last bytes hardly reach the high bits, which decide the order: mix them.
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return x
}
