package endpoint

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ensureNamespace makes a namespace and keeps it alive as a file. A file without
// namespace behind it is what a reboot or a crash in between leaves.
func ensureNamespace(dir, path string, ipv6 bool) error {
	if isNamespace(path) {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	// The file is there a moment before the namespace: whoever waits for it looks
	// at the file system type, as above.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("make namespace file: %w", err)
	}
	f.Close()
	errs := make(chan error, 1)
	go func() {
		// The thread stays locked and ends with the goroutine: nothing else may
		// ever run in the pod's namespace.
		runtime.LockOSThread()
		errs <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			// Of the devices to come. Setting it for all, with the loopback device
			// among them, is dear: see setSysctl.
			if !ipv6 {
				setSysctl("net/ipv6/conf/default/disable_ipv6", "1")
			}
			// Anyone in the pod may bind low ports and ping, as containers expect.
			setSysctl("net/ipv4/ping_group_range", "0 2147483647")
			setSysctl("net/ipv4/ip_unprivileged_port_start", "0")
			self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
			if err := unix.Mount(self, path, "bind", unix.MS_BIND, ""); err != nil {
				return fmt.Errorf("mount namespace at %s: %w", path, err)
			}
			return nil
		}()
	}()
	if err := <-errs; err != nil {
		_ = os.Remove(path)
		return err
	}
	return nil
}

func isNamespace(path string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(path, &fs) == nil && fs.Type == unix.NSFS_MAGIC
}

// cookieOf identifies a network namespace: until the machine reboots, no other has its cookie.
func cookieOf(ns netns.NsHandle) (uint64, error) {
	s, err := nl.GetNetlinkSocketAt(ns, netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return 0, fmt.Errorf("enter namespace: %w", err)
	}
	defer s.Close()
	cookie, err := unix.GetsockoptUint64(s.GetFd(), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("identify the network namespace: %w", err)
	}
	return cookie, nil
}

// oneSetting lets one goroutine at a time write a setting.
var oneSetting sync.Mutex

// setSysctl makes a setting of the thread's network namespace what it should be.
// What a kernel does not have (IPv6 switched off) needs no setting.
//
// Some writes want the kernel's lock over all devices, and while somebody else has it,
// they do not sleep but try again and again, for as long as an RCU grace period, or on a
// busy machine until the other one gets a processor: with many pods at a time that was
// two thirds of an agent's work. Those are IPv6's disable_ipv6 of a device or of all (of
// the default only before Linux 6.9), and IPv4's forwarding if it changes. Where netlink
// can do the same, it sleeps.
func setSysctl(name, value string) {
	path := filepath.Join("/proc/sys", name)
	if text, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(text)) == value {
		return
	}
	oneSetting.Lock()
	defer oneSetting.Unlock()
	_ = os.WriteFile(path, []byte(value), 0o644)
}

// allowIPv6 lets a device in a pod's namespace have IPv6 addresses: a runtime's may forbid
// it.
func allowIPv6(ns netns.NsHandle, device string) error {
	errs := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // as in ensureNamespace, the thread ends with the goroutine
		if err := netns.Set(ns); err != nil {
			errs <- fmt.Errorf("enter namespace: %w", err)
			return
		}
		setSysctl("net/ipv6/conf/"+device+"/disable_ipv6", "0")
		errs <- nil
	}()
	return <-errs
}
