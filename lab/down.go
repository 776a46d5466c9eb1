package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/lab/space"
)

// How long Down waits for a lab's lock: for the lab's process once it was asked
// to end, and for anyone else, who should only be looking at the lab.
const (
	endPatience  = time.Minute
	lookPatience = 10 * time.Second
)

// Down asks the process that holds a lab to end, and waits until it has. If the
// process is gone, Down removes what it left. A lab that stays locked is an
// error that names whoever holds the lock.
func Down(ctx context.Context, id string) error { return down(ctx, id, endPatience, lookPatience) }

func down(ctx context.Context, id string, end, look time.Duration) error {
	r, err := ReadRecord(id)
	if err != nil {
		return err
	}
	root, err := space.CgroupRoot()
	if err != nil {
		return err
	}
	asked := false
	for deadline := time.Now().Add(look); ; {
		removed, err := pruneOne(root, id) // true as well if nothing is left to remove
		if err != nil {
			return fmt.Errorf("remove what is left of lab %s: %w", id, err)
		}
		if removed {
			return nil
		}
		if !asked {
			if asked, err = r.terminate(); err != nil {
				return fmt.Errorf("end lab %s: %w", id, err)
			}
			if asked {
				deadline = time.Now().Add(end)
			}
		}
		if time.Now().After(deadline) {
			if asked {
				return fmt.Errorf("lab %s has not ended %v after SIGTERM: process %d%s still holds it; end it with `kill -9 %d`, then run `weft lab down %s` again",
					id, end, r.PID, commandOf(r.PID), r.PID, id)
			}
			return r.locked(look)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// locked says who keeps a lab locked although its own process does not.
func (r Record) locked(since time.Duration) error {
	holders, err := r.holders()
	if err != nil {
		return err
	}
	if len(holders) == 0 {
		return fmt.Errorf("lab %s has been locked for %v by a process that is not visible here, perhaps in another PID namespace (where it was process %d): run `weft lab down %s` there",
			r.ID, since, r.PID, r.ID)
	}
	var names []string
	for _, pid := range holders {
		names = append(names, strconv.Itoa(pid)+commandOf(pid))
	}
	return fmt.Errorf("lab %s has been locked for %v by process %s, which did not bring it up: end that process, then run `weft lab down %s` again",
		r.ID, since, strings.Join(names, ", "), r.ID)
}

// commandOf is a process's command line in parentheses after a blank, "" if it
// has ended.
func commandOf(pid int) string {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(line) == 0 {
		return ""
	}
	return " (" + strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " ")) + ")"
}

// terminate sends SIGTERM to the lab's process and reports whether it did. It
// does not if that process does not hold the lock: the PID may have been reused,
// and `weft lab list` holds the lock of a dead lab for a moment.
func (r Record) terminate() (bool, error) {
	// The handle comes first, so that a PID reused after the check is not signaled.
	process, err := os.FindProcess(r.PID)
	if err != nil {
		return false, err
	}
	defer process.Release()
	lock, err := r.lock()
	if lock == nil || err != nil {
		return false, err
	}
	if holds, err := hasOpen(r.PID, lock); !holds || err != nil {
		return false, err
	}
	err = process.Signal(unix.SIGTERM)
	if errors.Is(err, os.ErrProcessDone) {
		return false, nil
	}
	return err == nil, err
}

// lock describes the lab's lock file, nil if there is none.
func (r Record) lock() (os.FileInfo, error) {
	lock, err := os.Stat(filepath.Join(Root, r.ID, "lock"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return lock, err
}

// holders are the visible processes that have the lab's lock open.
func (r Record) holders() (pids []int, err error) {
	lock, err := r.lock()
	if lock == nil || err != nil {
		return nil, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if holds, err := hasOpen(pid, lock); err == nil && holds {
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

// hasOpen reports whether a process has a file open.
func hasOpen(pid int, want os.FileInfo) (bool, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, f := range files {
		if file, err := os.Stat(filepath.Join(dir, f.Name())); err == nil && os.SameFile(file, want) {
			return true, nil
		}
	}
	return false, nil
}
