// Package lab runs whole clusters on one machine: each node is a sandbox of
// namespaces with its own cgroup, running the same processes from the same systemd
// units as a real one.
//
// What happens to the clusters and what is expected of them is up to scripts, which
// package lab/scenario runs.
package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/lab/fabric"
	"github.com/weft-mesh/weft/lab/space"
)

// Config describes a lab.
type Config struct {
	Topology Topology
	Binary   string // weft; the running program if empty
	Next     string // another version of it, to which scripts upgrade; may be empty
	// Kubernetes is the folder with Kubernetes' programs, for Kubernetes clusters;
	// .bin/kubernetes if empty.
	Kubernetes string
	File       string       // the lab file, for `weft lab list`
	Slower     int          // how many times longer than elsewhere clusters may take to start; 0 and 1: no longer
	ID         string       // random if empty
	Log        *slog.Logger // nil discards
}

// Lab is a set of clusters running on this machine. Close ends them. If the process
// dies without Close, the kernel kills everything that was running, and Prune
// removes the directory and cgroups left behind.
type Lab struct {
	ID       string
	Dir      string
	Topology Topology
	Network  *fabric.Network
	Operator *Node // a machine plugged into every fabric, so that no cut affects it

	log     *slog.Logger
	file    string
	binary  string
	next    string // another version of it; "" if there is none
	started time.Time
	lock    *os.File
	cgroup  space.Cgroup
	forker  *space.Thread // starts the sandboxes, so that they die with the lab
	nodes   map[string]*Node
	kernel  bool // the kernel has WireGuard
	// kubernetes is the folder with Kubernetes' programs.
	kubernetes string
	slower     int

	tasks context.CancelCauseFunc // ends what runs in group
	group *errgroup.Group
	ctx   context.Context

	mu    sync.Mutex
	ready bool                 // guarded by mu, like what follows
	pods  map[string]*podState // by cluster/namespace/name
	// kubeContexts are what is in the operator's kubeconfig, by cluster.
	kubeContexts map[string]kubernetesSite
	close        sync.Once
}

// Raise makes the network and powers on every machine. Weft's own processes are
// started by Boot.
func Raise(ctx context.Context, c Config) (_ *Lab, err error) {
	l := &Lab{Topology: c.Topology, ID: c.ID, file: c.File, binary: c.Binary, next: c.Next, kubernetes: c.Kubernetes, slower: c.Slower, log: c.Log, started: time.Now(),
		nodes: map[string]*Node{}, pods: map[string]*podState{}}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	if err := l.Topology.complete(); err != nil {
		return nil, err
	}
	if err := hurry(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if err := l.prepare(); err != nil {
		return nil, err
	}
	weather, err := l.Topology.weather()
	if err != nil {
		return nil, err
	}
	var sites []fabric.Site
	for i := range l.Topology.Clusters {
		c := &l.Topology.Clusters[i]
		sites = append(sites, fabric.Site{Cluster: c.Name, Subnets: c.subnets(), Gateways: c.host(gatewayHost)})
	}
	if l.Network, err = fabric.New(sites, weather); err != nil {
		return nil, err
	}
	var cause context.Context
	cause, l.tasks = context.WithCancelCause(context.WithoutCancel(ctx))
	l.group, l.ctx = errgroup.WithContext(cause)
	l.group.Go(func() error { return l.Network.Run(l.ctx) })
	if err := l.powerAll(); err != nil {
		return nil, err
	}
	return l, l.record()
}

// prepare chooses an ID, makes and locks its directory, and makes the cgroup and the
// forker.
func (l *Lab) prepare() (err error) {
	if l.ID == "" {
		var random [2]byte
		rand.Read(random[:])
		l.ID = hex.EncodeToString(random[:])
	}
	if l.binary == "" {
		if l.binary, err = os.Executable(); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(Root, 0o755); err != nil {
		return err
	}
	dir := filepath.Join(Root, l.ID)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("lab %s: %w", l.ID, err)
	}
	l.Dir = dir // from here on Close removes it
	if l.lock, err = ownDir(l.Dir); err != nil {
		return fmt.Errorf("lock lab %s: %w", l.ID, err)
	}
	if err := linkWeft(l.bin(), l.binary); err != nil {
		return err
	}
	if l.Topology.usesKubernetes() {
		if err := l.prepareKubernetes(); err != nil {
			return err
		}
	}
	root, err := space.CgroupRoot()
	if err != nil {
		return err
	}
	if l.cgroup, err = space.NewCgroup(filepath.Join(root, cgroupPrefix+l.ID)); err != nil {
		return err
	}
	l.kernel = kernelHasWireGuard()
	l.forker, err = space.NewThread(nil)
	return err
}

// kernelHasWireGuard tries to make a device in a throwaway namespace.
func kernelHasWireGuard() bool {
	ns, err := space.NewNet()
	if err != nil {
		return false
	}
	defer ns.Close()
	return space.Once(space.EnterNet(ns), func() error {
		return netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "probe"}})
	}) == nil
}

