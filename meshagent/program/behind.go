package program

import (
	"slices"

	"github.com/weft-mesh/weft/bpf"
)

// behind is what belongs to one service number. There may be very many, so its maps are nil
// while they are empty.
type behind struct {
	groups []group
	// at finds a backend's slot, for groups whose slots changed one by one.
	at map[uint16]map[bpf.Backend]uint32
	// stray slots are beyond those. They are removed once the row's counts exclude them.
	stray   map[bpf.SlotKey]bool
	members map[bpf.MemberKey]bpf.Member
	// found are those of them that an earlier agent left and this one has not wanted yet.
	found  map[bpf.MemberKey]bool
	ranges map[bpf.RangeKey]bool
	shares *shares // nil: it has none
}

// group has a group's slots from 0 on, without duplicates. It goes by its cluster's number,
// with the part that it is of the cluster's backends: bpf.PartOf.
type group struct {
	cluster uint16
	slots   []bpf.Backend
}

// slots returns the slots of a group.
func (h *behind) slots(cluster uint16) []bpf.Backend {
	for i := range h.groups {
		if h.groups[i].cluster == cluster {
			return h.groups[i].slots
		}
	}
	return nil
}

// hold replaces the slots of a group.
func (h *behind) hold(cluster uint16, slots []bpf.Backend) {
	i := slices.IndexFunc(h.groups, func(g group) bool { return g.cluster == cluster })
	if i < 0 {
		h.groups = append(slices.Clip(h.groups), group{cluster, slots})
		return
	}
	h.groups[i].slots = slots
}

// enter puts something into a map that is nil while it is empty.
func enter[K comparable, V any](to *map[K]V, k K, v V) {
	if *to == nil {
		*to = map[K]V{}
	}
	(*to)[k] = v
}

// use records what a group's slots hold. From the first duplicate on, slots are stray.
func (h *behind) use(id uint32, cluster uint16, slots []bpf.Backend) {
	seen := make(map[bpf.Backend]bool, len(slots))
	n := 0
	for ; n < len(slots) && !seen[slots[n]]; n++ {
		seen[slots[n]] = true
		delete(h.stray, bpf.SlotKey{Service: id, Slot: uint32(n), Cluster: cluster})
	}
	h.strayFrom(id, cluster, n, max(len(slots), len(h.slots(cluster))))
	h.hold(cluster, slots[:n])
	delete(h.at, cluster)
}

// strayFrom marks the slots from first to end-1 as stray.
func (h *behind) strayFrom(id uint32, cluster uint16, first, end int) {
	for i := first; i < end; i++ {
		enter(&h.stray, bpf.SlotKey{Service: id, Slot: uint32(i), Cluster: cluster}, true)
	}
}
