package lab

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/lab/space"
)

// Exec turns the calling process into a command on a machine or in a pod of a
// running lab. The command ends when the machine loses power. Exec returns only
// errors.
func Exec(id, where string, command []string) error {
	r, err := ReadRecord(id)
	if err != nil {
		return err
	}
	pod := ""
	if parts := strings.Split(where, "/"); len(parts) == 3 {
		if where, err = r.nodeOf(Pod{Cluster: parts[0], Namespace: parts[1], Name: parts[2]}); err != nil {
			return err
		}
		pod = parts[1] + "_" + parts[2]
	}
	node, ok := r.Nodes[where]
	if !ok {
		return fmt.Errorf("lab %s has no running machine %q; choose from %s, or a pod as CLUSTER/NAMESPACE/POD", id, where, strings.Join(slices.Sorted(maps.Keys(r.Nodes)), ", "))
	}
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	if command[0] == "weft" {
		command[0] = binary
	}
	if where == "operator" {
		os.Setenv("WEFT_CONFIG", r.Config)
		os.Setenv("KUBECONFIG", kubeconfigIn(filepath.Dir(r.Config)))
	} else {
		os.Unsetenv("WEFT_CONFIG")
	}
	dir, err := os.Getwd()
	if err != nil || where != "operator" {
		dir = "/" // of the machine
	}
	// Join the cgroup before entering the namespaces: if the machine goes away
	// meanwhile, this process is killed or finds nothing to enter.
	if err := (space.Cgroup{Dir: node.Cgroup}).Join(); err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := space.EnterProcess(node.PID)(); err != nil {
		return err
	}
	if pod != "" {
		return EnterPod(filepath.Join(podNamespaceDir, pod), hostsFile, command)
	}
	path, err := exec.LookPath(command[0])
	if err != nil {
		return err
	}
	if err := unix.Chdir(dir); err != nil {
		return err
	}
	return unix.Exec(path, command, os.Environ())
}

// nodeOf finds the machine that a pod runs on.
func (r Record) nodeOf(p Pod) (string, error) {
	for name, n := range r.Nodes {
		if !strings.HasPrefix(name, p.Cluster+"/") {
			continue
		}
		if _, err := os.Stat(filepath.Join(fmt.Sprintf("/proc/%d/root", n.PID), p.namespaceFile())); err == nil {
			return name, nil
		}
	}
	return "", fmt.Errorf("no machine of lab %s has a pod %s; `weft lab exec %[1]s operator -- weft -c %[3]s get pods` lists the pods", r.ID, p.Full(), p.Cluster)
}
