package program

import (
	"maps"
	"slices"
)

// A policy set has two numbers. The compiler's changes with every compilation; the
// kernel's is in the endpoints' rows and must keep its meaning when generations switch,
// because the rows and the switch are separate writes.
//
// So a new generation is written under the numbers that the rows already have:
//
//	split   rows that share a number, but will no longer share rules, first get
//	        numbers of their own, with the current generation's rules
//	switch  one write: every number now means the new rules
//	merge   rows whose rules have become the same share a number again
//
// At every moment each row means either its old or its new rules.

// noSet is the number of endpoints that no policy selects, in both numberings.
const noSet uint32 = 0

// assignment says which numbers rows have before, during and after a switch.
type assignment struct {
	// split lists the rows that get another number before the switch, and the number
	// whose current rules it copies (noSet: none).
	split map[string]splitTo
	// content is what each kernel number means after the switch.
	content map[uint32]uint32
	// final is each row's number after the merge.
	final map[string]uint32
}

type splitTo struct{ number, like uint32 }

// assign plans a switch. present holds each endpoint's kernel number, next its
// compiled number; fresh returns unused kernel numbers.
func assign(present, next map[string]uint32, fresh func() uint32) assignment {
	a := assignment{split: map[string]splitTo{}, content: map[uint32]uint32{}, final: map[string]uint32{}}
	during := map[string]uint32{}
	copies := map[[2]uint32]uint32{} // of (present number, next content)
	for _, ep := range slices.Sorted(maps.Keys(next)) {
		have, want := present[ep], next[ep]
		if have == noSet && want == noSet {
			during[ep] = noSet
			continue
		}
		if meaning, taken := a.content[have]; have != noSet && (!taken || meaning == want) {
			a.content[have] = want
			during[ep] = have
			continue
		}
		number, ok := copies[[2]uint32{have, want}]
		if !ok {
			number = fresh()
			copies[[2]uint32{have, want}] = number
			a.content[number] = want
		}
		a.split[ep] = splitTo{number: number, like: have}
		during[ep] = number
	}
	// If several numbers have the same content, keep the lowest.
	lowest := map[uint32]uint32{}
	for number, content := range a.content {
		if low, ok := lowest[content]; !ok || number < low {
			lowest[content] = number
		}
	}
	for ep, content := range next {
		a.final[ep] = lowest[content]
		if content == noSet {
			a.final[ep] = noSet
		}
	}
	return a
}