func (l *Lab) powerAll() error {
	l.Operator = &Node{Name: "operator", lab: l, dir: filepath.Join(l.Dir, "operator")}
	var g errgroup.Group
	for i := range l.Topology.Clusters {
		c := &l.Topology.Clusters[i]
		for _, name := range c.Nodes {
			addrs := c.host(c.number(name))
			n := &Node{Cluster: c, Name: name, Addr: addrs[0], Addrs: addrs, lab: l, device: "eth0",
				fabric: l.Network.Fabric(c.Name), dir: filepath.Join(l.Dir, c.Name+"-"+name)}
			l.nodes[n.Full()] = n
			g.Go(n.PowerOn)
		}
	}
	g.Go(l.Operator.PowerOn)
	if err := g.Wait(); err != nil {
		return err
	}
	for i := range l.Topology.Clusters {
		c := &l.Topology.Clusters[i]
		if err := l.Network.Fabric(c.Name).Plug("operator", l.Operator.net, c.Name, c.host(operatorHost), false); err != nil {
			return err
		}
	}
	return nil
}

// NotThere is the error of a name that nothing in the lab has, or not yet.
type NotThere struct{ error }

func notThere(format string, args ...any) error { return NotThere{fmt.Errorf(format, args...)} }

// Node finds a machine by its full name.
func (l *Lab) Node(full string) (*Node, error) {
	if full == l.Operator.Name {
		return l.Operator, nil
	}
	if n := l.nodes[full]; n != nil {
		return n, nil
	}
	return nil, notThere("no node %q; there are %s", full, strings.Join(l.nodeNames(), ", "))
}

func (l *Lab) nodeNames() (names []string) {
	for i := range l.Topology.Clusters {
		for _, n := range l.Topology.Clusters[i].Nodes {
			names = append(names, l.Topology.Clusters[i].Name+"/"+n)
		}
	}
	return names
}

// Nodes returns all machines of all clusters in the order of the topology.
func (l *Lab) Nodes() (nodes []*Node) {
	for _, name := range l.nodeNames() {
		nodes = append(nodes, l.nodes[name])
	}
	return nodes
}

// Cluster finds a cluster by name.
func (l *Lab) Cluster(name string) (*Cluster, error) {
	for i := range l.Topology.Clusters {
		if c := &l.Topology.Clusters[i]; c.Name == name {
			return c, nil
		}
	}
	var names []string
	for _, c := range l.Topology.Clusters {
		names = append(names, c.Name)
	}
	return nil, notThere("no cluster %q; there are %s", name, strings.Join(names, ", "))
}

// control returns the machine with a cluster's API server.
func (l *Lab) control(c *Cluster) *Node { return l.nodes[c.Name+"/"+c.Control] }

// ConfigPath is the file with the CLI contexts of all clusters.
func (l *Lab) ConfigPath() string { return filepath.Join(l.Dir, "config") }

// Binary is the weft program that the lab runs.
func (l *Lab) Binary() string { return l.binary }

