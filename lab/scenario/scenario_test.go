package scenario

import (
	"bytes"
	"errors"
	"flag"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/lab"
	"github.com/weft-mesh/weft/lab/fabric"
	"github.com/weft-mesh/weft/lab/script"
	"github.com/weft-mesh/weft/lab/traffic"
)

func TestFigures(t *testing.T) {
	f := newFigures()
	f.Set("leaks", 0)
	f.Add("failed", 2)
	f.Add("failed", 3)
	for i := range 100 {
		f.Sample("failover", float64(i+1)/100)
	}
	for text, holds := range map[string]bool{
		"leaks = 0": true, "leaks > 0": false, "failed >= 5": true, "failed < 5": false,
		"failover.p50 = 500ms": true, "failover.p99 < 1s": true, "failover.p99 < 990ms": false, "failover.max <= 1s": true, "failover.count = 100": true,
	} {
		words := strings.Fields(text)
		if err := f.expect(words[0], words[1], words[2]); (err == nil) != holds {
			t.Errorf("expect %s: %v", text, err)
		}
	}
	for _, text := range []string{"nothing = 0", "failover = 1", "failover.p12 = 1", "leaks ~ 0", "leaks = soon"} {
		words := strings.Fields(text)
		if err := f.expect(words[0], words[1], words[2]); err == nil {
			t.Errorf("expect %s is accepted", text)
		}
	}
	if got := f.Summary()["failover"]; got != (Series{100, 0.5, 0.99, 1}) {
		t.Errorf("summary = %+v", got)
	}
}

func TestFiguresAddUp(t *testing.T) {
	v := &Live{Figures: newFigures(), state: &script.State{
		Stdout: "packets{node=\"n1\"} 3\npackets{node=\"n2\"} 1.5e+06\nbytes{node=\"n1\"} 70\n"}}
	if err := v.figure(t.Context(), []string{"packets", "sum", `^packets\{.*\} (\S+)$`}); err != nil {
		t.Fatal(err)
	}
	if got := v.Figures.Summary()["packets"]; got != 1500003.0 {
		t.Errorf("the sum is %v, want 1500003", got)
	}
	v.Figures.Set("rounds", 3)
	v.Figures.Set("none", 0)
	for operator, want := range map[string]float64{"-": 1500000, "/": 500001} {
		if err := v.figure(t.Context(), []string{"result", "packets", operator, "rounds"}); err != nil {
			t.Error(err)
		}
		if got := v.Figures.Summary()["result"]; got != want {
			t.Errorf("packets %s rounds is %v, want %v", operator, got, want)
		}
	}
	for _, args := range [][]string{{"r", "packets", "/", "none"}, {"r", "packets", "*", "rounds"}, {"r", "packets", "-", "nothing"}, {"r", "nothing", "-", "packets"}} {
		if err := v.figure(t.Context(), args); err == nil {
			t.Errorf("%v is accepted", args)
		}
	}
	for _, expression := range []string{`^drops\{.*\} (\S+)$`, `^packets`, `node="(.*)"`, `(`} {
		if err := v.figure(t.Context(), []string{"wrong", "sum", expression}); err == nil {
			t.Errorf("sum %s is accepted", expression)
		}
	}
}

func TestFlagsStandAnywhere(t *testing.T) {
	var rate int
	rest, err := flags([]string{"east/client", "--rate", "7", "http://web"}, func(f *flag.FlagSet) { f.IntVar(&rate, "rate", 0, "") })
	if err != nil || rate != 7 || !slices.Equal(rest, []string{"east/client", "http://web"}) {
		t.Errorf("flags = %d, %q, %v", rate, rest, err)
	}
}

// A wrong line never passes for a failure that was wanted.
func TestMisuse(t *testing.T) {
	v := &Live{Lab: &lab.Lab{Topology: lab.DefaultTopology(), Operator: &lab.Node{Name: "operator"}}, state: &script.State{},
		marks: map[string]time.Time{}, loads: map[string]*load{"calls": samples("east/a")}, captures: map[string]*fabric.Capture{}, Figures: newFigures()}
	v.loads["calls"].stopped = true
	verbs := v.verbs()
	for line, want := range map[string]string{
		"at":                             "usage: at NODE|POD COMMAND...",
		"at east/n9 true":                `no machine or pod "east/n9"`,
		"put east.yaml east/n1 x":        "usage: put FILE NODE PATH",
		"request east/client":            "usage: request",
		"request east/nobody http://web": `no machine or pod "east/nobody"`,
		"kill agent@east/n9":             `no process matches "agent@east/n9"`,
		"kill east/nobody":               `no machine or pod "east/nobody"`,
		"cut mars":                       `no cluster "mars"; there are east, west`,
		"cut east/n1 west":               "usage: cut NODE",
		"cut operator east/n1":           "the operator's machine has no link",
		"power off operator":             "the operator's machine keeps its power",
		"etcd mars root get x":           `no cluster "mars"`,
		"capture check":                  `there is no capture "capture"`,
		"load steady nobody":             `there is no load "nobody"`,
		"load check calls --since never": `there is no mark "never"`,
		"load check calls --within 1s":   "flag provided but not defined: -within",
		"load steady calls --min 3":      "usage: load steady NAME [--within D]",
		"load steady calls now":          "usage: load steady",
		"load answers calls":             "usage: load answers",
		"load dance calls":               "usage: load start",
		"boot":                           "the clusters are already up",
		"figure x sum (":                 "missing closing )",
	} {
		words := strings.Fields(line)
		err := verbs[words[0]].Run(t.Context(), v.state, words[1:])
		var wrong script.Misuse
		if !errors.As(err, &wrong) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want misuse that says %q", line, err, want)
		}
	}
}

