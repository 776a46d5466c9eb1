package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/api"
)

// The lab takes the place of the kubelet: it requests a pod's network of the agent on its
// node, starts the pod's command in it, restarts that according to the pod's restart policy,
// and kills it when the pod is gone.

// Pod is one pod that a script can refer to.
type Pod struct {
	Cluster, Namespace, Name string
	Node                     *Node // nil while not scheduled
}

// Full is the pod's name as scripts write it, such as east/default/web-1.
func (p Pod) Full() string { return p.Cluster + "/" + p.Namespace + "/" + p.Name }

// podState is what the lab knows about a pod.
type podState struct {
	Pod
	uid      string
	spec     corev1.PodSpec
	store    string    // generation of the store that last listed it
	gone     bool      // deleted from the API server
	requests requests  // for its network
	entered  uint64    // network namespace that its command was started in
	dead     time.Time // when its command was first seen to have ended
}

// restartDelay is the pause before a pod's command is restarted, so that one that
// cannot run does not use up the machine.
const restartDelay = 300 * time.Millisecond

// podNamespaceDir is where the agent keeps the namespaces of its pods.
const podNamespaceDir = "/run/netns"

// hostsFile is what the agent writes for its pods' /etc/hosts.
const hostsFile = "/run/weft/hosts"

// processName is the name of the pod's command among its node's processes.
func (p Pod) processName() string { return "pod/" + p.Namespace + "_" + p.Name }

// namespaceFile is the pod's network namespace, as seen in its node.
func (p Pod) namespaceFile() string {
	return filepath.Join(podNamespaceDir, p.Namespace+"_"+p.Name)
}

// network is the inode of the pod's network namespace, 0 until the agent has made
// it.
func (p Pod) network() uint64 {
	if p.Node == nil || !p.Node.Powered() {
		return 0
	}
	file, err := os.Open(p.Node.path(p.namespaceFile()))
	if err != nil {
		return 0
	}
	defer file.Close()
	var fs unix.Statfs_t
	var stat unix.Stat_t
	if unix.Fstatfs(int(file.Fd()), &fs) != nil || fs.Type != unix.NSFS_MAGIC || unix.Fstat(int(file.Fd()), &stat) != nil {
		return 0
	}
	return stat.Ino
}

// Pod finds a pod by its full name, or by cluster/name in namespace default.
func (l *Lab) Pod(full string) (Pod, error) {
	parts := strings.Split(full, "/")
	if len(parts) == 2 {
		parts = []string{parts[0], "default", parts[1]}
	}
	if len(parts) != 3 {
		return Pod{}, notThere("no machine or pod %q: write CLUSTER/NODE, CLUSTER/POD or CLUSTER/NAMESPACE/POD", full)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.pods[strings.Join(parts, "/")]; p != nil && !p.gone {
		return p.Pod, nil
	}
	return Pod{}, notThere("no machine or pod %q (yet)", full)
}

// Pods lists all pods.
func (l *Lab) Pods() (pods []Pod) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.pods {
		if !p.gone {
			pods = append(pods, p.Pod)
		}
	}
	return pods
}

// PodEvent is one line that a `weft lab pods` helper prints: a change, or the end of
// the complete list that comes first.
type PodEvent struct {
	Cluster string          `json:"cluster"`
	Restart bool            `json:"restart,omitempty"` // a complete list follows
	Store   string          `json:"store,omitempty"`   // with Restart: generation of the store that lists
	Event   *api.WatchEvent `json:"event,omitempty"`
}

// WatchPods prints the pods of a cluster and their changes as PodEvents until ctx
// ends. A helper process runs it on the operator's machine, which reaches the API
// servers.
func WatchPods(ctx context.Context, config string, cluster string, out io.Writer) error {
	enc := json.NewEncoder(out)
	for ctx.Err() == nil {
		if err := watchOnce(ctx, config, cluster, enc); err != nil && errors.Is(err, os.ErrClosed) {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	return nil
}

func watchOnce(ctx context.Context, config, cluster string, enc *json.Encoder) error {
	conf, err := api.LoadConfig(config)
	if err != nil {
		return err
	}
	x, err := conf.Context(cluster)
	if err != nil {
		return err
	}
	client, err := api.NewClient(x)
	if err != nil {
		return err
	}
	defer client.Close()
	status, err := client.Status(ctx)
	if err != nil {
		return err
	}
	if err := enc.Encode(PodEvent{Cluster: cluster, Restart: true, Store: status.Cluster.Generation}); err != nil {
		return os.ErrClosed
	}
	return client.Watch(ctx, "pods", "", func(e api.WatchEvent) error {
		return enc.Encode(PodEvent{Cluster: cluster, Event: &e})
	})
}

// followPods runs the helper of one cluster, and its pods.
func (l *Lab) followPods(ctx context.Context, cluster string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := exec.Command(l.binary, "lab", "pods", cluster)
	cmd.Env, cmd.Stdout = l.environment(), w
	helper, err := l.Operator.spawn("pods-"+cluster, cmd)
	w.Close()
	if err != nil {
		r.Close()
		return err
	}
	events := make(chan PodEvent)
	l.group.Go(func() error {
		defer close(events)
		defer r.Close()
		for dec := json.NewDecoder(r); ; {
			var e PodEvent
			if dec.Decode(&e) != nil {
				return nil
			}
			select {
			case events <- e:
			case <-ctx.Done():
				return nil
			}
		}
	})
	defer helper.kill()
	var list podList
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return nil
		case e, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			l.notePod(e, &list)
		case <-tick.C:
			l.syncPods(cluster)
		}
	}
}

