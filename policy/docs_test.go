package policy

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// testsOf returns the tests of the tree by name, with the text of their file.
func testsOf(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	err := filepath.WalkDir("..", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range function.FindAllSubmatch(text, -1) {
			out[string(m[1])] += string(text)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// What the manual says about policies is true: each block of YAML is accepted or refused
// as it says, and each table row that names a test names one that exists.
func TestTheManualIsTrue(t *testing.T) {
	tests := testsOf(t)
	blocks := regexp.MustCompile("(?ms)^```yaml( refused)?\n(.*?)^```")
	named := regexp.MustCompile("`((?:Test|Fuzz)\\w+)(?:/([^`]+))?`")
	scenario := regexp.MustCompile(`\(\.\./(scenarios/[a-z-]+\.txtar)\)`)
	for file, want := range map[string]int{"../docs/policies.md": 30, "../docs/differences.md": 15} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range blocks.FindAllStringSubmatch(string(text), -1) {
			if _, _, err := ParseManifest([]byte(m[2])); (err != nil) != (m[1] != "") {
				t.Errorf("%s: %v\n%s", file, err, m[2])
			}
		}
		for _, m := range named.FindAllStringSubmatch(string(text), -1) {
			code, ok := tests[m[1]]
			if !ok || m[2] != "" && !strings.Contains(code, `"`+m[2]+`"`) {
				t.Errorf("%s: there is no test %s/%s", file, m[1], m[2])
			}
		}
		for _, m := range scenario.FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat(filepath.Join("..", m[1])); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
		// A table that says how something is judged has a test in every row.
		lines, has := 0, false
		for line := range strings.Lines(string(text)) {
			switch {
			case !strings.HasPrefix(line, "|"):
				has = false
			case strings.Contains(line, "| test |"):
				has = true
			case has && !strings.HasPrefix(line, "|---"):
				lines++
				if !named.MatchString(line) && !scenario.MatchString(line) {
					t.Errorf("%s: no test on the line %s", file, line)
				}
			}
		}
		if lines < want {
			t.Errorf("%s: %d lines with tests, at least %d are there", file, lines, want)
		}
	}
}