// bin is the directory in which the operator finds weft; machines have machineBin.
func (l *Lab) bin() string { return filepath.Join(l.Dir, "bin") }

func (l *Lab) logFile(node, name string) string {
	dir := filepath.Join(l.Dir, "logs")
	_ = os.MkdirAll(dir, 0o755)
	return filepath.Join(dir, node+"-"+strings.ReplaceAll(name, "/", "-")+".log")
}

// environment is the environment of every child: nothing of the caller's leaks into
// the clusters.
func (l *Lab) environment() []string {
	return []string{
		"PATH=" + machineBin + ":" + l.bin() + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "LANG=C.UTF-8", "WEFT_CONFIG=" + l.ConfigPath(), "KUBECONFIG=" + l.kubeconfig(), "NO_COLOR=1",
	}
}

// record writes lab.json, by which other commands find the lab.
func (l *Lab) record() error {
	l.mu.Lock()
	r := Record{ID: l.ID, PID: os.Getpid(), File: l.file, Started: l.started, Ready: l.ready, Config: l.ConfigPath(), Nodes: map[string]NodeRecord{}}
	l.mu.Unlock()
	for _, n := range append(l.Nodes(), l.Operator) {
		n.mu.Lock()
		if n.sandbox != nil {
			r.Nodes[n.Full()] = NodeRecord{PID: n.sandbox.pid(), Cgroup: n.cgroup.Dir}
		}
		n.mu.Unlock()
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(l.Dir, "lab.json")
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// Run executes a command as the operator, on a machine that reaches every API server
// whatever the lab has cut. The command ends with ctx.
func (l *Lab) Run(ctx context.Context, dir string, stdout, stderr io.Writer, args ...string) error {
	cmd := l.command(ctx, args)
	cmd.Dir = dir
	return l.runIn(l.Operator, cmd, stdout, stderr)
}

// runIn runs a command in a machine's namespaces and waits for it.
func (l *Lab) runIn(n *Node, cmd *exec.Cmd, stdout, stderr io.Writer) error {
	n.mu.Lock()
	thread, group := n.thread, n.group
	n.mu.Unlock()
	if thread == nil {
		return fmt.Errorf("run on %s: %w", n.Full(), errNoPower)
	}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	// cmd.Dir is a path outside the sandbox.
	cmd.SysProcAttr = deathWith(group)
	if err := thread.Do(func() error { return startNice(cmd, 0) }); err != nil {
		return fmt.Errorf("run on %s: %w", n.Full(), err)
	}
	return cmd.Wait()
}

// Failures lists the processes that have ended unexpectedly.
func (l *Lab) Failures() error {
	var failed []error
	for _, n := range append(l.Nodes(), l.Operator) {
		failed = append(failed, n.failures()...)
	}
	return errors.Join(failed...)
}

// Close ends everything and removes what the lab put on this machine. Closing
// twice is harmless.
func (l *Lab) Close() (err error) {
	l.close.Do(func() { err = l.closeOnce() })
	return err
}

func (l *Lab) closeOnce() error {
	var failed []error
	if l.tasks != nil {
		l.tasks(nil)
	}
	containers := l.containers()
	var g errgroup.Group
	for _, n := range l.nodes {
		g.Go(n.PowerOff)
	}
	if l.Operator != nil {
		g.Go(l.Operator.PowerOff)
	}
	failed = append(failed, g.Wait())
	if l.group != nil {
		if err := l.group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
			failed = append(failed, err)
		}
	}
	if l.Network != nil {
		l.Network.Close()
	}
	if l.forker != nil {
		l.forker.Close()
	}
	if l.cgroup.Dir != "" {
		failed = append(failed, l.cgroup.Remove())
	}
	failed = append(failed, removeContainerCgroups(containers))
	if l.Dir != "" {
		failed = append(failed, os.RemoveAll(l.Dir))
	}
	if l.lock != nil {
		l.lock.Close()
	}
	return errors.Join(slices.DeleteFunc(failed, func(err error) bool { return err == nil })...)
}