// podList is the list that the API server is sending.
type podList struct {
	store string          // generation of the store it comes from
	names map[string]bool // nil once the list is complete and changes follow
}

// notePod handles an event. A pod missing from a rebuilt store is not gone: a
// workload does not end because the mesh has lost its records.
func (l *Lab) notePod(e PodEvent, list *podList) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.Restart {
		*list = podList{e.Store, map[string]bool{}}
		return
	}
	key := e.Cluster + "/" + e.Event.Namespace + "/" + e.Event.Name
	switch e.Event.Type {
	case "put":
		var pod corev1.Pod
		if err := json.Unmarshal(e.Event.Object, &pod); err != nil {
			l.log.Error("cannot decode a pod", "pod", key, "error", err)
			return
		}
		state := l.pods[key]
		if state == nil {
			state = &podState{Pod: Pod{Cluster: e.Cluster, Namespace: e.Event.Namespace, Name: e.Event.Name}}
			l.pods[key] = state
		}
		state.uid, state.spec, state.store, state.gone = string(pod.UID), pod.Spec, list.store, false
		state.Node = l.nodes[e.Cluster+"/"+pod.Spec.NodeName]
		if list.names != nil {
			list.names[key] = true
		}
	case "delete":
		if state := l.pods[key]; state != nil {
			state.gone = true
		}
	case "synced":
		for key, state := range l.pods {
			if state.Cluster == e.Cluster && state.store == list.store && !list.names[key] {
				state.gone = true
			}
		}
		list.names = nil
	}
}

// syncPods starts and kills pods' commands as needed, and requests their networks.
func (l *Lab) syncPods(cluster string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	// In order of name: pods that are applied together get addresses in about that order.
	for _, key := range slices.Sorted(maps.Keys(l.pods)) {
		state := l.pods[key]
		if state.Cluster != cluster || state.Node == nil {
			continue
		}
		p := state.Node.process(state.processName())
		switch {
		case !state.gone:
			l.syncPodLocked(state, p)
		case p != nil && p.running():
			_ = p.signal(unix.SIGKILL)
		}
		l.syncNetworkLocked(state)
	}
}

func (l *Lab) syncPodLocked(state *podState, p *process) {
	if len(state.spec.Containers) == 0 || len(state.spec.Containers[0].Command) == 0 {
		return
	}
	network := state.network()
	if network == 0 || state.Node.Cluster.CNI && state.requests.added != state.uid {
		return // a namespace alone is no network yet
	}
	if p != nil && p.running() {
		// The pod may have replaced another of the same name, and been started
		// before its own network existed: then it runs in its predecessor's.
		if state.entered != network && p.signal(unix.SIGKILL) == nil {
			state.dead = time.Now().Add(-restartDelay)
		}
		return
	}
	if p != nil { // it has ended since power on
		p.expectEnd()
		if state.over(network) {
			return
		}
		if state.dead.IsZero() {
			state.dead = time.Now()
		}
		if time.Since(state.dead) < restartDelay {
			return
		}
	}
	state.dead = time.Time{}
	state.entered = network
	if err := l.startPod(state); err != nil {
		l.log.Error("cannot start a pod", "pod", state.Full(), "error", err)
		state.dead = time.Now()
	}
}

// over reports whether a command that has ended stays ended. One that ran in the
// network of a predecessor of the same name was not this pod's.
func (s *podState) over(network uint64) bool {
	return s.spec.RestartPolicy == corev1.RestartPolicyNever && s.entered == network
}

func (l *Lab) startPod(state *podState) error {
	container := state.spec.Containers[0]
	command := append(append([]string{}, container.Command...), container.Args...)
	cmd := l.podCommand(state.Pod, command)
	for _, e := range container.Env {
		cmd.Env = append(cmd.Env, e.Name+"="+e.Value)
	}
	p, err := state.Node.spawn(state.processName(), cmd)
	if err != nil {
		return err
	}
	p.expectEnd() // a pod that ends is restarted; it is not a failure of the lab
	return nil
}