func TestUnknownWord(t *testing.T) {
	for said, want := range map[string]bool{
		"weft: unknown flag: --foo\nhint: `weft peer list --help` lists the flags": true,
		"weft: unknown shorthand flag: 'z' in -z":                                  true,
		`weft: peer: there is no "forgt"; did you mean forget?`:                    true,
		`weft: there is no "observ"; did you mean observe?`:                        true,
		"weft: peer add: usage: weft peer add PEER|FILE":                           true,
		`weft: east has no former peer "north"`:                                    false,
		`weft: unknown kind "Gateway"`:                                             false,
		`weft: there is no context "x"`:                                            false,
	} {
		if got := unknownWord.MatchString(said); got != want {
			t.Errorf("%s: %v, want %v", said, got, want)
		}
	}
}

func TestLoadManualIsTrue(t *testing.T) {
	if len(loadManual) != len(loadFlags) {
		t.Errorf("%d verbs in the manual, want %d", len(loadManual), len(loadFlags))
	}
	for _, m := range loadManual {
		verb := strings.TrimPrefix(m.Name, "load ")
		var told []string
		for _, found := range regexp.MustCompile(`--([a-z-]+)`).FindAllStringSubmatch(m.Usage, -1) {
			told = append(told, found[1])
		}
		slices.Sort(told)
		if has := slices.Sorted(slices.Values(loadFlags[verb])); !slices.Equal(told, has) {
			t.Errorf("the manual of %s tells of %q, it has %q", m.Name, told, has)
		}
	}
}

// samples is a load whose requests were 10 ms apart and have just ended; each word is
// the pod that answered, or !reason.
func samples(words string) *load {
	fields := strings.Fields(words)
	begin := time.Now().Add(-time.Duration(len(fields)) * 10 * time.Millisecond)
	l := &load{name: "x", known: time.Now()}
	for i, word := range fields {
		s := traffic.Sample{At: begin.Add(time.Duration(i) * 10 * time.Millisecond).UnixMicro(), Took: 1000, Conn: i%2 + 1}
		if reason, failed := strings.CutPrefix(word, "!"); failed {
			s.Error = reason
		} else {
			s.Cluster, s.Pod, _ = strings.Cut(word, "/")
		}
		l.samples = append(l.samples, s)
	}
	return l
}

func TestLoadVerdicts(t *testing.T) {
	type verdict struct {
		err  error
		want string
	}
	var verdicts map[string]verdict
	synctest.Test(t, func(*testing.T) { // time stands still
		v := &Live{marks: map[string]time.Time{"long ago": time.Now().Add(-time.Minute), "now": time.Now()}}
		o := loadOptions{within: time.Second}
		ago, now := loadOptions{since: "long ago"}, loadOptions{since: "now"}
		mixed := samples("east/a west/b east/a !timeout")
		good := samples("east/a west/b east/a")
		dead := samples("!refused !timeout")
		hanging := samples("east/a east/a")
		hanging.known = time.Now().Add(-600 * time.Millisecond)
		young := samples("east/a east/a")
		young.begun = time.Now().Add(-500 * time.Millisecond)
		kept, partly := samples("east/a east/a"), samples("east/a !reset east/a")
		kept.keep, partly.keep = 2, 2
		verdicts = map[string]verdict{
			"steady":             {good.steady(o), ""},
			"not steady":         {mixed.steady(o), "1 failed (1 timeout)"},
			"no requests":        {samples("").steady(o), "of 0 requests"},
			"blocked":            {dead.blocked(o), ""},
			"not blocked":        {mixed.blocked(o), "3 were answered"},
			"answers by cluster": {v.answers(good, o, []string{"west", "east"}), ""},
			"answers by pod":     {v.answers(good, o, []string{"west/b", "east/a"}), ""},
			"one is missing":     {v.answers(good, o, []string{"west/b", "east/a", "east/c"}), "east/a 2, west/b 1"},
			"one too many":       {v.answers(good, o, []string{"east"}), "west 1"},
			"answers since then": {v.answers(good, ago, []string{"east", "west"}), ""},
			"one before now":     {v.answers(good, now, []string{"east", "west"}), "nobody"},
			"nobody answers":     {v.answers(dead, o, []string{"east"}), "nobody"},
			"one is hanging":     {hanging.steady(o), "pending"},
			"all answer":         {kept.steady(o), ""},
			"one never did":      {partly.steady(o), "of 2 kept connections only 1 have ever been answered"},
			"too young to tell":  {young.steady(o), "has run for"},
		}
	})
	for name, tt := range verdicts {
		t.Run(name, func(t *testing.T) {
			if tt.want == "" && tt.err != nil || tt.want != "" && (tt.err == nil || !strings.Contains(tt.err.Error(), tt.want)) {
				t.Errorf("error = %v, want %q", tt.err, tt.want)
			}
		})
	}
}

