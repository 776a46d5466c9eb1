package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weft-mesh/weft/lab/fabric"
	"github.com/weft-mesh/weft/lab/space"
)

// TestMain lets the test binary act as the helpers that a lab starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "lab" {
		help := func() error { return Helper(context.Background(), os.Args[2:]) }
		if os.Args[2] == "exec" && len(os.Args) > 5 {
			help = func() error { return Exec(os.Args[3], os.Args[4], os.Args[5:]) }
		}
		if os.Args[2] == "down" {
			help = func() error { return downInside(os.Args[3]) }
		}
		if err := help(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func raise(t *testing.T, lines string) *Lab {
	t.Helper()
	needRoot(t)
	top, err := ParseTopology([]byte(lines))
	if err != nil {
		t.Fatal(err)
	}
	l, err := Raise(t.Context(), Config{Topology: top})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(l.Dir); err == nil {
			t.Errorf("%s is left over", l.Dir)
		}
		if _, err := os.Stat(l.cgroup.Dir); err == nil {
			t.Errorf("%s is left over", l.cgroup.Dir)
		}
	})
	return l
}

// eventually waits for the kernel to catch up.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

const (
	answered   = 20 * time.Second
	unanswered = 300 * time.Millisecond
)

const bare = `
clusters:
- {name: east, id: 1, bare: true}
- {name: west, id: 2, bare: true, nodes: [n1]}
`

