package program

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestEveryRowAlwaysMeansItsOldOrItsNewRules plays random switches and checks at each
// moment what every endpoint's row means.
func TestEveryRowAlwaysMeansItsOldOrItsNewRules(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 1))
		last := uint32(0)
		fresh := func() uint32 { last++; return last }
		row := map[string]uint32{}     // endpoint to kernel number
		meaning := map[uint32]uint32{} // kernel number to current rules
		rules := map[string]uint32{}   // what each endpoint should have
		means := func(n uint32) uint32 {
			if n == noSet {
				return noSet
			}
			return meaning[n]
		}
		for round := range 6 {
			next := map[string]uint32{}
			for i := range 6 {
				ep := fmt.Sprintf("ep-%d", i)
				switch r.IntN(8) {
				case 0: // gone, or not there yet
					delete(row, ep)
					delete(rules, ep)
				default:
					next[ep] = uint32(r.IntN(4))
				}
			}
			a := assign(row, next, fresh)

			for ep, to := range a.split {
				if _, used := meaning[to.number]; used && row[ep] != to.number && means(to.number) != means(to.like) {
					t.Fatalf("seed %d round %d: %s is split to %d, which is in use", seed, round, ep, to.number)
				}
				meaning[to.number] = means(to.like)
			}
			for ep, to := range a.split {
				row[ep] = to.number
			}
			for ep, want := range rules {
				if _, still := next[ep]; still && means(row[ep]) != want {
					t.Fatalf("seed %d round %d: after the split %s means %d, want its old %d", seed, round, ep, means(row[ep]), want)
				}
			}
			meaning = a.content
			for ep, want := range next {
				if means(row[ep]) != want {
					t.Fatalf("seed %d round %d: after the switch %s means %d, want %d", seed, round, ep, means(row[ep]), want)
				}
				row[ep] = a.final[ep]
				if means(row[ep]) != want {
					t.Fatalf("seed %d round %d: after the merge %s means %d, want %d", seed, round, ep, means(row[ep]), want)
				}
			}
			rules = next
		}
	}
}

func TestAnUnchangedAssignmentMovesNothing(t *testing.T) {
	a := assign(map[string]uint32{"a": 5, "b": 5, "c": 7, "d": 0}, map[string]uint32{"a": 1, "b": 1, "c": 2, "d": 0}, func() uint32 { t.Fatal("a fresh number was requested"); return 0 })
	if len(a.split) != 0 || a.final["a"] != 5 || a.final["b"] != 5 || a.final["c"] != 7 || a.final["d"] != 0 {
		t.Errorf("%+v", a)
	}
}
