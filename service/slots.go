package service

// SlotOp is one write to the slots of a group. The kernel reads slots 0 to
// count-1 while they are written.
type SlotOp[B comparable] struct {
	Kind SlotKind
	// Slot is written by Put, cleared by Clear.
	Slot uint32
	// Backend is what Put writes.
	Backend B
	// Count is what SetCount sets.
	Count uint32
}

// SlotKind says what a SlotOp does.
type SlotKind uint8

// The kinds of writes.
const (
	Put SlotKind = iota + 1
	SetCount
	Clear
)

// Slots turns the slots have into the set want, in any order and in as few writes as
// possible: newcomers take the places of those that leave, then the last slots move into
// the remaining holes, then the count changes once, then what is beyond it is cleared.
// After each write every slot below the count holds a backend of have or of want.
//
// It returns the writes in order and the slots after them. have must be free of
// duplicates; duplicates in want count once.
func Slots[B comparable](have, want []B) (ops []SlotOp[B], slots []B) {
	wanted := make(map[B]bool, len(want)) // true: not in a slot yet
	for _, b := range want {
		wanted[b] = true
	}
	slots = append(slots, have...)
	var holes []int
	for i, b := range slots {
		if _, ok := wanted[b]; ok {
			wanted[b] = false
		} else {
			holes = append(holes, i)
		}
	}
	put := func(i int, b B) {
		if i == len(slots) {
			slots = append(slots, b)
		} else {
			slots[i] = b
		}
		ops = append(ops, SlotOp[B]{Kind: Put, Slot: uint32(i), Backend: b})
	}
	for _, b := range want {
		if !wanted[b] {
			continue
		}
		wanted[b] = false
		if len(holes) > 0 {
			put(holes[0], b)
			holes = holes[1:]
		} else {
			put(len(slots), b)
		}
	}
	// Holes are in ascending order. The last one is either at the end and is simply cut
	// off, or before it; then the first hole takes the backend at the end.
	end := len(slots)
	for len(holes) > 0 {
		end--
		if holes[len(holes)-1] == end {
			holes = holes[:len(holes)-1]
			continue
		}
		put(holes[0], slots[end])
		holes = holes[1:]
	}
	if end != len(have) {
		ops = append(ops, SlotOp[B]{Kind: SetCount, Count: uint32(end)})
	}
	for i := end; i < len(have); i++ {
		ops = append(ops, SlotOp[B]{Kind: Clear, Slot: uint32(i)})
	}
	return ops, slots[:end]
}
