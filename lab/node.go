package lab

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/lab/fabric"
	"github.com/weft-mesh/weft/lab/space"
)

// Node is one simulated machine. With power it has a sandbox process that holds its
// namespaces, and the processes it was told to run; without power it has only its
// disk. Its methods may be called concurrently.
type Node struct {
	Cluster *Cluster
	Name    string
	Addr    netip.Addr   // the one to prefer
	Addrs   []netip.Addr // one of each family it has, Addr first

	lab    *Lab
	dir    string // its disk
	fabric *fabric.Fabric
	device string // plugged into fabric; "" if it is not plugged in

	// mu guards what follows and is held during power changes. Its holder never
	// waits for a process to do work.
	mu      sync.Mutex
	sandbox *process
	thread  *space.Thread
	cgroup  space.Cgroup
	group   *os.File // cgroup, for starting children
	net     *os.File
	procs   map[string]*process
	// upgraded are the processes that start from the next version of weft.
	upgraded map[string]bool
}

// Full is the node's name as scripts write it, such as east/n1.
func (n *Node) Full() string {
	if n.Cluster == nil {
		return n.Name
	}
	return n.Cluster.Name + "/" + n.Name
}

func (n *Node) dashed() string { return strings.ReplaceAll(n.Full(), "/", "-") }

// path is where a file of the node is found from outside. Only /etc/weft and, unless
// the disk is limited, /var/lib/weft survive a power loss.
func (n *Node) path(file string) string {
	for inside, outside := range map[string]string{"/etc/weft": "etc", "/var/lib/weft": "var"} {
		if rest, ok := strings.CutPrefix(file, inside); ok && (n.Cluster == nil || n.Cluster.Disk == "" || outside == "etc") {
			return filepath.Join(n.dir, outside, rest)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.sandbox == nil {
		return filepath.Join(n.dir, "off", file)
	}
	return filepath.Join(fmt.Sprintf("/proc/%d/root", n.sandbox.pid()), file)
}

// Do runs f in the machine's namespaces.
func (n *Node) Do(f func() error) error {
	n.mu.Lock()
	thread := n.thread
	n.mu.Unlock()
	if thread == nil {
		return errNoPower
	}
	return thread.Do(f)
}

// PowerOn starts the sandbox and plugs it in, and nothing else.
func (n *Node) PowerOn() (err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.sandbox != nil {
		return fmt.Errorf("power on %s: it has power", n.Full())
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("power on %s: %w", n.Full(), err), n.powerOffLocked())
		}
	}()
	for _, dir := range []string{"etc", "var"} {
		if err := os.MkdirAll(filepath.Join(n.dir, dir), 0o700); err != nil {
			return err
		}
	}
	if n.cgroup, err = space.NewCgroup(filepath.Join(n.lab.cgroup.Dir, n.dashed())); err != nil {
		return err
	}
	if n.group, err = n.cgroup.Open(); err != nil {
		return err
	}
	if err := n.startSandboxLocked(); err != nil {
		return err
	}
	if n.net, err = space.NetOf(n.sandbox.pid()); err != nil {
		return err
	}
	if n.thread, err = space.NewThread(space.EnterProcess(n.sandbox.pid())); err != nil {
		return err
	}
	if n.device != "" {
		if err := n.fabric.Plug(n.Name, n.net, n.device, n.Addrs, true); err != nil {
			return err
		}
	}
	n.procs = map[string]*process{}
	return nil
}

// startSandboxLocked returns when the sandbox has prepared its namespaces.
func (n *Node) startSandboxLocked() error {
	config := SandboxConfig{Hostname: n.dashed(), Etc: filepath.Join(n.dir, "etc"), Var: filepath.Join(n.dir, "var"), Weft: n.lab.binary}
	if n.Cluster != nil {
		config.Disk = n.Cluster.Disk
		if n.Cluster.Kubernetes {
			config.Kubernetes = filepath.Join(n.dir, "kubernetes")
		}
	} else {
		config.Plain = true
	}
	arg, err := json.Marshal(config)
	if err != nil {
		return err
	}
	cmd := exec.Command(n.lab.binary, "lab", "sandbox", string(arg))
	cmd.Env = n.lab.environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS}
	ready, out, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	cmd.Stdout = out
	log := n.lab.logFile(n.dashed(), "sandbox")
	n.sandbox, err = spawn(n.lab.forker, "sandbox@"+n.Full(), cmd, 0, n.group, log)
	out.Close()
	if err != nil {
		return err
	}
	line, err := bufio.NewReader(ready).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if line != sandboxReady+"\n" {
		n.sandbox.expectEnd()
		return fmt.Errorf("sandbox ended before it was ready%s", tail(log, 5))
	}
	return nil
}

// sandboxReady is what a sandbox prints when its namespaces are prepared.
const sandboxReady = "ready"

