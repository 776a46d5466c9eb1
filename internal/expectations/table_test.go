package expectations

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// row is one expectation. Its test shows what holds here, and differs what does not; without a
// test, it says where it is shown, or why there is nothing to show.
type row struct {
	file, spec string // upstream; file is ours for what no spec is about
	says       string // in our words
	test       func(w *world)
	dualStack  bool
	// differs is what Weft does otherwise, and why.
	differs string
	// elsewhere is a file of the tree that shows it, with line in it.
	elsewhere, line string
	// nothing is why it means nothing here.
	nothing string
}

// version is that of Kubernetes whose specs these are.
const version = "1.36.3"

// beside are the rows that no spec is about.
const beside = "kube-proxy"

// table is all rows, in the order of the manual.
func table() []row {
	return slices.Concat(
		basics(), types(), readiness(), affinity(), labels(), traffic(), terminating(), ports(),
		endpointSlices(), networking(), hostPorts(), loadBalancers(), distribution(), conntrack(), dualStack(), others(),
	)
}

// What Kubernetes expects of services holds, as far as the manual says so.
func TestExpectations(t *testing.T) {
	for _, r := range table() {
		if r.test == nil {
			continue
		}
		t.Run(r.file+"/"+r.spec, func(t *testing.T) { raise(t, r.dualStack, r.test) })
	}
}

// Each row says one thing about one spec.
func TestTheTableIsSound(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range table() {
		name := r.file + ": " + r.spec
		if seen[name] {
			t.Errorf("%s: twice", name)
		}
		seen[name] = true
		ways := 0
		for _, there := range []bool{r.test != nil, r.elsewhere != "", r.nothing != ""} {
			if there {
				ways++
			}
		}
		if ways != 1 || r.differs != "" && r.test == nil || r.nothing == "" && r.says == "" {
			t.Errorf("%s: say what it is, and show it, or where it is shown, or why it is nothing", name)
		}
		if r.elsewhere == "" {
			continue
		}
		if text, err := os.ReadFile(filepath.Join("../..", r.elsewhere)); err != nil || r.line == "" || !strings.Contains(string(text), r.line) {
			t.Errorf("%s: %s does not have %q (%v)", name, r.elsewhere, r.line, err)
		}
	}
	if len(seen) < 120 {
		t.Errorf("only %d rows", len(seen))
	}
}

var write = flag.Bool("write", false, "write the manual's part again")

// The manual is the table.
func TestTheManualIsTheTable(t *testing.T) {
	const page, differences = "../../docs/expectations.md", "../../docs/differences.md"
	head, _, _ := strings.Cut(fileText(t, differences), sectionHead)
	for name, want := range map[string]string{page: manual(table()), differences: head + sectionHead + section(table())} {
		have, _ := os.ReadFile(name)
		if string(have) == want {
			continue
		}
		if !*write {
			t.Errorf("%s is not what the table says: go test ./internal/expectations -run TestTheManualIsTheTable -write", name)
			continue
		}
		if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func fileText(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

const sectionHead = "\n## Services\n"

// section is the part of the page of differences: each once, with all whom it concerns.
func section(all []row) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\nWhere Weft does otherwise than the specs of Kubernetes %s or kube-proxy. `TestExpectations` shows each. All specs\nare in [what Kubernetes expects of services](expectations.md).\n\n| expected | by | Weft |\n|---|---|---|\n", version)
	told := map[string]bool{"": true}
	for _, r := range all {
		if told[r.differs] {
			continue
		}
		told[r.differs] = true
		var by []string
		for _, other := range all {
			if other.differs == r.differs {
				by = append(by, other.by())
			}
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", r.says, strings.Join(by, "; "), r.differs)
	}
	return b.String()
}

// by is whose expectation it is.
func (r row) by() string {
	if r.file == beside {
		return beside
	}
	return fmt.Sprintf("%s: %s", r.file, r.spec)
}

// manual is the page of all expectations.
func manual(all []row) string {
	var b strings.Builder
	shown, differs, elsewhere, nothing := 0, 0, 0, 0
	for _, r := range all {
		switch {
		case r.differs != "":
			differs++
		case r.test != nil:
			shown++
		case r.elsewhere != "":
			elsewhere++
		default:
			nothing++
		}
	}
	fmt.Fprintf(&b, `# What Kubernetes expects of services

The specs about services in the end-to-end tests of Kubernetes %s (`+"`test/e2e/network`"+`), what each expects in our words, and
what Weft does. %d hold, %d do not or only in part, which is also in [differences](differences.md), %d are shown by
something else, and %d mean nothing here. `+"`TestExpectations`"+` in [internal/expectations](../internal/expectations) shows the first two on whole
clusters, with a row for each, and writes this page.
`, version, shown, differs, elsewhere, nothing)
	var files []string
	for _, r := range all {
		if !slices.Contains(files, r.file) {
			files = append(files, r.file)
		}
	}
	for _, file := range files {
		title := file
		if file == beside {
			title = "What kube-proxy does beyond its specs"
		}
		fmt.Fprintf(&b, "\n## %s\n\n| spec | expected | Weft |\n|---|---|---|\n", title)
		for _, r := range all {
			if r.file == file {
				fmt.Fprintf(&b, "| %s | %s | %s |\n", r.spec, cmp.Or(r.says, "–"), r.verdict())
			}
		}
	}
	return b.String()
}

// verdict is what Weft does about it.
func (r row) verdict() string {
	switch {
	case r.differs != "":
		return "differs: " + r.differs
	case r.elsewhere != "":
		return fmt.Sprintf("holds: [%s](../%s)", filepath.Base(r.elsewhere), r.elsewhere)
	case r.nothing != "":
		return r.nothing
	}
	return "holds"
}
