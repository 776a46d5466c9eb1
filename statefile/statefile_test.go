package statefile

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	_ "github.com/weft-mesh/weft/internal/firstthread"
)

// holdVariable turns this test binary into a process that locks a folder until its
// standard input closes.
const holdVariable = "WEFT_TEST_HOLD"

func TestMain(m *testing.M) {
	if dir, ok := os.LookupEnv(holdVariable); ok {
		if _, err := Lock(dir, "agent"); err != nil {
			panic(err)
		}
		os.Stdout.WriteString("held\n")
		_, _ = io.Copy(io.Discard, os.Stdin)
		return
	}
	os.Exit(m.Run())
}

func TestWriteReplacesWholeFilesForTheirOwnerAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "keys.json")
	for _, text := range []string{"first", "second"} {
		if err := Write(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != text {
			t.Errorf("reads %q, %v", got, err)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if files, _ := os.ReadDir(filepath.Dir(path)); len(files) != 1 {
		t.Errorf("left %v", files)
	}
	// A failed write leaves nothing behind, and its error names the file.
	if err := os.Mkdir(filepath.Join(filepath.Dir(path), "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	err = Write(filepath.Join(filepath.Dir(path), "folder"), nil)
	if err == nil || !strings.Contains(err.Error(), "folder") {
		t.Errorf("written over a folder: %v", err)
	}
	if files, _ := os.ReadDir(filepath.Dir(path)); len(files) != 2 {
		t.Errorf("left %v", files)
	}
}

func TestADamagedFileIsKeptAndFoundUntilItIsRemoved(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "east-1_web.json")
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := Damages(dir); len(got) != 0 {
		t.Errorf("before: %v", got)
	}
	before := time.Now().Add(-time.Second)
	d, err := PutAside(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	got := Damages(dir, filepath.Join(dir, "none"))
	if len(got) != 1 || got[0].Path != path || got[0].Aside != d.Aside || got[0].Since.Before(before) || got[0].Since.After(time.Now()) {
		t.Fatalf("after: %+v, want %+v", got, d)
	}
	if text, err := os.ReadFile(got[0].Aside); err != nil || string(text) != "{" {
		t.Errorf("kept %q, %v", text, err)
	}
	if err := os.Remove(d.Aside); err != nil {
		t.Fatal(err)
	}
	if got := Damages(dir); len(got) != 0 {
		t.Errorf("removed: %v", got)
	}
	if _, err := PutAside(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("what is not there: %v", err)
	}
}

func TestAFolderBelongsToOneProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "agent")
	holder := exec.Command(os.Args[0])
	holder.Env = append(os.Environ(), holdVariable+"="+dir)
	in, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "held\n" {
		t.Fatalf("the other process says %q, %v", line, err)
	}
	_, err = Lock(dir, "agent")
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "another agent (process ") || !strings.Contains(err.Error(), dir) {
		t.Errorf("held by another: %v", err)
	}
	in.Close()
	if err := holder.Wait(); err != nil {
		t.Fatal(err)
	}
	release, err := Lock(dir, "agent")
	if err != nil {
		t.Fatalf("left by another: %v", err)
	}
	if _, err := Lock(dir, "agent"); !errors.Is(err, ErrInUse) {
		t.Errorf("held by ourselves: %v", err)
	}
	release()
	release, err = Lock(dir, "agent")
	if err != nil {
		t.Errorf("released: %v", err)
	}
	release()
}

// One of a kind runs in a network namespace, and only root can say that it does.
func TestAMachineHasOneOfAKind(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	const what = "test-of-statefile"
	runtime.LockOSThread() // never unlocked: the thread, and its namespace, end with the goroutine
	own := func() string {
		t.Helper()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Fatal(err)
		}
		path, err := machineLock(what)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(path) })
		return path
	}
	path := own()
	anybodys, err := net.Listen("unix", "@weft-"+what)
	if err != nil {
		t.Fatal(err)
	}
	defer anybodys.Close()
	release, err := LockMachine(what)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LockMachine(what); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), fmt.Sprintf("another %s (process %d) runs on this machine", what, os.Getpid())) {
		t.Errorf("the second: %v", err)
	}
	stranger := exec.Command("/bin/sh", "-c", "exec 3<"+path)
	stranger.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := stranger.CombinedOutput(); err == nil || !strings.Contains(string(out), "denied") {
		t.Errorf("anybody can open the lock: %s, %v", out, err)
	}
	release()
	if release, err = LockMachine(what); err != nil {
		t.Fatal(err)
	}
	defer release()
	own()
	there, err := LockMachine(what)
	if err != nil {
		t.Fatalf("in another network namespace: %v", err)
	}
	there()
}

// A write that keeps failing says the same each time, and names the file that was meant.
func TestWriteFailsWithTheSameText(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.json")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	first, second := Write(path, []byte("x")), Write(path, []byte("x"))
	if first == nil || second == nil || first.Error() != second.Error() || first.Error() != "write "+path+": file exists" {
		t.Errorf("%v\n%v", first, second)
	}
}
