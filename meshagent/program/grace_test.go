package program

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/bpf"
)

// A program that has read which generation is in force before a switch judges by its rows for
// a moment after it: they stay that long, whatever is written and cleaned up meanwhile.
func TestRowsOutliveTheirGenerationByAMoment(t *testing.T) {
	const moment = 100 * time.Millisecond // a program runs for microseconds
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.pod("web-1", "web", "10.1.1.2", 65537)
		b.remote("frontend", 131073)
		b.policy("web", allowFrontend)
		b.pass()

		gen := b.p.settings.PolicyGen
		classes, entries, sets := rowsIn(b.maps.Classes), rowsIn(b.maps.Policy), rowsIn(b.maps.Sets)
		var switched time.Time
		lost, switches := 0, 0
		b.tap.after = func() {
			if now, _, _ := b.maps.Settings.Lookup(0); now.PolicyGen != gen {
				gen, switched = now.PolicyGen, time.Now()
				switches++
			}
			if !switched.IsZero() && time.Since(switched) < moment {
				lost += missing(entries, b.maps.Policy, gen-1) + missing(sets, b.maps.Sets, gen-1) + missing(classes, b.maps.Classes, gen-1)
			}
		}
		for _, text := range []string{"", allowFrontend, ""} {
			b.policy("web", text)
			b.restart() // the next agent makes a generation of its own
			for range 20 {
				b.p.pass(t.Context())
				time.Sleep(moment / 10)
			}
			classes, entries, sets = rowsIn(b.maps.Classes), rowsIn(b.maps.Policy), rowsIn(b.maps.Sets)
			for k := range entries {
				if k.Gen != gen {
					t.Errorf("generation %d left %+v", k.Gen, k)
				}
			}
		}
		if switches == 0 || lost > 0 {
			t.Errorf("%d switches, %d rows gone within %v", switches, lost, moment)
		}
	})
}

// missing counts the rows of a generation that a map no longer has.
func missing[K comparable, V any](then map[K]V, now bpf.Table[K, V], gen uint32) (n int) {
	for k := range then {
		if genOf(k) != gen {
			continue
		}
		if _, there, _ := now.Lookup(k); !there {
			n++
		}
	}
	return n
}

func genOf(key any) uint32 {
	switch k := key.(type) {
	case bpf.PolicyKey:
		return k.Gen
	case bpf.SetKey:
		return k.Gen
	case bpf.ClassKey:
		return k.Gen
	}
	panic("not a row of a generation")
}
