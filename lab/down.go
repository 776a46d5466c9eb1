package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/lab/space"
)

// Down asks the process that holds a lab to end, and waits until it has. What
// nobody holds any more it removes itself.
func Down(ctx context.Context, id string) error {
	r, err := ReadRecord(id)
	if err != nil {
		return err
	}
	root, err := space.CgroupRoot()
	if err != nil {
		return err
	}
	for asked := false; ; {
		removed, err := pruneOne(root, id) // also true of what is not there any more
		if err != nil {
			return fmt.Errorf("prune lab %s: %w", id, err)
		}
		if removed {
			return nil
		}
		if !asked {
			if asked, err = r.terminate(); err != nil {
				return fmt.Errorf("end lab %s: %w", id, err)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// terminate asks the lab's process to end, and reports whether there is one.
// The lock may be held although there is none, for a moment by somebody who
// only lists, and the process's number may be another's by now.
func (r Record) terminate() (bool, error) {
	// A handle of the process, whoever gets its number after the look at its files.
	process, err := os.FindProcess(r.PID)
	if err != nil {
		return false, err
	}
	defer process.Release()
	if holds, err := r.holdsLock(); !holds || err != nil {
		return false, err
	}
	err = process.Signal(unix.SIGTERM)
	if errors.Is(err, os.ErrProcessDone) {
		return false, nil
	}
	return err == nil, err
}

// holdsLock reports whether the process that the record names has the lab's
// lock open.
func (r Record) holdsLock() (bool, error) {
	lock, err := os.Stat(filepath.Join(Root, r.ID, "lock"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	dir := fmt.Sprintf("/proc/%d/fd", r.PID)
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, f := range files {
		if file, err := os.Stat(filepath.Join(dir, f.Name())); err == nil && os.SameFile(file, lock) {
			return true, nil
		}
	}
	return false, nil
}
