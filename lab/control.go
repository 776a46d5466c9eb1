package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Ref names a process of a node.
type Ref struct {
	Process string
	Node    *Node
}

func (r Ref) String() string { return r.Process + "@" + r.Node.Full() }

// Refs finds processes by PROCESS@CLUSTER/NODE, where each part may be a pattern:
// agent@*/*, *@east/n1. PROCESS@CLUSTER stands for all nodes of the cluster. It
// finds only what a node is meant to run.
func (l *Lab) Refs(pattern string) (refs []Ref, err error) {
	process, where, ok := strings.Cut(pattern, "@")
	if !ok {
		return nil, notThere("process %q: write PROCESS@CLUSTER/NODE, such as agent@east/n1", pattern)
	}
	if !strings.Contains(where, "/") {
		where += "/*"
	}
	for _, n := range l.Nodes() {
		if match, err := path.Match(where, n.Full()); err != nil || !match {
			continue
		}
		for _, name := range l.installed(n) {
			if match, err := path.Match(process, name); err == nil && match {
				refs = append(refs, Ref{name, n})
			}
		}
	}
	if len(refs) == 0 {
		return nil, notThere("no process matches %q", pattern)
	}
	return refs, nil
}

// installed is what a machine starts at boot, in this order.
func (l *Lab) installed(n *Node) []string {
	if n.Cluster == nil || !n.Cluster.bootsWeft() {
		return nil
	}
	if n.Name == n.Cluster.Control || slices.Contains(n.Cluster.Servers, n.Name) {
		return append([]string{"apiserver"}, l.nodeProcesses(n.Cluster)...)
	}
	return l.nodeProcesses(n.Cluster)
}

// BootNode starts everything that the machine is meant to run, as after power on.
func (l *Lab) BootNode(n *Node) error {
	if err := startInOrder(n, l.installed(n)); err != nil {
		return err
	}
	return l.record()
}

// Upgrade has processes start from the next version of weft from now on, or again from the first.
func (l *Lab) Upgrade(refs []Ref, next bool) error {
	if next && l.next == "" {
		return notThere("there is no other version of weft: build one with `internal/next-version.sh FILE`, and give it with --next FILE")
	}
	for _, r := range refs {
		r.Node.mu.Lock()
		if r.Node.upgraded == nil {
			r.Node.upgraded = map[string]bool{}
		}
		r.Node.upgraded[r.Process] = next
		r.Node.mu.Unlock()
	}
	return nil
}

// each acts on all processes at the same time.
func each(refs []Ref, do func(Ref, *process) error) error {
	failed := make([]error, len(refs))
	var g errgroup.Group
	for i, r := range refs {
		g.Go(func() error {
			if p := r.Node.process(r.Process); p == nil {
				failed[i] = notThere("%s was never started", r)
			} else {
				failed[i] = do(r, p)
			}
			return nil
		})
	}
	_ = g.Wait()
	return errors.Join(failed...)
}

// Kill ends processes at once. They stay dead until started again.
func Kill(refs []Ref) error {
	// Signal all before waiting for any, so that they die together.
	if err := each(refs, func(_ Ref, p *process) error { return p.signal(unix.SIGKILL) }); err != nil {
		return err
	}
	return each(refs, func(_ Ref, p *process) error { return p.kill() })
}

// Stop asks processes to end and waits for them.
func Stop(refs []Ref) error { return each(refs, func(_ Ref, p *process) error { return p.stop() }) }

// Start starts processes from their units.
func Start(refs []Ref) error {
	for _, r := range refs {
		if err := r.Node.Start(r.Process); err != nil {
			return err
		}
	}
	return nil
}

// Restart stops those that are running and starts all.
func Restart(refs []Ref) error {
	if err := Stop(refs); err != nil {
		return err
	}
	return Start(refs)
}

// Ended fails unless the processes have ended by themselves. Those that have no
// longer count as failures of the lab.
func Ended(refs []Ref) error {
	return each(refs, func(r Ref, p *process) error {
		if p.running() {
			return fmt.Errorf("%s is still running", r)
		}
		p.expectEnd()
		return nil
	})
}

// KillPod kills a pod's command. The lab restarts it, as a kubelet would, unless
// the pod's restart policy is Never.
func (l *Lab) KillPod(p Pod) error {
	if p.Node == nil {
		return fmt.Errorf("pod %s is not on a node", p.Full())
	}
	process := p.Node.process(p.processName())
	if process == nil || !process.running() {
		return fmt.Errorf("pod %s has no running process", p.Full())
	}
	return process.kill()
}

func (l *Lab) command(ctx context.Context, args []string) *exec.Cmd {
	name := args[0]
	if name == "weft" {
		name = l.binary
	}
	cmd := exec.CommandContext(ctx, name, args[1:]...)
	cmd.Env = l.environment()
	return cmd
}

// Memory is the resident size of each running process of a machine, in bytes, by
// name.
func (n *Node) Memory() map[string]uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	sizes := map[string]uint64{}
	for name, p := range n.procs {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid()))
		if err != nil || !p.running() {
			continue
		}
		for line := range bytes.Lines(status) {
			if f := strings.Fields(string(line)); len(f) > 1 && f[0] == "VmRSS:" {
				kib, _ := strconv.ParseUint(f[1], 10, 64)
				sizes[name] = kib << 10
			}
		}
	}
	return sizes
}

// ballast is the file that FillDisk writes.
const ballast = "/var/lib/weft/ballast"

// FillDisk fills the machine's limited disk.
func (n *Node) FillDisk() error {
	if n.Cluster == nil || n.Cluster.Disk == "" {
		return fmt.Errorf("fill disk of %s: give its cluster a limited disk in lab.yaml, such as disk: 64m", n.Full())
	}
	f, err := os.OpenFile(n.path(ballast), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("fill disk of %s: %w", n.Full(), err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, unix.ENOSPC) {
			size /= 2
		} else if err != nil {
			return fmt.Errorf("fill disk of %s: %w", n.Full(), err)
		}
	}
	return nil
}

// FreeDisk removes what FillDisk wrote.
func (n *Node) FreeDisk() error {
	if err := os.Remove(n.path(ballast)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("free disk of %s: %w", n.Full(), err)
	}
	return nil
}

// Path is where a file of the machine is found from outside. The path changes
// when the machine loses power.
func (n *Node) Path(file string) string { return n.path(filepath.Clean(file)) }
