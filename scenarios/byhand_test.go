package scenarios

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weft-mesh/weft/lab"
	"github.com/weft-mesh/weft/lab/scenario"
	"github.com/weft-mesh/weft/lab/space"
)

const kept = `# Two machines to play with.

at east/n1 true

-- lab.yaml --
clusters:
- {name: east, id: 1, bare: true}
`

const failing = `# A cluster in which something fails.

at east/n1 false

-- lab.yaml --
clusters:
- {name: east, id: 1, nodes: [n1]}
`

// A lab can be brought up to play with: it is listed, runs commands, and goes when
// told to. If its process is killed, the next prune removes it.
func TestLabByHand(t *testing.T) {
	needLab(t)
	cgroups, err := space.CgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	weft := build(t)
	file := filepath.Join(t.TempDir(), "kept.txtar")
	if err := os.WriteFile(file, []byte(kept), 0o600); err != nil {
		t.Fatal(err)
	}
	// try runs a lab command; said describes all that happened.
	try := func(args ...string) (code int, stdout, said string) {
		t.Helper()
		cmd := exec.Command(weft, append([]string{"lab"}, args...)...)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		code, stdout = cmd.ProcessState.ExitCode(), strings.TrimSpace(string(out))
		return code, stdout, fmt.Sprintf("weft lab %s: exit code %d\n%s\n%s", strings.Join(args, " "), code, stdout, stderr.String())
	}
	run := func(code int, args ...string) string {
		t.Helper()
		got, stdout, said := try(args...)
		if got != code {
			t.Fatalf("want exit code %d of %s", code, said)
		}
		return stdout
	}
	// listed is the list's entry of a live lab.
	listed := func(id string) (r lab.Record, alive bool) {
		t.Helper()
		var records []lab.Record
		if err := json.Unmarshal([]byte(run(0, "list", "-o", "json")), &records); err != nil {
			t.Fatal(err)
		}
		if i := slices.IndexFunc(records, func(r lab.Record) bool { return r.ID == id }); i >= 0 {
			return records[i], true
		}
		return lab.Record{}, false
	}
	// left are the directories of a lab that exist: its own and its cgroup.
	left := func(id string) (dirs []string) {
		for _, dir := range []string{filepath.Join(lab.Root, id), filepath.Join(cgroups, "weft-lab-"+id)} {
			if _, err := os.Stat(dir); err == nil {
				dirs = append(dirs, dir)
			}
		}
		return dirs
	}
	gone := func(id string) error {
		if dirs := left(id); len(dirs) > 0 {
			return fmt.Errorf("left over from lab %s: %v", id, dirs)
		}
		return nil
	}
	eventually := func(f func() error) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
			err := f()
			if err == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("after a minute still: %v", err)
			}
		}
	}
	up := func() lab.Record {
		t.Helper()
		id := run(0, "up", file)
		t.Cleanup(func() { _ = exec.Command(weft, "lab", "down", id).Run() })
		r, alive := listed(id)
		if dirs := left(id); !alive || len(dirs) != 2 {
			t.Fatalf("lab %s is up: in the list %v, its directories %v", id, alive, dirs)
		}
		return r
	}
	t.Run("salvage", func(t *testing.T) { salvages(t, weft) })
	t.Run("interrupted", func(t *testing.T) { interrupted(t, weft, file) })
	t.Run("without a file", func(t *testing.T) { raisesTwo(t, weft) })

	var result scenario.Result
	if text := run(0, "run", file, "-o", "json"); json.Unmarshal([]byte(text), &result) != nil || !result.OK || result.Scenario != "kept" {
		t.Errorf("lab run -o json says %s", text)
	}

	first := up()
	if got := run(0, "exec", first.ID, "east/n1", "--", "sh", "-c", "ls /var/lib/weft && echo in"); got != "in" {
		t.Errorf("a fresh machine says %q", got)
	}
	run(7, "exec", first.ID, "east/n1", "--", "sh", "-c", "exit 7")
	if _, _, said := try("exec", first.ID, "east/n9", "--", "true"); !strings.Contains(said, "choose from east/n1, east/n2, operator") {
		t.Errorf("a machine that does not exist gives %s", said)
	}
	second, third := up(), up()
	if got := run(0, "down", first.ID, "-o", "json"); !strings.Contains(got, first.ID) || strings.Contains(got, second.ID) {
		t.Errorf("down says %s", got)
	}
	if err := gone(first.ID); err != nil {
		t.Error(err)
	}
	run(1, "down", first.ID)

	// A killed process holds its lab's lock until it has ended.
	kill := func(r lab.Record) string {
		t.Helper()
		if err := syscall.Kill(r.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(func() error {
			if _, alive := listed(r.ID); alive {
				return fmt.Errorf("lab %s is listed although its process was killed", r.ID)
			}
			return nil
		})
		return r.ID
	}
	// Other runs on this machine prune too and may be faster, and anyone who looks at
	// a dead lab holds its lock for a moment. So: what is reported as removed must be
	// gone, and dead labs must go in any case; the rest is retried until no other run
	// interferes.
	one, other := kill(second), kill(third)
	for tries := 1; ; tries++ {
		code, _, down := try("down", one)
		if err := gone(one); err != nil && code == 0 {
			t.Fatalf("%v, after %s", err, down)
		}
		eventually(func() error {
			if err := gone(one); err != nil {
				return fmt.Errorf("%w, after %s", err, down)
			}
			return nil
		})
		spared := len(left(other)) == 2
		failed, names, prune := try("prune")
		removed := strings.Contains(names, other)
		if err := gone(other); failed != 0 || removed && err != nil {
			t.Fatalf("%v, after %s", err, prune)
		}
		eventually(func() error {
			if err := gone(other); err != nil {
				run(0, "prune")
				return fmt.Errorf("%w, after %s", err, prune)
			}
			return nil
		})
		if code == 0 && spared && removed {
			break
		}
		if tries == 10 {
			t.Fatalf("lab %s spared: %v, after %s\nlab %s: %s", other, spared, down, other, prune)
		}
		a, b := up(), up() // which prunes: both before one is dead
		one, other = kill(a), kill(b)
	}
}

