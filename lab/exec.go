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
// lab that lives, and that ends with the machine's power. It returns only errors.
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
		return fmt.Errorf("lab %s has no machine %q with power; choose from %s, or a pod as CLUSTER/NAMESPACE/POD", id, where, strings.Join(slices.Sorted(maps.Keys(r.Nodes)), ", "))
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
	} else {
		os.Unsetenv("WEFT_CONFIG")
	}
	dir, err := os.Getwd()
	if err != nil || where != "operator" {
		dir = "/" // of the machine
	}
	// Joined before its namespaces are entered: either the machine's end kills
	// us too, or there is nothing left to enter.
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

// nodeOf finds the machine on which the agent has made a pod.
func (r Record) nodeOf(p Pod) (string, error) {
	for name, n := range r.Nodes {
		if !strings.HasPrefix(name, p.Cluster+"/") {
			continue
		}
		if _, err := os.Stat(filepath.Join(fmt.Sprintf("/proc/%d/root", n.PID), p.namespaceFile())); err == nil {
			return name, nil
		}
	}
	return "", fmt.Errorf("no machine of lab %s has a pod %s; `weft -c %s get pods` on its operator shows those there are", r.ID, p.Full(), p.Cluster)
}
