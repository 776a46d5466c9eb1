package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// recorded makes a lab's directory with a lock that is held, so that no other
// run on this machine prunes it.
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

// names writes the lab's record with the given process as the one that holds it.
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

// waiting starts a process that does nothing, with a file open unless it is nil.
func waiting(t *testing.T, file *os.File) *exec.Cmd {
	t.Helper()
	return idle(t, exec.Command("cat"), file)
}

// idle starts a command that waits for its standard input to end.
func idle(t *testing.T, cmd *exec.Cmd, file *os.File) *exec.Cmd {
	t.Helper()
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

// look runs Down's first attempt only.
func look(t *testing.T, id string) error {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return Down(ctx, id)
}

// While someone lists labs, a dead lab's lock is held by a process other than its own.
func TestDownSignalsOnlyTheHolder(t *testing.T) {
	r, _ := recorded(t)
	stranger := waiting(t, nil)
	r.names(t, stranger.Process)
	if err := look(t, r.ID); !errors.Is(err, context.Canceled) {
		t.Errorf("while another process holds the lock: %v", err)
	}
	_ = stranger.Process.Kill()
	_ = stranger.Wait()
	if by := stranger.ProcessState.Sys().(syscall.WaitStatus).Signal(); by != unix.SIGKILL {
		t.Errorf("an unrelated process with the recorded PID got %v", by)
	}
	if err := look(t, r.ID); !errors.Is(err, context.Canceled) {
		t.Errorf("while the lab's process is gone and the lock is held: %v", err)
	}
}

// A holder killed by the signal does not clean up.
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

// A process that ignores SIGTERM does not make Down wait for ever.
func TestDownNamesAHolderThatHangs(t *testing.T) {
	r, lock := recorded(t)
	ready, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	cmd := exec.Command("sh", "-c", "trap '' TERM; echo ready; exec cat")
	cmd.Stdout = out
	holder := idle(t, cmd, lock)
	out.Close()
	if _, err := ready.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	r.names(t, holder.Process)
	lock.Close()
	err = down(t.Context(), r.ID, 100*time.Millisecond, time.Minute)
	want := fmt.Sprintf("lab %s has not ended 100ms after SIGTERM: process %d (cat) still holds it; end it with `kill -9 %[2]d`", r.ID, holder.Process.Pid)
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Down = %v, want %q", err, want)
	}
	if _, err := os.Stat(filepath.Join(Root, r.ID)); err != nil {
		t.Errorf("what the process still uses was removed: %v", err)
	}
}

// Nor does a lock held by a process that is not the lab's.
func TestDownNamesWhoElseLocksALab(t *testing.T) {
	r, _ := recorded(t)
	r.names(t, waiting(t, nil).Process)
	err := down(t.Context(), r.ID, time.Minute, 0)
	if want := fmt.Sprintf("by process %d (", os.Getpid()); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Down = %v, want %q", err, want)
	}
}

// Nor one held by a process of another PID namespace, which cannot be named.
func TestDownInAnotherPIDNamespace(t *testing.T) {
	r, _ := recorded(t)
	r.names(t, waiting(t, nil).Process)
	cmd := exec.Command("/proc/self/exe", "lab", "down", r.ID)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if want := "by a process that is not visible here, perhaps in another PID namespace"; err == nil || !strings.Contains(string(out), want) {
		t.Errorf("Down (%v) says %q, want %q", err, out, want)
	}
}

// downInside is Down in a PID namespace of its own.
func downInside(id string) error {
	if err := errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Mount("proc", "/proc", "proc", 0, "")); err != nil {
		return err
	}
	return down(context.Background(), id, time.Minute, 0)
}

// An ID never leads out of the folder of labs.
func TestIDsAreNotPaths(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "lab.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"", ".", "..", "../.." + dir, "./."} {
		if _, err := ReadRecord(id); err == nil || !strings.Contains(err.Error(), "there is no lab") {
			t.Errorf("ReadRecord(%q) = %v", id, err)
		}
	}
}
