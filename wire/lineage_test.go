package wire

import (
	"fmt"
	"testing"
)

func TestLineageTellsHistoriesApart(t *testing.T) {
	l := Lineage{Starts: []Start{{"a", 0}, {"b", 120}, {"c", 300}}}
	for _, test := range []struct {
		name     string
		start    string
		revision int64
		want     bool
	}{
		{"the store goes on running", "c", 1000, true},
		{"restarted", "b", 300, true},
		{"restarted, and the end was not seen", "b", 250, true},
		{"restored from a copy", "b", 301, false},
		{"restored from a copy before the last one", "a", 121, false},
		{"seen before the copy was made", "a", 120, true},
		{"a start that was lost", "x", 1, false},
		{"a store that did not say", "", 1, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := l.Holds(test.start, test.revision); got != test.want {
				t.Errorf("Holds(%q, %d) = %v", test.start, test.revision, got)
			}
		})
	}
	if (Lineage{}).Holds("", 0) || (Lineage{}).Last() != "" {
		t.Error("a store without a lineage vouches for something")
	}
}

func TestLineageForgetsTheOldest(t *testing.T) {
	var l Lineage
	for i := range 3 * lineageStarts {
		before := l
		l = l.With(Start{ID: fmt.Sprint(i), After: int64(i)})
		if len(before.Starts) > 0 && before.Last() != fmt.Sprint(i-1) {
			t.Fatal("With changed what it began with")
		}
	}
	if len(l.Starts) != lineageStarts || l.Last() != fmt.Sprint(3*lineageStarts-1) || l.Holds("0", 0) {
		t.Errorf("%d starts, the last %s", len(l.Starts), l.Last())
	}
}
