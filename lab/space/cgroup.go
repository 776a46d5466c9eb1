package space

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoCgroup means that no version 2 cgroup tree is mounted.
var ErrNoCgroup = errors.New("no cgroup2 file system is mounted")

// CgroupRoot finds the mount point of the version 2 tree: /sys/fs/cgroup on most
// machines, /sys/fs/cgroup/unified on hybrid ones.
func CgroupRoot() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", fmt.Errorf("find cgroup tree: %w", err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return f[1], nil
		}
	}
	return "", ErrNoCgroup
}

// Cgroup is a directory in the version 2 tree. The processes in it and below
// it can be counted and killed together.
type Cgroup struct{ Dir string }

// NewCgroup makes the directory, and those above it.
func NewCgroup(dir string) (Cgroup, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Cgroup{}, fmt.Errorf("make cgroup: %w", err)
	}
	return Cgroup{Dir: dir}, nil
}

// Open returns a handle with which a child can be started in the cgroup. The caller
// closes it.
func (c Cgroup) Open() (*os.File, error) {
	fd, err := unix.Open(c.Dir, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open cgroup %s: %w", c.Dir, err)
	}
	return os.NewFile(uintptr(fd), c.Dir), nil
}

// Join moves the calling process into the cgroup.
func (c Cgroup) Join() error {
	if err := os.WriteFile(filepath.Join(c.Dir, "cgroup.procs"), []byte("0"), 0); err != nil {
		return fmt.Errorf("join cgroup: %w", err)
	}
	return nil
}

// Kill ends every process in and below the cgroup at once, and returns when none is
// left. It gives up after five seconds.
func (c Cgroup) Kill() error {
	err := os.WriteFile(filepath.Join(c.Dir, "cgroup.kill"), []byte("1"), 0)
	if gone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill cgroup: %w", err)
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		populated, err := c.populated()
		if err != nil || !populated {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("kill cgroup %s: some processes are still alive 5 s later (stuck in the kernel?)", c.Dir)
		}
	}
}

func (c Cgroup) populated() (bool, error) {
	events, err := os.ReadFile(filepath.Join(c.Dir, "cgroup.events"))
	if gone(err) {
		return false, nil
	}
	return strings.Contains(string(events), "populated 1"), err
}

// gone reports whether an error means that the cgroup was removed: before its
// file was opened, or while it was open.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }

// Remove kills the processes of the cgroup and removes it and everything below. It
// does nothing if the cgroup is gone.
func (c Cgroup) Remove() error {
	if err := c.Kill(); err != nil {
		return err
	}
	var dirs []string
	err := filepath.WalkDir(c.Dir, func(path string, d fs.DirEntry, err error) error {
		if gone(err) {
			return nil
		}
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	for _, dir := range slices.Backward(dirs) {
		if err := removeDir(dir); err != nil {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
	return nil
}

// removeDir retries for a while: the kernel answers "busy" until the last dead
// process has been reaped.
func removeDir(dir string) error {
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if time.Now().After(deadline) {
			return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
		}
	}
}
