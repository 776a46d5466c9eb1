package lab

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/weft-mesh/weft/lab/space"
)

// Others try every lab's lock to see whether it is alive, even while the lab is
// starting.
func TestOwnerWaitsForWhoOnlyLooks(t *testing.T) {
	dir := t.TempDir()
	look, err := ownDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	owned := make(chan error, 1)
	go func() {
		f, err := ownDir(dir)
		if err == nil {
			err = f.Close()
		}
		owned <- err
	}()
	select {
	case err := <-owned:
		t.Errorf("it did not wait: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	look.Close()
	if err := <-owned; err != nil {
		t.Error(err)
	}
}

// A lab that is ending removes its directory: no file may appear in it.
func TestWhoOnlyLooksLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	if lock, err := lockDir(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a lock that does not exist was taken: %v, %v", lock, err)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) > 0 {
		t.Errorf("in the directory are %v (%v)", files, err)
	}
}

// A directory without a lock has no owner: its process died while removing the lab.
func TestWithoutALockNobodyLives(t *testing.T) {
	r, lock := recorded(t)
	r.names(t, waiting(t, nil).Process)
	if err := os.Remove(lock.Name()); err != nil {
		t.Fatal(err)
	}
	labs, err := List()
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(labs, func(l Record) bool { return l.ID == r.ID }) {
		t.Error("the list shows it")
	}
	root, err := space.CgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pruneOne(root, r.ID); err != nil {
		t.Error(err)
	}
	// Another run may have been quicker, and be about to remove it.
	eventually(t, "it is gone", func() bool { _, err := os.Stat(filepath.Join(Root, r.ID)); return err != nil })
}

// A preflight check has a cgroup but no lock: other runs leave it alone.
func TestPruneSparesPreflightChecks(t *testing.T) {
	needRoot(t)
	root, err := space.CgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	dead := waiting(t, nil)
	_ = dead.Process.Kill()
	_ = dead.Wait()
	var groups []space.Cgroup
	for _, pid := range []int{os.Getpid(), dead.Process.Pid} {
		c, err := space.NewCgroup(filepath.Join(root, cgroupPrefix+probePrefix+strconv.Itoa(pid)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Remove() })
		groups = append(groups, c)
	}
	if _, err := Prune(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(groups[0].Dir); err != nil {
		t.Errorf("the cgroup of a running check: %v", err)
	}
	eventually(t, "the cgroup of a dead one is gone", func() bool { _, err := os.Stat(groups[1].Dir); return err != nil })
}

func TestRecordNamesItsClusters(t *testing.T) {
	r := Record{Nodes: map[string]NodeRecord{"west/n1": {}, "east/n2": {}, "east/n1": {}, "operator": {}}}
	if got := r.Clusters(); !slices.Equal(got, []string{"east", "west"}) {
		t.Errorf("clusters are %q", got)
	}
}