// Place is where a command can run: a machine, or a pod on it.
type Place struct {
	Node *Node
	Pod  *Pod // nil is the machine itself
}

// Place finds a machine or a pod by its full name. Machines come first.
func (l *Lab) Place(full string) (Place, error) {
	if n, err := l.Node(full); err == nil {
		return Place{Node: n}, nil
	}
	p, err := l.Pod(full)
	if err != nil {
		return Place{}, err
	}
	if p.network() == 0 {
		return Place{}, notThere("pod %s has no network namespace yet", p.Full())
	}
	return Place{Node: p.Node, Pod: &p}, nil
}

// placed prepares a command for a place.
func (l *Lab) placed(ctx context.Context, at Place, command []string) *exec.Cmd {
	if at.Pod == nil {
		cmd := l.command(ctx, command)
		cmd.Dir = "/"
		cmd.Env = slices.DeleteFunc(cmd.Env, func(s string) bool { return strings.HasPrefix(s, "WEFT_CONFIG=") })
		cmd.Env = append(cmd.Env, "WEFT_NODE="+at.Node.Name)
		if at.Node.Cluster != nil {
			cmd.Env = append(cmd.Env, "WEFT_CLUSTER="+at.Node.Cluster.Name)
		}
		return cmd
	}
	inner := l.podCommand(*at.Pod, command)
	cmd := exec.CommandContext(ctx, inner.Path, inner.Args[1:]...)
	cmd.Env, cmd.Dir = inner.Env, inner.Dir
	return cmd
}

// RunAt runs a command on a machine or in a pod and waits for it.
func (l *Lab) RunAt(ctx context.Context, at Place, stdout, stderr io.Writer, command ...string) error {
	return l.runIn(at.Node, l.placed(ctx, at, command), stdout, stderr)
}

// Task is a command started by StartAt.
type Task struct{ process *process }

// StartAt starts a command on a machine or in a pod, under an unused name. Its
// output goes to stdout, which the caller may close afterwards, or to a log if
// stdout is nil.
func (l *Lab) StartAt(at Place, name string, stdout *os.File, command ...string) (*Task, error) {
	cmd := l.placed(context.Background(), at, command)
	if stdout != nil {
		cmd.Stdout = stdout
	}
	process, err := at.Node.spawn(name, cmd)
	if err != nil {
		return nil, err
	}
	process.expectEnd()
	return &Task{process}, nil
}

// Stop asks the task to end and waits for it. A task that has already ended is not
// an error.
func (t *Task) Stop() error { return t.process.stop() }

// Running reports whether the task has not ended.
func (t *Task) Running() bool { return t.process.running() }

// Err is how the task ended: nil if it runs, or exited with status 0.
func (t *Task) Err() error {
	t.process.mu.Lock()
	defer t.process.mu.Unlock()
	return t.process.err
}

// Log returns the last lines that the task wrote to stderr.
func (t *Task) Log() string { return tail(t.process.log, 10) }

// podCommand wraps a command into the helper that moves it into the pod.
func (l *Lab) podCommand(p Pod, command []string) *exec.Cmd {
	if command[0] == "weft" {
		command[0] = l.binary
	}
	args := append([]string{"lab", "enter", p.namespaceFile(), hostsFile, "--"}, command...)
	cmd := exec.Command(l.binary, args...)
	cmd.Dir = "/"
	cmd.Env = append(l.environment(), "WEFT_CLUSTER="+p.Cluster, "WEFT_NAMESPACE="+p.Namespace, "WEFT_POD="+p.Name, "WEFT_LAB="+l.ID)
	if p.Node != nil {
		cmd.Env = append(cmd.Env, "WEFT_NODE="+p.Node.Name)
	}
	return cmd
}

// EnterPod turns the calling process into a pod's command, in the pod's network
// namespace and with the node's hosts file, and its resolv.conf for pods. Without one it has
// no name server: the real machine's does not answer here, and asking it would take seconds.
// EnterPod returns only errors.
func EnterPod(netns, hosts string, command []string) error {
	runtime.LockOSThread()
	ns, err := os.Open(netns)
	if err != nil {
		return fmt.Errorf("pod has no network namespace: %w", err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mounts: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if _, err := os.Stat(hosts); err == nil {
		if err := unix.Mount(hosts, "/etc/hosts", "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount hosts file: %w", err)
		}
	}
	resolv := filepath.Join(filepath.Dir(hosts), "resolv.conf")
	if _, err := os.Stat(resolv); err != nil {
		resolv = os.DevNull
	}
	if err := unix.Mount(resolv, "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("hide the machine's name servers: %w", err)
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter pod: %w", err)
	}
	path, err := exec.LookPath(command[0])
	if err != nil {
		return err
	}
	return unix.Exec(path, command, os.Environ())
}
