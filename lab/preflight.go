package lab

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/lab/space"
)

// Preflight says in one line what this machine lacks to run a lab; nil if nothing.
func Preflight() error {
	if os.Geteuid() != 0 {
		return errors.New("a lab needs root: run it with sudo")
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return fmt.Errorf("ask for the kernel's version: %w", err)
	}
	var major, minor int
	release := unix.ByteSliceToString(name.Release[:])
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err == nil && (major < 6 || major == 6 && minor < 1) {
		return fmt.Errorf("a lab needs Linux 6.1 or newer; this is %s", release)
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return errors.New("a lab needs TUN devices: there is no /dev/net/tun (modprobe tun)")
	}
	root, err := space.CgroupRoot()
	if err != nil {
		return errors.New("a lab needs a version 2 cgroup tree: none is mounted (mount -t cgroup2 none /sys/fs/cgroup)")
	}
	probe, err := space.NewCgroup(filepath.Join(root, cgroupPrefix+probePrefix+fmt.Sprint(os.Getpid())))
	if err != nil {
		return fmt.Errorf("a lab needs cgroups of its own: %w", err)
	}
	defer probe.Remove()
	if _, err := os.Stat(filepath.Join(probe.Dir, "cgroup.kill")); err != nil {
		return errors.New("a lab needs cgroup.kill, which this kernel's cgroups do not have")
	}
	ns, err := space.NewNet()
	if err != nil {
		return fmt.Errorf("a lab needs network namespaces: %w", err)
	}
	ns.Close()
	return canBPF()
}

// Missing says in one line which of the script's tools this machine lacks; nil if none.
func (t Topology) Missing() error {
	var tools, packages []string
	for _, tool := range slices.Sorted(maps.Keys(t.Tools)) {
		if _, err := exec.LookPath(tool); err != nil {
			tools, packages = append(tools, tool), append(packages, t.Tools[tool])
		}
	}
	if len(tools) == 0 {
		return nil
	}
	return fmt.Errorf("missing %s: apt-get install %s", strings.Join(tools, ", "), strings.Join(packages, " "))
}

// canBPF checks for the file system that pins need, and makes the smallest possible
// map.
func canBPF() error {
	if _, err := os.Stat("/sys/fs/bpf"); err != nil {
		return errors.New("a lab needs BPF: this kernel has no /sys/fs/bpf")
	}
	fd, err := unix.Fsopen("bpf", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("a lab needs the BPF file system, which this kernel does not have: %w", err)
	}
	unix.Close(fd)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return fmt.Errorf("a lab needs BPF, which this machine does not allow: %w", err)
	}
	return m.Close()
}
