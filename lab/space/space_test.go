package space

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func TestThread(t *testing.T) {
	th, err := NewThread(nil)
	if err != nil {
		t.Fatal(err)
	}
	var first, second int
	for _, id := range []*int{&first, &second} {
		if err := th.Do(func() error { *id = syscall.Gettid(); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if first != second {
		t.Errorf("work was done on threads %d and %d", first, second)
	}
	th.Close()
	th.Close()
	if err := th.Do(func() error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("a closed thread returns %v", err)
	}
	broken := errors.New("no entry")
	if _, err := NewThread(func() error { return broken }); !errors.Is(err, broken) {
		t.Errorf("a thread that cannot enter its namespace returns %v", err)
	}
}

func TestNewNetIsAnotherOne(t *testing.T) {
	needRoot(t)
	ns, err := NewNet()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	err = Once(EnterNet(ns), func() error {
		there, err := os.Readlink("/proc/thread-self/ns/net")
		if there == own {
			t.Error("the thread is still in the old namespace")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestCgroupKillsAll(t *testing.T) {
	needRoot(t)
	root, err := CgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewCgroup(filepath.Join(root, fmt.Sprintf("weft-test-space-%d", os.Getpid()), "inner"))
	if err != nil {
		t.Fatal(err)
	}
	outer := Cgroup{Dir: filepath.Dir(c.Dir)}
	t.Cleanup(func() {
		for range 2 { // the second finds nothing
			if err := outer.Remove(); err != nil {
				t.Error(err)
			}
		}
	})
	group, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	// A shell with a child that ignores the polite signals.
	cmd := exec.Command("/bin/sh", "-c", "trap '' TERM HUP INT; sleep 1000 & wait")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := outer.Kill(); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the shell ended by %v", err)
	}
}
