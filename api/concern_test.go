package api

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestJudgeTellsConcernsFromWhatIsSettling(t *testing.T) {
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		name  string
		since time.Duration // before now; 0: nobody knows
		grace time.Duration
		text  string
		want  string
	}{
		{"nobody knows since when", 0, 0, "it is so", "concern: it is so"},
		{"just begun", time.Second, 0, "it is so", "settling: it is so (1 s)"},
		{"a few seconds", ConcernGrace, 0, "it is so", "concern: it is so (3 s)"},
		{"a grace of its own", 9 * time.Second, 10 * time.Second, "it is so", "settling: it is so (9 s)"},
		{"the age inside", 4 * time.Minute, 0, "it has been so for {age} now", "concern: it has been so for 4 min now"},
		{"a clock ahead of ours", -time.Minute, 0, "it is so", "settling: it is so (0 s)"},
	} {
		c := Concern{Message: test.text, Grace: test.grace}
		if test.since != 0 {
			c.Since = now.Add(-test.since)
		}
		concerns, settling := Judge(now, []Concern{c})
		var got string
		for _, c := range concerns {
			got += "concern: " + c.String()
		}
		for _, c := range settling {
			got += "settling: " + c.String()
		}
		if got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
	both, _ := Judge(now, []Concern{{Object: "peer b", Message: "2", Next: "mend it"}, {Object: "node a", Message: "1"}})
	if text := fmt.Sprint(both); !strings.HasPrefix(text, "[1 2: mend it") {
		t.Errorf("order: %s", text)
	}
}

func TestWords(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0 s", 0: "0 s", 23 * time.Second: "23 s", 119 * time.Second: "119 s", 2 * time.Minute: "2 min", 119 * time.Minute: "119 min",
		2 * time.Hour: "2 h", 47 * time.Hour: "47 h", 48 * time.Hour: "2 d", 1000 * time.Hour: "41 d",
	} {
		if got := Words(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

func TestCount(t *testing.T) {
	for want, got := range map[string]string{
		"0 pods": Count(0, "pod"), "1 pod": Count(1, "pod"), "2 pods": Count(2, "pod"), "1 policy": Count(1, "policy"), "3 identities": Count(uint64(3), "identity"),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