// HoldSandbox is what a sandbox process runs: it prepares its namespaces, says so
// and waits to be killed.
func HoldSandbox(arg string) error {
	var c SandboxConfig
	if err := json.Unmarshal([]byte(arg), &c); err != nil {
		return fmt.Errorf("sandbox configuration: %w", err)
	}
	if err := Sandbox(c); err != nil {
		return err
	}
	fmt.Println(sandboxReady)
	for {
		if err := unix.Pause(); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// PowerOff unplugs the node and kills everything in it at once. Nothing that a dying
// process sends gets out. Without power it does nothing.
func (n *Node) PowerOff() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.powerOffLocked()
}

func (n *Node) powerOffLocked() error {
	var failed []error
	if n.device != "" && n.fabric.Up(n.Name) {
		failed = append(failed, n.fabric.SetPort(n.Name, false))
	}
	if n.sandbox != nil {
		n.sandbox.expectEnd()
	}
	for _, p := range n.procs {
		p.expectEnd()
	}
	if n.cgroup.Dir != "" {
		failed = append(failed, n.cgroup.Kill())
	}
	for _, p := range n.procs {
		<-p.done
	}
	// The namespaces go with the last thread and handle that holds them.
	if n.thread != nil {
		n.thread.Close()
	}
	for _, f := range []*os.File{n.net, n.group} {
		if f != nil {
			f.Close()
		}
	}
	if n.sandbox != nil {
		<-n.sandbox.done
	}
	if n.device != "" {
		failed = append(failed, n.fabric.Unplug(n.Name))
	}
	if n.cgroup.Dir != "" {
		failed = append(failed, n.cgroup.Remove())
	}
	n.sandbox, n.thread, n.net, n.group, n.procs, n.cgroup = nil, nil, nil, nil, nil, space.Cgroup{}
	return errors.Join(failed...)
}

// Powered reports whether the node has power.
func (n *Node) Powered() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sandbox != nil
}

var errNoPower = errors.New("it has no power")

// spawn starts a command in the node's namespaces and cgroup under an unused name.
// Its output goes to a log unless cmd.Stdout is set.
func (n *Node) spawn(name string, cmd *exec.Cmd) (*process, error) {
	return n.spawnNice(name, cmd, 0)
}

// spawnNice is spawn with a priority, as in Nice= of a unit.
func (n *Node) spawnNice(name string, cmd *exec.Cmd, nice int) (*process, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.sandbox == nil {
		return nil, fmt.Errorf("start %s on %s: %w", name, n.Full(), errNoPower)
	}
	if p := n.procs[name]; p != nil && p.running() {
		return nil, fmt.Errorf("start %s on %s: it is running", name, n.Full())
	} else if p != nil {
		if err := p.failure(); err != nil { // which a new process would hide
			return nil, err
		}
	}
	p, err := spawn(n.thread, name+"@"+n.Full(), cmd, nice, n.group, n.lab.logFile(n.dashed(), name))
	if err == nil {
		n.procs[name] = p
	}
	return p, err
}

// Start starts one of Weft's own processes from its systemd unit.
func (n *Node) Start(name string) error {
	u, err := loadUnit(name)
	if err != nil {
		return err
	}
	args, env, err := u.command(func(file string) ([]byte, error) { return os.ReadFile(n.path(file)) })
	if err != nil {
		return err
	}
	cmd := exec.Command(n.program(name), args[1:]...)
	cmd.Dir = "/"
	cmd.Env = append(n.lab.environment(), env...)
	_, err = n.spawnNice(name, cmd, u.nice)
	return err
}

// program is the file that one of Weft's own processes is started from.
func (n *Node) program(process string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.upgraded[process] {
		return n.lab.next
	}
	return n.lab.binary
}

// process finds a process by name; nil if it has not been started since power on.
func (n *Node) process(name string) *process {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.procs[name]
}

// Processes lists the names of the node's running processes.
func (n *Node) Processes() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var names []string
	for name, p := range n.procs {
		if p.running() {
			names = append(names, name)
		}
	}
	return names
}

// failures lists the processes that have ended unexpectedly.
func (n *Node) failures() (failed []error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.procs {
		if err := p.failure(); err != nil {
			failed = append(failed, err)
		}
	}
	if n.sandbox != nil {
		if err := n.sandbox.failure(); err != nil {
			failed = append(failed, err)
		}
	}
	return failed
}

// Cut unplugs the node's network cable at the switch: the kernel would drop the
// default route if the node's own device went down.
func (n *Node) Cut() error { return n.fabric.SetPort(n.Name, false) }

// Block starts or stops dropping the node's packets to an address: all of them, or
// those of some flows.
func (n *Node) Block(to netip.Addr, flows []fabric.Flow, on bool) error {
	blocks := slices.DeleteFunc(n.fabric.Blocks(n.Name), func(b fabric.Block) bool {
		return b.To == to && (len(flows) == 0 || slices.Equal(b.Flows, flows))
	})
	if on {
		blocks = append(blocks, fabric.Block{To: to, Flows: flows})
	}
	return n.fabric.SetBlocks(n.Name, blocks)
}

// Unblock undoes every Block.
func (n *Node) Unblock() error { return n.fabric.SetBlocks(n.Name, nil) }

// Heal plugs the network cable back in.
func (n *Node) Heal() error { return n.fabric.SetPort(n.Name, true) }
