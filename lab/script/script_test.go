package script

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// engine has echo, which prints its arguments; fail; and count, which prints how often
// it has run.
func engine() *Engine {
	runs := 0
	print := func(text func(args []string) string) func(context.Context, *State, []string) error {
		return func(_ context.Context, s *State, args []string) error {
			s.Stdout = text(args) + "\n"
			return nil
		}
	}
	return &Engine{Commands: map[string]Command{
		"echo":  {Makes: true, Run: print(func(args []string) string { return strings.Join(args, " ") })},
		"count": {Makes: true, Run: print(func([]string) string { runs++; return fmt.Sprint("run ", runs) })},
		"fail":  {Run: func(context.Context, *State, []string) error { return errors.New("out of luck") }},
	}}
}

// On a slower machine a line is retried for longer.
func TestSlower(t *testing.T) {
	for slower, want := range map[int]bool{0: false, 1: false, 4: true} {
		synctest.Test(t, func(t *testing.T) {
			e, begin := engine(), time.Now()
			e.Slower = slower
			e.Commands["late"] = Command{Run: func(context.Context, *State, []string) error {
				if time.Since(begin) < 30*time.Second {
					return errors.New("too early")
				}
				return nil
			}}
			s, err := Parse("slow", []byte("* late\n"))
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Run(t.Context(), s, &State{}); (err == nil) != want {
				t.Errorf("%d times slower: %v", slower, err)
			}
		})
	}
}

func TestRun(t *testing.T) {
	for name, tt := range map[string]struct{ script, want string }{
		"all good":                    {"# A story.\n\necho a b\nstdout '^a b$'\n! stdout c\n! fail\n? fail", ""},
		"failure names the line":      {"echo hi\nfail now", "x:2: fail now: out of luck"},
		"output of the last command":  {"echo hi\nfail", "stdout of the last command:\n    hi"},
		"unexpected success":          {"! echo hi", "should have failed"},
		"retry runs the maker again":  {"count\n* stdout 'run 5'", ""},
		"retry gives up":              {"echo hi\n*1s stdout ho", "not within 1s: it does not occur"},
		"variables":                   {"env who=me\necho $who '$who' ${who}2\nstdout '^me \\$who me2$'", ""},
		"unknown variable":            {"echo $nobody", "variable $nobody is not set"},
		"repeat":                      {"repeat 3\ncount\nend\nstdout 'run 3'", ""},
		"repeat a variable":           {"env N=2\nrepeat $N\ncount\nend\nstdout 'run 2'", ""},
		"repeat what is no number":    {"env N=no\nrepeat $N\necho\nend", "write repeat and a number above zero"},
		"repeat an unknown variable":  {"repeat $N\necho\nend", "variable $N is not set"},
		"given variables":             {"env given=mine other=mine\necho $given $other\nstdout '^theirs mine$'", ""},
		"round of a failure":          {"repeat 3\necho $i\n! stdout 2\nend", "round 2 of 3"},
		"unknown command":             {"frobnicate", `x:1: there is no command "frobnicate"`},
		"repeat without end":          {"repeat 3\necho", "repeat has no end"},
		"bad duration":                {"*soon echo", "*soon"},
		"count":                       {"echo a a a\nstdout -count=3 a\n! stdout -count=2 a", ""},
		"cmp":                         {"echo a b\ncmp stdout want\n-- want --\na b\n", ""},
		"holds":                       {"echo a b\nholds want stdout\n-- want --\nc\na b\nd\n", ""},
		"holds tells the line":        {"echo a c\nholds want stdout\n-- want --\na b\n", "want lacks this line of stdout:\n    a c"},
		"cmp tells the line":          {"echo a c\ncmp stdout want\n-- want --\na b\n", "line 1 differs"},
		"take":                        {"echo port 82 of 90\ntake P 'port ([0-9]+)'\necho $P\nstdout ^82", ""},
		"take needs a group":          {"echo 82\ntake P '[0-9]+'", "one group"},
		"take finds nothing":          {"echo no\ntake P '([0-9]+)'", "does not occur"},
		"json":                        {"echo '{\"a\":[{\"n\":\"x\",\"v\":1},{\"n\":\"y\",\"v\":2}]}'\njson a[n=y].v = 2\njson a.# = 2\njson a.0.v < 2\njson a.0.n ~ ^x\njson b.c = null", ""},
		"json says what it is":        {"echo '{\"a\":1}'\njson a = 2", "it is 1"},
		"save and grep":               {"echo hello\nsave f\ngrep hel f\n! grep bye f", ""},
		"copies":                      {"copies 3 f many\ngrep -count=3 'name: web-[123]$' many\ngrep -count=3 '^---$' many\n-- f --\nname: web-${i}\n", ""},
		"copies of nothing":           {"copies 0 f many\n-- f --\n", "usage: copies N FILE TO"},
		"misuse is not failure":       {"! stdout '('", "missing closing )"},
		"nor may it be ignored":       {"? stdout", "one regular expression"},
		"no such file":                {"echo a\n! grep a nowhere", "no such file"},
		"nothing to hold":             {"echo a\nholds stdout empty\n-- empty --\n", "empty is empty"},
		"not JSON":                    {"echo a\n! json a = 1", "printed no JSON"},
		"no such value":               {"echo '{\"a\":1}'\njson b != 1", "there is no b"},
		"quote without end":           {"echo 'a", "quote has no end"},
		"repeat with a prefix":        {"* repeat 3\necho\nend", "repeat takes no prefix"},
		"files stay in their place":   {"echo\n-- ../x --\n", "x: attached file \"../x\": its name must stay below"},
		"comment lines are a section": {"# one\n# two\necho", ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				s, err := Parse("x", []byte(tt.script))
				if err == nil {
					err = Unpack(s, dir)
				}
				if err == nil {
					err = engine().Run(t.Context(), s, &State{Dir: dir, Env: map[string]string{"given": "theirs"}, Given: map[string]string{"given": "theirs"}})
				}
				switch {
				case tt.want == "" && err != nil:
					t.Error(err)
				case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
					t.Errorf("error = %v, want one that says %q", err, tt.want)
				}
			})
		})
	}
}

func TestStory(t *testing.T) {
	s, err := Parse("x", []byte("# A story\n# in two lines.\n\n# First part\necho\n\n# Second part\necho\n"))
	if err != nil {
		t.Fatal(err)
	}
	if s.Story != "A story in two lines." || s.Lines[0].Section != "First part" || s.Lines[1].Section != "Second part" {
		t.Errorf("script = %+v", s)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("# A\n\n* echo 'a b' $c\nrepeat 2\n! x\nend\n-- f --\n")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse("x", []byte(text))
		if err != nil {
			return
		}
		var walk func([]Line)
		walk = func(lines []Line) {
			for _, l := range lines {
				if len(l.Words) == 0 {
					t.Errorf("line %d has no words", l.Number)
				}
				walk(l.Body)
			}
		}
		walk(s.Lines)
	})
}
