package doctor

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// daemons are the other plugins' processes, and ports at which they listen: a container does
// not see the processes of its node.
var daemons = []struct {
	owner string
	comms []string
	ports []uint16
}{
	{kubeProxy, []string{"kube-proxy"}, []uint16{10249, 10256}},
	{cilium, []string{"cilium-agent"}, []uint16{4240}},
	{flannel, []string{"flanneld"}, nil},
	{calico, []string{"calico-node", "calico-felix"}, []uint16{9099}},
	{kubeRouter, []string{"kube-router"}, nil},
	{weave, []string{"weaver"}, []uint16{6783}},
	{antrea, []string{"antrea-agent"}, nil},
}

// socket is one that is listened on.
type socket struct {
	network string
	port    uint16
	inode   string
}

// listening are the sockets of this network namespace that wait for others.
func (h Host) listening() (all []socket) {
	for _, f := range []struct{ file, network, state string }{{"tcp", "tcp", "0A"}, {"tcp6", "tcp", "0A"}, {"udp", "udp", "07"}, {"udp6", "udp", "07"}} {
		text, err := h.read("/proc/self/net/" + f.file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(text) {
			w := strings.Fields(line)
			if len(w) < 10 || w[3] != f.state {
				continue
			}
			_, hex, _ := strings.Cut(w[1], ":")
			if port, err := strconv.ParseUint(hex, 16, 16); err == nil {
				all = append(all, socket{f.network, uint16(port), w[9]})
			}
		}
	}
	return all
}

// process is one that is visible.
type process struct{ pid, comm string }

// processes are those of this network namespace.
func (h Host) processes() (all []process) {
	own, err := os.Readlink(filepath.Join(h.Root, "/proc/self/ns/net"))
	if err != nil {
		return nil
	}
	dirs, _ := filepath.Glob(filepath.Join(h.Root, "/proc/[0-9]*"))
	for _, dir := range dirs {
		ns, err := os.Readlink(filepath.Join(dir, "ns/net"))
		if err != nil || ns != own {
			continue
		}
		comm, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err == nil {
			all = append(all, process{filepath.Base(dir), strings.TrimSpace(string(comm))})
		}
	}
	return all
}

// holder is the process with a socket; "" if it is not visible.
func (h Host) holder(all []process, inode string) string {
	want := "socket:[" + inode + "]"
	for _, p := range all {
		fds, _ := filepath.Glob(filepath.Join(h.Root, "/proc", p.pid, "fd/*"))
		for _, fd := range fds {
			if to, err := os.Readlink(fd); err == nil && to == want {
				return p.comm
			}
		}
	}
	return ""
}

func (l *look) pluginsRunning() map[string]bool {
	out := map[string]bool{}
	sockets, all := l.listening(), l.processes()
	for _, d := range daemons {
		out[d.owner] = slices.ContainsFunc(all, func(p process) bool { return slices.Contains(d.comms, p.comm) }) ||
			slices.ContainsFunc(sockets, func(s socket) bool { return s.network == "tcp" && slices.Contains(d.ports, s.port) })
	}
	return out
}

func plugins(_ context.Context, l *look) (out []Finding) {
	for _, d := range daemons {
		if !l.running[d.owner] {
			continue
		}
		f := Finding{Severity: Error, Message: d.owner + " runs on this node", Means: "two network plugins write routes, rules and pods' devices", Next: "remove its DaemonSet from this node"}
		if d.owner == kubeProxy {
			f.Severity, f.Means = Warning, "what services lead to is decided twice; Weft comes first, and kube-proxy costs time and memory"
			f.Next = "remove its DaemonSet, or keep it off this node by a node selector"
		}
		out = append(out, f)
	}
	if len(out) == 0 {
		out = append(out, Finding{Severity: OK, Message: "no kube-proxy or other network plugin runs here"})
	}
	return out
}

// ourPrograms are the names of Weft's own processes.
var ourPrograms = []string{"weft"}

func ports(_ context.Context, l *look) (out []Finding) {
	sockets := l.listening()
	var all []process
	for _, p := range l.node.Ports {
		for _, s := range sockets {
			if s.network != p.Network || s.port != p.Number || s.inode == "0" { // 0: the kernel's WireGuard
				continue
			}
			if all == nil {
				all = l.processes()
			}
			holder := l.holder(all, s.inode)
			if slices.Contains(ourPrograms, holder) || holder == "" && l.node.Running {
				continue
			}
			f := Finding{
				Severity: Error, Message: fmt.Sprintf("%s port %d, which Weft needs for %s, is taken by %s", strings.ToUpper(p.Network), p.Number, p.For, orSomebody(holder)),
				Means: "the agent or its tunnels do not start", Next: "stop that process, or give it another port",
			}
			if !slices.ContainsFunc(out, func(o Finding) bool { return o.Message == f.Message }) {
				out = append(out, f)
			}
		}
	}
	if len(out) == 0 {
		out = append(out, Finding{Severity: OK, Message: "the ports that Weft needs are its own or free"})
	}
	return out
}

func orSomebody(holder string) string {
	if holder == "" {
		return "a process that is not visible from here"
	}
	return holder
}

// Answer is what a server says when it is looked at.
type Answer struct {
	// Clock is the time on its clock; zero if it does not say.
	Clock time.Time
	// Took is how long that took.
	Took time.Duration
}

const (
	serverPatience = 3 * time.Second
	// A clock that is off by a little spoils ages and events; by much, certificates are not
	// yet valid, which are issued five minutes back.
	skewWarning, skewError = 10 * time.Second, 2 * time.Minute
)

func servers(ctx context.Context, l *look) (out []Finding) {
	if len(l.node.Servers) == 0 {
		return []Finding{{Severity: Info, Message: "no API server is known here", Next: "give --join, the node's join bundle"}}
	}
	reached, worst := 0, time.Duration(0)
	for _, address := range l.node.Servers {
		inner, cancel := context.WithTimeout(ctx, serverPatience)
		asked := time.Now()
		a, err := l.Dial(inner, address)
		cancel()
		if err != nil {
			if errors.Is(err, context.DeadlineExceeded) {
				err = fmt.Errorf("no answer within %v", serverPatience)
			}
			out = append(out, Finding{
				Severity: Error, Message: "API server " + address + " is not reached: " + err.Error(), Means: "changes do not arrive here; traffic goes on with what is known",
				Next: "is it running, and its port open from here (docs/operations.md, ports to open)?",
			})
			continue
		}
		reached++
		if a.Clock.IsZero() {
			continue
		}
		// Its clock shows whole seconds, at some time during the call.
		skew := a.Clock.Add(500 * time.Millisecond).Sub(asked.Add(a.Took / 2))
		if skew.Abs() > worst.Abs() {
			worst = skew
		}
	}
	if reached > 0 && len(out) > 0 && len(out) < len(l.node.Servers) {
		for i := range out {
			out[i].Severity, out[i].Means = Warning, "others are reached"
		}
	}
	switch off := worst.Abs().Round(time.Second); {
	case off >= skewWarning:
		f := Finding{Severity: Warning, Message: fmt.Sprintf("this node's clock is %v behind the API server's", off), Means: "ages and events are wrong", Next: "set the clock, by chrony or systemd-timesyncd"}
		if worst < 0 {
			f.Message = fmt.Sprintf("this node's clock is %v ahead of the API server's", off)
		}
		if off >= skewError {
			f.Severity, f.Means = Error, "certificates may be refused, so that nothing connects"
		}
		out = append(out, f)
	case reached > 0:
		out = append(out, Finding{Severity: OK, Message: plural(reached, "API server") + " reached, and the clocks agree"})
	}
	return out
}

func disk(_ context.Context, l *look) (out []Finding) {
	if l.node.StateDir == "" || !l.there(l.node.StateDir) {
		return nil
	}
	bytes, percent, err := l.Free(filepath.Join(l.Root, l.node.StateDir))
	if err != nil {
		return []Finding{unseen("the disk of "+l.node.StateDir, err)}
	}
	f := Finding{Severity: OK, Message: fmt.Sprintf("%s has %s free", l.node.StateDir, size(bytes))}
	if percent < 5 || bytes < 100<<20 {
		f.Severity, f.Means, f.Next = Warning, "kubelet evicts pods of a node without space, and the agent cannot keep what it gave to pods: no pod would start", "make room"
		if bytes < 1<<20 {
			f.Severity = Error
		}
	}
	return []Finding{f}
}

func size(bytes float64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	i := min(int(math.Log2(max(bytes, 1))/10), len(units)-1)
	return fmt.Sprintf("%.0f %s", bytes/math.Pow(1024, float64(i)), units[i])
}
