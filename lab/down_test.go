package lab

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// recorded makes a lab's directory by hand, with a lock that is held, so that
// nobody else on the machine prunes it.
func recorded(t *testing.T) (Record, *os.File) {
	t.Helper()
	needRoot(t)
	if err := os.MkdirAll(Root, 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(Root, "down-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	lock, err := ownDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lock.Close() })
	return Record{ID: filepath.Base(dir)}, lock
}

// names writes the record, of a lab whose process is the one given.
func (r Record) names(t *testing.T, process *os.Process) {
	t.Helper()
	r.PID = process.Pid
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(Root, r.ID, "lab.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// waiting starts a process that does nothing, with a file open, if not nil.
func waiting(t *testing.T, file *os.File) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("cat")
	if file != nil {
		cmd.ExtraFiles = []*os.File{file}
	}
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// look is the first turn of Down alone.
func look(t *testing.T, id string) error {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return Down(ctx, id)
}

// While somebody lists, a dead lab's lock is held, by another than its process.
func TestDownSignalsOnlyTheHolder(t *testing.T) {
	r, _ := recorded(t)
	stranger := waiting(t, nil)
	r.names(t, stranger.Process)
	if err := look(t, r.ID); !errors.Is(err, context.Canceled) {
		t.Errorf("the lock is held by somebody else: %v", err)
	}
	_ = stranger.Process.Kill()
	_ = stranger.Wait()
	if by := stranger.ProcessState.Sys().(syscall.WaitStatus).Signal(); by != unix.SIGKILL {
		t.Errorf("a stranger with the number of the lab's process got %v", by)
	}
	if err := look(t, r.ID); !errors.Is(err, context.Canceled) {
		t.Errorf("the lab's process is gone and the lock is held: %v", err)
	}
}

// A holder that dies of its signal does not clean up.
func TestDownRemovesWhatADyingHolderLeaves(t *testing.T) {
	r, lock := recorded(t)
	holder := waiting(t, lock)
	r.names(t, holder.Process)
	lock.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := Down(ctx, r.ID); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(Root, r.ID)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its directory is left: %v", err)
	}
}
