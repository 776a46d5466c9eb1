package arch

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

// direct lists the modules that go.mod requires for our own code.
func direct(t *testing.T) (modules []string) {
	t.Helper()
	for line := range strings.Lines(read(t, "go.mod")) {
		fields := strings.Fields(line)
		if len(fields) == 2 && strings.HasPrefix(line, "\t") && strings.Contains(fields[0], ".") {
			modules = append(modules, fields[0])
		}
	}
	return modules
}

// Every dependency is a decision with a reason.
func TestEveryDependencyHasItsReason(t *testing.T) {
	readme := read(t, "README.md")
	listed := regexp.MustCompile("(?m)^- `([^`]+)`[^:]*: \\S").FindAllStringSubmatch(readme, -1)
	var names []string
	for _, m := range listed {
		if strings.Contains(m[1], ".") && strings.Contains(m[1], "/") {
			names = append(names, m[1])
		}
	}
	required := direct(t)
	if len(required) < 10 {
		t.Fatalf("read only %d requirements from go.mod", len(required))
	}
	for _, mod := range required {
		if !slices.Contains(names, mod) {
			t.Errorf("the README's list of dependencies has no line \"- `%s`: reason\"", mod)
		}
	}
	for _, name := range names {
		if !slices.Contains(required, name) {
			t.Errorf("the README gives a reason for %s, which go.mod does not require", name)
		}
	}
}

// A requirement is direct if our code imports it, and only then.
func TestDirectRequirementsAreImported(t *testing.T) {
	used := map[string]bool{}
	required := direct(t)
	for _, f := range goFiles(t) {
		_, others := f.imports()
		for _, name := range others {
			for _, mod := range required {
				if name == mod || strings.HasPrefix(name, mod+"/") {
					used[mod] = true
				}
			}
		}
	}
	for _, mod := range required {
		if !used[mod] {
			t.Errorf("go.mod requires %s, which no file imports", mod)
		}
	}
}

func TestTheMakeTargetsInDocumentsExist(t *testing.T) {
	targets := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^([a-z][a-z-]*):`).FindAllStringSubmatch(read(t, "Makefile"), -1) {
		targets[m[1]] = true
	}
	readme := read(t, "README.md")
	found := regexp.MustCompile("(?m)(?:^ +|`)make ([a-z][a-z-]*)").FindAllStringSubmatch(readme, -1)
	for _, m := range found {
		if !targets[m[1]] {
			t.Errorf("README.md says `make %s`, which the Makefile does not have", m[1])
		}
	}
	for _, want := range []string{"demo", "test"} {
		if !slices.ContainsFunc(found, func(m []string) bool { return m[1] == want }) {
			t.Errorf("README.md does not say `make %s`", want)
		}
	}
}

// The paths that the README links to, and the folders it describes, exist; and
// it describes all of them.
func TestTheFoldersInTheReadmeExist(t *testing.T) {
	all := sources(t)
	below := func(folder string) bool {
		return slices.ContainsFunc(all, func(n string) bool { return strings.HasPrefix(n, folder+"/") || n == folder })
	}
	readme := read(t, "README.md")
	described := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z/]+)/` \\|").FindAllStringSubmatch(readme, -1) {
		described[m[1]] = true
		if !below(m[1]) {
			t.Errorf("README.md describes %s/, which does not exist", m[1])
		}
	}
	for _, m := range regexp.MustCompile(`\]\(([^)#:]+)\)`).FindAllStringSubmatch(readme, -1) {
		if !below(strings.TrimSuffix(m[1], "/")) {
			t.Errorf("README.md links to %s, which does not exist", m[1])
		}
	}
	for _, name := range all {
		top, _, isFolder := strings.Cut(name, "/")
		if isFolder && top != "cmd" && !strings.HasPrefix(top, ".") && !described[top] {
			described[top] = true // said once
			t.Errorf("README.md does not describe the folder %s/", top)
		}
	}
}
