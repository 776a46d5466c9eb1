package scenarios

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weft-mesh/weft/lab"
	"github.com/weft-mesh/weft/lab/space"
)

const kept = `# Two machines to play with.

at east/n1 true

-- lab.yaml --
clusters:
- {name: east, id: 1, bare: true}
`

// A lab can be raised to play with; it is listed, lets commands in, and goes
// when it is told to. One whose process is killed goes with the next prune.
func TestLabByHand(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	cgroups, err := space.CgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	weft := build(t)
	file := filepath.Join(t.TempDir(), "kept.txtar")
	if err := os.WriteFile(file, []byte(kept), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(code int, args ...string) string {
		t.Helper()
		cmd := exec.Command(weft, append([]string{"lab"}, args...)...)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		var exit *exec.ExitError
		if got := cmd.ProcessState.ExitCode(); got != code || err != nil && !errors.As(err, &exit) {
			t.Fatalf("weft lab %s: exit code %d, want %d (%v)\n%s", strings.Join(args, " "), got, code, err, stderr.String())
		}
		return strings.TrimSpace(string(out))
	}
	up := func() lab.Record {
		t.Helper()
		id := run(0, "up", file)
		var records []lab.Record
		if err := json.Unmarshal([]byte(run(0, "list", "-o", "json")), &records); err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(records, func(r lab.Record) bool { return r.ID == id })
		if i < 0 {
			t.Fatalf("lab %s is not in the list %v", id, records)
		}
		return records[i]
	}
	// gone waits until nothing is left of a lab, and prunes before every look if
	// asked to: a killed process holds its lab until it has ended.
	gone := func(r lab.Record, prune bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
			if prune {
				run(0, "prune")
			}
			dirs, _ := filepath.Glob(filepath.Join(lab.Root, r.ID))
			groups, _ := filepath.Glob(filepath.Join(cgroups, "weft-lab-"+r.ID))
			if len(dirs)+len(groups) == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("lab %s is left over: %v %v", r.ID, dirs, groups)
			}
		}
	}

	bad := filepath.Join(t.TempDir(), "bad.txtar")
	if err := os.WriteFile(bad, []byte(strings.Replace(kept, "n1 true", "n1 false", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	said := run(1, "run", bad)
	_, salvaged, _ := strings.Cut(said, "are kept in ")
	salvaged, _, _ = strings.Cut(salvaged, "\n")
	if info, err := os.Stat(filepath.Join(salvaged, "east-n1-sandbox.log")); err != nil || salvaged == "" {
		t.Errorf("what failed leaves no logs (%v, %v):\n%s", info, err, said)
	} else {
		os.RemoveAll(salvaged)
	}

	first := up()
	if got := run(0, "exec", first.ID, "east/n1", "--", "sh", "-c", "ls /var/lib/weft && echo in"); got != "in" {
		t.Errorf("a fresh machine says %q", got)
	}
	run(7, "exec", first.ID, "east/n1", "--", "sh", "-c", "exit 7")
	second := up()
	if got := run(0, "down", first.ID, "-o", "json"); !strings.Contains(got, first.ID) || strings.Contains(got, second.ID) {
		t.Errorf("down says %s", got)
	}
	gone(first, false)
	run(1, "down", first.ID)

	if err := syscall.Kill(second.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	gone(second, true)
}

// Who is not root is told so in one line.
func TestLabNeedsRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to become somebody else")
	}
	cmd := exec.Command(build(t), "lab", "run", "demo.txtar")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	err := cmd.Run()
	if want := "weft: a lab needs root: run it with sudo\n"; cmd.ProcessState.ExitCode() != 4 || stderr.String() != want {
		t.Errorf("%v: %q", err, stderr.String())
	}
}