func TestLoadChecks(t *testing.T) {
	v := &Live{marks: map[string]time.Time{"before": time.Now().Add(-time.Minute), "after": time.Now().Add(time.Minute)}, Figures: newFigures()}
	l := samples("east/a !timeout east/a !reset east/b")
	check := func(want string, change func(*loadOptions)) {
		t.Helper()
		o := loadOptions{maxFailed: -1, maxAnswered: -1, maxResent: -1, min: 1}
		change(&o)
		err := v.checkLoad(l, o)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("error = %v, want %q", err, want)
		}
	}
	check("", func(o *loadOptions) { o.maxFailed = 2 })
	check("2 of 5 requests failed (1 reset, 1 timeout)", func(o *loadOptions) { o.maxFailed = 1 })
	check("3 of 5 requests were answered, by east/a 2, east/b 1", func(o *loadOptions) { o.maxAnswered = 0 })
	check("1 failed by timeout", func(o *loadOptions) { o.only = "reset" })
	check("connection 2: 2 from ", func(o *loadOptions) { o.maxFailed = 1 })
	check("; answered before by nobody, last by nobody", func(o *loadOptions) { o.maxFailed = 1 })
	check("only 5 requests", func(o *loadOptions) { o.min = 6 })
	check("", func(o *loadOptions) { o.through = "before" })
	check("still pending", func(o *loadOptions) { o.through = "after" })
	check("no mark", func(o *loadOptions) { o.since = "never" })
	l = samples("east/a east/c !timeout east/c east/b")
	check("connection 1: 1 from ", func(o *loadOptions) { o.maxFailed = 0 })
	check("; answered before by east/a, last by east/b at ", func(o *loadOptions) { o.maxFailed = 0 })
}

func TestLoadReset(t *testing.T) {
	v := &Live{marks: map[string]time.Time{"fault": time.Now().Add(-time.Second)}, Figures: newFigures()}
	if err := v.loadReset(samples("west/a west/a !reset west/a !refused east/b"), "reset", loadOptions{min: 1}); err != nil {
		t.Error(err)
	}
	if n, _ := v.Figures.Value("reset.count"); n != 1 {
		t.Errorf("%v connections were sampled, want 1", n)
	}
	if err := v.loadReset(samples("west/a west/a !timeout west/a"), "reset", loadOptions{min: 1}); err == nil || !strings.Contains(err.Error(), "ended with timeout") {
		t.Errorf("a hanging connection gives %v", err)
	}
	if err := v.loadReset(samples("west/a west/a"), "reset", loadOptions{min: 1}); err == nil {
		t.Error("a load without broken connections is accepted")
	}
}

func TestPair(t *testing.T) {
	top := lab.DefaultTopology()
	v := &Live{Lab: &lab.Lab{Topology: top}}
	w := (&fabric.Weather{}).Clone()
	if err := v.pair(w, []string{"east", "west", "control"}, true); err != nil {
		t.Fatal(err)
	}
	if q := w.Between("west", "east"); q.Cut || len(q.Flows) != len(controlFlows) {
		t.Errorf("west to east = %+v", q)
	}
	if err := v.pair(w, []string{"east", "west", "tcp/2379"}, false); err != nil {
		t.Fatal(err)
	}
	if q := w.Between("east", "west"); len(q.Flows) != len(controlFlows)-1 {
		t.Errorf("east to west = %+v", q)
	}
	if err := v.pair(w, []string{"east", "mars"}, true); err == nil {
		t.Error("an unknown cluster was cut")
	}
}

func TestPlainTellsTheStory(t *testing.T) {
	var out bytes.Buffer
	p := NewPlain(&out)
	s, err := script.Parse("story.txtar", []byte("# A story.\n\n# Part one\n* ! fail\n"))
	if err != nil {
		t.Fatal(err)
	}
	p.Begin(s)
	p.Event(script.Event{Kind: script.SectionBegins, Section: "Part one"})
	p.Event(script.Event{Kind: script.LineEnds, Line: &s.Lines[0], Text: "fail", Took: time.Second})
	p.End(Result{Scenario: "story", OK: true, Seconds: 1})
	for _, want := range []string{"story: A story.", "# Part one", "* ! fail  [1.0s]", "ok    story (1.0 s)"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
}
