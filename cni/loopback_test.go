package cni

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Runtimes call the plugin loopback for each pod, in old and new versions of the interface.
func TestLoopbackBringsUpThePodsDevice(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	path := newNamespace(t)
	call := func(command, version, extra string) (string, int) {
		t.Helper()
		var out, errs bytes.Buffer
		env := map[string]string{"CNI_COMMAND": command, "CNI_CONTAINERID": "c1", "CNI_NETNS": path, "CNI_IFNAME": "lo", "CNI_PATH": "/opt/cni/bin"}
		code := Call{
			Getenv: func(name string) string { return env[name] }, Stdout: &out, Stderr: &errs,
			Stdin: strings.NewReader(fmt.Sprintf(`{"cniVersion":%q,"name":"cni-loopback","type":"loopback"%s}`, version, extra)),
		}.Run(context.Background())
		return out.String(), code
	}
	if out, code := call("CHECK", "0.4.0", ""); code == 0 || !strings.Contains(out, "lo is down") {
		t.Errorf("CHECK of a new namespace: %d, %s", code, out)
	}
	for _, version := range []string{"0.3.1", "1.0.0", "1.1.0"} {
		out, code := call("ADD", version, "")
		if code != 0 || !strings.Contains(out, fmt.Sprintf(`"cniVersion": %q`, version)) || !strings.Contains(out, `"name": "lo"`) {
			t.Errorf("ADD %s: %d, %s", version, code, out)
		}
	}
	ns, err := netns.GetFromPath(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	handle, err := netlink.NewHandleAt(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	if lo, err := handle.LinkByName("lo"); err != nil || lo.Attrs().Flags&1 == 0 {
		t.Errorf("the device is %+v, %v; want it up", lo, err)
	}
	if out, code := call("CHECK", "0.4.0", ""); code != 0 || out != "" {
		t.Errorf("CHECK: %d, %s", code, out)
	}
	if out, code := call("ADD", "1.0.0", `,"prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"eth0"}]}`); code != 0 || !strings.Contains(out, `"eth0"`) {
		t.Errorf("ADD behind another plugin: %d, %s", code, out)
	}
	if out, code := call("DEL", "1.0.0", ""); code != 0 || out != "" {
		t.Errorf("DEL: %d, %s", code, out)
	}
	path = "/no/such/namespace"
	if out, code := call("ADD", "1.0.0", ""); code == 0 || !strings.Contains(out, "network namespace") {
		t.Errorf("ADD without a namespace: %d, %s", code, out)
	}
}

// newNamespace makes a network namespace and returns its file.
func newNamespace(t *testing.T) string {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	name := fmt.Sprintf("weft-cni-%d", os.Getpid())
	ns, err := netns.NewNamed(name)
	if err != nil {
		t.Fatal(err)
	}
	ns.Close()
	t.Cleanup(func() {
		if err := netns.DeleteNamed(name); err != nil {
			t.Error(err)
		}
	})
	if err := netns.Set(own); err != nil {
		panic(err) // the thread is lost
	}
	return "/run/netns/" + name
}
