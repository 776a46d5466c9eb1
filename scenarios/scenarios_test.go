package scenarios

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/lab"
	"github.com/weft-mesh/weft/lab/scenario"
	"github.com/weft-mesh/weft/lab/script"
)

// wanted lists scenarios that must exist.
var wanted = []string{
	"burst", "reused-address", "sealed",
	"noisy-pod", "debug-trace", "upgrade",
	"demo", "global-service", "identity-policy", "global-failover", "agent-restart", "control-partition",
	"encryption", "peer-lifecycle", "cilium-peer", "hybrid", "bad-input", "restore", "backup", "three-servers", "moved-server", "refused",
	"policy-kinds",
	"status-tells", "status-tells-mesh", "mended",
	"smoke", "operations", "manifests", "dual-stack", "services-dual-stack", "ipv6-only", "masquerade", "node-processes", "sockets", "backend-choice", "weights", "traffic-distribution", "node-ports", "external-addresses", "real-tools", "cni", "mcs", "names", "doctor",
}

func files(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob("*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestStories checks, without root, that every script parses, uses known verbs and
// begins with a sentence.
func TestStories(t *testing.T) {
	var names []string
	for _, file := range files(t) {
		names = append(names, strings.TrimSuffix(file, ".txtar"))
		s, topology, err := scenario.Load(file)
		if err != nil {
			t.Error(err)
			continue
		}
		if !strings.HasSuffix(s.Story, ".") {
			t.Errorf("%s does not begin with a sentence: %q", file, s.Story)
		}
		if names := processes(s.Lines); slices.Contains(names, "tunnel") && !topology.Userspace {
			t.Errorf("%s is about weft tunnel, which runs on every kernel only with userspace: true in lab.yaml", file)
		}
	}
	for _, name := range wanted {
		if !slices.Contains(names, name) {
			t.Errorf("there is no scenario %s", name)
		}
	}
}

// Every command on the page about Kubernetes is run by the scenarios of make test-kubernetes.
func TestKubernetesPageRuns(t *testing.T) {
	page, err := os.ReadFile("../docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	scripts, err := filepath.Glob("kubernetes/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("scripts: %v, %v", scripts, err)
	}
	var typed []string
	for _, file := range scripts {
		s, _, err := scenario.Load(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range s.Lines {
			typed = append(typed, strings.Join(l.Words, " "))
		}
	}
	found, fenced := 0, false
	for line := range strings.Lines(string(page)) {
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
		}
		if command, ok := strings.CutPrefix(line, "    "); ok && !fenced {
			if command = strings.TrimSpace(command); !slices.Contains(typed, command) {
				t.Errorf("no script runs `%s`", command)
			}
			found++
		}
	}
	if found < 4 {
		t.Errorf("the page has %d commands", found)
	}
}

// Every command on the operations page is run by a scenario, and the mode of every file
// there is checked.
func TestOperationsPageRuns(t *testing.T) {
	page, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	s, _, err := scenario.Load("operations.txtar")
	if err != nil {
		t.Fatal(err)
	}
	var typed []string
	for _, l := range s.Lines {
		typed = append(typed, strings.Join(l.Words, " "))
		if len(l.Words) > 2 && l.Words[0] == "at" { // on a machine
			typed = append(typed, strings.Join(l.Words[2:], " "))
		}
	}
	commands := 0
	for line := range strings.Lines(string(page)) {
		if command, ok := strings.CutPrefix(line, "    weft "); ok {
			commands++
			if command = "weft " + strings.TrimSpace(command); !slices.Contains(typed, command) {
				t.Errorf("operations.txtar does not run %q", command)
			}
		}
	}
	if commands < 20 {
		t.Errorf("found only %d commands", commands)
	}
	modes := 0
	for _, m := range regexp.MustCompile("(?m)^\\| (`/[^|]*) \\| (0[67]\\d\\d) \\|").FindAllStringSubmatch(string(page), -1) {
		folder := ""
		for _, f := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(m[1], -1) {
			modes++
			name := f[1]
			if !strings.HasPrefix(name, "/") {
				name = folder + "/" + name
			}
			folder = filepath.Dir(name)
			if look := "stdout '^" + m[2][1:] + " " + name + "$'"; !slices.Contains(typed, look) {
				t.Errorf("operations.txtar does not check that %s has mode %s", name, m[2])
			}
		}
	}
	if modes < 9 {
		t.Errorf("found the modes of only %d files", modes)
	}
}

// So is every command on the page about the cluster set.
func TestClusterSetPageRuns(t *testing.T) {
	page, err := os.ReadFile("../docs/cluster-set.md")
	if err != nil {
		t.Fatal(err)
	}
	var typed []string
	for _, name := range []string{"mcs.txtar", "names.txtar"} {
		s, _, err := scenario.Load(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range s.Lines {
			typed = append(typed, strings.Join(l.Words, " "))
		}
	}
	commands := 0
	for line := range strings.Lines(string(page)) {
		if command, ok := strings.CutPrefix(line, "    weft "); ok {
			commands++
			if command = "weft " + strings.TrimSpace(command); !slices.Contains(typed, command) {
				t.Errorf("no scenario runs %q", command)
			}
		}
	}
	if commands < 3 {
		t.Errorf("found only %d commands", commands)
	}
}

// processes are the names before the @ in what a script says.
func processes(lines []script.Line) (names []string) {
	for _, l := range lines {
		for _, word := range l.Words {
			if name, _, ok := strings.Cut(word, "@"); ok {
				names = append(names, name)
			}
		}
		names = append(names, processes(l.Body)...)
	}
	return names
}

// build builds weft in a directory that any user may enter.
func build(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "weft")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	weft := filepath.Join(dir, "weft")
	out, err := exec.Command("go", "build", "-o", weft, "../cmd/weft").CombinedOutput()
	if err = errors.Join(err, os.Chmod(dir, 0o755), os.Chmod(weft, 0o755)); err != nil {
		t.Fatalf("build weft: %v\n%s", err, out)
	}
	return weft
}

// needLab ends the test where no lab can be raised: without root it is skipped, but CI
// runs as root; anything else that is missing is a failure.
func needLab(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: raises a lab")
	}
	if err := lab.Preflight(); err != nil {
		t.Fatal(err)
	}
}

// TestScenarios runs every script in a lab of its own, one after the other.
func TestScenarios(t *testing.T) {
	needLab(t)
	weft := build(t)
	next := filepath.Join(filepath.Dir(weft), "next")
	if out, err := exec.Command("../internal/next-version.sh", next).CombinedOutput(); err != nil {
		t.Fatalf("build the next version of weft: %v\n%s", err, out)
	}
	for _, file := range files(t) {
		t.Run(strings.TrimSuffix(file, ".txtar"), func(t *testing.T) {
			_, topology, err := scenario.Load(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := topology.Missing(); err != nil && os.Getenv("CI") == "" { // which installs them
				t.Skipf("needs other programs: %v", err)
			}
			result := scenario.Run(t.Context(), file, scenario.Options{Binary: weft, Next: next, View: scenario.NewPlain(t.Output())})
			if !result.OK {
				t.Fatal(result.Error)
			}
			figures, err := json.Marshal(result.Figures)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(t.Output(), "figures of %s: %s\n", result.Scenario, figures)
		})
	}
}
