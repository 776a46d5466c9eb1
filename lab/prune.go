package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/lab/space"
)

// Root is where every lab keeps its directory, named by its ID.
const Root = "/run/weft-lab"

// cgroupPrefix comes before the lab's ID in the name of its cgroup.
const cgroupPrefix = "weft-lab-"

// Record is what a lab writes into its directory about itself.
type Record struct {
	ID      string                `json:"id"`
	PID     int                   `json:"pid"`
	File    string                `json:"file"` // the lab file it was raised from
	Started time.Time             `json:"started"`
	Ready   bool                  `json:"ready"`  // all clusters are up
	Config  string                `json:"config"` // file with its clusters' contexts
	Nodes   map[string]NodeRecord `json:"nodes"`  // by cluster/node
}

// Clusters are the names of the lab's clusters.
func (r Record) Clusters() []string {
	names := map[string]bool{}
	for place := range r.Nodes {
		if cluster, _, ok := strings.Cut(place, "/"); ok { // the operator's machine is in no cluster
			names[cluster] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// NodeRecord says how to get into a machine.
type NodeRecord struct {
	PID    int    `json:"pid"` // its sandbox process; 0 without power
	Cgroup string `json:"cgroup"`
}

// ownDir locks the caller's own lab. The kernel releases the lock when the process
// dies, however it dies. ownDir waits for others that hold the lock for a moment, with
// lockDir, to see whether the lab is alive.
func ownDir(dir string) (*os.File, error) { return flock(dir, os.O_CREATE, unix.LOCK_EX) }

// lockDir takes a lab's lock, or fails with unix.EWOULDBLOCK while the lab is alive.
// It does not create the lock file: a lab that is ending could not remove its
// directory if a file appeared in it meanwhile.
func lockDir(dir string) (*os.File, error) { return flock(dir, 0, unix.LOCK_EX|unix.LOCK_NB) }

func flock(dir string, create, how int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), create|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		switch err := unix.Flock(int(f.Fd()), how); err {
		case nil:
			return f, nil
		case unix.EINTR:
		default:
			f.Close()
			return nil, err
		}
	}
}

// List returns the records of all labs that are alive, oldest first.
func List() ([]Record, error) {
	dirs, err := os.ReadDir(Root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var labs []Record
	for _, d := range dirs {
		dir := filepath.Join(Root, d.Name())
		lock, err := lockDir(dir)
		if err == nil {
			lock.Close()
			continue
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue // it is just starting or ending
		}
		r, err := ReadRecord(d.Name())
		if errors.Is(err, fs.ErrPermission) {
			return nil, err // which must not look like no lab
		}
		if err == nil {
			labs = append(labs, r)
		}
	}
	slices.SortFunc(labs, func(a, b Record) int { return a.Started.Compare(b.Started) })
	return labs, nil
}

// ReadRecord reads what a lab says about itself.
func ReadRecord(id string) (Record, error) {
	var r Record
	data, err := os.ReadFile(filepath.Join(Root, id, "lab.json"))
	if errors.Is(err, fs.ErrNotExist) || filepath.Base(filepath.Join("/", id)) != id {
		return r, fmt.Errorf("there is no lab %q; `weft lab list` shows those that are up", id)
	}
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("lab %s: lab.json is damaged (%w): end its process if it still runs, then `weft lab prune`", id, err)
	}
	return r, nil
}

// Prune removes what is left of labs whose process is gone, and returns their IDs.
// Live labs are not touched.
func Prune() (removed []string, err error) {
	ids := map[string]bool{}
	dirs, err := os.ReadDir(Root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, d := range dirs {
		ids[d.Name()] = true
	}
	root, err := space.CgroupRoot()
	if err != nil {
		return nil, err
	}
	groups, err := filepath.Glob(filepath.Join(root, cgroupPrefix+"*"))
	if err != nil {
		return nil, err
	}
	for _, g := range groups {
		ids[strings.TrimPrefix(filepath.Base(g), cgroupPrefix)] = true
	}
	var failed []error
	for id := range ids {
		if probing(id) {
			continue
		}
		ok, err := pruneOne(root, id)
		if err != nil {
			failed = append(failed, fmt.Errorf("prune lab %s: %w", id, err))
		} else if ok {
			removed = append(removed, id)
		}
	}
	slices.Sort(removed)
	return removed, errors.Join(failed...)
}

// probePrefix comes before the PID in the ID that a preflight check uses for its
// cgroup.
const probePrefix = "probe-"

// probing reports whether a cgroup belongs to a preflight check that is still
// running. It has no lock: it lives for milliseconds.
func probing(id string) bool {
	pid, ok := strings.CutPrefix(id, probePrefix)
	if !ok {
		return false
	}
	_, err := os.Stat("/proc/" + pid)
	return err == nil
}

// pruneOne removes what is left of one lab, unless its lock is held.
func pruneOne(cgroupRoot, id string) (bool, error) {
	dir := filepath.Join(Root, id)
	if _, err := os.Stat(dir); err == nil {
		lock, err := lockDir(dir)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return false, nil
		}
		if err == nil {
			defer lock.Close()
		} else if !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		young, err := keep(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil // another prune has just removed it
		}
		if young || err != nil {
			return false, err
		}
	}
	group := space.Cgroup{Dir: filepath.Join(cgroupRoot, cgroupPrefix+id)}
	if err := group.Remove(); err != nil {
		return false, err
	}
	return true, os.RemoveAll(dir)
}

// keep reports whether a directory without an owner may be about to get one: a lab
// makes its directory a moment before it takes the lock.
func keep(dir string) (bool, error) {
	if _, err := os.Stat(filepath.Join(dir, "lab.json")); err == nil {
		return false, nil
	}
	info, err := os.Stat(dir)
	if err != nil {
		return false, err
	}
	return time.Since(info.ModTime()) < 5*time.Second, nil
}
