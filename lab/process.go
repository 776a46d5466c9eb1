package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/lab/space"
)

// process is one child of the lab. Its methods may be called by several
// goroutines.
type process struct {
	name string // as in "agent@east/n1"
	log  string // file with its output

	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended and been reaped

	mu     sync.Mutex
	wanted bool  // guarded by mu: its end is expected
	err    error // guarded by mu: how it ended
}

// stopPatience is how long a process may take to exit after SIGTERM.
const stopPatience = 10 * time.Second

// spawn starts a command on a thread, in that thread's namespaces and in the
// cgroup. The child dies with the thread. Its output goes to a log, which is opened
// here because the thread may see another file under that name.
func spawn(on *space.Thread, name string, cmd *exec.Cmd, nice int, cgroup *os.File, log string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	if cmd.Stdout == nil {
		cmd.Stdout = out
	}
	cmd.Stderr = out
	attr := deathWith(cgroup)
	if cmd.SysProcAttr != nil {
		attr.Cloneflags = cmd.SysProcAttr.Cloneflags
	}
	cmd.SysProcAttr = attr
	if err := on.Do(func() error { return startNice(cmd, nice) }); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, log: log, cmd: cmd, done: make(chan struct{})}
	go p.reap()
	return p, nil
}

func (p *process) reap() {
	err := p.cmd.Wait()
	p.mu.Lock()
	p.err = err
	p.mu.Unlock()
	close(p.done)
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// expectEnd marks the end of the process as expected.
func (p *process) expectEnd() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wanted = true
}

// failure is non-nil if the process has ended unexpectedly.
func (p *process) failure() error {
	if p.running() {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wanted {
		return nil
	}
	how := "exit status 0"
	if p.err != nil {
		how = p.err.Error()
	}
	return fmt.Errorf("%s ended by itself: %s%s", p.name, how, tail(p.log, 15))
}

// signal sends a signal. A process that ended as expected is not an error; one
// that crashed is, or its failure would be forgotten.
func (p *process) signal(sig os.Signal) error {
	if err := p.failure(); err != nil {
		return err
	}
	p.expectEnd()
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", p.name, err)
	}
	return nil
}

// kill ends the process at once and waits until it is gone.
func (p *process) kill() error {
	if err := p.signal(unix.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}

// stop asks the process to end and waits for it.
func (p *process) stop() error {
	if err := p.signal(unix.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(stopPatience):
		_ = p.kill()
		return fmt.Errorf("stop %s: it was still running %v after SIGTERM and was killed%s", p.name, stopPatience, tail(p.log, 15))
	}
}

// tail returns the last lines of a log, indented, below a heading; nothing if the
// log is empty.
func tail(path string, lines int) string {
	data, err := os.ReadFile(path)
	if err != nil || len(data) == 0 {
		return ""
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	all = all[max(0, len(all)-lines):]
	for i, line := range all {
		if len(line) > 400 {
			line = line[:400] + "…"
		}
		all[i] = "    " + line
	}
	return "\n  last lines of " + path + ":\n" + strings.Join(slices.Clone(all), "\n")
}

// deathWith describes a child that starts in a cgroup and dies with the thread that
// started it.
func deathWith(cgroup *os.File) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if cgroup != nil {
		attr.UseCgroupFD, attr.CgroupFD = true, int(cgroup.Fd())
	}
	return attr
}
