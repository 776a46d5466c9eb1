package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// machineBin is the directory in which a machine finds weft.
const machineBin = "/run/weft-bin"

// SandboxConfig tells a sandbox process what to prepare.
type SandboxConfig struct {
	Hostname string `json:"hostname"`
	Etc      string `json:"etc"`             // directory that becomes /etc/weft
	Var      string `json:"var"`             // directory that becomes /var/lib/weft
	Disk     string `json:"disk,omitempty"`  // size of a fresh /var/lib/weft instead of Var
	Weft     string `json:"weft"`            // program that commands call weft
	Plain    bool   `json:"plain,omitempty"` // keeps the host's file system
	// Kubernetes is the directory whose folders become those of a container runtime and a
	// kubelet; empty: the machine has none.
	Kubernetes string `json:"kubernetes,omitempty"`
}

// Sandbox prepares a machine in the calling process, which was started in new
// network, mount and host name namespaces: a host name, directories and a loopback
// device. What survives a power loss is kept in Etc and Var.
func Sandbox(c SandboxConfig) error {
	if err := unix.Sethostname([]byte(c.Hostname)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if c.Plain {
		return loopbackUp()
	}
	// Mounts made here must not propagate to the host.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// They are below /run, which is about to be covered.
	dirs, err := c.kubernetesDirs()
	if err != nil {
		return err
	}
	binds, err := openAll(append([]string{c.Etc, c.Var}, dirs...)...)
	if err != nil {
		return err
	}
	defer closeAll(binds)
	if err := mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return err
	}
	if err := mountVarRun(); err != nil {
		return err
	}
	if err := linkWeft(machineBin, c.Weft); err != nil {
		return err
	}
	if err := bind(binds[0], "/etc/weft"); err != nil {
		return err
	}
	if c.Disk != "" {
		err = mount("tmpfs", "/var/lib/weft", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700,size="+c.Disk)
	} else {
		err = bind(binds[1], "/var/lib/weft")
	}
	if err != nil {
		return err
	}
	if err := mount("bpf", "/sys/fs/bpf", "bpf", 0, "mode=0700"); err != nil {
		return err
	}
	for _, dir := range []string{"/run/netns", "/run/wireguard", "/run/weft"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for i := range dirs {
		if err := bind(binds[2+i], kubernetesDirs[i]); err != nil {
			return err
		}
	}
	if c.Kubernetes != "" {
		// As systemd does. What pods mount for their node shows on it, and on no other.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
			return fmt.Errorf("share mounts with containers: %w", err)
		}
	}
	return loopbackUp()
}

// kubernetesDir is where one of kubernetesDirs is kept.
func (c SandboxConfig) kubernetesDir(dir string) string {
	return filepath.Join(c.Kubernetes, strings.ReplaceAll(strings.TrimPrefix(dir, "/"), "/", "-"))
}

// kubernetesDirs makes the folders that become kubernetesDirs, in that order; none without
// Kubernetes.
func (c SandboxConfig) kubernetesDirs() (dirs []string, err error) {
	if c.Kubernetes == "" {
		return nil, nil
	}
	for _, dir := range kubernetesDirs {
		dir = c.kubernetesDir(dir)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		dirs = append(dirs, dir)
	}
	return dirs, nil
}

// linkWeft makes a directory for PATH, with the lab's program under the name weft:
// scripts find this one, whatever its file is called and whichever is installed.
func linkWeft(dir, binary string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return os.Symlink(binary, filepath.Join(dir, "weft"))
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback device: %w", err)
	}
	return netlink.LinkSetUp(lo)
}

// mountVarRun makes /var/run private where it is a directory of its own rather than,
// as usual, a link to /run.
func mountVarRun() error {
	if real, err := filepath.EvalSymlinks("/var/run"); err == nil && real == "/run" {
		return nil
	}
	return mount("tmpfs", "/var/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755")
}

func openAll(dirs ...string) (files []*os.File, err error) {
	for _, dir := range dirs {
		f, err := os.Open(dir)
		if err != nil {
			closeAll(files)
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

func bind(dir *os.File, on string) error {
	return mount(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), on, "", unix.MS_BIND, "")
}

// mount makes the mount point if it does not exist, as installing Weft would.
func mount(source, on, kind string, flags uintptr, data string) error {
	if err := os.MkdirAll(on, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make mount point: %w", err)
	}
	if err := unix.Mount(source, on, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", source, on, err)
	}
	return nil
}