// dial reports how a TCP connection attempt from one node to another ends. An answer,
// even a refusal, proves the path in both directions. Callers that expect one are
// patient, as the machine may be busy.
func dial(t *testing.T, l *Lab, from, to string, patience time.Duration) string {
	t.Helper()
	source, err := l.Node(from)
	if err != nil {
		t.Fatal(err)
	}
	target, err := l.Node(to)
	if err != nil {
		t.Fatal(err)
	}
	var result string
	err = space.Once(space.EnterProcess(source.sandbox.pid()), func() error {
		result = tryConnect(target.Addr, 9, patience)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func TestNetwork(t *testing.T) {
	l := raise(t, bare)
	expect := func(from, to, want string) {
		t.Helper()
		patience := answered
		if want == "timeout" {
			patience = unanswered
		}
		if got := dial(t, l, from, to, patience); got != want {
			t.Errorf("%s → %s: %s, want %s", from, to, got, want)
		}
	}
	expect("east/n1", "east/n2", "refused")
	expect("east/n1", "west/n1", "refused")

	weather := l.Network.Weather().Clone()
	weather.Off["west"] = true
	l.Network.SetWeather(weather)
	expect("east/n1", "west/n1", "timeout")
	expect("east/n1", "east/n2", "refused")

	weather = weather.Clone()
	weather.Off["west"] = false
	weather.Pairs[fabric.Pair{From: "east", To: "west"}] = fabric.Quality{Flows: []fabric.Flow{{Protocol: 6, Port: 9}}}
	l.Network.SetWeather(weather)
	expect("east/n1", "west/n1", "timeout")

	weather = weather.Clone()
	weather.Pairs[fabric.Pair{From: "east", To: "west"}] = fabric.Quality{Delay: 40 * time.Millisecond}
	l.Network.SetWeather(weather)
	start := time.Now()
	expect("east/n1", "west/n1", "refused")
	if took := time.Since(start); took < 40*time.Millisecond {
		t.Errorf("delayed by 40 ms, yet answered after %v", took)
	}

	n2 := l.nodes["east/n2"]
	if err := n2.Cut(); err != nil {
		t.Fatal(err)
	}
	expect("east/n1", "east/n2", "timeout")
	if err := n2.Heal(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "healed node answers", func() bool { return dial(t, l, "west/n1", "east/n2", answered) == "refused" })

	// One way between two nodes: some flows, then all.
	n1, port9 := l.nodes["east/n1"], []fabric.Flow{{Protocol: 6, Port: 9}}
	for _, to := range []string{"east/n2", "west/n1"} {
		addr := l.nodes[to].Addr
		for _, step := range []struct {
			flows []fabric.Flow
			on    bool
			want  string
		}{
			{[]fabric.Flow{{Protocol: 17, Port: 9}, {Protocol: 6, Port: 10}}, true, "refused"},
			{port9, true, "timeout"},
			{port9, false, "refused"},
			{nil, true, "timeout"},
			{nil, false, "refused"},
		} {
			if err := n1.Block(addr, step.flows, step.on); err != nil {
				t.Fatal(err)
			}
			expect("east/n1", to, step.want)
		}
	}
	if err := n2.Block(n1.Addr, nil, true); err != nil {
		t.Fatal(err)
	}
	expect("east/n1", "east/n2", "timeout") // the answer is lost
	expect("west/n1", "east/n2", "refused")
	if err := n2.Unblock(); err != nil {
		t.Fatal(err)
	}
	expect("east/n1", "east/n2", "refused")
}

func TestPower(t *testing.T) {
	l := raise(t, bare)
	n := l.nodes["east/n2"]
	if err := os.WriteFile(n.path("/etc/weft/kept"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := n.spawn("sleeper", exec.Command("/bin/sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.PowerOff(); err != nil {
		t.Fatal(err)
	}
	if p.running() {
		t.Error("a process survived the power loss")
	}
	if got := dial(t, l, "east/n1", "east/n2", unanswered); got != "timeout" {
		t.Errorf("a node without power answers: %s", got)
	}
	if err := n.PowerOn(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "node answers after power on", func() bool { return dial(t, l, "east/n1", "east/n2", answered) == "refused" })
	var out bytes.Buffer
	if err := l.runIn(n, exec.Command("/bin/ls", "/etc/weft", "/run"), &out, &out); err != nil {
		t.Fatal(err, out.String())
	}
	if got := strings.Join(strings.Fields(out.String()), " "); got != "/etc/weft: kept /run: netns weft weft-bin wireguard" {
		t.Errorf("in the node: %s", got)
	}
	if err := l.Failures(); err != nil {
		t.Errorf("processes that the lab killed count as failed: %v", err)
	}
}

func TestExecEndsWithItsMachine(t *testing.T) {
	l := raise(t, bare)
	within := func(where string) *process {
		t.Helper()
		cmd := exec.Command(l.binary, "lab", "exec", l.ID, where, "/bin/sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		p := &process{name: where, cmd: cmd, done: make(chan struct{})}
		go p.reap()
		t.Cleanup(func() {
			p.expectEnd()
			if err := p.kill(); err != nil {
				t.Error(err)
			}
		})
		eventually(t, "command runs on "+where, func() bool {
			name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.pid()))
			return string(name) == "sleep\n" || !p.running()
		})
		if !p.running() {
			t.Fatalf("command on %s: %v", where, p.err)
		}
		return p
	}
	node, other, operator := within("east/n1"), within("west/n1"), within("operator")
	if err := l.nodes["east/n1"].PowerOff(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "command ends with its machine", func() bool { return !node.running() })
	if !other.running() || !operator.running() {
		t.Error("the end of one machine ends commands on others")
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	eventually(t, "all commands end with the lab", func() bool { return !other.running() && !operator.running() })
}

// The test's program is not called weft.
func TestScriptsFindTheWeftOfTheLab(t *testing.T) {
	l := raise(t, bare)
	for _, where := range []string{"east/n1", "operator"} {
		n, err := l.Node(where)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		cmd := l.placed(t.Context(), Place{Node: n}, []string{"sh", "-c", `readlink -f "$(command -v weft)"`})
		if err := l.runIn(n, cmd, &out, &out); err != nil || out.String() != l.binary+"\n" {
			t.Errorf("weft in a script on %s is %q, %v; want %s", where, out.String(), err, l.binary)
		}
	}
}

func TestUnexpectedEndIsReported(t *testing.T) {
	l := raise(t, bare)
	p, err := l.nodes["west/n1"].spawn("short", exec.Command("/bin/sh", "-c", "echo out of luck; exit 3"))
	if err != nil {
		t.Fatal(err)
	}
	<-p.done
	if err := l.Failures(); err == nil || !strings.Contains(err.Error(), "short@west/n1 ended by itself: exit status 3") || !strings.Contains(err.Error(), "out of luck") {
		t.Errorf("Failures = %v", err)
	}
}

// A crash is not forgotten because the process is stopped, killed or started
// again afterwards.
func TestACrashIsNotForgotten(t *testing.T) {
	l := raise(t, bare)
	n := l.nodes["west/n1"]
	p, err := n.spawn("agent", exec.Command("/bin/sh", "-c", "exit 3"))
	if err != nil {
		t.Fatal(err)
	}
	<-p.done
	_, again := n.spawn("agent", exec.Command("/bin/true"))
	refs := []Ref{{"agent", n}}
	for what, err := range map[string]error{"start": again, "stop": Stop(refs), "kill": Kill(refs), "status": l.Failures()} {
		if err == nil || !strings.Contains(err.Error(), "agent@west/n1 ended by itself: exit status 3") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := Ended(refs); err != nil {
		t.Error(err)
	}
	if err := Stop(refs); err != nil {
		t.Errorf("stop of what ended as expected: %v", err)
	}
}

// A lab that cannot be raised leaves nothing behind, and nothing of another's is
// touched.
func TestRaiseLeavesNothingWhenItFails(t *testing.T) {
	needRoot(t)
	id := fmt.Sprintf("bad\n%d", os.Getpid()) // a directory may have this name, a cgroup may not
	if _, err := Raise(t.Context(), Config{Topology: DefaultTopology(), ID: id}); err == nil || !strings.Contains(err.Error(), "cgroup") {
		t.Fatalf("Raise = %v", err)
	}
	if _, err := os.Stat(filepath.Join(Root, id)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its directory: %v", err)
	}
	l := raise(t, bare)
	if _, err := Raise(t.Context(), Config{Topology: DefaultTopology(), ID: l.ID}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Raise with an ID in use = %v", err)
	}
	if _, err := os.Stat(filepath.Join(l.Dir, "lab.json")); err != nil {
		t.Errorf("the other lab's record: %v", err)
	}
}

func TestPruneSparesTheLiving(t *testing.T) {
	l := raise(t, bare)
	id := fmt.Sprintf("dead-%d", os.Getpid())
	dead := filepath.Join(Root, id)
	if err := os.MkdirAll(dead, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dead, "lab.json"), fmt.Appendf(nil, `{"id":%q}`, id), 0o600); err != nil {
		t.Fatal(err)
	}
	removed, err := Prune()
	if err != nil {
		t.Fatal(err)
	}
	// Another run may have been quicker, and be about to remove it.
	eventually(t, "the dead lab is gone", func() bool { _, err := os.Stat(dead); return err != nil })
	for _, other := range removed {
		if other == l.ID {
			t.Error("a living lab was pruned")
		}
	}
	if got := dial(t, l, "east/n1", "west/n1", answered); got != "refused" {
		t.Errorf("the living lab has lost its network: %s", got)
	}
	labs, err := List()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, r := range labs {
		found = found || r.ID == l.ID
	}
	if !found {
		t.Errorf("List = %v, without %s", labs, l.ID)
	}
}