// Whatever can explain a failure is kept, and is available while the lab is kept up.
func salvages(t *testing.T, weft string) {
	file := filepath.Join(t.TempDir(), "failing.txtar")
	if err := os.WriteFile(file, []byte(failing), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(weft, "lab", "run", "--keep", file)
	stderr, err := cmd.StderrPipe()
	if err = errors.Join(err, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	var said, dir string
	for lines := bufio.NewScanner(stderr); lines.Scan() && !strings.HasSuffix(lines.Text(), " to end it"); {
		said += lines.Text() + "\n"
		if _, after, ok := strings.Cut(lines.Text(), "are kept in "); ok {
			dir = after
			defer os.RemoveAll(dir)
		}
	}
	if dir == "" {
		t.Errorf("nothing tells where the logs are:\n%s", said)
	}
	for name, want := range map[string]string{
		"east-n1-agent.log": "", "status.txt": "Cluster east (ID 1)", "flows.txt": "no flows match", "dropped.txt": "no flows match",
	} {
		if text, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s (%v) does not say %q:\n%s", name, err, want, text)
		}
	}
	err = cmd.Process.Signal(syscall.SIGINT)
	if _ = cmd.Wait(); err != nil || cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("interrupted (%v), it ends with %v", err, cmd.ProcessState)
	}
}

// A lab interrupted while its clusters come up or its script runs says so, rather
// than that something failed.
func interrupted(t *testing.T, weft, file string) {
	waits := filepath.Join(t.TempDir(), "waits.txtar")
	if err := os.WriteFile(waits, []byte(strings.Replace(kept, "true", "sleep 60", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args  []string
		after string // this part of a line
	}{
		{[]string{"up", file}, "starting the clusters"},
		{[]string{"run", "--watch", waits}, "cluster east is up"},
	} {
		cmd := exec.Command(weft, append([]string{"lab"}, c.args...)...)
		out, in, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout, cmd.Stderr = in, in
		err = cmd.Start()
		in.Close()
		if err != nil {
			t.Fatal(err)
		}
		var said strings.Builder
		sent := false
		for lines := bufio.NewScanner(out); lines.Scan(); {
			fmt.Fprintln(&said, lines.Text())
			if !sent && strings.Contains(lines.Text(), c.after) {
				sent = true
				if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
					t.Error(err)
				}
			}
		}
		out.Close()
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(said.String(), "interrupted: the clusters were taken down") || strings.Contains(said.String(), "are kept in") {
			t.Errorf("lab %v ends with %d:\n%s", c.args, code, said.String())
		}
	}
}

// Without a file it brings up two clusters, and reports its progress.
func raisesTwo(t *testing.T, weft string) {
	cmd := exec.Command(weft, "lab", "up")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	id := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command(weft, "lab", "down", id).Run() })
	if err != nil || !strings.Contains(stderr.String(), "cluster west is up: nodes n1 n2") {
		t.Fatalf("lab up: %v\n%s", err, stderr.String())
	}
	if out, err := exec.Command(weft, "lab", "exec", id, "operator", "--", "weft", "-c", "east", "peer", "add", "west").CombinedOutput(); err != nil {
		t.Errorf("peer add: %v\n%s", err, out)
	}
	if out, err := exec.Command(weft, "lab", "down", id).CombinedOutput(); err != nil {
		t.Errorf("down: %v\n%s", err, out)
	}
}

// Users other than root get one line that says so.
func TestLabNeedsRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to become somebody else")
	}
	weft := build(t)
	dir := filepath.Dir(weft)
	file := filepath.Join(dir, "kept.txtar")
	if err := errors.Join(os.WriteFile(file, []byte(kept), 0o644), os.Chmod(file, 0o644)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(weft, "lab", "run", file)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	err := cmd.Run()
	if want := "weft: a lab needs root: run it with sudo\n"; cmd.ProcessState.ExitCode() != 4 || stderr.String() != want {
		t.Errorf("%v: %q", err, stderr.String())
	}
}
