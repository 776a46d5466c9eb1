package traffic

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inNamespace makes a network namespace with a loopback device, mounts it on a file and
// runs do in it, on a thread of its own.
func inNamespace(t *testing.T, path string, do func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and the thread ends with the goroutine
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(lo); err != nil {
				return err
			}
			if err := os.WriteFile(path, nil, 0o444); err != nil {
				return err
			}
			if err := unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "bind", unix.MS_BIND, ""); err != nil {
				return err
			}
			return do()
		}()
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// One process answers in each pod's namespace as that pod, from soon after it appears
// until it goes, and again when another takes the name.
func TestServeEachAnswersAsEachPod(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- ServeEach(ctx, dir, ServeConfig{TCP: []string{"127.0.0.1:81"}, Self: Answer{Cluster: "east"}})
	}()
	if err := os.WriteFile(filepath.Join(dir, "default_plain-file"), nil, 0o444); err != nil {
		t.Fatal(err)
	}
	for _, pod := range []string{"web-1", "web-2", "web-1"} {
		path := filepath.Join(dir, "default_"+pod)
		inNamespace(t, path, func() error {
			target, err := ParseTarget("tcp://127.0.0.1:81")
			if err != nil {
				return err
			}
			for deadline := time.Now().Add(10 * time.Second); ; {
				a, err := RequestWithin(ctx, time.Second, target, "", "")
				if err == nil && (a.Cluster != "east" || a.Namespace != "default" || a.Pod != pod) {
					return fmt.Errorf("in %s it answers %v", pod, a)
				}
				if err == nil || time.Now().After(deadline) {
					return err
				}
			}
		})
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
